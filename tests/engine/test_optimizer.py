# SPDX-License-Identifier: Apache-2.0
"""Parameter groups, schedules and gradient clipping."""

import math

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler
from torch import nn

from vastdet.backbones.swin import SwinBackbone, SwinSize
from vastdet.engine.optimizer import build_optimizer


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def hyperparameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict:
    """Name -> (lr, weight decay)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.fixture
def solver_cfg(cfg: CfgNode) -> CfgNode:
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    return cfg


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_groups(solver_cfg: CfgNode, kind: str) -> None:
    solver = solver_cfg.SOLVER
    solver.OPTIMIZER = kind
    solver.BACKBONE_MULTIPLIER = 0.5
    solver.BIAS_LR_FACTOR = 2.0
    solver.WEIGHT_DECAY_NORM = 0.0
    solver.WEIGHT_DECAY_BIAS = 0.001
    solver.LR_MULTIPLIERS = [["head", 3.0], [r"head\.weight$", 0.1]]
    model = Toy()
    optimizer = build_optimizer(solver_cfg, model)
    assert type(optimizer).__name__ == kind
    expected = {
        "backbone.0.weight": (0.1 * 0.5, 0.01),
        "backbone.0.bias": (0.1 * 0.5 * 2, 0.001),
        "backbone.1.weight": (0.1 * 0.5, 0.0),
        "backbone.1.bias": (0.1 * 0.5 * 2, 0.001),
        "head.weight": (0.1 * 3 * 0.1, 0.01),
        "head.bias": (0.1 * 3 * 2, 0.001),
    }
    found = hyperparameters(optimizer, model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name


def test_weight_decay_by_name(solver_cfg: CfgNode) -> None:
    solver_cfg.SOLVER.WEIGHT_DECAY_NORM = 0.02
    solver_cfg.SOLVER.WEIGHT_DECAY_MULTIPLIERS = [["^backbone", 10.0], [r"\.0\.weight$", 0.0]]
    solver_cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    model = Toy()
    optimizer = build_optimizer(solver_cfg, model)
    assert len(optimizer.param_groups) == 4
    expected = {
        "backbone.0.weight": (0.05, 0.0),
        "backbone.0.bias": (0.05, 0.1),
        "backbone.1.weight": (0.05, 0.2),
        "backbone.1.bias": (0.05, 0.2),
        "head.weight": (0.1, 0.01),
        "head.bias": (0.1, 0.01),
    }
    found = hyperparameters(optimizer, model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name


def test_decay_of_a_swin(solver_cfg: CfgNode) -> None:
    # Microsoft's detectors: no decay of norms and of position biases, AdamW.
    solver_cfg.SOLVER.WEIGHT_DECAY_MULTIPLIERS = [["relative_position_bias_table", 0.0]]
    model = nn.Module()
    model.backbone = SwinBackbone(
        SwinSize(8, (2, 2), (1, 2)), window_size=2, out_features=["res2", "res3"]
    )
    for name, (_, decay) in hyperparameters(build_optimizer(solver_cfg, model), model).items():
        is_free = "norm" in name or "table" in name
        assert decay == (0.0 if is_free else 0.01), name


def test_defaults_are_detectron2s(solver_cfg: CfgNode) -> None:
    model = Toy()
    optimizer = build_optimizer(solver_cfg, model)
    found = set(hyperparameters(optimizer, model).values())
    # WEIGHT_DECAY_NORM is 0 in Detectron2.
    assert found == {(0.1, 0.01), (0.1, 0.0)}
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([["haed", 0.1]], "matches no parameter"),
        ([["head"]], "expected \\[regular expression, factor\\]"),
        ([["(", 1.0]], "expected \\[regular expression, factor\\]"),
        ([["head", "fast"]], "expected \\[regular expression, factor\\]"),
    ],
)
@pytest.mark.parametrize("key", ["LR_MULTIPLIERS", "WEIGHT_DECAY_MULTIPLIERS"])
def test_wrong_patterns(solver_cfg: CfgNode, key: str, patterns: list, message: str) -> None:
    solver_cfg.SOLVER[key] = patterns
    with pytest.raises(ValueError, match=f"SOLVER.{key}.*{message}"):
        build_optimizer(solver_cfg, Toy())


def test_unknown_optimizer(solver_cfg: CfgNode) -> None:
    solver_cfg.SOLVER.OPTIMIZER = "Adam"
    with pytest.raises(ValueError, match="'SGD' or 'AdamW'"):
        build_optimizer(solver_cfg, Toy())


def stepped_by(cfg: CfgNode) -> dict[str, torch.Tensor]:
    """How far one SGD step with gradient 3 everywhere moves each parameter of the head."""
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    cfg.SOLVER.BASE_LR = 1.0
    model = Toy()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    return {n: before[n] - p.detach() for n, p in model.named_parameters() if p.requires_grad}


def test_clipping_by_the_norm_of_the_full_model(solver_cfg: CfgNode) -> None:
    clip = solver_cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.SCOPE, clip.CLIP_VALUE = True, "full_model", 0.5
    steps = stepped_by(solver_cfg)
    assert math.sqrt(sum(float(s.square().sum()) for s in steps.values())) == pytest.approx(0.5)
    values = torch.cat([s.flatten() for s in steps.values()])
    assert values.allclose(values[0])


def test_clipping_by_parameter_is_detectron2s(solver_cfg: CfgNode) -> None:
    clip = solver_cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "norm", 0.5
    for step in stepped_by(solver_cfg).values():
        assert float(step.norm()) == pytest.approx(0.5, rel=1e-4)


def test_unknown_clipping(solver_cfg: CfgNode) -> None:
    clip = solver_cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.SCOPE = True, "layer"
    with pytest.raises(ValueError, match="'parameter' or 'full_model'"):
        build_optimizer(solver_cfg, Toy())
    clip.CLIP_TYPE = "full_model"
    with pytest.raises(ValueError, match="SCOPE 'full_model'"):
        build_optimizer(solver_cfg, Toy())


def rates(cfg: CfgNode) -> list[float]:
    optimizer = build_optimizer(cfg, Toy())
    scheduler = build_lr_scheduler(cfg, optimizer)
    found = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_schedules_in_closed_form(solver_cfg: CfgNode) -> None:
    solver = solver_cfg.SOLVER
    solver.MAX_ITER, solver.WARMUP_ITERS, solver.WARMUP_FACTOR = 20, 4, 0.25
    solver.STEPS, solver.GAMMA = (10, 15), 0.1
    warmup = [0.1 * (0.25 + 0.75 * t / 4) for t in range(4)]
    steps = [0.1] * 6 + [0.01] * 5 + [0.001] * 5
    assert rates(solver_cfg) == pytest.approx(warmup + steps)
    solver.LR_SCHEDULER_NAME, solver.BASE_LR_END, solver.WARMUP_ITERS = "WarmupCosineLR", 0.02, 0
    cosine = [0.02 + 0.08 * (1 + math.cos(math.pi * t / 20)) / 2 for t in range(20)]
    assert rates(solver_cfg) == pytest.approx(cosine)
