# SPDX-License-Identifier: Apache-2.0
"""Registering datasets of annotation files, lazily, and the categories of any registered one."""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from vastdet.data.coco_records import load_coco_table
from vastdet.data.record_table import Record, RecordTable
from vastdet.files import without_garbage_collection
from vastdet.vocabulary import CategorySpace

ROOT_VARIABLE = "DETECTRON2_DATASETS"
DEFAULT_ROOT = "datasets"


class LazyMetadata(Metadata):
    """Metadata that reads the categories of its dataset when they are first asked for.

    Its `category_space` is the CategorySpace; `thing_classes`, `thing_dataset_id_to_contiguous_id`
    and, where it states numbers of images, `class_image_count`, which Detectron2's federated loss
    reads, follow from it. Reading raises FileNotFoundError where the annotation file is missing.
    """

    _LAZY = (
        "category_space",
        "thing_classes",
        "thing_dataset_id_to_contiguous_id",
        "class_image_count",
    )

    def __init__(
        self, *, read_space: Callable[[], CategorySpace] | None = None, **values: Any
    ) -> None:
        """`read_space` is left out by copying, which takes it over with the other values."""
        super().__init__(**values)
        self.__dict__["_read_space"] = read_space

    def __getattr__(self, key: str) -> Any:
        if key not in self._LAZY or "category_space" in self.__dict__:
            return super().__getattr__(key)
        self._read()
        return getattr(self, key)

    def _read(self) -> None:
        space = self.__dict__["_read_space"]()
        self.__dict__.update(
            category_space=space,
            thing_classes=list(space.names),
            thing_dataset_id_to_contiguous_id=space.dataset_id_to_contiguous_id,
        )
        if space.image_counts is not None:
            self.__dict__["class_image_count"] = [
                {"id": dataset_id, "image_count": count}
                for dataset_id, count in zip(space.dataset_ids, space.image_counts, strict=True)
            ]

    def as_dict(self) -> dict[str, Any]:
        """All of the metadata, read now where it was not."""
        if "category_space" not in self.__dict__:
            self._read()
        return {k: v for k, v in self.__dict__.items() if k != "_read_space"}


def dataset_root() -> str:
    """The folder of the built-in datasets, as Detectron2 has it: DETECTRON2_DATASETS."""
    return os.path.expanduser(os.getenv(ROOT_VARIABLE, DEFAULT_ROOT))


def require_dataset_path(path: str, dataset_name: str) -> str:
    """`path`, a file or folder of a dataset, if it exists.

    Raises:
        FileNotFoundError: it does not; the message says where datasets are expected.
    """
    # Paths with a scheme belong to handlers of PathManager.
    if not path or "://" in path or os.path.exists(os.path.expanduser(path)):
        return path
    if not Path(path).absolute().is_relative_to(Path(dataset_root()).absolute()):
        raise FileNotFoundError(
            f"dataset '{dataset_name}' needs {path}, which does not exist; check the paths that it "
            "was registered with (--register NAME JSON IMAGES)"
        )
    value = os.getenv(ROOT_VARIABLE)
    setting = f"{ROOT_VARIABLE}={value}" if value else f"{ROOT_VARIABLE} is not set: ./datasets"
    raise FileNotFoundError(
        f"dataset '{dataset_name}' needs {path}, which does not exist ({setting}); "
        "datasets/README.md shows the expected folders"
    )


def require_registered(dataset_name: str) -> None:
    """Raise ValueError, naming those of a similar name, when there is no such dataset."""
    if dataset_name in DatasetCatalog:
        return
    close = difflib.get_close_matches(dataset_name, DatasetCatalog.list(), n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(
        f"no dataset '{dataset_name}' is registered{hint} (your own data: "
        "vastdet.data.register_coco, or --register NAME JSON IMAGES)"
    )


def register_coco(name: str, json_file: str | Path, image_root: str | Path) -> None:
    """Register a dataset in COCO format under a name; nothing is read before it is used.

    Afterwards the name works in `cfg.DATASETS`, `DatasetCatalog` and `MetadataCatalog`. The class
    count is `len(category_space(name))`; ids may have gaps. Registering a name again with the same
    arguments does nothing.

    Args:
        name: the dataset's name.
        json_file: annotation file with the lists images, annotations and categories.
        image_root: the folder that the file names in it start from.

    Raises:
        ValueError: the name is taken by another dataset. Loading raises what
            `load_coco_table` and `CategorySpace.from_coco` raise.
    """
    new = {"json_file": str(json_file), "image_root": str(image_root), "evaluator_type": "coco"}
    _register_own(name, new)


def register_v3det(
    name: str, json_file: str | Path, image_root: str | Path, category_tree: str | Path
) -> None:
    """Register a dataset in V3Det's format with its category tree, as `register_coco`.

    Its categories have parents and children, and it is scored by V3Det's rules.

    Args:
        name: the dataset's name.
        json_file: annotation file with the lists images, annotations and categories.
        image_root: the folder that the file names in it start from.
        category_tree: the tree file; `vastdet.vocabulary.tree_file` lists the keys.

    Raises:
        ValueError: the name is taken by another dataset. Loading raises what
            `load_coco_table` and `CategorySpace.from_v3det` raise.
    """
    new = {
        "json_file": str(json_file),
        "image_root": str(image_root),
        "category_tree": str(category_tree),
        "evaluator_type": "v3det",
    }
    _register_own(name, new, partial(_space_of_v3det, name, new["json_file"], new["category_tree"]))


def register_annotation_file(
    name: str,
    *,
    json_file: str,
    image_root: str,
    evaluator_type: str,
    read_space: Callable[[], CategorySpace] | None = None,
    extra_annotation_keys: Sequence[str] = (),
) -> None:
    """Register any dialect of COCO's format; `read_space` reads its categories (default: COCO's).

    Replaces an entry of the same name.
    """
    MetadataCatalog[name] = LazyMetadata(
        name=name,
        json_file=json_file,
        image_root=image_root,
        evaluator_type=evaluator_type,
        read_space=read_space or partial(_space_of_file, name, json_file),
    )
    replace_loader(name, AnnotationFileLoader(name, tuple(extra_annotation_keys)))


@dataclass(frozen=True)
class AnnotationFileLoader:
    """Loads a dataset whose metadata has json_file and image_root, with its further keys.

    This is what `DatasetCatalog` holds for it, and what `DatasetCatalog.get` calls.
    """

    dataset_name: str
    extra_annotation_keys: tuple[str, ...] = ()

    def __call__(self) -> list[Record]:
        """The records as a list of dicts. Raises what `table` raises."""
        table = self.table()
        with without_garbage_collection():
            return list(table)

    def table(self) -> RecordTable:
        """The same records as arrays.

        Raises:
            FileNotFoundError: the annotation file or the image folder does not exist.
            ValueError: as `load_coco_table`.
        """
        metadata = MetadataCatalog.get(self.dataset_name)
        for path in (metadata.json_file, metadata.image_root):
            require_dataset_path(path, self.dataset_name)
        return load_coco_table(
            metadata.json_file,
            os.path.expanduser(metadata.image_root),
            category_space(self.dataset_name),
            extra_annotation_keys=self.extra_annotation_keys,
        )


def load_tables(names: Sequence[str]) -> list[RecordTable] | None:
    """The records of datasets as arrays, or None where one of them has another kind of loader."""
    loaders = [DatasetCatalog[name] for name in names if name in DatasetCatalog]
    tabular = [loader for loader in loaders if isinstance(loader, AnnotationFileLoader)]
    if len(tabular) < len(names):
        return None
    return [loader.table() for loader in tabular]


def replace_loader(name: str, load: Callable[[], list[Record]]) -> None:
    """Register a loader of records under a name, in place of an earlier one."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    DatasetCatalog.register(name, load)


def category_space(dataset_name: str) -> CategorySpace:
    """The categories of a registered dataset, whoever registered it.

    They come from the metadata's `category_space` or `thing_classes`, else from the categories of
    its `json_file`, else from loading the dataset, which then must set `thing_classes`. The result
    is kept in the metadata.

    Raises:
        FileNotFoundError: the annotation file is needed and missing.
        ValueError: no such dataset, or its categories are nowhere stated.
    """
    if dataset_name not in MetadataCatalog:
        require_registered(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    space = metadata.get("category_space")
    if space is None:
        space = _space_of_foreign(metadata, dataset_name)
        metadata.category_space = space
    return space


def _register_own(
    name: str, new: Mapping[str, str], read_space: Callable[[], CategorySpace] | None = None
) -> None:
    """Register a user's dataset by its metadata, if it is not yet.

    Raises:
        ValueError: the name is taken by another dataset.
    """
    metadata = MetadataCatalog.get(name)
    old = {key: metadata.get(key) for key in new}
    if name in DatasetCatalog and old == new:
        return
    if name in DatasetCatalog or old not in (new, dict.fromkeys(new)):
        raise ValueError(
            f"dataset name '{name}' is taken (annotations {metadata.get('json_file')}, images "
            f"{metadata.get('image_root')}); give {new['json_file']} with {new['image_root']} "
            "another name, and that name to DATASETS.TRAIN or DATASETS.TEST"
        )
    register_annotation_file(
        name,
        json_file=new["json_file"],
        image_root=new["image_root"],
        evaluator_type=new["evaluator_type"],
        read_space=read_space,
    )
    MetadataCatalog.get(name).set(**new)


def _space_of_file(dataset_name: str, json_file: str) -> CategorySpace:
    return CategorySpace.from_coco(require_dataset_path(json_file, dataset_name))


def _space_of_v3det(dataset_name: str, json_file: str, category_tree: str) -> CategorySpace:
    for path in (json_file, category_tree):
        require_dataset_path(path, dataset_name)
    return CategorySpace.from_v3det(json_file, category_tree=category_tree)


def _space_of_foreign(metadata: Metadata, dataset_name: str) -> CategorySpace:
    if metadata.get("thing_classes") is None:
        if metadata.get("json_file") is not None:
            return _space_of_file(dataset_name, metadata.json_file)
        if dataset_name in DatasetCatalog:
            DatasetCatalog.get(dataset_name)
    return CategorySpace.from_metadata(metadata)
