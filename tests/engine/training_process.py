# SPDX-License-Identifier: Apache-2.0
"""Forks a process for each training run asked for on standard input (see conftest.py)."""

import json
import os
import random
import signal
import socket
import sys

import numpy as np
import omegaconf  # noqa: F401  (these three are imported here once rather than in every child)
import torch
import torch.utils.cpp_extension
import torch.utils.tensorboard
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet import files
from vastdet.engine.command_line import main
from vastdet.engine.step import TrainStep


@META_ARCH_REGISTRY.register()
class ToyMeanLoss(nn.Module):
    """A loss that is a mean over images, the case in which batches may be split at will."""

    def __init__(self, cfg) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 4)

    def forward(self, batch):
        losses = []
        for sample in batch:
            image = (sample["image"][None].float() - 128) / 64
            features = self.backbone(image).mean((0, 2, 3))
            target = sample["instances"].gt_boxes.tensor.mean(0) / 64
            losses.append(((self.head(features) - target) ** 2).mean())
        return {"loss_box": torch.stack(losses).mean()}


@META_ARCH_REGISTRY.register()
class ToyRandomLoss(ToyMeanLoss):
    """A loss that draws from every generator and counts its calls, as models may."""

    calls = 0

    def forward(self, batch):
        self.calls += 1
        factor = torch.rand(()) + random.random() + np.random.rand() + 1 / self.calls  # noqa: NPY002
        return {"loss_box": super().forward(batch)["loss_box"] * factor}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_step(iteration: int) -> None:
    """Die between the gradients and the update."""

    def after_backward(self: TrainStep) -> None:
        if self.iter == iteration:
            die()

    TrainStep.after_backward = after_backward


def die_while_writing(count: int) -> None:
    """Die with half of the count-th checkpoint on disk."""
    save = torch.save
    calls = []

    def save_half(data, file) -> None:
        calls.append(1)
        save(data, file)
        if len(calls) == count:
            file.truncate(file.tell() // 2)
            file.flush()
            die()

    torch.save = save_half


def die_before_note(count: int) -> None:
    """Die with the count-th checkpoint in place but not yet noted in last_checkpoint."""
    replace = os.replace
    calls = []

    def replace_then_die(source, target) -> None:
        replace(source, target)
        calls.append(1)
        # Each checkpoint replaces two files: its own and the note.
        if len(calls) == 2 * count - 1:
            die()

    files.os.replace = replace_then_die


def run_child(job: dict, rank: int, port: int) -> None:
    os.dup2(2, 1)
    torch.set_num_threads(1)
    world = str(job["processes"])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if job["starter"] == "torchrun":
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world, **address)
    elif job["starter"] == "slurm":
        os.environ.update(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **address)
        os.environ.update(SLURM_STEP_NUM_TASKS=world, SLURM_STEP_TASKS_PER_NODE=world)
    if job["kill"]:
        point, number = job["kill"].split("@")
        globals()[f"die_{point}"](int(number))
    os._exit(main(job["argv"]))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


for line in sys.stdin:
    job = json.loads(line)
    port = free_port()
    children = []
    for rank in range(job["processes"]):
        child = os.fork()
        if child == 0:
            try:
                run_child(job, rank, port)
            finally:
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
