# SPDX-License-Identifier: Apache-2.0
"""The check of a whole dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vastdet.data.check import annotations, categories, images
from vastdet.data.check.annotations import BoxFormat
from vastdet.data.check.repair import Repair, repaired
from vastdet.data.check.report import Report
from vastdet.data.check.source import Dataset, load_dataset
from vastdet.files import read_json, write_json
from vastdet.vocabulary import CategorySpace


def check_dataset(
    source: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    image_root: str | Path | None = "",
    *,
    category_space: CategorySpace | None = None,
    tree: str | Path | Mapping[str, Any] | None = None,
    box_format: BoxFormat = "auto",
    workers: int | None = None,
    progress: bool = False,
) -> "CheckedDataset":
    """Look for everything in a dataset that would spoil training or scores.

    Args:
        source: a COCO-, LVIS- or V3Det-format file or its content, or Detectron2 records.
        image_root: the folder that file names are relative to; None: do not look at the images.
        category_space: what the categories are compared with.
        tree: a V3Det category tree file or its content.
        box_format: what the numbers of a bbox mean. "auto": [x, y, width, height], and it is a
            problem if they look like [x1, y1, x2, y2].
        workers: threads that decode images; None: a few more than the processor has cores.
        progress: whether to show a progress bar on the terminal.

    Raises:
        FileNotFoundError: the file, the tree or the folder of the images does not exist.
        ValueError: the file is not COCO format, or the tree no category tree.
    """
    if box_format not in ("auto", "xywh", "xyxy"):
        raise ValueError(f"box_format is {box_format!r}; expected 'auto', 'xywh' or 'xyxy'")
    dataset = load_dataset(source)
    report = Report(
        source=str(source) if isinstance(source, str | Path) else "dataset",
        num_images=len(dataset["images"]),
        num_annotations=len(dataset["annotations"]),
        num_categories=len(dataset["categories"]),
    )
    columns = annotations.read_columns(dataset, box_format)
    image_repair = images.check_entries(dataset, columns.sizes, columns.image, report)
    if image_root is not None:
        images.check_files(
            dataset,
            columns.sizes,
            str(image_root),
            image_repair,
            report,
            workers=workers,
            progress=progress,
        )
        for index, size in image_repair.sizes.items():
            columns.sizes[index] = size
        # Boxes of images that go are not held against a size that is wrong.
        columns.sizes[list(image_repair.drop)] = np.nan
    annotation_repair = annotations.check_annotations(dataset, columns, report, box_format)
    drop_categories = categories.check_categories(dataset, np.unique(columns.category), report)
    if category_space is not None:
        categories.check_space(dataset, category_space, report)
    if tree is not None:
        content = tree if isinstance(tree, Mapping) else read_json(tree)
        categories.check_tree(dataset, content, report)
    repair = Repair(annotation_repair, image_repair, drop_categories, columns, box_format == "xyxy")
    return CheckedDataset(dataset, report, repair)


@dataclass
class CheckedDataset:
    """A dataset, what a check found in it, and how to mend it.

    Attributes:
        dataset: COCO's dict, as it was read.
        report: the findings.
        repair: what a cleaned copy changes.
    """

    dataset: Dataset
    report: Report
    repair: Repair

    def write_fixed(self, path: str | Path, *, source: str | Path | None = None) -> list[str]:
        """Write a cleaned copy and return what was done, in words; the input is never touched.

        What a copy of the annotations cannot mend stays: for example problems of the category tree.

        Args:
            path: the copy; a reader finds no half-written file there.
            source: the file that was checked, which `path` must not be.

        Raises:
            ValueError: `path` is the checked file, or it is unclear what the boxes mean.
        """
        if source is not None and Path(path).resolve() == Path(source).resolve():
            raise ValueError(f"{path} is the checked file, which stays as it is; give another name")
        if self.report.count("XYXY suspected"):
            raise ValueError(
                "the boxes look like [x1, y1, x2, y2], so clipping them as [x, y, width, height] "
                "would spoil them; say which they are: box format xyxy or xywh"
            )
        fixed, done = repaired(self.dataset, self.repair)
        write_json(path, fixed)
        return done
