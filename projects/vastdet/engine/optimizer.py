# SPDX-License-Identifier: Apache-2.0
"""The optimiser: groups by learning rate and weight decay, and gradient clipping."""

import math
import re
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser of `cfg.SOLVER` over the trainable parameters of `model`.

    Raises ValueError for an unknown optimiser or clipping scope, and for a pattern of
    `LR_MULTIPLIERS` or `WEIGHT_DECAY_MULTIPLIERS` that matches no parameter.
    """
    solver = cfg.SOLVER
    decay_factors = _read_factors(cfg, "WEIGHT_DECAY_MULTIPLIERS", model)
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=LearningRateFactor(cfg, model),
    )
    if decay_factors:
        groups = _multiply_weight_decay(groups, model, decay_factors)
    optimizer: torch.optim.Optimizer
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            groups, solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, foreach=True
        )
    elif solver.OPTIMIZER == "AdamW":
        optimizer = torch.optim.AdamW(groups, solver.BASE_LR, foreach=True)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; expected 'SGD' or 'AdamW'.")
    return add_gradient_clipping(cfg, optimizer)


class LearningRateFactor:
    """The factor on `SOLVER.BASE_LR` of a parameter, by its name."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """Raises ValueError for a malformed pattern or one that matches no parameter."""
        self.backbone = cfg.SOLVER.BACKBONE_MULTIPLIER
        self.bias = cfg.SOLVER.BIAS_LR_FACTOR
        self.factors = _read_factors(cfg, "LR_MULTIPLIERS", model)

    def __call__(self, name: str) -> float:
        """The product of all factors that apply to the parameter."""
        factor = 1.0
        if name.startswith("backbone."):
            factor *= self.backbone
        if name.endswith(".bias"):
            factor *= self.bias
        return _product(self.factors, name, start=factor)


def _read_factors(cfg: CfgNode, key: str, model: nn.Module) -> list[tuple[re.Pattern[str], float]]:
    """The [regular expression, factor] pairs of `SOLVER.<key>`, each of which must match."""
    names = [name for name, _ in model.named_parameters()]
    factors = []
    for pair in cfg.SOLVER[key]:
        try:
            text, factor = pair
            pattern = re.compile(text)
            factors.append((pattern, float(factor)))
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(
                f"SOLVER.{key} holds {pair!r}; expected [regular expression, factor]."
            ) from error
        if not any(pattern.search(name) for name in names):
            raise ValueError(
                f"SOLVER.{key}: {text!r} matches no parameter of the model, whose names look like "
                f"{', '.join(names[:3])}."
            )
    return factors


def _product(factors: list[tuple[re.Pattern[str], float]], name: str, start: float = 1.0) -> float:
    """`start` times all factors whose pattern is found in the name, in their order."""
    return math.prod((f for pattern, f in factors if pattern.search(name)), start=start)


def _multiply_weight_decay(
    groups: list[dict[str, Any]],
    model: nn.Module,
    factors: list[tuple[re.Pattern[str], float]],
) -> list[dict[str, Any]]:
    """Parameter groups with the decay of each parameter times its factor; those of 1 stay whole."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    multiplied = []
    for group in groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(_product(factors, names[parameter]), []).append(parameter)
        multiplied += [
            {**group, "params": parameters, "weight_decay": group["weight_decay"] * factor}
            for factor, parameters in by_factor.items()
        ]
    return multiplied


def add_gradient_clipping(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Clip gradients just before each step of `optimizer`, after any loss scaling is undone."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return optimizer
    if clip.CLIP_TYPE == "full_model":
        raise ValueError(
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE is 'full_model'; say CLIP_TYPE 'norm' and "
            "SOLVER.CLIP_GRADIENTS.SCOPE 'full_model', which plain Detectron2 can read too."
        )
    if clip.SCOPE == "parameter":
        return maybe_add_gradient_clipping(cfg, optimizer)
    if clip.SCOPE != "full_model":
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.SCOPE is {clip.SCOPE!r}; expected 'parameter' or 'full_model'."
        )

    def clip_common_norm(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_common_norm)
    return optimizer
