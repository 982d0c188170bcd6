# SPDX-License-Identifier: Apache-2.0
"""JSON stays strict."""

import json
import math
from pathlib import Path

from vastdet.evaluation import files


def test_json_has_no_nan(tmp_path: Path) -> None:
    value = {"a": [math.nan, 1.5], "b": {"c": (math.inf,)}, "d": 0.1 + 0.2}
    files.write_json(tmp_path / "x.json", value)
    stored = json.loads((tmp_path / "x.json").read_text())
    assert stored == {"a": [None, 1.5], "b": {"c": [None]}, "d": 0.1 + 0.2}


def test_csv_quotes_names_with_commas(tmp_path: Path) -> None:
    files.write_csv(tmp_path / "x.csv", ("name", "ap"), [("pan, flat", None)])
    assert (tmp_path / "x.csv").read_text() == 'name,ap\n"pan, flat",\n'
