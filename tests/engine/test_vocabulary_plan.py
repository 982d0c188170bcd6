# SPDX-License-Identifier: Apache-2.0
"""Costs by the number of categories: exact parameters, straight lines, real passes beside them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tests.models.architectures import cq_dino, dino

from vastdet.engine import load_config
from vastdet.engine.pass_counter import count_pass
from vastdet.engine.vocabulary_measure import Measurement, Rates, measure, measured_slopes
from vastdet.engine.vocabulary_models import (
    BRANCHING,
    make_pass,
    model_size,
    register_balanced,
    with_categories,
)
from vastdet.engine.vocabulary_plan import Line, VocabularyPlan, plan

SIZE = (64, 96)
COUNTED = (1024, 2048, 3072)
V3DET = "configs/DINO/dino_R_50_4scale_36ep_v3det.yaml"


def flat(slope: float, start: float, *working: tuple[float, float]) -> VocabularyPlan:
    lines = tuple(Line(*x) for x in working)
    zero = Line(0, 0)
    return VocabularyPlan("x", "train", zero, Line(start, slope), zero, zero, lines, True)


@pytest.mark.parametrize(
    ("architecture", "shared", "expected"),
    [
        # A classifier of 256 weights and a bias for each of 6 layers and for the encoder, and the
        # denoising queries' content: Table 7 has 2.1 K.
        ("DINO", False, 7 * 257 + 256),
        ("DINO", True, 2 * 257 + 256),
        # A query of 768 channels, wherever it is read: Table 7 has 0.8 K.
        ("CQDINO", False, 768),
    ],
)
def test_parameters_per_category_are_those_of_the_paper(
    repository: Path, architecture: str, shared: bool, expected: int
) -> None:
    opts = ["MODEL.META_ARCHITECTURE", architecture, "MODEL.DINO.SHARE_HEADS", shared]
    cfg = load_config(repository / V3DET, opts)
    sizes = [model_size(with_categories(cfg, n)).num_parameters for n in (200, 300, 13_204)]
    assert sizes[1] - sizes[0] == 100 * expected
    assert sizes[2] - sizes[0] == 13_004 * expected


def test_a_model_of_shapes_has_the_size_of_a_real_one(cfg: CfgNode) -> None:
    cq_dino(cfg)
    cfg = with_categories(cfg, 40)
    model = build_model(cfg)
    found = model_size(cfg)
    tensors = [*model.parameters(), *model.buffers()]
    assert found.num_parameters == sum(p.numel() for p in model.parameters())
    assert found.num_bytes == sum(x.nbytes for x in tensors)


def test_made_up_vocabularies_are_balanced_trees(cfg: CfgNode) -> None:
    space = MetadataCatalog.get(register_balanced(2 + BRANCHING)).category_space
    assert len(space) == len(set(space.names)) == 17
    assert space.hierarchy.children(0).tolist() == list(range(1, 16))
    assert space.hierarchy.children(1).tolist() == [16]
    cq_dino(cfg)
    assert len(build_model(with_categories(cfg, 30)).categories.queries()) == 30
    assert cfg.MODEL.CQ_DINO.NUM_CLASSES == 3
    with pytest.raises(ValueError, match="at least 1 category, got 0"):
        with_categories(cfg, 0)


@pytest.mark.parametrize(
    ("architecture", "task", "from_shapes"),
    [
        (dino, "inference", True),
        (dino, "train", False),
        # Which tokens are padding is a value.
        (cq_dino, "inference", False),
        (cq_dino, "train", False),
    ],
)
def test_memory_of_a_fourth_vocabulary_is_on_the_line(
    cfg: CfgNode, architecture: Callable[[CfgNode], None], task: str, from_shapes: bool
) -> None:
    architecture(cfg)
    found = plan(cfg, "tiny", task=task, image_size=SIZE, counted=COUNTED)
    assert found.from_shapes == from_shapes
    assert found.deviation < 0.005
    larger = with_categories(cfg, 8192)
    counts = count_pass(*make_pass(larger, task, SIZE))
    memory = model_size(larger).num_bytes + counts.peak
    # The tree of 8,192 has one more level than those counted, and so fewer categories in the last.
    assert found.memory(8192) == pytest.approx(memory, rel=0.1 if architecture is cq_dino else 1e-3)
    assert found.num_flops.at(8192) == pytest.approx(counts.num_flops, rel=1e-6)
    # One more level of the tree is read than in the counted ones.
    assert found.bytes_moved.at(8192) == pytest.approx(counts.bytes_moved, rel=0.1)


def test_shapes_alone_count_what_a_run_counts(cfg: CfgNode) -> None:
    dino(cfg)
    found = plan(cfg, "tiny", image_size=SIZE, counted=COUNTED)
    counts = count_pass(*make_pass(with_categories(cfg, 2048), "inference", SIZE))
    assert found.num_flops.at(2048) == counts.num_flops
    assert found.working_memory(2048) == pytest.approx(counts.peak, rel=0.01)


def test_categories_prepared_for_inference_are_counted(cfg: CfgNode) -> None:
    cq_dino(cfg)
    found = plan(cfg, "tiny", image_size=SIZE, counted=COUNTED)
    dim = cfg.MODEL.CQ_DINO.CATEGORY.DIM
    # Queries, and what the first layer reads of them, besides the weights.
    assert found.memory_slope(100_000) > 3 * dim * 4


@pytest.mark.parametrize("task", ["inference", "train"])
def test_predicted_memory_is_near_a_measurement(cfg: CfgNode, task: str) -> None:
    cq_dino(cfg)
    found = plan(cfg, "tiny", task=task, image_size=SIZE, counted=COUNTED)
    predicted = (found.memory(32768) - found.memory(4096)) / (32768 - 4096)
    ratios = []
    # A peak now and then holds what the allocator has not given back yet.
    while not ratios or (len(ratios) < 3 and not 0.6 < ratios[-1] < 1.4):
        num_bytes, seconds = measured_slopes(measure(cfg, task, SIZE, (4096, 32768)))
        ratios.append(predicted / num_bytes)
    assert 0.6 < ratios[-1] < 1.4, ratios
    # Other work on a machine slows a pass; the order of magnitude stays.
    assert 0.02 < Rates.measure().seconds_slope(found) / seconds < 20


def test_slopes_of_measurements() -> None:
    measured = [Measurement(30, 700, 5.0), Measurement(10, 500, 1.0), Measurement(20, 0, 0.0)]
    assert measured_slopes(measured) == (10.0, 0.2)


def test_the_largest_vocabulary_just_fits() -> None:
    # Another place of the pass holds the most from 100 categories on.
    found = flat(2, 1000, (500, 0), (0, 5))
    assert [found.memory(n) for n in (1, 100, 101)] == [1502, 1700, 1707]
    assert [found.memory_slope(n) for n in (1, 100)] == [2, 7]
    assert [found.largest(x) for x in (1502, 1503, 1504, 1700, 1706, 1707)] == [
        1,
        1,
        2,
        100,
        100,
        101,
    ]
    with pytest.raises(ValueError, match=r"for one category .*, more than"):
        found.largest(1501)
    with pytest.raises(ValueError, match="does not grow"):
        flat(0, 10).largest(20)


def test_wrong_input(cfg: CfgNode) -> None:
    dino(cfg)
    with pytest.raises(ValueError, match="unknown task 'data'; expected one of inference, train"):
        plan(cfg, "x", task="data")
    for counted in ((1, 2), (3, 2, 4), (2, 2, 4)):
        with pytest.raises(ValueError, match="three rising numbers"):
            plan(cfg, "x", counted=counted)
    with pytest.raises(ValueError, match="two numbers of categories"):
        measure(cfg, "inference", SIZE, [5, 5])


def test_a_model_that_does_not_grow_by_a_line_is_refused(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vastdet.engine import vocabulary_plan
    from vastdet.engine.vocabulary_models import Size

    dino(cfg)
    sizes = iter([Size(1, 1), Size(2, 2), Size(4, 4)])
    monkeypatch.setattr(vocabulary_plan, "model_size", lambda _: next(sizes))
    with pytest.raises(ValueError, match="4 parameters for 3 categories"):
        plan(cfg, "x", counted=(1, 2, 3))
