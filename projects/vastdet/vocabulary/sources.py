# SPDX-License-Identifier: Apache-2.0
"""The fields of a category space, read from annotation files, name lists and metadata."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data.catalog import Metadata

from vastdet.files import local_path, read_json
from vastdet.vocabulary.files import read_categories
from vastdet.vocabulary.hierarchy import CategoryHierarchy
from vastdet.vocabulary.tree_file import node_texts, parse_tree

# A path, the content of an annotation file, or its list of categories.
Source = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]
Fields = dict[str, Any]
# The values of `supercategory` that common export tools write when there is none.
NO_SUPERCATEGORY = {None, "", "none"}


def coco_fields(source: Source) -> Fields:
    """Fields from COCO-format categories; supercategories become a hierarchy of two levels."""
    categories, where = _categories(source)
    fields = _common_fields(categories, where)
    fields["hierarchy"] = _supercategory_hierarchy(categories)
    return fields


def lvis_fields(source: Source) -> Fields:
    """Fields from LVIS categories, which must have a frequency."""
    categories, where = _categories(source)
    without = [c["id"] for c in categories if c.get("frequency") is None]
    if without:
        raise ValueError(
            f"{where}: category {without[0]} has no 'frequency', so this is not an LVIS file; "
            "from_coco reads categories without frequencies"
        )
    return _common_fields(categories, where)


def v3det_fields(
    annotations: Source | None, name_list: str | Path | None, category_tree: Any
) -> Fields:
    """Fields from any of V3Det's three files, at least one of the first two."""
    if annotations is not None:
        categories, where = _categories(annotations)
        fields = _common_fields(categories, where)
        if name_list is not None:
            _rename(fields, name_fields(name_list), where=where, name_list=str(name_list))
    elif name_list is not None:
        fields = name_fields(name_list)
    else:
        raise ValueError("from_v3det needs the annotation file or the name list, got neither")
    if category_tree is not None:
        _add_tree(fields, category_tree)
    return fields


def name_fields(source: str | Path | Sequence[str]) -> Fields:
    """Fields from names, in order, or a text file of one name a line; dataset ids are 1..K."""
    if isinstance(source, (str, Path)):
        text = local_path(source).read_text("utf-8-sig")
        names = [line.strip() for line in text.rstrip().splitlines()]
        for number, name in enumerate(names, start=1):
            if not name:
                raise ValueError(f"{source}, line {number} is empty; expected one name a line")
        if not names:
            raise ValueError(f"{source} is empty; expected one category name a line")
    else:
        names = list(source)
    return {"names": tuple(names), "dataset_ids": tuple(range(1, len(names) + 1))}


def metadata_fields(metadata: Metadata) -> Fields:
    """Fields from a dataset's Detectron2 metadata."""
    classes = metadata.get("thing_classes")
    if not classes:
        raise ValueError(
            f"the metadata of dataset '{metadata.name}' has no thing_classes, so its categories "
            "are unknown; register the dataset, or set MetadataCatalog.get(name).thing_classes"
        )
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if mapping is None:
        mapping = {k: k for k in range(len(classes))}
    by_contiguous = {contiguous: dataset_id for dataset_id, contiguous in mapping.items()}
    if len(mapping) != len(classes) or sorted(by_contiguous) != list(range(len(classes))):
        raise ValueError(
            f"thing_dataset_id_to_contiguous_id of dataset '{metadata.name}' maps {len(mapping)} "
            f"ids; expected each of the {len(classes)} contiguous ids of thing_classes once"
        )
    dataset_ids = tuple(int(by_contiguous[k]) for k in range(len(classes)))
    fields: Fields = {"names": tuple(classes), "dataset_ids": dataset_ids}
    # Detectron2's LVIS metadata: a list of {id, image_count}.
    counts = {c["id"]: c["image_count"] for c in metadata.get("class_image_count", ())}
    if counts and all(i in counts for i in dataset_ids):
        fields["image_counts"] = tuple(counts[i] for i in dataset_ids)
    return fields


def _categories(source: Source) -> tuple[list[Mapping[str, Any]], str]:
    """The categories of a source in the order of their ids, and what to call the source."""
    if isinstance(source, (str, Path)):
        where, categories = str(source), read_categories(source)
    elif isinstance(source, Mapping):
        where, categories = "the annotations", source.get("categories", [])
    else:
        where, categories = "the categories", list(source)
    if not categories:
        raise ValueError(f"{where}: the list 'categories' is empty or missing")
    for position, category in enumerate(categories):
        valid = isinstance(category, Mapping) and isinstance(category.get("name"), str)
        # bool is an int to Python, but never an id.
        if not valid or type(category.get("id")) is not int:
            raise ValueError(
                f"{where}: categories[{position}] is {str(category)[:80]}; expected an object "
                "with an integer 'id' and a 'name'"
            )
    return sorted(categories, key=lambda category: category["id"]), where


def _common_fields(categories: Sequence[Mapping[str, Any]], where: str) -> Fields:
    """Every field that COCO, LVIS or V3Det state for a category, under one name."""

    def complete(key: str) -> tuple[Any, ...] | None:
        values = tuple(c.get(key) for c in categories)
        return None if any(value is None for value in values) else values

    novel = complete("novel")
    return {
        "names": tuple(c["name"] for c in categories),
        "dataset_ids": tuple(c["id"] for c in categories),
        "synonyms": tuple(tuple(c.get("synonyms") or ()) for c in categories),
        "descriptions": tuple(
            str(c.get("def") or c.get("cat_info") or c.get("description") or "") for c in categories
        ),
        "synsets": tuple(str(c.get("synset") or "") for c in categories),
        "frequency": tuple(c.get("frequency") for c in categories),
        "image_counts": complete("image_count"),
        "instance_counts": complete("instance_count"),
        "novel": None if novel is None else tuple(bool(value) for value in novel),
    }


def _supercategory_hierarchy(categories: Sequence[Mapping[str, Any]]) -> CategoryHierarchy | None:
    """Supercategories as roots, categories as leaves; None where there is no supercategory."""
    edges, names = [], {}
    for category in categories:
        node = f"category/{category['id']}"
        names[node] = category["name"]
        parent = category.get("supercategory")
        if parent not in NO_SUPERCATEGORY:
            # A prefix, since COCO's category "person" has a supercategory "person".
            edges.append((f"supercategory/{parent}", node))
            names.setdefault(f"supercategory/{parent}", str(parent))
    if not edges:
        return None
    nodes = [f"category/{category['id']}" for category in categories]
    return CategoryHierarchy.from_ids(edges, category_nodes=nodes, node_names=names)


def _rename(fields: Fields, listed: Fields, *, where: str, name_list: str) -> None:
    """Take the names of the list; an annotation file's other name for a category is a synonym."""
    if listed["dataset_ids"] != fields["dataset_ids"]:
        raise ValueError(
            f"{name_list} names categories 1..{len(listed['names'])}, but {where} has "
            f"{len(fields['names'])} categories with ids {fields['dataset_ids'][0]}.."
            f"{fields['dataset_ids'][-1]}; line n of the list must be category n"
        )
    fields["synonyms"] = tuple(
        synonyms if own == name or own in synonyms else (*synonyms, own)
        for synonyms, own, name in zip(
            fields["synonyms"], fields["names"], listed["names"], strict=True
        )
    )
    fields["names"] = listed["names"]


def _add_tree(fields: Fields, source: Any) -> None:
    is_path = isinstance(source, (str, os.PathLike))
    load: Callable[[Any], Any] = read_json if is_path else lambda content: content
    tree = load(source)
    where = str(source) if is_path else "given as an object"
    hierarchy = parse_tree(tree, fields["dataset_ids"], where=where)
    fields["hierarchy"] = hierarchy
    given = fields.get("descriptions") or ("",) * len(fields["names"])
    fields["descriptions"] = node_texts(hierarchy, tree.get("id2desc") or {}, given)
