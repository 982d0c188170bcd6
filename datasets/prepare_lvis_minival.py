#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write lvis/lvis_v1_minival.json: the images of LVIS v1 val that are in COCO's val2017."""

import argparse
from pathlib import Path

from vastdet.data.derive import lvis_minival
from vastdet.data.register import dataset_root
from vastdet.files import read_json, write_json


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    folder = Path(dataset_root(), "lvis")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--input", type=Path, default=folder / "lvis_v1_val.json", help="LVIS val")
    parser.add_argument(
        "--output", type=Path, default=folder / "lvis_v1_minival.json", help="file to write"
    )
    args = parser.parse_args(arguments)
    try:
        print(f"reading {args.input}", flush=True)
        document = read_json(args.input)
        minival = lvis_minival(document)
        print(f"writing {args.output}", flush=True)
        write_json(args.output, minival)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(
        f"kept {len(minival['images'])} of {len(document['images'])} images, "
        f"{len(minival['annotations'])} of {len(document['annotations'])} boxes"
    )


if __name__ == "__main__":
    main()
