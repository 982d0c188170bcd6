# SPDX-License-Identifier: Apache-2.0
"""Writing files so that an interrupted run leaves the old file or the new one, never a part."""

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any


def write_atomically(path: str | Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Put a file at `path`, making its folder, by way of a temporary file beside it.

    Args:
        path: the file to write or replace.
        content: its bytes, or a function that writes them into an open binary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; ours are as readable as any other file.
        os.chmod(temporary, 0o666 & ~current_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    # The rename itself must reach the disk as well.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> None:
    """Write `value` as strict JSON in UTF-8, compact without `indent`; a NaN becomes null."""
    separators = (",", ":") if indent is None else None

    def encode(content: Any) -> str:
        return json.dumps(
            content, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
        )

    try:
        text = encode(value)
    except ValueError:
        text = encode(without_nan(value))
    write_atomically(path, text.encode("utf-8"))


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV; None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode("utf-8"))


def without_nan(value: Any) -> Any:
    """`value` with every non-finite float replaced by None, since JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def current_umask() -> int:
    """The permission bits that this process takes away from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
