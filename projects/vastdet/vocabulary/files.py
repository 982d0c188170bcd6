# SPDX-License-Identifier: Apache-2.0
"""Reading the categories of an annotation file without the rest of it."""

import codecs
import json
import mmap
import re
from pathlib import Path
from typing import Any

from vastdet.files import local_path, read_json

CATEGORIES_KEY = re.compile(rb'"categories"\s*:\s*(?=\[)')
FIRST_CHUNK = 1 << 22


def read_categories(path: str | Path) -> list[Any]:
    """The `categories` list of an annotation file, without parsing its images and annotations.

    A file that is itself a list is taken to be the categories. The key is searched in the raw
    bytes; when it is found exactly once, only the list behind it is decoded (a file of a gigabyte
    takes as long as reading it from disk), otherwise the whole file is parsed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or has no list of categories.
    """
    local = local_path(path)
    if local.stat().st_size > 0:
        with local.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            starts = [match.end() for match in CATEGORIES_KEY.finditer(data)]
            if len(starts) == 1 and data[:64].lstrip()[:1] == b"{":
                categories = _decode_list(data, starts[0])
                if categories is not None:
                    return categories
    content = read_json(path)
    categories = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(categories, list):
        raise ValueError(f"{path} has no list 'categories': expected an annotation file (COCO)")
    return categories


def _decode_list(data: mmap.mmap, start: int) -> list[Any] | None:
    """The JSON list at byte `start`, or None when it does not end; reads no more than it must."""
    size = FIRST_CHUNK
    while True:
        chunk = data[start : start + size]
        # An incremental decoder accepts a chunk that ends inside a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(chunk)
        try:
            return json.JSONDecoder().raw_decode(text)[0]
        except json.JSONDecodeError:
            if start + size >= len(data):
                return None
            size *= 4
