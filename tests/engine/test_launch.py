# SPDX-License-Identifier: Apache-2.0
"""Several processes: the same training as one, whoever starts them."""

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vastdet.engine.launch import (
    check_counts,
    first_host,
    started_by_slurm,
    started_by_torchrun,
)

STEP = ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0"]


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    assert a.keys() == b.keys()
    pairs = [(a[k].double(), b[k].double()) for k in a if not k.endswith("num_batches_tracked")]
    return max(float((x - y).abs().max()) for x, y in pairs if x.numel())


def test_two_processes_and_accumulation_train_as_one(
    train: Any, load: Callable, tmp_path: Path
) -> None:
    options = ["MODEL.META_ARCHITECTURE", "ToyMeanLoss", *STEP]
    runs = {
        "one": ([], 1),
        "accumulated": (["SOLVER.ACCUMULATION_STEPS", "2"], 1),
        "two": ([], 2),
        "two_accumulated": (["SOLVER.ACCUMULATION_STEPS", "2"], 2),
    }
    weights = {}
    for name, (extra, processes) in runs.items():
        folder = tmp_path / name
        codes = train(*options, *extra, "OUTPUT_DIR", str(folder), processes=processes)
        assert codes == [0] * processes
        weights[name] = load(folder / "model_final.pth")["training_model"]
    start = load(tmp_path / "one" / "model_0000001.pth")["training_model"]
    # Far more than rounding, far less than what one image in the wrong place would change.
    moved = largest_difference(weights["one"], start)
    assert moved > 1e-3
    for name in ("accumulated", "two", "two_accumulated"):
        assert largest_difference(weights["one"], weights[name]) < 1e-5


def test_two_processes_are_resumed_bit_for_bit(train: Any, load: Callable, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train("OUTPUT_DIR", str(whole), processes=2) == [0, 0]
    codes = train("OUTPUT_DIR", str(stopped), kill="in_step@5", processes=2)
    assert -9 in codes
    assert train("--resume", "OUTPUT_DIR", str(stopped), processes=2) == [0, 0]
    a, b = (load(folder / "model_final.pth") for folder in (whole, stopped))
    assert largest_difference(a["model"], b["model"]) == 0
    assert largest_difference(a["training_model"], b["training_model"]) == 0
    assert len(a["trainer"]["processes"]) == 2


def test_two_processes_evaluate_together(train: Any, tmp_path: Path) -> None:
    options = ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('toy',)", "SOLVER.MAX_ITER", "1"]
    assert train(*options, processes=2, starter="slurm") == [0, 0]
    assert "World size: 2" in (tmp_path / "log.txt").read_text()
    assert "bbox/AP" in (tmp_path / "metrics.json").read_text().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        [sys.executable, "tools/train_net.py", "--num-gpus", "2"],
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
         "tools/train_net.py"],
    ],
    ids=["num-gpus", "torchrun"],
)  # fmt: skip
def test_starters(
    start: list[str], toy_arguments: list[str], repository: Path, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("starts CPU processes, which --num-gpus does only without CUDA")
    options = [*toy_arguments, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *options], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model_final.pth").exists()
    assert "World size: 2" in (tmp_path / "log.txt").read_text()


def test_torchrun_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_by_torchrun() is None
    values = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}
    for name, value in {**values, "MASTER_ADDR": "host", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    group = started_by_torchrun()
    assert group is not None
    assert (group.rank, group.world_size, group.local_rank, group.local_size) == (5, 8, 1, 4)
    assert group.url == "env://"


SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_ID": "41234",
}


def test_slurm_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_by_slurm() is None
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    group = started_by_slurm()
    assert group is not None
    assert (group.rank, group.world_size, group.local_rank, group.local_size) == (6, 8, 2, 4)
    assert group.url == "tcp://gpu03:21234"
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "5000")
    group = started_by_slurm()
    assert group is not None
    assert group.url == "tcp://10.0.0.1:5000"
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "4,3")
    with pytest.raises(ValueError, match="the same number"):
        started_by_slurm()
    # A script under sbatch without srun is one process, whatever the job could hold.
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert started_by_slurm() is None


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[03-05,9],big1", "gpu03"), ("a[2,4]-x", "a2-x")],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_a_list_without_a_first_host() -> None:
    with pytest.raises(ValueError, match="set MASTER_ADDR to the first host"):
        first_host("[1-2]")


def test_cpu_processes_beside_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    arguments = Namespace(num_gpus=2, num_machines=1, dist_url="auto")
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=''"):
        check_counts(arguments, "cpu")
    check_counts(arguments, "cuda")


def test_counts_that_cannot_work() -> None:
    arguments = Namespace(num_gpus=10**6, num_machines=1, dist_url="auto")
    with pytest.raises(ValueError, match="1000000"):
        check_counts(arguments, "cuda")
    arguments = Namespace(num_gpus=1, num_machines=2, dist_url="auto")
    with pytest.raises(ValueError, match="--dist-url"):
        check_counts(arguments, "cpu")
