# SPDX-License-Identifier: Apache-2.0
"""Results as strict JSON and as CSV, written atomically."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vastdet.files import write_atomically


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
