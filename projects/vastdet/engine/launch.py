# SPDX-License-Identifier: Apache-2.0
"""Starts the processes of a run, or joins those that torchrun or SLURM started."""

import os
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch as spawn_processes
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm


@dataclass(frozen=True)
class ProcessGroup:
    """The place of this process among those of a run, as its starter tells it."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    url: str


def started_by_torchrun() -> ProcessGroup | None:
    """What torchrun says in the environment; None when it did not start this process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in os.environ for name in names):
        return None
    rank, world_size, local_rank = (int(os.environ[name]) for name in names[:3])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return ProcessGroup(rank, world_size, local_rank, local_size, "env://")


def started_by_slurm() -> ProcessGroup | None:
    """What srun says in the environment; None outside srun or with a single task.

    MASTER_ADDR and MASTER_PORT, when set, replace the first node of the step and a port that
    depends on the job.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks < 2 or "SLURM_PROCID" not in os.environ:
        return None
    host = os.environ.get("MASTER_ADDR") or first_host(os.environ["SLURM_STEP_NODELIST"])
    port = os.environ.get("MASTER_PORT") or 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
    # "4(x2)": four tasks on each of two nodes. Detectron2 needs the same number on all.
    per_node = re.findall(r"(\d+)(?:\(x\d+\))?", os.environ["SLURM_STEP_TASKS_PER_NODE"])
    if len(set(per_node)) != 1:
        raise ValueError(
            f"SLURM runs {os.environ['SLURM_STEP_TASKS_PER_NODE']} tasks on the nodes; all nodes "
            "must run the same number (srun --ntasks-per-node)."
        )
    return ProcessGroup(
        rank=int(os.environ["SLURM_PROCID"]),
        world_size=tasks,
        local_rank=int(os.environ["SLURM_LOCALID"]),
        local_size=int(per_node[0]),
        url=f"tcp://{host}:{port}",
    )


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list: "gpu[03-05,9],big1" gives "gpu03"."""
    matched = re.match(r"([^,\[]+)(?:\[([^\]]*)\]([^,]*))?", nodelist)
    if not matched:
        raise ValueError(f"SLURM_STEP_NODELIST is {nodelist!r}; set MASTER_ADDR to the first host.")
    prefix, numbers, suffix = matched.groups()
    return prefix if numbers is None else prefix + re.split(r"[-,]", numbers)[0] + (suffix or "")


def process_group(arguments: Namespace, device: str) -> ProcessGroup | None:
    """The group that torchrun or srun put this process in, or None when we start the processes.

    Raises ValueError when the processes that `arguments` ask for cannot be started.
    """
    group = started_by_torchrun() or started_by_slurm()
    if group is None:
        check_counts(arguments, device)
    return group


def launch(
    run: Callable[..., Any],
    arguments: Namespace,
    group: ProcessGroup | None,
    *,
    device: str,
    args: tuple,
) -> None:
    """Call `run(*args)` in every process of the run.

    A process started by torchrun or srun joins its `group`. Otherwise `arguments` (of Detectron2's
    argument parser) say how many processes to start here: `--num-gpus` processes a machine, which
    on a machine without CUDA are CPU processes. `device` is MODEL.DEVICE; CPU processes talk by
    gloo, CUDA processes by nccl.
    """
    if group is not None:
        join(group, device)
        try:
            run(*args)
        finally:
            dist.destroy_process_group()
        return
    spawn_processes(
        run,
        max(arguments.num_gpus, 1),
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=args,
    )


def check_counts(arguments: Namespace, device: str) -> None:
    """Raise ValueError for a number of processes or a URL that cannot work on this machine."""
    visible = torch.cuda.device_count()
    if device.startswith("cuda") and arguments.num_gpus > visible:
        raise ValueError(
            f"--num-gpus is {arguments.num_gpus}, but {visible} CUDA devices are seen."
        )
    processes = arguments.num_gpus * arguments.num_machines
    if processes > 1 and visible and not device.startswith("cuda"):
        raise ValueError(
            f"MODEL.DEVICE is {device}: to run {processes} CPU processes on a machine with CUDA "
            "devices hide those with CUDA_VISIBLE_DEVICES='' or start with torchrun."
        )
    if arguments.num_machines > 1 and arguments.dist_url == "auto":
        raise ValueError("With --num-machines give --dist-url tcp://<first machine>:<port>.")


def join(group: ProcessGroup, device: str) -> None:
    """Enter the process group that another program started."""
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(group.local_rank)
    dist.init_process_group(
        backend="nccl" if on_cuda else "gloo",
        init_method=group.url,
        rank=group.rank,
        world_size=group.world_size,
        timeout=DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(group.local_size)
    comm.synchronize()


def share_processor_cores(device: str) -> None:
    """Divide the CPU's cores among the CPU processes of this machine, unless the user did."""
    local_size = comm.get_local_size()
    if device == "cpu" and local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
