# SPDX-License-Identifier: Apache-2.0
"""Embeddings of categories: means over prompts, rows by id and name, random rows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.text.letter_encoder import LetterEncoder

from vastdet.text import CategoryEmbeddings, embed_categories, random_embeddings
from vastdet.vocabulary import CategorySpace
from vastdet.vocabulary.prompts import TEMPLATE_SETS, find_templates

TEMPLATES = ("a photo of a {}.", "{}", "two of the {}")


@pytest.fixture
def space() -> CategorySpace:
    """Ids with gaps that do not ascend, two of one name, synonyms."""
    return CategorySpace(
        names=("slug", "apple_(fruit)", "slug", "bus"),
        dataset_ids=(30, 7, -9, 2),
        synonyms=(("bullet", "slug"), (), (), ("coach", "omnibus", "bus")),
    )


@pytest.mark.parametrize("batch_size", [1, 3, 256])
@pytest.mark.parametrize("synonyms", [False, True])
def test_rows_are_means_of_normalised_prompts(
    space: CategorySpace, synonyms: bool, batch_size: int
) -> None:
    names = [["slug"], ["apple (fruit)"], ["slug"], ["bus"]]
    if synonyms:
        names = [["slug", "bullet"], names[1], names[2], ["bus", "coach", "omnibus"]]
    encoder = LetterEncoder()
    found = embed_categories(
        space, encoder, templates=TEMPLATES, synonyms=synonyms, batch_size=batch_size
    )
    for row, own in zip(found.rows, names, strict=True):
        texts = []
        for name in own:
            article = "an" if name in ("apple (fruit)", "omnibus") else "a"
            texts += [f"a photo of {article} {name}.", name, f"two of the {name}"]
        mean = sum(LetterEncoder().encode([text])[0].double() for text in texts) / len(texts)
        assert float((row - mean / mean.norm()).abs().max()) < 1e-6
    assert found.rows.dtype == torch.float32
    assert (found.names, found.dataset_ids) == (space.names, space.dataset_ids)
    assert (found.templates, found.synonyms, found.encoder) == (TEMPLATES, synonyms, "letters 0")
    assert max(map(len, encoder.batches)) <= batch_size


def test_categories_come_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    space = CategorySpace.from_names([f"thing {k} " + "x" * (k % 7) for k in range(100)])
    whole = embed_categories(space, LetterEncoder(), templates=TEMPLATES)
    monkeypatch.setattr("vastdet.text.category_embeddings.SORTED_BATCHES", 2)
    pieces = embed_categories(space, LetterEncoder(), templates=TEMPLATES, batch_size=5)
    assert torch.allclose(whole.rows, pieces.rows, atol=1e-6)
    again = embed_categories(space, LetterEncoder(), templates=TEMPLATES, batch_size=5)
    assert torch.equal(pieces.rows, again.rows)


def test_rows_follow_any_order_and_leave_others_out(space: CategorySpace) -> None:
    found = embed_categories(space, LetterEncoder())
    other = CategorySpace(names=("bus", "slug", "slug"), dataset_ids=(2, -9, 30))
    assert torch.equal(found.rows_of(other), found.rows[[3, 2, 0]])
    part = found.restricted_to(other)
    assert (part.names, part.dataset_ids) == (other.names, other.dataset_ids)
    assert torch.equal(part.rows, found.rows[[3, 2, 0]])
    assert part.probe is found.probe


def test_missing_and_foreign_categories_are_errors(space: CategorySpace) -> None:
    found = embed_categories(space, LetterEncoder())
    more = CategorySpace(names=("bus", "car", "van"), dataset_ids=(2, 4, 5))
    with pytest.raises(ValueError, match=r"2 of the 3 .* no embedding, the first is id 4 'car'"):
        found.rows_of(more)
    swapped = replace(space, dataset_ids=(30, 2, -9, 7))
    with pytest.raises(
        ValueError, match=r"2 of the 4 .* id 2, 'apple_\(fruit\)' here and 'bus' there"
    ):
        found.rows_of(swapped)


def test_added_rows_follow_the_old_ones(space: CategorySpace) -> None:
    old = embed_categories(space, LetterEncoder())
    new = embed_categories(CategorySpace(("van",), (4,)), LetterEncoder())
    both = old.with_added(replace(new, encoder="the same in another folder"))
    assert torch.equal(both.rows, torch.cat([old.rows, new.rows]))
    assert both.names == (*space.names, "van")
    assert both.dataset_ids == (30, 7, -9, 2, 4)
    assert both.encoder == "letters 0"


def test_rows_of_another_making_are_not_added(space: CategorySpace) -> None:
    old, van = embed_categories(space, LetterEncoder()), CategorySpace(("van",), (4,))
    # The same name, other weights.
    other = embed_categories(van, LetterEncoder(seed=1))
    with pytest.raises(ValueError, match="embeds the same text differently"):
        old.with_added(replace(other, encoder=old.encoder))
    with pytest.raises(ValueError, match="with dim 6 cannot be added to some with dim 8"):
        old.with_added(embed_categories(van, LetterEncoder(dim=6)))
    with pytest.raises(ValueError, match="with templates"):
        old.with_added(embed_categories(van, LetterEncoder(), templates=["{}"]))
    with pytest.raises(ValueError, match="with synonyms True"):
        old.with_added(embed_categories(van, LetterEncoder(), synonyms=True))
    with pytest.raises(ValueError, match="4 ids have an embedding already, such as -9"):
        old.with_added(old)
    with pytest.raises(ValueError, match="cannot be added"):
        random_embeddings(space, 8, 0).with_added(random_embeddings(van, 8, 1))


def test_random_rows_belong_to_ids_and_seed(space: CategorySpace) -> None:
    rows = random_embeddings(space, 64, 3).rows
    assert torch.allclose(rows.norm(dim=1), torch.ones(4), atol=1e-6)
    part = CategorySpace(names=("bus", "slug"), dataset_ids=(2, 30))
    assert torch.equal(random_embeddings(part, 64, 3).rows, rows[[3, 0]])
    assert float((random_embeddings(part, 64, 4).rows - rows[[3, 0]]).abs().max()) > 0.1
    # Over the whole sphere: no direction is preferred.
    many = random_embeddings(CategorySpace.from_names([f"c{k}" for k in range(4000)]), 16, 0)
    assert float(many.rows.mean(dim=0).abs().max()) < 5 / (16 * 4000) ** 0.5
    for dim, seed in ((0, 1), (4, -1)):
        with pytest.raises(ValueError, match="dimension of at least 1 and a seed"):
            random_embeddings(space, dim, seed)


def test_v3det_has_names_twice_and_every_id_a_row(shared_data: Path) -> None:
    file = shared_data / "v3det_meta" / "v3det_2023_v1_train_cat_info.json"
    space = CategorySpace.from_v3det(file)
    found = embed_categories(space, LetterEncoder(dim=4), templates=["{}"])
    assert found.rows.shape == (13204, 4)
    assert len(set(space.names)) == 13204 - 38
    assert torch.equal(found.rows_of(space), found.rows)
    twice = [ids for ids in map(space.ids_of_name, set(space.names)) if len(ids) > 1]
    for first, *others in twice:
        for other in others:
            assert torch.allclose(found.rows[first], found.rows[other], atol=1e-6)


def test_wrong_input_is_named(space: CategorySpace) -> None:
    with pytest.raises(ValueError, match="batch size must be at least 1, got 0"):
        embed_categories(space, LetterEncoder(), batch_size=0)
    with pytest.raises(ValueError, match=r"category 8 has the name '_', which leaves nothing"):
        embed_categories(CategorySpace(("a", "_"), (3, 8)), LetterEncoder())
    with pytest.raises(ValueError, match="template"):
        embed_categories(space, LetterEncoder(), templates=["no place"])
    with pytest.raises(ValueError, match="at least one category"):
        embed_categories(CategorySpace((), ()), LetterEncoder())


def test_rows_and_categories_must_fit() -> None:
    def make(rows: torch.Tensor, names: tuple[str, ...], ids: tuple[int, ...]) -> None:
        CategoryEmbeddings(rows=rows, names=names, dataset_ids=ids, encoder="x")

    with pytest.raises(ValueError, match="at least one category, got"):
        make(torch.empty(0, 4), (), ())
    with pytest.raises(ValueError, match="float32"):
        make(torch.empty(1, 4, dtype=torch.float16), ("a",), (1,))
    with pytest.raises(ValueError, match="2 embeddings for 1 names and 2 ids"):
        make(torch.ones(2, 4), ("a",), (1, 2))
    with pytest.raises(ValueError, match="must be unique"):
        make(torch.ones(2, 4), ("a", "b"), (1, 1))
    with pytest.raises(ValueError, match=r"1 embeddings are not finite.* id 2 'b'"):
        make(torch.tensor([[1.0], [torch.nan]]), ("a", "b"), (1, 2))
    with pytest.raises(ValueError, match="probe of shape"):
        CategoryEmbeddings(torch.ones(1, 4), ("a",), (1,), "x", probe=torch.ones(3))


def test_templates_by_name_or_written_out() -> None:
    assert find_templates(["scene"]) == TEMPLATE_SETS["scene"]
    assert find_templates(["a {}", "{}"]) == ("a {}", "{}")
    for name, templates in TEMPLATE_SETS.items():
        assert find_templates(templates) == templates, name
    for values in (["scenes"], ["scene", "{}"], ["{} {}"]):
        with pytest.raises(ValueError, match=r"no template.*name, photo, scene"):
            find_templates(values)
    with pytest.raises(ValueError, match="no template given"):
        find_templates([])
