# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.modeling import build_model
from tests.text.letter_encoder import LetterEncoder

from vastdet.engine import VastdetCheckpointer
from vastdet.engine.checkpoint import read_weights
from vastdet.engine.config_files import load_config
from vastdet.engine.export_weights import export_weights
from vastdet.text import (
    add_category_embeddings,
    embed_categories,
    random_embeddings,
    read_category_embeddings,
    save_category_embeddings,
)
from vastdet.vocabulary import CategorySpace

CONFIG = """
MODEL:
  META_ARCHITECTURE: CQDINO
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {NAME: build_timm_backbone, FREEZE_AT: 0}
  TIMM: {NAME: test_resnet, OUT_FEATURES: [res3, res4, res5]}
  CQ_DINO:
    {NUM_CLASSES: 6, EMBED_DIM: 32, NUM_HEADS: 2, FEEDFORWARD_DIM: 32, NUM_LEVELS: 3,
     NUM_QUERIES: 6, NUM_ENCODER_LAYERS: 1, NUM_DECODER_LAYERS: 1, IN_FEATURES: [res3, res4, res5],
     CATEGORY: {EMBEDDINGS: random, DIM: 16, CORRELATION: none},
     SELECTION: {NUM_SELECTED: 2, NUM_HEADS: 2, IMAGE_DIM: 16, FEEDFORWARD_DIM: 32},
     FUSION: {DIM: 32, NUM_HEADS: 2}}
VERSION: 2
"""
KEY = "categories.queries.embedding"


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("add_categories")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, weights, and embeddings of six old and two new names."""
    folder = tmp_path_factory.mktemp("trained")
    old = CategorySpace.from_names([f"old {k}" for k in range(6)])
    old.save(folder / "old.json")
    (folder / "config.yaml").write_text(CONFIG)
    torch.manual_seed(0)
    opts = ["MODEL.CQ_DINO.VOCABULARY", str(folder / "old.json")]
    model = build_model(load_config(folder / "config.yaml", opts))
    VastdetCheckpointer(model, str(folder)).save("model", iteration=7)
    both = CategorySpace(
        names=(*old.names, "saola", "okapi"), dataset_ids=(1, 2, 3, 4, 5, 6, 10, 11)
    )
    for name, space, dim in (("all", both, 16), ("old", old, 16), ("wide", both, 20)):
        save_category_embeddings(folder / f"{name}.safetensors", random_embeddings(space, dim, 0))
    others = random_embeddings(both, 16, 1)
    save_category_embeddings(folder / "others.safetensors", others)
    return folder


def arguments_of(folder: Path, embeddings: str = "all") -> list[str]:
    return [
        *("--config-file", str(folder / "config.yaml"), "--weights", str(folder / "model.pth")),
        *("--embeddings", str(folder / f"{embeddings}.safetensors")),
    ]


NAMES = ["--names", "saola", "okapi", "--first-id", "10"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("from_file", [False, True])
def test_writes_weights_and_a_vocabulary_that_a_model_takes_up(
    tool: ModuleType,
    trained: Path,
    tmp_path: Path,
    suffix: str,
    from_file: bool,
    capsys: pytest.CaptureFixture,
) -> None:
    output = tmp_path / f"more{suffix}"
    given = NAMES
    if from_file:
        CategorySpace(("saola", "okapi"), (10, 11)).save(tmp_path / "new.json")
        given = ["--vocabulary", str(tmp_path / "new.json")]
    arguments = [*arguments_of(trained), *given, "--output", str(output)]
    opts = ["MODEL.CQ_DINO.VOCABULARY", str(trained / "old.json")]
    assert tool.main([*arguments, *opts]) == 0
    out = capsys.readouterr().out
    assert "6 categories and 2 new ones" in out
    assert "Largest change of an old query: 0." in out
    space = CategorySpace.load(tmp_path / "more.json")
    assert space.names[6:] == ("saola", "okapi")
    assert space.dataset_ids == (1, 2, 3, 4, 5, 6, 10, 11)
    # The last line is what a command needs.
    model = build_model(load_config(trained / "config.yaml", out.splitlines()[-1].split()))
    VastdetCheckpointer(model).load(str(output), checkpointables=[], complete=True)
    old = read_weights(str(trained / "model.pth"))["model"]
    new = model.state_dict()
    assert torch.equal(new[KEY][:6], old[KEY])
    assert new[KEY].shape == (8, 16)
    assert all(torch.equal(new[k], x) for k, x in old.items() if k != KEY)
    assert "iteration" not in read_weights(str(output))


def test_components_of_embeddings_take_new_names_too(
    tool: ModuleType, trained: Path, tmp_path: Path
) -> None:
    old = CategorySpace.from_names([f"old {letter}" for letter in "abcdefghijklmnopqrst"])
    old.save(tmp_path / "old.json")
    path = tmp_path / "e.safetensors"
    encoder = LetterEncoder(dim=24)
    save_category_embeddings(path, embed_categories(old, encoder).with_components(16))
    opts = ["MODEL.CQ_DINO.VOCABULARY", str(tmp_path / "old.json")]
    opts += ["MODEL.CQ_DINO.NUM_CLASSES", "20", "MODEL.CQ_DINO.CATEGORY.EMBEDDINGS", str(path)]
    torch.manual_seed(0)
    model = build_model(load_config(trained / "config.yaml", opts))
    VastdetCheckpointer(model, str(tmp_path)).save("model")
    new = CategorySpace(("saola", "okapi"), (100, 101))
    add_category_embeddings(path, new, partial(embed_categories, encoder=encoder))
    arguments = ["--config-file", str(trained / "config.yaml"), "--embeddings", str(path)]
    arguments += ["--weights", str(tmp_path / "model.pth"), "--output", str(tmp_path / "more.pth")]
    arguments += ["--names", *new.names, "--first-id", "100"]
    assert tool.main([*arguments, *opts]) == 0
    queries = read_weights(str(tmp_path / "more.pth"))["model"][KEY]
    # An untrained model has its embeddings as queries: nothing moves.
    assert torch.equal(queries, read_category_embeddings(path).rows)


def test_exported_weights_of_half_precision_are_taken(
    tool: ModuleType, trained: Path, tmp_path: Path
) -> None:
    half, output = tmp_path / "half.safetensors", tmp_path / "more.safetensors"
    export_weights(trained / "model.pth", half, half=True)
    arguments = [*arguments_of(trained), *NAMES, "--output", str(output), "--weights", str(half)]
    assert tool.main([*arguments, "MODEL.CQ_DINO.VOCABULARY", str(trained / "old.json")]) == 0
    old, new = (read_weights(str(path))["model"] for path in (half, output))
    assert new[KEY].shape == (8, 16)
    assert torch.equal(new[KEY][:6], old[KEY].float())
    assert new.keys() == old.keys()


@pytest.mark.parametrize(
    ("embeddings", "extra", "message"),
    [
        ("old", NAMES, "2 of the 8 categories have no embedding, the first is id 10 'saola'"),
        ("wide", NAMES, "embeddings of 20 numbers for queries of 16"),
        ("others", NAMES, "predicts a trained query no better (mean squared error"),
        ("all", ["--names", "old 3", "--first-id", "10"], "have the name of an old one"),
        ("all", ["--names", "okapi", "--first-id", "3"], "id 3 is 'old 2'"),
        ("all", [*NAMES, "--link-parents"], "old vocabulary has no hierarchy"),
        ("none", NAMES, "none.safetensors"),
        ("all", ["--vocabulary", "no_such_dataset"], "no_such_dataset"),
    ],
)
def test_wrong_input_is_one_line(
    tool: ModuleType,
    trained: Path,
    tmp_path: Path,
    embeddings: str,
    extra: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = [*arguments_of(trained, embeddings), *extra, "--output", str(tmp_path / "x.pth")]
    opts = ["MODEL.CQ_DINO.VOCABULARY", str(trained / "old.json")]
    assert tool.main([*arguments, *opts]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(
    tool: ModuleType, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    opts = ["MODEL.CQ_DINO.VOCABULARY", str(trained / "old.json")]
    assert tool.main([*arguments_of(trained), *NAMES, "--output", "x.txt", *opts]) == 2
    assert "expected .pth or .safetensors" in capsys.readouterr().err
    arguments = ["--config-file", str(trained / "config.yaml"), "--weights", "gone.pth"]
    arguments += ["--embeddings", "e.safetensors", *NAMES, "--output", "x.pth"]
    assert tool.main([*arguments, *opts]) == 2
    assert "no weights at gone.pth" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.parse_arguments([*arguments_of(trained), "--names", "okapi", "--output", "x.pth"])
