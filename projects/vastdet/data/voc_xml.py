# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC's XML annotations as a COCO-format document."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detectron2.data.datasets.pascal_voc import CLASS_NAMES

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_to_coco(
    folder: Path,
    split: str,
    *,
    progress: Callable[[list[str]], Iterable[str]] = iter,
) -> dict[str, Any]:
    """The images and boxes of one split of Pascal VOC in COCO's format.

    VOC's corners are 1-based indices of the first and the last pixel, so a box that covers a whole
    WxH image is (1, 1, W, H) there and (0, 0, W, H) in XYWH here. Category ids are 1..20 in VOC's
    alphabetical order, image ids 1.. in the order of the split; `voc_id` keeps VOC's name.

    An object marked difficult gets `iscrowd: 1`, and `difficult: 1`. COCO's evaluation then does
    what VOC's does, neither asks for it nor counts a detection of it as wrong, and training leaves
    it out. One difference remains: overlap with a crowd box is measured over the detection's area.

    Args:
        folder: `VOC2007` or `VOC2012`, with Annotations, ImageSets/Main, JPEGImages.
        split: the name of a list in ImageSets/Main, such as "trainval".
        progress: wraps the list of names while they are read.

    Raises:
        FileNotFoundError: the list of the split, or an annotation file, does not exist.
        ValueError: an annotation file is damaged or names a class that VOC does not have.
    """
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        raise FileNotFoundError(
            f"{listing} does not exist; expected the folder of one year, such as VOC2007, "
            "and one of its splits (datasets/README.md)"
        )
    # The lists of single classes have a second column.
    names = [line.split()[0] for line in listing.read_text("utf-8").splitlines() if line.strip()]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, name in enumerate(progress(names), start=1):
        path = folder / "Annotations" / f"{name}.xml"
        try:
            root = ElementTree.parse(path).getroot()
            width, height = (int(_text(root, f"size/{key}")) for key in ("width", "height"))
            found = [_annotation(element) for element in root.iter("object")]
        except (ElementTree.ParseError, ValueError) as error:
            raise ValueError(f"{path} is no usable VOC annotation: {error}") from error
        images.append(
            {"id": image_id, "file_name": f"{name}.jpg", "width": width, "height": height,
             "voc_id": name}
        )  # fmt: skip
        for annotation in found:
            identity = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append({**identity, **annotation})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASS_NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(element: ElementTree.Element) -> dict[str, Any]:
    name = _text(element, "name")
    if name not in CLASS_NAMES:
        raise ValueError(f"class {name!r} is not one of VOC's 20: {', '.join(CLASS_NAMES)}")
    x0, y0, x1, y1 = (float(_text(element, f"bndbox/{key}")) for key in CORNERS)
    width, height = x1 - x0 + 1, y1 - y0 + 1
    difficult = int(element.findtext("difficult") or 0)
    return {
        "category_id": CLASS_NAMES.index(name) + 1,
        "bbox": [x0 - 1, y0 - 1, width, height],
        "area": width * height,
        "iscrowd": difficult,
        "difficult": difficult,
    }


def _text(element: ElementTree.Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"<{element.tag}> has no <{path}>")
    return text
