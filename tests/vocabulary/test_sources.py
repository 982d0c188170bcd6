# SPDX-License-Identifier: Apache-2.0
"""Category spaces from COCO, LVIS, V3Det, name lists and metadata; reading only categories."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data.catalog import Metadata

from vastdet.vocabulary import CategorySpace
from vastdet.vocabulary.files import read_categories

TREE = {
    "categoryid2treeid": {"1": "n1", "2": "n2", "3": "", "9": "n2"},
    "id2name": {"n0": "thing", "n1": "animal", "n2": "dog"},
    "id2desc": {"n1": "moves", "n2": "barks"},
    "father2child": {"n0": ["n1", ""], "n1": ["n2"], "n2": []},
    "child2father": {"n1": ["n0"], "n2": ["n1"], "n0": None},
}


def v3det_categories(**extra: Any) -> list[dict[str, Any]]:
    names = ["animal", "dog", "slug"]
    return [{"id": k + 1, "name": name, **extra} for k, name in enumerate(names)]


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


# COCO --------------------------------------------------------------------------------------------


def test_coco_ids_ascend_and_supercategories_are_roots() -> None:
    categories = [
        {"id": 90, "name": "tool", "supercategory": "none"},
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 18, "name": "dog", "supercategory": "animal"},
    ]
    space = CategorySpace.from_coco({"categories": categories})
    assert space.names == ("person", "dog", "tool")
    assert space.dataset_ids == (1, 18, 90)
    graph = space.hierarchy
    assert graph is not None
    assert {graph.node_names[n] for n in graph.roots} == {"person", "animal", "tool"}
    assert graph.depths[graph.category_nodes].tolist() == [1, 1, 0]
    assert CategorySpace.from_coco([{"id": 1, "name": "a"}]).hierarchy is None


def test_coco_file_of_real_data(shared_data: Path) -> None:
    path = shared_data / "coco_cc/annotations/val.json"
    space = CategorySpace.from_coco(path)
    assert len(space) == 80
    assert space.to_contiguous(90) == 79
    assert space == CategorySpace.from_coco(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "'categories' is empty or missing"),
        ([{"id": 1}], r"categories\[0\] is {'id': 1}"),
        ([{"id": 1, "name": "a"}, {"id": "2", "name": "b"}], r"categories\[1\]"),
        (["dog"], r"categories\[0\] is dog"),
        ([{"id": 3, "name": "a"}, {"id": 3, "name": "b"}], r"unique.*\[3\].*\['a', 'b'\]"),
    ],
)
def test_wrong_categories_are_errors(categories: list, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        CategorySpace.from_coco({"categories": categories})
    path = write(tmp_path / "file.json", {"images": [], "categories": categories})
    with pytest.raises(ValueError, match=message):
        CategorySpace.from_coco(path)


# LVIS --------------------------------------------------------------------------------------------


def test_lvis_v1(shared_data: Path) -> None:
    path = shared_data / "lvis_meta/lvis_v1_categories.json"
    space = CategorySpace.from_lvis(path)
    assert len(space) == 1203
    assert space.dataset_ids == tuple(range(1, 1204))
    # The published numbers of rare, common and frequent categories of LVIS v1.
    assert [space.frequency.count(group) for group in "rcf"] == [337, 461, 405]
    assert space.names[0] == "aerosol_can"
    assert space.synonyms[0] == ("aerosol_can", "spray_can")
    assert space.synsets[0] == "aerosol.n.02"
    assert space.descriptions[0].startswith("a dispenser")
    assert space.image_counts is not None
    assert space.image_counts[0] == 64


def test_lvis_needs_frequencies() -> None:
    with pytest.raises(ValueError, match="category 4 has no 'frequency'"):
        CategorySpace.from_lvis([{"id": 4, "name": "a"}])


# V3Det -------------------------------------------------------------------------------------------


def test_v3det_tree_with_empty_entries(caplog: pytest.LogCaptureFixture) -> None:
    categories = v3det_categories(novel=False, cat_info="")
    categories[0]["cat_info"] = "given"
    space = CategorySpace.from_v3det(categories, category_tree=TREE)
    graph = space.hierarchy
    assert graph is not None
    assert graph.category_nodes.tolist() == [1, 2, -1]
    assert graph.category_ancestor_pairs.tolist() == [[1, 0]]
    assert space.descriptions == ("given", "barks", "")
    assert space.novel == (False, False, False)
    assert "1 of 3 categories have no node" in caplog.text


@pytest.mark.parametrize(
    "dropped",
    [
        ("father2child",),
        ("child2father",),
        ("id2name", "id2desc"),
        ("father2child", "child2father"),
        ("father2child", "child2father", "ancestor2descendant", "id2name"),
    ],
)
def test_v3det_tree_files_may_lack_keys(dropped: tuple[str, ...]) -> None:
    closure = {
        "ancestor2descendant": {"n0": ["n1", "n2"], "n1": ["n2"]},
        "descendant2ancestor": {"n2": ["n1", "n0"], "n1": ["n0"]},
    }
    tree = {key: value for key, value in {**TREE, **closure}.items() if key not in dropped}
    graph = CategorySpace.from_v3det(v3det_categories(), category_tree=tree).hierarchy
    assert graph is not None
    edges = [(graph.node_ids[a], graph.node_ids[b]) for a, b in graph.edges.tolist()]
    assert sorted(edges) == [("n0", "n1"), ("n1", "n2")]


def test_v3det_tree_that_contradicts_itself_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    tree = {**TREE, "ancestor2descendant": {"n0": ["n1"], "n2": ["n0"]}}
    CategorySpace.from_v3det(v3det_categories(), category_tree=tree)
    assert "2 are not listed, and 1 listed ones are not implied" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"father2child": {"n2": ["n0"]}}, r"cycle: .*n\d \(\w+\) -> "),
        ({"father2child": {"n0": ["n77"]}}, "1 node ids .* n77"),
        ({"categoryid2treeid": {"1": "n88"}}, "1 node ids .* n88"),
        ({"categoryid2treeid": None}, "is no category tree"),
        ({"father2child": {"n0": 5}}, r"father2child\['n0'\] is 5"),
    ],
)
def test_wrong_trees_are_errors(change: dict, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "tree.json", {**TREE, **change})
    with pytest.raises(ValueError, match=message) as caught:
        CategorySpace.from_v3det(v3det_categories(), category_tree=path)
    assert str(path) in str(caught.value)


def test_v3det_name_list_comes_first(tmp_path: Path) -> None:
    names = write(tmp_path / "names.txt", "\ufeffanimal\ndog\nslug (bullet)\n")
    space = CategorySpace.from_v3det(v3det_categories(), name_list=names)
    assert space.names == ("animal", "dog", "slug (bullet)")
    assert space.synonyms == ((), (), ("slug",))
    assert CategorySpace.from_v3det(name_list=names).dataset_ids == (1, 2, 3)
    with pytest.raises(ValueError, match=r"1\.\.3, but .* has 2 categories"):
        CategorySpace.from_v3det(v3det_categories()[:2], name_list=names)
    with pytest.raises(ValueError, match="got neither"):
        CategorySpace.from_v3det(category_tree=TREE)


def test_v3det_whole_vocabulary_loads_fast(shared_data: Path) -> None:
    folder = shared_data / "v3det_meta"
    start = time.process_time()
    space = CategorySpace.from_v3det(
        folder / "v3det_2023_v1_train_cat_info.json",
        category_tree=folder / "v3det_category_tree_from_wordnet.json",
    )
    # "Well under a second": about 0.5 s of CPU time; the bound allows for a slower machine.
    assert time.process_time() - start < 2.0
    assert len(space) == 13204
    assert space.novel is not None
    assert sum(space.novel) == 6495
    assert len(space) - len(set(space.names)) == 38
    assert space.image_counts is not None
    assert space.image_counts.count(0) == 146
    # The file's own list of ancestors, restricted to categories, is what the edges imply.
    tree = json.loads((folder / "v3det_category_tree_from_wordnet.json").read_text())
    category_of = {node: int(i) - 1 for i, node in tree["categoryid2treeid"].items()}
    listed = {
        (category_of[low], category_of[high])
        for low, above in tree["descendant2ancestor"].items()
        for high in above
        if low in category_of and high in category_of
    }
    assert space.hierarchy is not None
    assert set(map(tuple, space.hierarchy.category_ancestor_pairs.tolist())) == listed
    ids = np.random.default_rng(0).permutation(13204)[:1000] + 1
    assert np.array_equal(space.dataset_ids_of(space.contiguous_ids(ids)), ids)


def test_v3det_mini_with_ancestors_only(shared_data: Path) -> None:
    folder = shared_data / "eval_fixtures/v3det_mini"
    space = CategorySpace.from_v3det(
        folder / "gt.json", category_tree=folder / "category_tree.json"
    )
    assert len(space) == 183
    tree = json.loads((folder / "category_tree.json").read_text())
    below = {
        (low, high) for high, descendants in tree["ancestor2descendant"].items()
        for low in descendants
    }  # fmt: skip
    graph = space.hierarchy
    assert graph is not None
    rows, columns = graph.ancestor_matrix.nonzero()
    found = {(graph.node_ids[a], graph.node_ids[b]) for a, b in zip(rows, columns, strict=True)}
    assert found == below


# Names and metadata ------------------------------------------------------------------------------


def test_names_from_a_list_and_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "names.txt", "dog\n cat \ndog\n\n")
    space = CategorySpace.from_names(path)
    assert space.names == ("dog", "cat", "dog")
    assert space.dataset_ids == (1, 2, 3)
    assert space == CategorySpace.from_names(["dog", "cat", "dog"])


def test_wrong_name_lists_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        CategorySpace.from_names(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is empty"):
        CategorySpace.from_names(write(tmp_path / "empty.txt", "\n"))
    with pytest.raises(ValueError, match="line 2 is empty"):
        CategorySpace.from_names(write(tmp_path / "gap.txt", "a\n\nb\n"))
    with pytest.raises(ValueError, match="at least one category"):
        CategorySpace.from_names([])


def test_metadata_with_and_without_a_mapping() -> None:
    metadata = Metadata(name="m")
    metadata.thing_classes = ["a", "b"]
    assert CategorySpace.from_metadata(metadata).dataset_ids == (0, 1)
    metadata.thing_dataset_id_to_contiguous_id = {7: 1, 3: 0}
    metadata.class_image_count = [{"id": 7, "image_count": 70}, {"id": 3, "image_count": 30}]
    space = CategorySpace.from_metadata(metadata)
    assert space.dataset_ids == (3, 7)
    assert space.image_counts == (30, 70)


def test_wrong_metadata_is_an_error() -> None:
    with pytest.raises(ValueError, match="'m' has no thing_classes"):
        CategorySpace.from_metadata(Metadata(name="m"))
    metadata = Metadata(name="m")
    metadata.thing_classes = ["a", "b"]
    metadata.thing_dataset_id_to_contiguous_id = {1: 0, 2: 1, 3: 1}
    with pytest.raises(ValueError, match="maps 3 ids; expected each of the 2"):
        CategorySpace.from_metadata(metadata)


# Only the categories of a file -------------------------------------------------------------------


def test_only_the_categories_are_decoded(tmp_path: Path) -> None:
    text = '{"images": [1, 2, 3], "categories" : [{"id": 1, "name": "ä"}], "annotations": [broken'
    assert read_categories(write(tmp_path / "cut.json", text)) == [{"id": 1, "name": "ä"}]


def test_lists_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vastdet.vocabulary.files.FIRST_CHUNK", 3)
    categories = [{"id": k, "name": "ü" * k} for k in range(50)]
    text = json.dumps({"categories": categories, "x": 1}, ensure_ascii=False)
    assert read_categories(write(tmp_path / "file.json", text)) == categories


def test_a_second_key_of_that_name_does_not_mislead(tmp_path: Path) -> None:
    content = {"info": {"categories": ["no"]}, "categories": [{"id": 1, "name": "a"}]}
    assert read_categories(write(tmp_path / "file.json", content)) == content["categories"]
    quoted = {"info": 'the "categories": [', "categories": [{"id": 1, "name": "a"}]}
    assert read_categories(write(tmp_path / "file.json", quoted)) == quoted["categories"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"categories": [{"id": 1', "not valid JSON"),
        ('{"images": []}', "no list 'categories'"),
        ("3", "no list 'categories'"),
    ],
)
def test_files_without_categories_are_errors(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "file.json", text)
    with pytest.raises(ValueError, match=message):
        read_categories(path)
    with pytest.raises(FileNotFoundError):
        read_categories(tmp_path / "missing.json")
