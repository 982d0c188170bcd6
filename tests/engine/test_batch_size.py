# SPDX-License-Identifier: Apache-2.0
"""A changed batch size says what it implies."""

import logging
import shlex

import pytest
from detectron2.config import CfgNode

from vastdet.engine.batch_size import implied_settings, report_implied_settings


@pytest.fixture
def recipe(cfg: CfgNode) -> CfgNode:
    cfg.SOLVER.REFERENCE_BATCH_SIZE = cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.STEPS = (82500,)
    cfg.SOLVER.MAX_ITER = 90000
    cfg.SOLVER.WARMUP_ITERS = 1000
    cfg.TEST.EVAL_PERIOD = 0
    return cfg


def test_the_recipe_s_own_batch_implies_nothing(
    recipe: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    assert implied_settings(recipe) == {}
    report_implied_settings(recipe)
    recipe.SOLVER.REFERENCE_BATCH_SIZE = 0
    recipe.SOLVER.IMS_PER_BATCH = 4
    assert implied_settings(recipe) == {}
    assert not caplog.records


@pytest.mark.parametrize(
    ("batch", "rate", "last", "step", "warmup"),
    [(32, 2e-4, 45000, 41250, 500), (2, 1.25e-5, 720000, 660000, 8000)],
)
def test_another_batch_sees_as_many_images(
    batch: int,
    rate: float,
    last: int,
    step: int,
    warmup: int,
    recipe: CfgNode,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe.SOLVER.IMS_PER_BATCH = batch
    before = recipe.clone()
    with caplog.at_level(logging.WARNING):
        report_implied_settings(recipe)
    assert recipe == before, "nothing is changed"
    message = caplog.records[0].getMessage()
    assert "made for 16 images a step" in message
    assert f"SOLVER.IMS_PER_BATCH is {batch};" in message
    # What is printed can be put on a command line.
    recipe.merge_from_list(shlex.split(message.splitlines()[-1]))
    solver = recipe.SOLVER
    assert rate == solver.BASE_LR
    assert (last, (step,), warmup) == (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS)
    assert recipe.TEST.EVAL_PERIOD == 0
    assert implied_settings(recipe) == {}


def test_short_schedules_keep_an_iteration(recipe: CfgNode) -> None:
    recipe.SOLVER.IMS_PER_BATCH = 64
    recipe.SOLVER.STEPS, recipe.SOLVER.MAX_ITER, recipe.SOLVER.WARMUP_ITERS = (), 1, 0
    implied = implied_settings(recipe)
    assert (implied["SOLVER.MAX_ITER"], implied["SOLVER.WARMUP_ITERS"]) == ("1", "0")
    assert implied["SOLVER.STEPS"] == '"()"'
