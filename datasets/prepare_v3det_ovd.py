#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write V3Det's training set without the boxes of novel categories (open-vocabulary detection)."""

import argparse
from pathlib import Path

from vastdet.data.derive import v3det_ovd_base
from vastdet.data.register import dataset_root
from vastdet.files import read_json, write_json


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    folder = Path(dataset_root(), "v3det", "annotations")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    source = folder / "v3det_2023_v1_train.json"
    parser.add_argument("--input", type=Path, default=source, help="V3Det train")
    target = folder / "v3det_2023_v1_train_ovd_base.json"
    parser.add_argument("--output", type=Path, default=target, help="file to write")
    args = parser.parse_args(arguments)
    try:
        print(f"reading {args.input}", flush=True)
        base = v3det_ovd_base(read_json(args.input))
        print(f"writing {args.output}", flush=True)
        write_json(args.output, base)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    num_base = sum(not category["novel"] for category in base["categories"])
    print(
        f"kept {len(base['images'])} images and {len(base['annotations'])} boxes of "
        f"{num_base} base categories (of {len(base['categories'])})"
    )


if __name__ == "__main__":
    main()
