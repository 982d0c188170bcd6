# SPDX-License-Identifier: Apache-2.0
"""Pictures are drawn for few, many and no categories, without matplotlib's global state."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vastdet.evaluation import plots
from vastdet.evaluation.confusion import confusion_matrix
from vastdet.evaluation.detections import NO_DETECTIONS, Detections
from vastdet.evaluation.engines import accumulate
from vastdet.evaluation.ground_truth import GroundTruth, from_coco
from vastdet.evaluation.metrics import score
from vastdet.evaluation.protocols import coco_protocols
from vastdet.evaluation.report import ReportOptions, write_report
from vastdet.vocabulary import CategorySpace


def scene(num_categories: int, num_boxes: int) -> tuple[GroundTruth, Detections]:
    generator = np.random.default_rng(0)
    category = generator.integers(0, num_categories, num_boxes)
    image = generator.integers(0, 20, num_boxes)
    boxes = np.concatenate(
        [generator.uniform(0, 100, (num_boxes, 2)), generator.uniform(10, 90, (num_boxes, 2))], 1
    )
    truth = from_coco(
        {
            "images": [{"id": i} for i in range(20)],
            "categories": [
                {"id": k, "name": f"category of a long name {k}", "frequency": "rcf"[k % 3]}
                for k in range(num_categories)
            ],
            "annotations": [
                {"image_id": int(i), "category_id": int(k), "bbox": box}
                for i, k, box in zip(image, category, boxes.tolist(), strict=True)
            ],
        }
    )
    predicted = np.where(generator.random(num_boxes) < 0.7, category, 0)
    return truth, Detections(image, predicted, boxes + 2, generator.random(num_boxes))


@pytest.mark.parametrize(("num_categories", "num_boxes"), [(1, 5), (9, 60), (120, 300), (3, 0)])
def test_all_pictures(tmp_path: Path, num_categories: int, num_boxes: int) -> None:
    truth, found = scene(num_categories, num_boxes)
    scores = score(accumulate(truth, found), truth, found)
    backend = matplotlib.rcParams["backend"]
    write_report(
        tmp_path,
        coco_protocols(truth),
        {"bbox": scores},
        truth,
        found,
        dataset="scene",
        engine="hotcoco",
        options=ReportOptions(plots=True, confusion_score=0.5),
    )
    assert matplotlib.rcParams["backend"] == backend
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 4
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 5, f"{path.name} is empty"


def texts(figure) -> list[str]:
    axes = figure.axes[0]
    return [label.get_text() for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]]


def test_confusion_shows_only_categories_that_occur() -> None:
    truth, found = scene(70, 12)
    matrix = confusion_matrix(truth, found, score_threshold=0)
    figure = plots.plot_confusion(matrix, truth)
    occurring = set(truth.category_index) | set(found.category_index)
    assert texts(figure).count("missed") == 1
    assert len(texts(figure)) == 2 * (len(occurring) + 1)
    assert f"{70 - len(occurring)} categories" in figure.axes[0].get_title(loc="left")


def test_confusion_of_many_categories_is_a_list_of_pairs() -> None:
    truth, found = scene(plots.MAX_MATRIX + 1, 400)
    matrix = confusion_matrix(truth, found, score_threshold=0)
    figure = plots.plot_confusion(matrix, truth)
    assert len(figure.axes[0].patches) == plots.NUM_PAIRS
    nothing = confusion_matrix(truth, NO_DETECTIONS, score_threshold=0)
    assert "none" in plots.plot_confusion(nothing, truth).axes[0].get_title(loc="left")


def test_confusion_rows_sum_to_one() -> None:
    truth, found = scene(9, 60)
    figure = plots.plot_confusion(confusion_matrix(truth, found, score_threshold=0), truth)
    share = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(share[:-1].sum(axis=1), 1)


def test_precision_recall_legend_states_the_ap() -> None:
    truth, found = scene(9, 60)
    scores = score(accumulate(truth, found), truth, found)
    legend = plots.plot_precision_recall(scores, truth).axes[0].get_legend()
    assert legend.get_texts()[0].get_text().split() == ["0.50", f"{scores.summary['AP50']:.1f}"]
    assert len(legend.get_texts()) == 10


def frequency_picture(truth: GroundTruth, found: Detections):
    scores = score(accumulate(truth, found), truth, found)
    [axes] = plots.plot_frequency(scores, truth).axes
    points = [np.asarray(group.get_offsets()) for group in axes.collections]
    return scores, axes, points


def test_frequency_is_of_training_where_that_is_known() -> None:
    truth, found = scene(9, 60)
    scores, axes, points = frequency_picture(truth, found)
    assert axes.get_xlabel() == "labelled boxes in this set"
    assert sorted(np.concatenate(points)[:, 0]) == sorted(scores.categories.num_boxes)
    counts = list(range(0, 900, 100))  # one category was never seen in training
    space = truth.space.with_counts(image_counts=counts)
    _, axes, points = frequency_picture(replace(truth, space=space), found)
    assert axes.get_xlabel() == "training images with the category"
    assert axes.get_xscale() == "symlog"
    assert sorted(np.concatenate(points)[:, 0]) == counts
    space = replace(space, image_counts=None, instance_counts=tuple(range(1, 10)))
    _, axes, _ = frequency_picture(replace(truth, space=space), found)
    assert axes.get_xlabel() == "training boxes of the category"
    assert axes.get_xscale() == "log"


def test_frequency_has_the_groups_that_there_are() -> None:
    truth, found = scene(9, 60)

    def legend(space: CategorySpace) -> list[str]:
        _, axes, _ = frequency_picture(replace(truth, space=space), found)
        return [text.get_text().split(":")[0] for text in axes.get_legend().get_texts()]

    assert legend(truth.space) == ["rare", "common", "frequent"]
    plain = replace(truth.space, frequency=())
    assert legend(plain) == ["all"]
    assert legend(replace(plain, novel=(True,) * 4 + (False,) * 5)) == ["base", "novel"]
    some = ("r",) * 4 + (None,) * 5
    assert legend(replace(plain, frequency=some)) == ["rare", "others"]


def test_means_in_bins_equal_a_loop() -> None:
    generator = np.random.default_rng(0)
    counts, values = generator.integers(0, 70, 400), generator.random(400)
    centres, means = plots.binned_means(counts, values)
    expected = []
    for low, high in ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 127)):
        inside = [i for i in range(400) if low <= counts[i] <= high]
        if len(inside) >= plots.MIN_BIN:
            expected.append((counts[inside].mean(), values[inside].mean()))
    np.testing.assert_allclose(np.stack([centres, means], axis=1), expected, rtol=1e-12)
    assert len(expected) >= 5


def test_ticks_between_counts_have_no_number() -> None:
    _, axes, _ = frequency_picture(*scene(3, 60))
    label = axes.xaxis.get_major_formatter()
    assert [label(value) for value in (37.5, 40, 13204)] == ["", "40", "13,204"]


def test_short_names() -> None:
    assert plots.short("owl") == "owl"
    assert plots.short("a very long name of a category", 12) == "a very long…"
    assert plots.short("unbreakable" * 3, 12) == "unbreakableu"
