# SPDX-License-Identifier: Apache-2.0
"""Embeddings of categories made of images: the mean over crops of their boxes.

K categories, D numbers an embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import BoxMode
from torch import Tensor
from tqdm import tqdm

from vastdet.backbones.image_encoder import ImageEncoder
from vastdet.data.image_io import read_image
from vastdet.text import CategoryEmbeddings
from vastdet.vocabulary import CategorySpace

Record = Mapping[str, Any]


def embed_crops(
    records: Sequence[Record],
    space: CategorySpace,
    encoder: ImageEncoder,
    *,
    max_crops: int = 100,
    seed: int = 0,
    fill_missing: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> CategoryEmbeddings:
    """The embeddings of a space's categories: means over crops of their boxes, of length 1.

    Each crop's embedding has length 1 before the mean, as those of prompts.

    Args:
        records: Detectron2's dataset dicts; `category_id` is contiguous in the space.
        space: the vocabulary.
        encoder: embeds the crops.
        max_crops: of a category with more boxes so many are drawn, at least 1.
        seed: of the drawing; what is drawn depends on it and on the category's boxes alone.
        fill_missing: give a category without boxes the mean of all others.
        batch_size: crops encoded at once, at least 1.
        progress: show a bar, on a terminal only.

    Raises:
        ValueError: a number below 1; a category without boxes, unless they are to be filled; no
            boxes at all; or as `read_image`.
    """
    if max_crops < 1 or batch_size < 1:
        raise ValueError(
            f"crops a category and batch size must be at least 1, got {max_crops=}, {batch_size=}"
        )
    boxes = choose_boxes(records, len(space), max_crops, seed)
    sums: Tensor | None = None
    with tqdm(total=sum(map(len, boxes.values())), disable=None if progress else True) as bar:
        for crops, labels in _batches(records, boxes, batch_size):
            embedded = encoder.encode(crops).double()
            if sums is None:
                sums = torch.zeros(len(space), embedded.shape[1], dtype=torch.float64)
            sums.index_add_(0, torch.tensor(labels), embedded)
            bar.update(len(crops))
    rows = _complete(sums, _labels(records, boxes), space, fill_missing)
    return CategoryEmbeddings(
        rows=rows,
        names=space.names,
        dataset_ids=space.dataset_ids,
        encoder=f"{encoder.name}, at most {max_crops} crops of a category, seed {seed}",
    )


def choose_boxes(
    records: Sequence[Record], num_categories: int, max_crops: int, seed: int
) -> dict[int, list[int]]:
    """Which annotations of which record are cropped; crowds are not.

    Returns:
        Number of a record to numbers of its annotations, both ascending.
    """
    places: list[list[tuple[int, int]]] = [[] for _ in range(num_categories)]
    for i, record in enumerate(records):
        for j, annotation in enumerate(record["annotations"]):
            if not annotation.get("iscrowd", 0):
                places[annotation["category_id"]].append((i, j))
    chosen: dict[int, list[int]] = {}
    for k, own in enumerate(places):
        picks = np.arange(len(own))
        if len(own) > max_crops:
            picks = np.random.default_rng((seed, k)).choice(len(own), max_crops, replace=False)
        for pick in picks:
            i, j = own[pick]
            chosen.setdefault(i, []).append(j)
    return {i: sorted(chosen[i]) for i in sorted(chosen)}


def crop(image: np.ndarray, annotation: Mapping[str, Any]) -> np.ndarray:
    """The pixels of an annotation's box: whole pixels, within the image, at least one."""
    height, width = image.shape[:2]
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    limits = np.array([width, height])
    x0, y0 = np.clip(np.floor(box[:2]), 0, limits - 1).astype(int)
    x1, y1 = np.maximum(np.clip(np.ceil(box[2:]), 0, limits).astype(int), (x0 + 1, y0 + 1))
    return np.ascontiguousarray(image[y0:y1, x0:x1])


def _batches(
    records: Sequence[Record], boxes: Mapping[int, Sequence[int]], batch_size: int
) -> Iterator[tuple[list[np.ndarray], list[int]]]:
    """Crops and their categories; each image is read once."""
    crops: list[np.ndarray] = []
    labels: list[int] = []
    for i, own in boxes.items():
        image = read_image(records[i]["file_name"], "RGB")
        for j in own:
            annotation = records[i]["annotations"][j]
            crops.append(crop(image, annotation))
            labels.append(annotation["category_id"])
            if len(crops) == batch_size:
                yield crops, labels
                crops, labels = [], []
    if crops:
        yield crops, labels


def _labels(records: Sequence[Record], boxes: Mapping[int, Sequence[int]]) -> set[int]:
    return {records[i]["annotations"][j]["category_id"] for i, own in boxes.items() for j in own}


def _complete(
    sums: Tensor | None, present: set[int], space: CategorySpace, fill_missing: bool
) -> Tensor:
    """Sums (K, D) to rows of length 1, with those of categories that had no crop."""
    if sums is None:
        raise ValueError("the dataset has no boxes to crop")
    rows = F.normalize(sums, dim=1).float()
    absent = sorted(set(range(len(space))) - present)
    if absent and not fill_missing:
        k = absent[0]
        raise ValueError(
            f"{len(absent)} of the {len(space)} categories have no box, the first is id "
            f"{space.dataset_ids[k]} '{space.names[k]}'; --fill-missing gives them the mean of the "
            "others"
        )
    if absent:
        rows[absent] = F.normalize(rows[sorted(present)].mean(dim=0), dim=0)
    return rows
