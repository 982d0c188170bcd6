# SPDX-License-Identifier: Apache-2.0
"""What a changed batch size implies for the rest of a recipe."""

import logging

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def implied_settings(cfg: CfgNode) -> dict[str, str]:
    """The settings that keep a recipe's meaning at `SOLVER.IMS_PER_BATCH` images a step.

    The learning rate grows in proportion to the batch, so that an epoch moves the weights as far
    (Goyal et al. 2017, section 2.1; the recipes of the DETR family scale AdamW's alike: 1e-4 for 16
    images, 2e-4 for 32). Numbers of iterations shrink, so that as many images are seen.

    Returns:
        Config keys and values, as a command line takes them; empty where the recipe names no
        `SOLVER.REFERENCE_BATCH_SIZE` or the batch has that size.
    """
    solver, reference = cfg.SOLVER, cfg.SOLVER.REFERENCE_BATCH_SIZE
    if reference <= 0 or reference == solver.IMS_PER_BATCH:
        return {}
    share = reference / solver.IMS_PER_BATCH

    def iterations(number: int) -> int:
        return max(1, round(number * share)) if number > 0 else number

    steps = [iterations(step) for step in solver.STEPS]
    return {
        "SOLVER.BASE_LR": f"{solver.BASE_LR / share:.6g}",
        "SOLVER.MAX_ITER": str(iterations(solver.MAX_ITER)),
        "SOLVER.STEPS": '"({})"'.format("".join(f"{step}," for step in steps)),
        "SOLVER.WARMUP_ITERS": str(iterations(solver.WARMUP_ITERS)),
        "TEST.EVAL_PERIOD": str(iterations(cfg.TEST.EVAL_PERIOD)),
        "SOLVER.REFERENCE_BATCH_SIZE": str(solver.IMS_PER_BATCH),
    }


def report_implied_settings(cfg: CfgNode) -> None:
    """Warn, with the command-line arguments to add, when the batch is not the recipe's.

    Nothing is changed: a recipe that somebody tuned for another batch says so by its
    `SOLVER.REFERENCE_BATCH_SIZE`.
    """
    implied = implied_settings(cfg)
    if implied:
        solver = cfg.SOLVER
        logger.warning(
            "This recipe was made for %d images a step (SOLVER.REFERENCE_BATCH_SIZE), and "
            "SOLVER.IMS_PER_BATCH is %d; its learning rate %g and its schedule stay as they are. "
            "In proportion to the batch they would be:\n  %s",
            solver.REFERENCE_BATCH_SIZE,
            solver.IMS_PER_BATCH,
            solver.BASE_LR,
            " ".join(f"{key} {value}" for key, value in implied.items()),
        )
