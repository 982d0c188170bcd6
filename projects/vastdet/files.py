# SPDX-License-Identifier: Apache-2.0
"""Reading JSON with errors that name the file, and writing files whole or not at all.

A run that is interrupted leaves the old file or the new one, never a part.
"""

import csv
import gc
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathManager


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


def read_json(path: str | Path, *, advice: str = "copy or download it again") -> Any:
    """The content of a JSON file; an error on what it holds ends with `advice`.

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
            raise ValueError(f"{path} {what}; {advice}") from error


def current_umask() -> int:
    """The permission bits that this process takes away from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
