# SPDX-License-Identifier: Apache-2.0
"""Forks a process for each training run asked for on standard input (see conftest.py)."""

import json
import os
import signal
import socket
import sys

import torch

import vastdet.engine.checkpoint as checkpoint_module
from vastdet.engine.command_line import main
from vastdet.engine.step import TrainStep


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

    checkpoint_module.os.replace = replace_then_die


def run_child(job: dict, rank: int, port: int) -> None:
    os.dup2(2, 1)
    torch.set_num_threads(1)
    if job["processes"] > 1:
        world = str(job["processes"])
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_WORLD_SIZE=world)
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
