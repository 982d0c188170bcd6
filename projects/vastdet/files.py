# SPDX-License-Identifier: Apache-2.0
"""Writing files so that an interrupted run leaves the old file or the new one, never a part."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


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


def current_umask() -> int:
    """The permission bits that this process takes away from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
