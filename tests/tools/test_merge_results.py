# SPDX-License-Identifier: Apache-2.0
"""tools/merge_results.py as a user runs it."""

import json
from pathlib import Path

import pytest

from vastdet.evaluation import results_store
from vastdet.evaluation.ground_truth import from_json
from vastdet.evaluation.results_file import read_results

ROW = {"image_id": 1, "category_id": 7, "bbox": [0.5, 10.0, 50.0, 50.0], "score": 0.25}
RLE = {"size": [10, 10], "counts": "0a"}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    truth = {
        "images": [{"id": i, "height": 10, "width": 10} for i in (1, 2)],
        "categories": [{"id": 7, "name": "owl"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "b.json").write_text(json.dumps([{**ROW, "image_id": 2}]))
    (tmp_path / "a.json").write_text(json.dumps([{**ROW, "segmentation": RLE}]))
    results = [str(tmp_path / name) for name in ("b.json", "a.json")]
    return ["--annotations", str(tmp_path / "truth.json"), "--results", *results]


@pytest.mark.parametrize("name", ["all.npz", "all.json"])
def test_merges_and_converts(load_tool, arguments, tmp_path: Path, capsys, name: str) -> None:
    output = tmp_path / "new" / name
    assert load_tool("merge_results").main([*arguments, "--output", str(output)]) == 0
    assert f"2 detections in {output}" in capsys.readouterr().out
    found = read_results(output, from_json(tmp_path / "truth.json"))
    assert found.image_index.tolist() == [0, 1]
    again = tmp_path / "again.json"
    convert = [*arguments[:3], str(output), "--output", str(again)]
    assert load_tool("merge_results").main(convert) == 0
    assert json.loads(again.read_text()) == [ROW, {**ROW, "image_id": 2}]


def test_masks_are_kept_on_demand(load_tool, arguments, tmp_path: Path) -> None:
    output = tmp_path / "all.npz"
    one = [*arguments[:3], arguments[-1], "--output", str(output), "--iou-type", "segm"]
    assert load_tool("merge_results").main(one) == 0
    found = read_results(output, from_json(tmp_path / "truth.json"), iou_type="segm")
    assert found.masks.tolist() == [RLE]


@pytest.mark.parametrize(
    ("output", "message"),
    [("all.csv", "ends in '.csv', expected .json or .npz"), ("all", "ends in '', expected")],
)
def test_unknown_format_exits_2(load_tool, arguments, tmp_path, capsys, output, message) -> None:
    assert load_tool("merge_results").main([*arguments, "--output", str(tmp_path / output)]) == 2
    assert message in capsys.readouterr().err


def test_interrupt_leaves_nothing(load_tool, arguments, tmp_path, capsys, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results_store.np, "savez", interrupt)
    output = tmp_path / "new" / "all.npz"
    assert load_tool("merge_results").main([*arguments, "--output", str(output)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(output.parent.iterdir()) == []
