# SPDX-License-Identifier: Apache-2.0
"""Reading JSON with errors that name the file."""

import codecs
import gc
import json
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

CATEGORIES_KEY = re.compile(rb'"categories"\s*:\s*(?=\[)')
FIRST_CHUNK = 1 << 22


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the cyclic collector: it only costs time while millions of small dicts are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def local_path(path: str | Path) -> Path:
    """The file on this machine behind `path` (any path that Detectron2's PathManager opens).

    Raises:
        FileNotFoundError: there is no such file.
    """
    local = Path(PathManager.get_local_path(os.path.expanduser(str(path))))
    if not local.is_file():
        kind = "is a folder, not a file" if local.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {kind}")
    return local


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut off, or otherwise not JSON in UTF-8.
    """
    with local_path(path).open("rb") as file, without_garbage_collection():
        content = file.read()
        try:
            return json.loads(content)
        except ValueError as error:
            what = "is empty" if not content.strip() else f"is not valid JSON: {error}"
            raise ValueError(f"{path} {what}; copy or download it again") from error


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
