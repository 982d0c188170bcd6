# SPDX-License-Identifier: Apache-2.0
"""Annotation files derived from published ones: minival, base categories, images that are there.

Each function takes the content of a COCO-format file and returns a new document; the one given is
not changed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vastdet.data.coco_records import FEDERATED_KEYS
from vastdet.vocabulary import CategorySpace

Document = dict[str, Any]
COCO_VAL_FOLDER = "val2017"
NUM_PATH_PARTS = 2


def keep_images(document: Mapping[str, Any], kept: Iterable[int]) -> Document:
    """The document with the images of the ids `kept` and their annotations only."""
    ids = set(kept)
    return {
        **document,
        "images": [image for image in document["images"] if image["id"] in ids],
        "annotations": [a for a in document["annotations"] if a["image_id"] in ids],
    }


def lvis_minival(document: Mapping[str, Any]) -> Document:
    """LVIS v1 minival: the images of LVIS v1 val that lie in COCO's val2017 (4,809 of 19,809).

    The split was introduced with MDETR (arXiv 2104.12763); images are told apart by the folder in
    their coco_url. Categories, and with them frequency groups, stay those of LVIS.

    Raises:
        ValueError: an image has no coco_url, or no image is of val2017.
    """
    kept = []
    for image in document["images"]:
        url = image.get("coco_url")
        if not url:
            raise ValueError(
                f"image {image['id']} has no coco_url, which tells COCO's train2017 from val2017; "
                "expected the published lvis_v1_val.json"
            )
        if url.split("/")[-NUM_PATH_PARTS] == COCO_VAL_FOLDER:
            kept.append(image["id"])
    if not kept:
        raise ValueError(f"no image is of COCO's {COCO_VAL_FOLDER}; expected lvis_v1_val.json")
    return keep_images(document, kept)


def v3det_ovd_base(document: Mapping[str, Any]) -> Document:
    """V3Det's training set for open-vocabulary detection: only boxes of base categories.

    Boxes of novel categories are taken out, then images without boxes. All categories stay in the
    list, with their flags, so that contiguous ids are those of the full set.

    Raises:
        ValueError: the categories have no `novel` flag, or all have the same.
    """
    space = CategorySpace.from_v3det(document)
    if space.novel is None or len(set(space.novel)) == 1:
        raise ValueError(
            "the categories have no 'novel' flag that splits them into base and novel; expected "
            "the published V3Det file, whose split is 6,709 base and 6,495 novel categories"
        )
    base = {i for i, novel in zip(space.dataset_ids, space.novel, strict=True) if not novel}
    annotations = [a for a in document["annotations"] if a["category_id"] in base]
    of_base = {**document, "annotations": annotations}
    return keep_images(of_base, {a["image_id"] for a in annotations})


def recategorized(
    document: Mapping[str, Any],
    categories: Sequence[Mapping[str, Any]],
    new_ids: Mapping[int, int | None],
) -> tuple[Document, list[str]]:
    """The document with the categories of another vocabulary; boxes of the others are left out.

    Lists of an image's categories as LVIS has them would say something else of the new vocabulary
    and are dropped. Images stay, with or without boxes.

    Args:
        document: the content of an annotation file.
        categories: those of the other vocabulary, as its annotation files list them.
        new_ids: old category id -> new id, or None where the other vocabulary lacks it. A category
            that is not in it counts as lacking.

    Returns:
        The document, and the names of the old categories that have boxes and no new id.

    Raises:
        ValueError: a new id is not among `categories`, or no box is left.
    """
    known = {category["id"] for category in categories}
    strange = sorted({i for i in new_ids.values() if i is not None} - known)
    if strange:
        raise ValueError(
            f"{len(strange)} ids that old categories are mapped to, such as {strange[0]}, are not "
            f"among the {len(known)} new categories; the mapping is of another vocabulary"
        )
    annotations, lost = [], set()
    for annotation in document["annotations"]:
        new = new_ids.get(annotation["category_id"])
        if new is None:
            lost.add(annotation["category_id"])
        else:
            annotations.append({**annotation, "category_id": new})
    if not annotations:
        raise ValueError("no box has a category that the other vocabulary has")
    images = [
        {key: value for key, value in image.items() if key not in FEDERATED_KEYS}
        for image in document["images"]
    ]
    names = [c["name"] for c in document["categories"] if c["id"] in lost]
    return {
        **document,
        "images": images,
        "annotations": annotations,
        "categories": list(categories),
    }, names


def objects365_present(
    document: Mapping[str, Any],
    folder: Path,
    *,
    split: str,
    is_usable: Callable[[Path], bool],
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> tuple[Document, list[str]]:
    """Objects365 restricted to images that are there, with file names as they lie on disk.

    Published file names (`images/v2/patch16/objects365_v2_00908726.jpg`) do not match the folders
    that the archives unpack to; of each the last two parts are kept, below `split`.

    Args:
        document: the content of a published annotation file.
        folder: the folder that holds `<split>/patch*/`.
        split: "train" or "val".
        is_usable: says whether an image file can be used.
        progress: wraps the list of images while they are looked at.

    Returns:
        The document, and the file names of the images left out.

    Raises:
        ValueError: no image is left, so the folder is probably wrong.
    """
    images, left_out = [], []
    for image in progress(document["images"]):
        name = "/".join([split, *image["file_name"].split("/")[-NUM_PATH_PARTS:]])
        if is_usable(folder / name):
            images.append({**image, "file_name": name})
        else:
            left_out.append(name)
    if not images:
        raise ValueError(
            f"none of {len(left_out)} images is usable, the first would be {folder / left_out[0]}"
            if left_out
            else "the annotation file lists no images"
        )
    kept = keep_images({**document, "images": images}, (image["id"] for image in images))
    return kept, left_out


def is_present(path: Path) -> bool:
    """Whether a file is there and not empty."""
    return path.is_file() and path.stat().st_size > 0


def is_readable(path: Path) -> bool:
    """Whether an image file decodes to its end."""
    if not is_present(path):
        return False
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return False
    return True
