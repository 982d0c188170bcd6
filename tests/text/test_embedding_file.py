# SPDX-License-Identifier: Apache-2.0
"""Embedding files: their order, what they refuse, and additions that leave old rows alone."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.text.letter_encoder import LetterEncoder

from vastdet import files
from vastdet.text import (
    add_category_embeddings,
    embed_categories,
    load_category_embeddings,
    random_embeddings,
    read_category_embeddings,
    save_category_embeddings,
)
from vastdet.text.embedding_file import FILE_FORMAT
from vastdet.vocabulary import CategorySpace

SPACE = CategorySpace(
    names=("slug", "ärger \"1\"", "slug", "bus"), dataset_ids=(30, 7, -9, 2**40)
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of embeddings of SPACE."""
    path = tmp_path / "folder" / "e.safetensors"
    save_category_embeddings(path, embed_categories(SPACE, LetterEncoder(), synonyms=True))
    return path


def test_a_file_holds_what_was_saved(path: Path) -> None:
    saved = embed_categories(SPACE, LetterEncoder(), synonyms=True)
    read = read_category_embeddings(path)
    assert torch.equal(read.rows, saved.rows)
    assert torch.equal(read.probe, saved.probe)
    for field in ("names", "dataset_ids", "encoder", "templates", "synonyms"):
        assert getattr(read, field) == getattr(saved, field)
    # Any reader of safetensors finds the rows.
    assert torch.equal(load_file(path)["embeddings"], saved.rows)


def test_equal_content_makes_equal_files(path: Path) -> None:
    content = path.read_bytes()
    for _ in range(3):
        save_category_embeddings(path, read_category_embeddings(path))
        assert path.read_bytes() == content
    random = random_embeddings(SPACE, 4, 0)
    save_category_embeddings(path, random)
    assert torch.equal(read_category_embeddings(path).rows, random.rows)
    assert read_category_embeddings(path).probe is None


def test_rows_come_in_the_order_of_the_space(path: Path) -> None:
    space = CategorySpace(names=("bus", "slug"), dataset_ids=(2**40, 30))
    assert torch.equal(load_category_embeddings(path, space), load_file(path)["embeddings"][[3, 0]])
    with pytest.raises(ValueError, match=rf"^{path}: 1 of the 1 .* id 30, 'snail' here and 'slug'"):
        load_category_embeddings(path, CategorySpace(("snail",), (30,)))
    with pytest.raises(ValueError, match=rf"^{path}: 1 of the 2 .* id 5 'van'.*--append"):
        load_category_embeddings(path, CategorySpace(("slug", "van"), (30, 5)))


def test_added_categories_leave_old_rows_alone(path: Path, tmp_path: Path) -> None:
    before, encoder = load_file(path)["embeddings"], LetterEncoder()
    embed = partial(embed_categories, encoder=encoder, synonyms=True)
    space = CategorySpace(
        names=("van", "bus", "lorry"), dataset_ids=(5, 2**40, 6), synonyms=((), (), ("truck",))
    )
    content, output = path.read_bytes(), tmp_path / "more.safetensors"
    assert add_category_embeddings(path, space, embed, output=output) == 2
    assert path.read_bytes() == content
    assert add_category_embeddings(path, space, embed) == 2
    assert path.read_bytes() == output.read_bytes()
    found = read_category_embeddings(path)
    assert found.dataset_ids == (*SPACE.dataset_ids, 5, 6)
    assert torch.equal(found.rows[:4], before)
    assert torch.equal(found.rows[[4, 3, 5]], load_category_embeddings(path, space))
    assert {"a photo of a truck."} <= {text for batch in encoder.batches for text in batch}
    encoder.batches.clear()
    assert add_category_embeddings(path, space, embed) == 0
    assert not encoder.batches


def test_additions_that_do_not_fit_change_nothing(path: Path) -> None:
    content = path.read_bytes()
    embed = partial(embed_categories, encoder=LetterEncoder(seed=5), synonyms=True)
    with pytest.raises(ValueError, match="differently"):
        add_category_embeddings(path, CategorySpace(("van",), (5,)), embed)
    with pytest.raises(ValueError, match="another name"):
        add_category_embeddings(path, CategorySpace(("van",), (30,)), embed)
    assert path.read_bytes() == content


def test_an_interrupted_write_keeps_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = path.read_bytes()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_category_embeddings(path, random_embeddings(SPACE, 4, 0))
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_category_embeddings(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"written as \.safetensors, but the path is .*e\.pth"):
        save_category_embeddings(tmp_path / "e.pth", random_embeddings(SPACE, 4, 0))
    other = tmp_path / "other.safetensors"
    save_file({"embeddings": torch.ones(2, 3)}, other)
    with pytest.raises(ValueError, match="does not say which categories"):
        read_category_embeddings(other)
    other.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="no safetensors file, or is damaged"):
        read_category_embeddings(other)

    def write(**about: object) -> None:
        full = {"version": 1, "encoder": "x", "templates": [], "synonyms": False}
        full |= {"names": ["a", "b"], "dataset_ids": [1, 2], **about}
        save_file({"embeddings": torch.ones(2, 3)}, other, {FILE_FORMAT: json.dumps(full)})

    write()
    assert read_category_embeddings(other).dim == 3
    write(version=3)
    with pytest.raises(ValueError, match="has version 3, this vastdet reads 1 and 2; update"):
        read_category_embeddings(other)
    for about in ({"names": ["a"]}, {"dataset_ids": [1, 1]}, {"dataset_ids": None}, {"new": 1}):
        write(**about)
        with pytest.raises(ValueError, match=r"is damaged: .*compute the embeddings again"):
            read_category_embeddings(other)
