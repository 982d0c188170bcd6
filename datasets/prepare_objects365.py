#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write Objects365 v2 annotations for the images that are there, under their names on disk."""

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from vastdet.data.derive import is_present, is_readable, objects365_present
from vastdet.data.register import dataset_root
from vastdet.files import read_json, write_json

NUM_SHOWN = 10


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    default = Path(dataset_root(), "objects365")
    parser.add_argument("--root", type=Path, default=default, help="folder of the dataset")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="train, val or both")
    parser.add_argument(
        "--decode", action="store_true", help="decode each image to find damaged ones (hours)"
    )
    args = parser.parse_args(arguments)
    try:
        for split in args.splits:
            prepare(args.root, split, decode=args.decode)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


def prepare(root: Path, split: str, *, decode: bool) -> None:
    """Write the annotations of one split, and say what was left out."""
    source = root / "annotations" / f"zhiyuan_objv2_{split}.json"
    target = root / "annotations" / f"objects365_v2_{split}.json"
    print(f"reading {source}", flush=True)
    document, left_out = objects365_present(
        read_json(source),
        root,
        split=split,
        is_usable=is_readable if decode else is_present,
        progress=partial(tqdm, desc=f"{split} images"),
    )
    print(f"writing {target}", flush=True)
    write_json(target, document)
    print(f"{split}: kept {len(document['images'])} images, left out {len(left_out)}")
    for name in left_out[:NUM_SHOWN]:
        print(f"  missing or damaged: {name}")


if __name__ == "__main__":
    main()
