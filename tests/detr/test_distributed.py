# SPDX-License-Identifier: Apache-2.0
"""Two processes train as one does on the images of both, with few boxes and with none.

A fresh process imports everything and forks the two for each member: real processes, of which the
second has images without ground truth. In float64: the order of images changes rounding, which some
members enlarge and which decides near ties of queries and of matches.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import create_ddp_model
from tests.models.architectures import ARCHITECTURES, Architecture
from tests.models.test_architectures import GT_BOXES, build, sample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vastdet import add_vastdet_config
from vastdet.detr.denoising import Denoising, Noise
from vastdet.detr.structures import Targets

MEMBERS = [a for a in ARCHITECTURES if a.padding_invariant]
# Boxes of each image of each process, step by step. Denoising makes as many groups as the fullest
# image of a process leaves room for, so in the first step that is the same for both.
STEPS = [[(3, 1), (0, 3)], [(2, 1), (0, 0)]]
# Softmax cross-entropy is a mean over the queries of a process, as in the authors' code.
MEAN_OF_A_PROCESS = ("DETR", "Panoptic DETR")


def records(step: int, ranks: range) -> list[dict[str, Any]]:
    """The images of some processes in one step."""
    counts = [(rank, i, n) for rank in ranks for i, n in enumerate(STEPS[step][rank])]
    return [sample(GT_BOXES[:n], seed=10 * step + 2 * rank + i) for rank, i, n in counts]


def member(architecture: Architecture) -> nn.Module:
    """A small model, the same in every process."""
    cfg = get_cfg()
    add_vastdet_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    return build(architecture, cfg).double()


def same_for_all(draw: Callable[..., Noise]) -> Callable[..., Noise]:
    """Draw for every image the noise of one, so that it does not depend on the batch."""

    def draw_once(targets: Targets, *settings: Any) -> Noise:
        torch.manual_seed(0)
        noise = draw(replace(targets, num_boxes=targets.num_boxes[:1]), *settings)
        drawn = (noise.flip, noise.labels, noise.moves)
        return Noise(*(x.expand(len(targets.num_boxes), *x.shape[1:]) for x in drawn))

    return draw_once


def share_of(name: str, architecture: str, step: int) -> float:
    """Whether a loss counts: not where it is of the groups, or the mean, of one process alone."""
    of_groups = name.endswith("_dn") and step == 1
    of_process = "_class" in name and architecture in MEAN_OF_A_PROCESS
    return 0.0 if of_groups or of_process else 1.0


def train(architecture: Architecture, ranks: range) -> dict[str, Any]:
    """Losses and gradients of two steps on the images of some processes, and the final weights."""
    model = member(architecture)
    for module in model.modules():
        if isinstance(module, Denoising):
            module.draw_noise = same_for_all(module.draw_noise)
    trained = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=architecture.learning_rate)
    history = []
    for step in range(len(STEPS)):
        model.train()
        for module in model.modules():
            if isinstance(module, _BatchNorm):  # its statistics are of one process
                module.eval()
        losses = trained(records(step, ranks))
        shares = {k: share_of(k, architecture.name, step) for k in losses}
        optimizer.zero_grad()
        sum(loss * shares[k] for k, loss in losses.items()).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        history.append({"losses": {k: x.detach() for k, x in losses.items()}, "grads": gradients})
    return {"steps": history, "weights": model.state_dict()}


def train_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=5),
    )
    found = {a.name: train(a, range(rank, rank + 1)) for a in MEMBERS}
    torch.save(found, f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


def fork_ranks(_: int, folder: str) -> None:
    torch.set_num_threads(1)
    importlib.import_module("timm")  # once, not in both
    torch.multiprocessing.start_processes(train_rank, args=(folder,), nprocs=2, start_method="fork")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, by member."""
    folder = tmp_path_factory.mktemp("ranks")
    # Autograd has run in this process, which forbids to fork it.
    torch.multiprocessing.spawn(fork_ranks, args=(str(folder),))
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MEMBERS, ids=lambda a: a.name)
def test_two_processes_train_as_one(architecture: Architecture, two: list[dict[str, Any]]) -> None:
    one, (first, second) = train(architecture, range(2)), (x[architecture.name] for x in two)
    for step, expected in enumerate(one["steps"]):
        here, there = first["steps"][step], second["steps"][step]
        assert all(torch.equal(x, there["grads"][n]) for n, x in here["grads"].items())
        mean = {k: (x + there["losses"][k]) / 2 for k, x in here["losses"].items()}
        counting = [k for k in mean if share_of(k, architecture.name, step)]
        losses = max(float((mean[k] / expected["losses"][k] - 1).abs()) for k in counting)
        gradients = largest_gap(here["grads"], expected["grads"])
        print(f"{architecture.name}: step {step}, losses {losses:.1e}, gradients {gradients:.1e}")
        # Measured: losses 4e-16 of their size, gradients 4e-13 where the largest is 1 to 200.
        assert losses < 1e-9
        assert gradients < 1e-9
        denoising = {k: x for k, x in mean.items() if k.endswith("_dn")}
        assert all(x > 0 for x in denoising.values())
        assert all((there["losses"][k] == 0) == (step == 1) for k in denoising)
    assert largest_gap(first["weights"], one["weights"]) < 1e-9
    start = member(architecture).state_dict()
    assert largest_gap(first["weights"], start) > 1e-3


def largest_gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((x - other[name]).abs().max()) for name, x in one.items())
