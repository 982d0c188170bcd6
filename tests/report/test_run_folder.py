# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from vastdet.report.run_folder import flatten, read_evaluations, read_run, read_scalars


def write_lines(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    rows = [{"iteration": i, "lr": i / 10} for i in (0, 10, 20, 30)]
    rows += [{"iteration": i, "lr": i / 100} for i in (15, 25)]
    scalars = read_scalars(write_lines(tmp_path / "metrics.json", rows))
    assert [(s["iteration"], s["lr"]) for s in scalars] == [(0, 0), (10, 1), (15, 0.15), (25, 0.25)]


def test_lines_of_one_iteration_are_joined_and_nan_is_undefined(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 4, "lr": 1}\n{"iteration": 4, "bbox/AP": NaN, "name": "x"}\n')
    assert read_scalars(file) == [{"iteration": 4.0, "lr": 1.0, "bbox/AP": None}]


def test_a_last_line_cut_short_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 4, "lr": 1}\n{"iteration": 5, "l')
    assert [s["iteration"] for s in read_scalars(file)] == [4]


def test_a_broken_line_elsewhere_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 4, "l\n{"iteration": 5}\n')
    with pytest.raises(ValueError, match=r"metrics\.json, line 1: not JSON"):
        read_scalars(file)


def test_damaged_evaluation_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"val/metrics\.json is not valid JSON.*evaluate again"):
        read_evaluations(tmp_path)


def test_an_unsafe_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match=r"config\.yaml.*plain YAML"):
        read_run(tmp_path)


def test_empty_parts(tmp_path: Path) -> None:
    (tmp_path / "inference" / "val").mkdir(parents=True)
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n')
    run = read_run(tmp_path)
    assert run.evaluations == []
    assert run.config == {}
    assert run.series("lr") == ([], [])


def test_evaluations_come_in_the_order_of_the_config(tmp_path: Path) -> None:
    for name in ("alpha", "beta", "gamma"):
        folder = tmp_path / "inference" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"dataset": name, "bbox": {"AP": 1.0}}))
    (tmp_path / "config.yaml").write_text("DATASETS:\n  TEST: [gamma, alpha]\n")
    found = [evaluation.dataset for evaluation in read_run(tmp_path).evaluations]
    assert found == ["gamma", "alpha", "beta"]


def test_flatten_keeps_numbers_only() -> None:
    tree = {"bbox": {"AP": 1, "r": {"AP": float("nan")}}, "note": "x", "list": [1], "ok": True}
    assert flatten(tree) == {"bbox/AP": 1.0, "bbox/r/AP": None}
