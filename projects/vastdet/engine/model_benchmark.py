# SPDX-License-Identifier: Apache-2.0
"""What tools/benchmark.py times: an inference, a training step, or a batch of the data loader."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from vastdet.data import build_train_loader
from vastdet.engine.benchmarking import Comparison, compare
from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import load_config, merge_opts, without_pretrained
from vastdet.engine.model_inputs import random_inputs
from vastdet.engine.optimizer import build_optimizer
from vastdet.engine.precision import inference_autocast, training_autocast


@dataclass(frozen=True)
class Workload:
    """What every model is given, so that they can be compared.

    `image_size` is (height, width) in pixels, after any resizing.
    """

    batch_size: int = 1
    image_size: tuple[int, int] = (320, 320)
    device: str = "cpu"


def load_configs(
    config_files: Sequence[str], weights: Sequence[str], opts: Sequence[str], device: str
) -> dict[str, CfgNode]:
    """Name -> config, for files with a weights file each ("-" for random weights) or none at all.

    Raises:
        ValueError: there are not as many weights as config files, or as `load_config` does.
        FileNotFoundError: there is no such config file.
    """
    if weights and len(weights) != len(config_files):
        raise ValueError(
            f"{len(weights)} weights for {len(config_files)} config files: give one each, "
            "with - for random weights"
        )
    configs: dict[str, CfgNode] = {}
    for file, path in zip(config_files, weights or ["-"] * len(config_files), strict=True):
        cfg = load_config(file, opts)
        # Random weights cost as much; a backbone's own file would have to be fetched.
        merge_opts(cfg, ["MODEL.WEIGHTS", "" if path == "-" else path, "MODEL.DEVICE", device])
        without_pretrained(cfg)
        configs[unique_name(Path(file).stem, configs)] = cfg
    return configs


def unique_name(name: str, taken: dict[str, Any]) -> str:
    """The name, with a number where it is taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def make_inference(cfg: CfgNode, workload: Workload) -> Callable[[], object]:
    """A function that detects objects in one batch of random images."""
    model = load_model(cfg).eval()
    inputs = random_inputs(cfg, batch_size=workload.batch_size, image_size=workload.image_size)

    @torch.inference_mode()
    def detect() -> object:
        with inference_autocast(cfg):
            return model(inputs)

    return detect


def make_training_step(cfg: CfgNode, workload: Workload) -> Callable[[], object]:
    """A function that does forward, backward and an optimiser step on one random batch.

    The learning rate is zero: the work is the same, and random targets cannot lead to NaN.
    Precision is as `SOLVER.AMP` says; losses are not scaled.
    """
    cfg = cfg.clone()
    cfg.SOLVER.BASE_LR = 0.0
    model = load_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    inputs = random_inputs(cfg, batch_size=workload.batch_size, image_size=workload.image_size)

    def step() -> None:
        # Detectron2's models log into an event storage and may write into their records.
        with EventStorage(), training_autocast(cfg):
            losses = model([dict(record) for record in inputs])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def load_model(cfg: CfgNode) -> torch.nn.Module:
    """The model of a config with its weights, random ones where MODEL.WEIGHTS is empty."""
    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        VastdetCheckpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[], complete=True)
    return model


def make_data_loading(cfg: CfgNode, workload: Workload) -> Callable[[], object]:
    """A function that takes the next training batch of `workload.batch_size` images."""
    cfg = cfg.clone()
    cfg.SOLVER.IMS_PER_BATCH = workload.batch_size
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    batches: Iterator[list[dict[str, Any]]] = iter(build_train_loader(cfg, seed=0))
    return lambda: next(batches)


TASKS: dict[str, Callable[[CfgNode, Workload], Callable[[], object]]] = {
    "inference": make_inference,
    "train": make_training_step,
    "data": make_data_loading,
}


def benchmark(
    configs: dict[str, CfgNode],
    task: str,
    workload: Workload,
    *,
    rounds: int,
    warmup: int,
    progress: bool = False,
) -> Comparison:
    """Compare the configs at one of `TASKS`, the first as the yardstick."""
    callables = {name: TASKS[task](cfg, workload) for name, cfg in configs.items()}
    return compare(
        callables,
        rounds,
        warmup,
        items_per_call=workload.batch_size,
        device=workload.device,
        progress=progress,
    )
