# SPDX-License-Identifier: Apache-2.0
"""Short trainings that are there for their gradients alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils.env import seed_all_rng

from vastdet.engine.config_files import load_config, merge_opts
from vastdet.engine.hooks import PeriodicCheckpointer
from vastdet.engine.trainer import Trainer


class UnsavedTrainer(Trainer):
    """A trainer that neither saves nor evaluates, and stops early in the schedule of its config."""

    def __init__(self, cfg: CfgNode, num_iterations: int) -> None:
        """See `Trainer`."""
        self.num_iterations = num_iterations
        super().__init__(cfg)

    def build_hooks(self) -> list[HookBase | None]:
        """Those of `Trainer` but for checkpoints and evaluation."""
        self.max_iter = self.num_iterations
        unwanted = PeriodicCheckpointer, hooks.EvalHook
        return [hook for hook in super().build_hooks() if not isinstance(hook, unwanted)]


def comparison_config(config_file: str, opts: Sequence[Any], *, output: Path, seed: int) -> CfgNode:
    """The frozen config of one of the trainings; every step is measured unless `opts` say else.

    Raises:
        FileNotFoundError, ValueError: see `load_config`.
    """
    cfg = load_config(config_file, ["ANALYSIS.GRADIENTS.PERIOD", 1, *opts])
    forced = ["ANALYSIS.GRADIENTS.ENABLED", True, "OUTPUT_DIR", str(output), "SEED", seed]
    merge_opts(cfg, forced)
    cfg.freeze()
    return cfg


def train_for_gradients(cfg: CfgNode, num_iterations: int) -> None:
    """The first iterations of a training, with its own schedule; writes OUTPUT_DIR/gradients.json.

    The order of the images follows from the seed and the dataset, whatever the model.

    Raises:
        ValueError: more iterations than the schedule has, or a model without sigmoids.
    """
    if not 0 < num_iterations <= cfg.SOLVER.MAX_ITER:
        raise ValueError(
            f"got {num_iterations} iterations for a schedule of {cfg.SOLVER.MAX_ITER} "
            "(SOLVER.MAX_ITER); expected 1 to as many"
        )
    seed_all_rng(cfg.SEED)
    trainer = UnsavedTrainer(cfg, num_iterations)
    trainer.resume_or_load(resume=False)
    trainer.train()
