# SPDX-License-Identifier: Apache-2.0
"""The hook that watches the gradients of class logits while a detector trains."""

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from vastdet.data import category_space
from vastdet.data.record_table import Record
from vastdet.engine.gradient_history import FILE_NAME, GradientHistory, subject_of
from vastdet.engine.gradient_sums import (
    CATEGORY_SUMS,
    HardNegatives,
    StepGradients,
    hard_negatives,
)
from vastdet.layers.observed_logits import PARTS, PREDICTIONS, observable, observing

logger = logging.getLogger(__name__)

# Names in metrics.json of rho and eta by each of `DEFINITIONS`.
METRICS = {
    "loss": ("gradient_ratio", "hard_negative_share"),
    "cross_entropy": ("gradient_ratio_cross_entropy", "hard_negative_share_cross_entropy"),
}


def metrics_of(parts: Tensor) -> dict[str, float]:
    """The `METRICS` of one step's sums (P, D, S); none where there is no gradient of negatives."""
    found: dict[str, float] = {}
    for sums, names in zip(parts[PARTS.index(PREDICTIONS)], METRICS.values(), strict=True):
        positive, negative, hard = sums[: len(CATEGORY_SUMS)].tolist()
        if negative:
            found.update(zip(names, (positive / negative, hard / negative), strict=True))
    return found


class NotObservedError(ValueError):
    """The model in training has no class loss with sigmoids whose gradient could be watched."""


class GradientRatioHook(HookBase):
    """Measures the ratio of positive to negative gradients and the share of hard negatives.

    Training is the same, bit for bit, with and without it. The history is part of checkpoints, so
    that a resumed run has all of it.
    """

    def __init__(
        self, history: GradientHistory, hard: HardNegatives, *, period: int, output: Path
    ) -> None:
        """Measure every `period`-th iteration; write `history` to `output` in the end."""
        self.history = history
        self.hard = hard
        self.period = period
        self.output = output
        self._step: StepGradients | None = None
        self._watch = ExitStack()

    def before_step(self) -> None:
        """Begin to watch, if it is time."""
        if (self.trainer.iter + 1) % self.period:
            return
        # A plain Detectron2 trainer has no scaler, or none that is in use.
        scaler = getattr(self.trainer._trainer, "grad_scaler", None)
        self._step = StepGradients(
            len(self.history.subject.names),
            self.hard,
            scale=scaler.get_scale() if scaler is not None else 1.0,
        )
        for module in self.trainer.model.modules():
            self._watch.enter_context(observable(module))
        self._watch.enter_context(observing(self._step.add))

    def after_step(self) -> None:
        """Add up what was seen.

        Raises:
            NotObservedError: nothing was.
        """
        self._watch.close()
        step, self._step = self._step, None
        if step is None:
            return
        if step.is_empty:
            raise NotObservedError(
                f"{self.history.subject.architecture} has no class loss with sigmoids to analyse "
                "(a softmax has another gradient; two-stage heads have softmaxes unless "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is True); train a detector with sigmoids, or "
                "set ANALYSIS.GRADIENTS.ENABLED to False"
            )
        parts, categories, num_positives = step.reduced()
        if not parts.isfinite().all():
            logger.warning("Iteration %d has infinite gradients; left out.", self.trainer.iter)
            return
        self.history.append(self.trainer.iter, parts, categories, num_positives)
        for metric, value in metrics_of(parts).items():
            self.trainer.storage.put_scalar(metric, value, smoothing_hint=False)

    def after_train(self) -> None:
        """Stop watching, also after an error, and write the file."""
        self._watch.close()
        if comm.is_main_process() and self.history.iterations:
            self.history.save(self.output)

    def state_dict(self) -> dict[str, Any]:
        """See `GradientHistory.state_dict`."""
        return self.history.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `GradientHistory.load_state_dict`."""
        self.history.load_state_dict(state)


def build_gradient_hook(cfg: CfgNode, records: Iterable[Record]) -> GradientRatioHook:
    """The hook of `cfg.ANALYSIS.GRADIENTS` for a training on `records`.

    Raises:
        ValueError: an unknown rule for hard negatives, or a period that is not positive.
    """
    node = cfg.ANALYSIS.GRADIENTS
    if node.PERIOD < 1:
        raise ValueError(f"ANALYSIS.GRADIENTS.PERIOD is {node.PERIOD}; expected 1 or more")
    hard = hard_negatives(node.HARD_RULE, node.HARD_VALUE)
    subject = subject_of(
        category_space(cfg.DATASETS.TRAIN[0]),
        records,
        architecture=cfg.MODEL.META_ARCHITECTURE,
        datasets=cfg.DATASETS.TRAIN,
        hard_negatives=(node.HARD_RULE, node.HARD_VALUE),
    )
    output = Path(cfg.OUTPUT_DIR) / FILE_NAME
    return GradientRatioHook(GradientHistory(subject), hard, period=node.PERIOD, output=output)
