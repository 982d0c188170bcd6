# SPDX-License-Identifier: Apache-2.0
"""Pictures are drawn for few, many and no categories, without matplotlib's global state."""

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


def test_short_names() -> None:
    assert plots.short("owl") == "owl"
    assert plots.short("a very long name of a category", 12) == "a very long…"
    assert plots.short("unbreakable" * 3, 12) == "unbreakableu"
