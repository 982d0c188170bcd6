#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Write an annotation file with the categories of another vocabulary.

The mapping is a JSON object: old category id -> new id, or null where there is none, or -> an
object that holds it under --key. Boxes of categories without a new id are left out, and counted.
Where the mapping's ids are those of another release, --by names a field, such as LVIS's synset,
that its objects share with the categories of the input.

Examples, photographs of COCO and of LVIS v0.5 with V3Det's categories:
    $ prepare_recategorized.py --input coco/annotations/instances_val2017.json \
        --mapping coco80_to_v3det.json --key v3det_id \
        --categories v3det_2023_v1_train_cat_info.json --output coco_val2017_v3det.json
    $ prepare_recategorized.py --input lvis/lvis_v0.5_val.json \
        --mapping lvis_v1_to_v3det.json --key v3det_id --by synset \
        --categories v3det_2023_v1_train_cat_info.json --output lvis_val_v3det.json
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
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
        "--by", default="", help="a field that tells which is which, instead of ids"
    )
    parser.add_argument(
        "--categories", type=Path, required=True, help="new categories: their list, or annotations"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    args = parser.parse_args(arguments)
    try:
        content = read_json(args.categories)
        categories = content["categories"] if isinstance(content, dict) else content
        mapping, document = read_json(args.mapping), read_json(args.input)
        if args.by:
            new_ids = matched_ids(mapping.values(), document["categories"], args.by, args.key)
        else:
            new_ids = {int(old): new_id(new, args.key) for old, new in mapping.items()}
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


def matched_ids(
    entries: Iterable[Any], categories: Sequence[Mapping[str, Any]], field: str, key: str
) -> dict[int, int | None]:
    """Old id -> new id of the categories whose `field` an entry of the mapping has.

    Raises:
        ValueError: entries or categories lack the field, or entries of one value disagree.
    """
    known: dict[Any, int | None] = {}
    for entry in entries:
        if not isinstance(entry, dict) or field not in entry:
            raise ValueError(
                f"--by {field}: the mapping has the entry {str(entry)[:80]} without it"
            )
        new = new_id(entry, key)
        if known.setdefault(entry[field], new) != new:
            raise ValueError(
                f"--by {field}: {entry[field]!r} is mapped to {known[entry[field]]} and to {new}"
            )
    without = [category["name"] for category in categories if field not in category]
    if without:
        raise ValueError(f"--by {field}: category {without[0]!r} of the input has no such field")
    return {category["id"]: known.get(category[field]) for category in categories}


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
