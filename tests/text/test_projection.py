# SPDX-License-Identifier: Apache-2.0
"""Principal components against the covariance's eigenvectors, and files that keep them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.text.letter_encoder import LetterEncoder

from vastdet.text import (
    CategoryEmbeddings,
    Projection,
    add_category_embeddings,
    embed_categories,
    random_embeddings,
    read_category_embeddings,
    save_category_embeddings,
)
from vastdet.text.embedding_file import FILE_FORMAT
from vastdet.vocabulary import CategorySpace

NAMES = tuple(f"{colour} {shape}" for colour in ("red", "blue", "jade") for shape in "xyz")
SPACE = CategorySpace(NAMES, tuple(range(10, 10 + len(NAMES))))


def embeddings(dim: int = 6) -> CategoryEmbeddings:
    return embed_categories(SPACE, LetterEncoder(dim=dim))


def rows_of_rank(rank: int, *, num: int = 40, dim: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scales = torch.arange(rank, 0, -1.0)
    one, other = (torch.randn(n, rank, generator=generator) for n in (num, dim))
    return (one * scales) @ other.T + 3


@pytest.mark.parametrize("num_components", [1, 4, 11])
def test_components_are_those_of_the_covariance(num_components: int) -> None:
    rows = rows_of_rank(12)
    found = Projection.fit(rows, num_components)(rows).numpy()
    x = rows.double().numpy()
    centred = x - x.mean(axis=0)
    variances, vectors = np.linalg.eigh(centred.T @ centred)
    order = variances.argsort()[::-1][:num_components]
    columns = []
    for i in order:
        vector = vectors[:, i] * np.sign(vectors[np.abs(vectors[:, i]).argmax(), i])
        # A spread (a root of a variance) to the power -1/2.
        columns.append(centred @ vector * (variances[i] / variances.max()) ** -0.25)
    expected = np.stack(columns, axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    largest = np.abs(found - expected).max()
    print(f"largest difference {largest:.1e}")
    assert largest < 1e-6  # Measured: 4.2e-8, float32.


def test_a_sign_of_the_rows_changes_no_coordinate_but_its_sign() -> None:
    rows = rows_of_rank(6)
    one, other = (Projection.fit(x, 3) for x in (rows, -rows))
    torch.testing.assert_close(one.weights, other.weights)
    farthest = one.weights.gather(0, one.weights.abs().argmax(dim=0, keepdim=True))
    assert (farthest > 0).all()


@pytest.mark.parametrize("num_components", [-1, 0, 6, 7])
def test_components_are_fewer_than_rows_and_numbers(num_components: int) -> None:
    for rows in (torch.rand(6, 9), torch.rand(9, 6)):
        with pytest.raises(ValueError, match=r"expected at least 1 and fewer than 6"):
            Projection.fit(rows, num_components)


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        (torch.rand(0, 4), "0 of 4;"),
        (torch.rand(1, 4), "1 of 4;"),
        (torch.rand(5, 1), "5 of 1;"),
        (torch.full((5, 4), 0.1), "5 of 4 that are equal;"),
    ],
)
@pytest.mark.parametrize("num_components", [0, 1, 2])
def test_components_need_different_embeddings(
    rows: torch.Tensor, got: str, num_components: int
) -> None:
    with pytest.raises(ValueError, match=f"at least two different embeddings.*; got {got}"):
        Projection.fit(rows, num_components)


def test_rows_without_enough_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in 3 directions only, 5 components"):
        Projection.fit(rows_of_rank(3), 5)
    projection = Projection.fit(rows_of_rank(12), 5)
    with pytest.raises(ValueError, match="embeddings of 7 numbers, where the components are of 12"):
        projection(torch.rand(2, 7))
    with pytest.raises(ValueError, match="has no direction"):
        projection(projection.mean[None])
    with pytest.raises(ValueError, match="a projection"):
        Projection(torch.zeros(3), torch.zeros(4, 2))


def test_reduced_embeddings_know_what_they_came_from() -> None:
    full = embeddings()
    reduced = full.with_components(4)
    assert (reduced.dim, reduced.encoder_dim, full.encoder_dim) == (4, 6, 6)
    assert reduced.probe is full.probe
    torch.testing.assert_close(reduced.rows.norm(dim=1), torch.ones(len(SPACE)))
    assert torch.equal(reduced.rows, Projection.fit(full.rows, 4)(full.rows))
    assert reduced.restricted_to(SPACE).projection is reduced.projection
    with pytest.raises(ValueError, match="are components already"):
        reduced.with_components(2)
    with pytest.raises(ValueError, match="probe of shape"):
        CategoryEmbeddings(
            reduced.rows, NAMES, SPACE.dataset_ids, "x", probe=torch.ones(4),
            projection=reduced.projection,
        )  # fmt: skip
    with pytest.raises(ValueError, match="of 4 numbers for a projection to 3"):
        CategoryEmbeddings(
            reduced.rows, NAMES, SPACE.dataset_ids, "x",
            projection=Projection(torch.zeros(6), torch.zeros(6, 3)),
        )  # fmt: skip


def test_additions_are_projected_like_the_old_rows(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    save_category_embeddings(path, embeddings().with_components(4))
    before = read_category_embeddings(path)
    content = path.read_bytes()
    # An old category under a new id lies where it lay.
    more = CategorySpace((NAMES[3], "red w"), (100, 101))
    embed = partial(embed_categories, encoder=LetterEncoder(dim=6))
    assert add_category_embeddings(path, more, embed) == 2
    after = read_category_embeddings(path)
    assert after.names == (*NAMES, NAMES[3], "red w")
    assert torch.equal(after.rows[: len(SPACE)], before.rows)
    torch.testing.assert_close(after.rows[-2], before.rows[3], rtol=0, atol=1e-6)
    torch.testing.assert_close(after.rows[-1].norm(), torch.tensor(1.0))
    for name in ("mean", "weights"):
        assert torch.equal(getattr(after.projection, name), getattr(before.projection, name))
    path.write_bytes(content)
    okapi = CategorySpace(("okapi",), (102,))
    for encoder, message in (
        (LetterEncoder(dim=6, seed=5), "differently"),
        (LetterEncoder(dim=8), "embeddings of 8 numbers, where the components are of 6"),
    ):
        with pytest.raises(ValueError, match=message):
            add_category_embeddings(path, okapi, partial(embed_categories, encoder=encoder))
    with pytest.raises(ValueError, match="are components already"):
        before.with_added(before)
    with pytest.raises(ValueError, match="components of an encoder cannot be added"):
        embed_categories(okapi, LetterEncoder(dim=4)).with_added(before)
    assert path.read_bytes() == content


def test_only_reduced_files_have_the_new_version(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    full = embeddings()
    for made, version, extra in (
        (full, 1, set()),
        (full.with_components(4), 2, {"projection.mean", "projection.weights"}),
        (random_embeddings(SPACE, 5, 0), 1, set()),
    ):
        save_category_embeddings(path, made)
        with safe_open(path, framework="pt") as file:
            assert json.loads(file.metadata()[FILE_FORMAT])["version"] == version
        tensors = load_file(path)
        assert tensors.keys() - {"embeddings", "probe"} == extra
        read = read_category_embeddings(path)
        assert torch.equal(read.rows, made.rows)
        content = path.read_bytes()
        save_category_embeddings(path, read)
        assert path.read_bytes() == content


def test_a_reduced_file_without_its_projection_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    about = {"version": 2, "encoder": "x", "templates": [], "synonyms": False}
    about |= {"names": ["a", "b"], "dataset_ids": [1, 2]}
    tensors = {"embeddings": torch.ones(2, 3)}
    save_file(tensors, path, {FILE_FORMAT: json.dumps(about)})
    with pytest.raises(ValueError, match=r"is damaged: KeyError.*projection"):
        read_category_embeddings(path)
