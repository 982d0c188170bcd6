# SPDX-License-Identifier: Apache-2.0
"""Detections kept as bytes and gathered: exact, without a trace on disk, by any processes."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vastdet.evaluation import spool
from vastdet.evaluation.detections import Detections
from vastdet.evaluation.spool import DetectionSpool

WORKER = Path(__file__).with_name("distributed_worker.py")


def detections(count: int, seed: int = 0, masked: bool = False) -> Detections:
    generator = np.random.default_rng(seed)
    masks = np.empty(count, dtype=object)
    for i in range(count):
        masks[i] = {"size": [10, 10 + i], "counts": "0a" * i}
    return Detections(
        image_index=generator.integers(0, 1000, count),
        category_index=generator.integers(0, 1000, count),
        boxes=generator.uniform(0, 900, (count, 4)).astype(np.float32).astype(np.float64),
        scores=generator.random(count).astype(np.float32).astype(np.float64),
        masks=masks if masked else None,
    )


def assert_equal(one: Detections, other: Detections) -> None:
    for column in ("image_index", "category_index", "boxes", "scores"):
        ours, theirs = getattr(one, column), getattr(other, column)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert (one.masks is None) == (other.masks is None)
    if one.masks is not None and other.masks is not None:
        assert one.masks.tolist() == other.masks.tolist()


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("piece", [1, 100, 2**20])
def test_what_is_kept_comes_back(
    tmp_path: Path, monkeypatch, on_disk: bool, masked: bool, piece: int
) -> None:
    monkeypatch.setattr(spool, "PIECE_BYTES", piece)
    parts = [detections(count, count, masked) for count in (3, 0, 5)]
    kept = DetectionSpool(tmp_path / "new" if on_disk else None)
    for part in parts[:2]:
        kept.add(part)
    [found] = kept.gather()
    assert_equal(found, parts[0])
    kept.add(parts[2])
    [found] = kept.gather()
    assert_equal(found, Detections.concatenate(parts))
    assert not on_disk or os.listdir(tmp_path / "new") == []
    kept.close()
    [found] = kept.gather()
    assert len(found) == 0
    assert found.masks is None
    kept.close()


@pytest.mark.parametrize("masked", [False, True])
def test_only_empty_parts_keep_what_the_model_predicts(masked: bool) -> None:
    kept = DetectionSpool()
    kept.add(detections(0, masked=masked))
    [found] = kept.gather()
    assert len(found) == 0
    assert (found.masks is not None) == masked


def test_masks_are_left_out_where_some_have_none() -> None:
    kept = DetectionSpool()
    parts = [detections(2, masked=True), detections(2, 1)]
    for part in parts:
        kept.add(part)
    [found] = kept.gather()
    assert_equal(found, Detections.concatenate(parts))


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    # The spool holds more than one buffer; SIGKILL gives the process no chance to clean up.
    code = (
        "import os, sys, signal; from pathlib import Path; import numpy as np\n"
        "from vastdet.evaluation.detections import Detections\n"
        "from vastdet.evaluation.spool import DetectionSpool\n"
        "zeros = np.zeros(10000, dtype=np.int64); folder = Path(sys.argv[1])\n"
        "kept = DetectionSpool(folder)\n"
        "kept.add(Detections(zeros, zeros, np.zeros((10000, 4)), np.zeros(10000)))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert process.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "out") == []


def test_two_and_three_processes_equal_one(tmp_path: Path) -> None:
    worker = runpy.run_path(str(WORKER))
    # A forked process would lack the threads of the evaluator; this one is the first of the three.
    others = [
        subprocess.Popen([sys.executable, str(WORKER), rank, str(tmp_path)]) for rank in ("1", "2")
    ]
    worker["main"](0, tmp_path)
    assert [other.wait(timeout=120) for other in others] == [0, 0]
    single = worker["evaluate"](range(worker["NUM_IMAGES"]), tmp_path / "by_1")
    assert single["bbox"]["AP"] > 10
    assert single["segm"]["AP"] > 10
    names = sorted(path.name for path in (tmp_path / "by_1").iterdir())
    assert "coco_instances_results.json" in names
    assert "metrics.json" in names
    for count in (2, 3):
        for rank in range(1, count):
            assert json.loads((tmp_path / f"rank{rank}_of_{count}.json").read_text()) == {}
        result = json.loads((tmp_path / f"rank0_of_{count}.json").read_text())
        for key, expected in single.items():
            assert result[key] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        folder = tmp_path / f"by_{count}"
        assert sorted(path.name for path in folder.iterdir()) == names
        for name in names:
            assert (folder / name).read_bytes() == (tmp_path / "by_1" / name).read_bytes(), name
