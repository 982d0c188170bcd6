# SPDX-License-Identifier: Apache-2.0
"""Writing files so that an interrupted run leaves the old file or the new one, never a part."""

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`, making its folder, by way of a temporary file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; results are as readable as any other file.
        os.chmod(temporary, 0o666 & ~current_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def current_umask() -> int:
    """The permission bits that this process takes away from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def without_nan(value: Any) -> Any:
    """`value` with every non-finite float replaced by None, since JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write `value` as strict JSON, atomically; a NaN becomes null."""
    text = json.dumps(without_nan(value), indent=indent, allow_nan=False)
    write_atomically(path, text.encode("utf-8"))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, atomically; None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode("utf-8"))
