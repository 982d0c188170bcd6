#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write Pascal VOC's annotations in COCO's format, for the datasets voc_<year>_<split>_coco."""

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from vastdet.data.register import dataset_root
from vastdet.data.voc_xml import voc_to_coco
from vastdet.files import write_json


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} Objects marked difficult become crowd boxes: left out of training, "
        "and ignored, whether detected or not, by COCO's evaluation.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Path(dataset_root(), "VOC2007")
    parser.add_argument("--root", type=Path, default=default, help="VOC2007 or VOC2012 folder")
    parser.add_argument(
        "--splits", nargs="+", default=["trainval", "test"], help="lists to convert"
    )
    args = parser.parse_args(arguments)
    try:
        for split in args.splits:
            document = voc_to_coco(args.root, split, progress=partial(tqdm, desc=split))
            write_json(args.root / f"{split}_coco.json", document)
            difficult = sum(a["difficult"] for a in document["annotations"])
            print(
                f"{args.root / f'{split}_coco.json'}: {len(document['images'])} images, "
                f"{len(document['annotations'])} boxes, {difficult} of them difficult"
            )
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
