#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Write an annotation file with the categories of another vocabulary.

The mapping is a JSON object: old category id -> new id, or null where there is none, or -> an
object that holds it under --key. Boxes of categories without a new id are left out, and counted.

Example, photographs of COCO with V3Det's categories:
    $ prepare_recategorized.py --input coco/annotations/instances_val2017.json \
        --mapping coco80_to_v3det.json --key v3det_id \
        --categories v3det_2023_v1_train_cat_info.json --output coco_val2017_v3det.json
"""

import argparse
from pathlib import Path
from typing import Any

from vastdet.data.derive import recategorized
from vastdet.files import read_json, write_json

SHOWN = 10


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="annotations in COCO's format")
    parser.add_argument("--mapping", type=Path, required=True, help="old id -> new id")
    parser.add_argument("--key", default="", help="of the new id, where the mapping holds objects")
    parser.add_argument(
        "--categories", type=Path, required=True, help="new categories: their list, or annotations"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    args = parser.parse_args(arguments)
    try:
        content = read_json(args.categories)
        categories = content["categories"] if isinstance(content, dict) else content
        new_ids = {int(old): new_id(new, args.key) for old, new in read_json(args.mapping).items()}
        document = read_json(args.input)
        result, lost = recategorized(document, categories, new_ids)
        write_json(args.output, result)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    kept, num_all = len(result["annotations"]), len(document["annotations"])
    used = len({annotation["category_id"] for annotation in result["annotations"]})
    print(f"kept {kept} of {num_all} boxes, of {used} of the {len(categories)} categories")
    if lost:
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        print(f"without a new category: {', '.join(lost[:SHOWN])}{more}")


def new_id(value: Any, key: str) -> int | None:
    """The new id of one entry of the mapping; raises ValueError for another form."""
    if isinstance(value, dict):
        if key not in value:
            raise ValueError(
                f"the mapping holds objects with the keys {sorted(value)}; name one by --key"
            )
        value = value[key]
    if value is not None and not isinstance(value, int):
        raise ValueError(f"the mapping holds {value!r}; expected an id or null")
    return value


if __name__ == "__main__":
    main()
