# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all."""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from vastdet import files


def test_replaces_a_file_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    files.write_atomically(path, b"old")
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["b.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "metrics.json"
    files.write_atomically(path, b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_crash_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, lambda file: file.write(b"old"))

    def crash(file: Any) -> None:
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, crash)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("indent", [None, 1])
def test_json_has_no_nan(tmp_path: Path, indent: int | None) -> None:
    value = {"a": [math.nan, 1.5], "b": {"c": (math.inf,)}, "d": 0.1 + 0.2, "e": "é"}
    files.write_json(tmp_path / "x.json", value, indent=indent)
    text = (tmp_path / "x.json").read_text("utf-8")
    assert json.loads(text) == {"a": [None, 1.5], "b": {"c": [None]}, "d": 0.1 + 0.2, "e": "é"}
    assert ("\n" in text) == (indent is not None)


def test_csv_quotes_names_with_commas(tmp_path: Path) -> None:
    files.write_csv(tmp_path / "x.csv", ("name", "ap"), [("pan, flat", None)])
    assert (tmp_path / "x.csv").read_text() == 'name,ap\n"pan, flat",\n'
