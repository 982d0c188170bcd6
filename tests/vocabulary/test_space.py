# SPDX-License-Identifier: Apache-2.0
"""CategorySpace: ids, texts, frequency, saving, and its errors."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from vastdet.vocabulary import CategoryHierarchy, CategorySpace, frequency_groups


@pytest.fixture
def space() -> CategorySpace:
    """Three categories whose ids have gaps and do not ascend; two share a name."""
    return CategorySpace(names=("slug", "bus", "slug"), dataset_ids=(30, 7, 90))


def full_space() -> CategorySpace:
    graph = CategoryHierarchy.from_ids([("top", "a")], category_nodes=["a", None, "top"])
    return CategorySpace(
        names=("ärger", "bus", "slug"),
        dataset_ids=(30, 7, 90),
        synonyms=(("x", "y"), (), ("bullet",)),
        descriptions=("d", "", "e"),
        synsets=("a.n.01", "", ""),
        frequency=("r", None, "f"),
        image_counts=(1, 0, 500),
        instance_counts=(2, 0, 900),
        novel=(True, False, False),
        hierarchy=graph,
    )


def test_ids_go_both_ways(space: CategorySpace) -> None:
    assert len(space) == 3
    assert [space.to_contiguous(i) for i in (30, 7, 90)] == [0, 1, 2]
    assert [space.to_dataset(k) for k in range(3)] == [30, 7, 90]
    grid = np.array([[90, 7], [30, 30]])
    assert space.contiguous_ids(grid).tolist() == [[2, 1], [0, 0]]
    assert np.array_equal(space.dataset_ids_of(space.contiguous_ids(grid)), grid)
    assert space.contiguous_ids([]).shape == (0,)
    assert space.contiguous_ids(np.array([], dtype=np.float64)).dtype == np.int64
    assert space.contiguous_ids(np.int32(7)) == 1


def test_the_mapping_for_metadata_is_a_copy(space: CategorySpace) -> None:
    space.dataset_id_to_contiguous_id.clear()
    assert space.dataset_id_to_contiguous_id == {30: 0, 7: 1, 90: 2}


def test_names_may_repeat(space: CategorySpace) -> None:
    assert space.ids_of_name("slug") == (0, 2)
    assert space.ids_of_name("cat") == ()


def test_unknown_ids_are_errors(space: CategorySpace) -> None:
    with pytest.raises(ValueError, match=r"dataset id 8 among the 3 .*7\.\.90"):
        space.to_contiguous(8)
    with pytest.raises(ValueError, match=r"2 dataset ids .*\[8, 99\]"):
        space.contiguous_ids([7, 99, 8, 8])
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=r"outside 0\.\.2"):
            space.to_dataset(wrong)
        with pytest.raises(ValueError, match=r"outside 0\.\.2"):
            space.dataset_ids_of([0, wrong])
    with pytest.raises(ValueError, match="integers, got an array of float64"):
        space.contiguous_ids([7.0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": (), "dataset_ids": ()}, "at least one category"),
        ({"names": ("a", "b"), "dataset_ids": (1,)}, "1 dataset_ids for 2 names"),
        ({"names": ("a", "b"), "dataset_ids": (4, 4)}, r"unique.*\[4\].*\['a', 'b'\]"),
        ({"names": ("a", " "), "dataset_ids": (1, 2)}, "category 2 has the name ' '"),
        ({"names": ("a",), "dataset_ids": ("1",)}, "id '1'; expected an int"),
        ({"names": ("a",), "dataset_ids": (True,)}, "id True; expected an int"),
        ({"names": ("a",), "dataset_ids": (1,), "frequency": ("x",)}, "frequency groups {'x'}"),
        ({"names": ("a",), "dataset_ids": (1,), "image_counts": (-2,)}, "image_counts holds -2"),
        ({"names": ("a",), "dataset_ids": (1,), "novel": (True, False)}, "2 novel for 1 names"),
    ],
)
def test_inconsistent_fields_are_errors(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CategorySpace(**fields)


def test_hierarchy_of_another_size_is_an_error() -> None:
    graph = CategoryHierarchy.from_ids([], category_nodes=["a", "b"])
    with pytest.raises(ValueError, match="hierarchy has 2 categories, the space 1"):
        CategorySpace(names=("a",), dataset_ids=(1,), hierarchy=graph)


def test_it_is_immutable(space: CategorySpace) -> None:
    with pytest.raises(FrozenInstanceError):
        space.names = ("a",)  # type: ignore[misc]


def test_frequency_thresholds_of_lvis() -> None:
    groups = frequency_groups([0, 1, 10, 11, 100, 101, 10**6])
    assert groups == (None, "r", "r", "c", "c", "f", "f")
    with pytest.raises(ValueError, match="-1"):
        frequency_groups([-1])


def test_frequency_is_only_derived_when_asked(space: CategorySpace) -> None:
    counted = space.with_counts(image_counts=[5, 50, 500])
    assert counted.frequency == (None, None, None)
    assert counted.with_frequency_groups().frequency == ("r", "c", "f")
    with pytest.raises(ValueError, match="no image counts"):
        space.with_frequency_groups()


def test_lvis_states_the_groups_that_its_counts_give(shared_data: Path) -> None:
    lvis = CategorySpace.from_lvis(shared_data / "lvis_meta/lvis_v1_categories.json")
    assert lvis.with_frequency_groups().frequency == lvis.frequency


def test_prompts_read_like_text() -> None:
    names = ["apple", "bow_(weapon)", "bat(animal)", "United__States"]
    space = CategorySpace.from_names(names)
    assert space.prompts() == [
        ["a photo of an apple."],
        ["a photo of a bow (weapon)."],
        ["a photo of a bat (animal)."],
        ["a photo of an United States."],
    ]
    assert space.prompts(["An {}", "the {}!", "panda {}"])[1] == [
        "A bow (weapon)",
        "the bow (weapon)!",
        "panda bow (weapon)",
    ]


@pytest.mark.parametrize("templates", [["no place"], ["{} and {}"], [], "a {}"])
def test_templates_need_one_place_for_the_name(space: CategorySpace, templates: list) -> None:
    with pytest.raises(ValueError, match="template"):
        space.prompts(templates)


@pytest.mark.parametrize("make", [full_space, lambda: replace(full_space(), hierarchy=None)])
def test_save_and_load_round_trip(tmp_path: Path, make) -> None:
    space = make()
    space.save(tmp_path / "deep" / "space.json")
    assert CategorySpace.load(tmp_path / "deep" / "space.json") == space
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["space.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    space = full_space()
    path = tmp_path / "space.json"
    space.save(path)
    before = path.read_bytes()

    def no_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("vastdet.files.os.fsync", no_disk)
    with pytest.raises(OSError, match="no space"):
        replace(space, novel=None).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_loading_other_files_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        CategorySpace.load(path)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        CategorySpace.load(tmp_path)
    for text, message in [
        ("", "is empty"),
        ('{"format": "vastdet.Cat', "not valid JSON"),
        ('{"categories": []}', "no saved category space"),
        ("[1]", "no saved category space"),
        ('{"format": "vastdet.CategorySpace", "version": 9}', "version 9, this vastdet reads 1"),
        ('{"format": "vastdet.CategorySpace", "version": 1, "names": []}', "damaged"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            CategorySpace.load(path)


def test_loading_a_damaged_graph_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    full_space().save(path)
    content = json.loads(path.read_text())
    content["hierarchy"]["edges"] = [[0, 1], [1, 0]]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"damaged.*cycle"):
        CategorySpace.load(path)


def test_a_large_space_prints_short() -> None:
    assert len(repr(CategorySpace.from_names([f"n{i}" for i in range(10_000)]))) < 200
