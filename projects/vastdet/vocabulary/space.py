# SPDX-License-Identifier: Apache-2.0
"""CategorySpace: the one vocabulary that mapper, text encoder, queries and evaluator share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata

from vastdet.files import read_json, write_json
from vastdet.vocabulary import sources
from vastdet.vocabulary.frequency import COMMON, FREQUENT, RARE, frequency_groups
from vastdet.vocabulary.hierarchy import CategoryHierarchy
from vastdet.vocabulary.prompts import DEFAULT_TEMPLATES, fill_templates

FILE_FORMAT = "vastdet.CategorySpace"
FILE_VERSION = 1
MAX_NAMED = 5


@dataclass(frozen=True, repr=False)
class CategorySpace:
    """K categories with contiguous ids 0..K-1, immutable.

    Attributes:
        names: K names as the dataset writes them; duplicates are allowed (V3Det has 38).
        dataset_ids: K unique integers, the ids of annotation and results files.
        synonyms: K tuples of other names, as the dataset writes them.
        descriptions: K texts, "" where there is none.
        synsets: K WordNet synset names, "" where there is none.
        frequency: K of "r", "c", "f" (see `frequency_groups`) or None, as the dataset states them.
        image_counts: K numbers of training images, or None when the dataset does not state them.
        instance_counts: K numbers of training boxes, or None.
        novel: K flags of categories held out of training (open vocabulary), or None.
        hierarchy: a graph over the categories, or None.

    Raises:
        ValueError: no category, a field of another length than K, an empty name, a dataset id that
            is not an integer or given twice, an unknown frequency group, a negative count.
    """

    names: tuple[str, ...]
    dataset_ids: tuple[int, ...]
    synonyms: tuple[tuple[str, ...], ...] = ()
    descriptions: tuple[str, ...] = ()
    synsets: tuple[str, ...] = ()
    frequency: tuple[str | None, ...] = ()
    image_counts: tuple[int, ...] | None = None
    instance_counts: tuple[int, ...] | None = None
    novel: tuple[bool, ...] | None = None
    hierarchy: CategoryHierarchy | None = None

    def __post_init__(self) -> None:
        count = len(self.names)
        if count == 0:
            raise ValueError("a category space needs at least one category, got none")
        blanks: dict[str, Any] = {
            "synonyms": (), "descriptions": "", "synsets": "", "frequency": None
        }  # fmt: skip
        for field, blank in blanks.items():
            if not getattr(self, field):
                object.__setattr__(self, field, (blank,) * count)
        for field in self.__dataclass_fields__:
            value = getattr(self, field)
            if value is None or field == "hierarchy":
                continue
            if len(value) != count:
                raise ValueError(f"{len(value)} {field} for {count} names; give one a category")
            object.__setattr__(self, field, tuple(value))
        if self.hierarchy is not None and self.hierarchy.num_categories != count:
            raise ValueError(
                f"the hierarchy has {self.hierarchy.num_categories} categories, the space {count}"
            )
        self._check_values()

    def _check_values(self) -> None:
        for k, (name, dataset_id) in enumerate(zip(self.names, self.dataset_ids, strict=True)):
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"category {dataset_id} has the name {name!r}; expected a text")
            if not isinstance(dataset_id, (int, np.integer)) or isinstance(dataset_id, bool):
                raise ValueError(f"category {k} ({name}) has id {dataset_id!r}; expected an int")
        if len(set(self.dataset_ids)) != len(self):
            twice = [i for i, n in Counter(self.dataset_ids).items() if n > 1]
            named = [
                name for name, i in zip(self.names, self.dataset_ids, strict=True) if i in twice
            ]
            raise ValueError(
                f"category ids must be unique; given more than once: {twice[:MAX_NAMED]} "
                f"(categories {named[:MAX_NAMED]})"
            )
        groups = set(self.frequency) - {RARE, COMMON, FREQUENT, None}
        if groups:
            raise ValueError(f"unknown frequency groups {groups}; expected 'r', 'c', 'f'")
        for field in ("image_counts", "instance_counts"):
            if min(getattr(self, field) or (0,)) < 0:
                raise ValueError(f"{field} holds {min(getattr(self, field))}; counts are 0 or more")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        first = ", ".join(self.names[:MAX_NAMED]) + (", ..." if len(self) > MAX_NAMED else "")
        graph = f", {self.hierarchy!r}" if self.hierarchy is not None else ""
        return f"CategorySpace({len(self)} categories: {first}{graph})"

    # Ids -----------------------------------------------------------------------------------------

    def to_contiguous(self, dataset_id: int) -> int:
        """The contiguous id of a dataset id; ValueError if the space has no such category."""
        contiguous = self._contiguous_by_id.get(dataset_id)
        if contiguous is None:
            raise ValueError(
                f"no category with dataset id {dataset_id!r} among the {len(self)} of this space "
                f"(ids {min(self.dataset_ids)}..{max(self.dataset_ids)})"
            )
        return contiguous

    def to_dataset(self, contiguous_id: int) -> int:
        """The dataset id of a contiguous id; ValueError outside 0..K-1."""
        if not 0 <= contiguous_id < len(self):
            raise ValueError(f"contiguous id {contiguous_id!r} is outside 0..{len(self) - 1}")
        return self.dataset_ids[contiguous_id]

    def contiguous_ids(self, dataset_ids: np.ndarray | Sequence[int]) -> np.ndarray:
        """Contiguous ids (int64, same shape) of many dataset ids; ValueError names unknown ones."""
        given = _integers(dataset_ids)
        ordered, order = self._sorted_ids
        place = np.searchsorted(ordered, given).clip(max=len(self) - 1)
        unknown = np.unique(given[ordered[place] != given])
        if unknown.size:
            raise ValueError(
                f"{unknown.size} dataset ids name no category of this space of {len(self)}: "
                f"{unknown[:MAX_NAMED].tolist()}"
            )
        return order[place]

    def dataset_ids_of(self, contiguous_ids: np.ndarray | Sequence[int]) -> np.ndarray:
        """Dataset ids (int64, same shape) of many contiguous ids; ValueError outside 0..K-1."""
        given = _integers(contiguous_ids)
        outside = np.unique(given[(given < 0) | (given >= len(self))])
        if outside.size:
            raise ValueError(
                f"contiguous ids {outside[:MAX_NAMED].tolist()} are outside 0..{len(self) - 1}"
            )
        return np.asarray(self.dataset_ids, dtype=np.int64)[given]

    def ids_of_name(self, name: str) -> tuple[int, ...]:
        """The contiguous ids of the categories with exactly this name, ascending; () for none."""
        return self._contiguous_by_name.get(name, ())

    @property
    def dataset_id_to_contiguous_id(self) -> dict[int, int]:
        """A new dict for `Metadata.thing_dataset_id_to_contiguous_id`."""
        return dict(self._contiguous_by_id)

    # Text and frequency --------------------------------------------------------------------------

    def prompts(self, templates: Sequence[str] = DEFAULT_TEMPLATES) -> list[list[str]]:
        """One sentence a category and template: `prompts[k][t]`, names made readable.

        Args:
            templates: texts with one `{}` for the name; an "a" or "an" right before it is fitted.
        """
        return fill_templates(self.names, templates)

    def with_counts(
        self, *, image_counts: Sequence[int], instance_counts: Sequence[int] | None = None
    ) -> "CategorySpace":
        """This space with other counts of training images and boxes (K each)."""
        instances = None if instance_counts is None else tuple(int(n) for n in instance_counts)
        return replace(
            self, image_counts=tuple(int(n) for n in image_counts), instance_counts=instances
        )

    def with_frequency_groups(self) -> "CategorySpace":
        """This space with the frequency groups that LVIS's thresholds give its image counts.

        For datasets that do not state groups; `frequency_groups` cites the thresholds.

        Raises:
            ValueError: the space has no image counts.
        """
        if self.image_counts is None:
            raise ValueError("this category space has no image counts; set them by with_counts")
        return replace(self, frequency=frequency_groups(self.image_counts))

    # Sources -------------------------------------------------------------------------------------

    @classmethod
    def from_coco(cls, annotations: sources.Source) -> "CategorySpace":
        """From COCO-format annotations: a path, the content of the file, or its categories.

        Contiguous ids follow ascending dataset ids, as in Detectron2. Of a file only the
        categories are read. Supercategories become a hierarchy of two levels.
        """
        return cls(**sources.coco_fields(annotations))

    @classmethod
    def from_lvis(cls, annotations: sources.Source) -> "CategorySpace":
        """From LVIS annotations: as `from_coco`, with synonyms, synsets, definitions, counts."""
        return cls(**sources.lvis_fields(annotations))

    @classmethod
    def from_v3det(
        cls,
        annotations: sources.Source | None = None,
        *,
        name_list: str | Path | None = None,
        category_tree: Any = None,
    ) -> "CategorySpace":
        """From V3Det's files, any that there are.

        Args:
            annotations: as in `from_coco`; has descriptions and novel flags.
            name_list: the text file of names, line n being category n. Its names come first, an
                annotation file's other name for a category becomes a synonym.
            category_tree: the tree file, a path or its content; `tree_file` lists the keys.
        """
        return cls(**sources.v3det_fields(annotations, name_list, category_tree))

    @classmethod
    def from_names(cls, names: str | Path | Sequence[str]) -> "CategorySpace":
        """From names in order, or a text file of one name a line; dataset ids are 1..K."""
        return cls(**sources.name_fields(names))

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> "CategorySpace":
        """From Detectron2 metadata: its category_space if it has one, else its thing_classes.

        The dataset ids are those of thing_dataset_id_to_contiguous_id, without that mapping the
        contiguous ids, as in Detectron2. Image counts follow from class_image_count, which
        Detectron2 has for LVIS.
        """
        space = metadata.get("category_space")
        if space is not None:
            return space
        return cls(**sources.metadata_fields(metadata))

    # Files ---------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the space to a JSON file, replacing it whole or not at all."""
        content: dict[str, Any] = {"format": FILE_FORMAT, "version": FILE_VERSION}
        for field in self.__dataclass_fields__:
            content[field] = getattr(self, field)
        if self.hierarchy is not None:
            content["hierarchy"] = {
                "node_ids": self.hierarchy.node_ids,
                "node_names": self.hierarchy.node_names,
                "edges": self.hierarchy.edges.tolist(),
                "category_nodes": self.hierarchy.category_nodes.tolist(),
            }
        write_json(path, content)

    @classmethod
    def load(cls, path: str | Path) -> "CategorySpace":
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another format, a newer version, or damaged content.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.pop("format", None) != FILE_FORMAT:
            raise ValueError(
                f"{path} is no saved category space (format {FILE_FORMAT!r}); annotation files are "
                "read by CategorySpace.from_coco, from_lvis and from_v3det"
            )
        version = content.pop("version", None)
        if version != FILE_VERSION:
            raise ValueError(
                f"{path} has version {version!r}, this vastdet reads {FILE_VERSION}; update "
                "vastdet, or save the space again"
            )
        try:
            content["synonyms"] = tuple(tuple(texts) for texts in content["synonyms"])
            if content["hierarchy"] is not None:
                graph = content["hierarchy"]
                content["hierarchy"] = CategoryHierarchy(
                    node_ids=tuple(graph["node_ids"]),
                    node_names=tuple(graph["node_names"]),
                    edges=np.array(graph["edges"], dtype=np.int64),
                    category_nodes=np.array(graph["category_nodes"], dtype=np.int64),
                )
            return cls(**content)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error!r}; save the space again") from error

    # Look-up tables ------------------------------------------------------------------------------

    @cached_property
    def _contiguous_by_id(self) -> dict[int, int]:
        return {dataset_id: k for k, dataset_id in enumerate(self.dataset_ids)}

    @cached_property
    def _contiguous_by_name(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for k, name in enumerate(self.names):
            found[name] = (*found.get(name, ()), k)
        return found

    @cached_property
    def _sorted_ids(self) -> tuple[np.ndarray, np.ndarray]:
        ids = np.asarray(self.dataset_ids, dtype=np.int64)
        order = np.argsort(ids)
        return ids[order], order


def _integers(values: np.ndarray | Sequence[int]) -> np.ndarray:
    """The values as int64; ValueError where they are no integers."""
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"category ids must be integers, got an array of {array.dtype}")
    return array.astype(np.int64)
