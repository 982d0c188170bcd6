# SPDX-License-Identifier: Apache-2.0
"""AR^C of a model's own selection of categories."""

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from vastdet.data.register import category_space
from vastdet.evaluation.coco import DetectionEvaluator
from vastdet.evaluation.ground_truth import ground_truth_of_dataset
from vastdet.evaluation.selected import SelectedCategories, selection_scores

DATASET = "generated_kinds_50_val"


def output(**own: Any) -> dict[str, Any]:
    nothing = Instances((160, 160), pred_boxes=Boxes(torch.zeros(0, 4)))
    nothing.scores, nothing.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    return {"instances": nothing, **own}


def test_recall_equals_a_loop_over_images() -> None:
    truth = ground_truth_of_dataset(DATASET)
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(50)[:12] for _ in truth.image_ids]
    collected = SelectedCategories()
    for index, row in enumerate(chosen):
        collected.add(index, output(selected_categories=torch.from_numpy(row)))
    scores = selection_scores(truth, collected.gather())
    frequency = category_space(DATASET).frequency
    for key, group in (("ARC12", None), ("ARC12c", "c"), ("ARC12f", "f")):
        shares = []
        for index, row in enumerate(chosen):
            labels = set(truth.category_index[truth.image_index == index].tolist())
            if group is not None:
                labels = {k for k in labels if frequency[k] == group}
            if labels:
                shares.append(len(labels & set(row.tolist())) / len(labels))
        if shares:
            assert scores[key] == pytest.approx(100 * np.mean(shares), abs=1e-9)
        else:
            assert key not in scores
    assert 10 < scores["ARC12"] < 40


def test_evaluator_reports_a_selection_only_where_there_is_one() -> None:
    truth = ground_truth_of_dataset(DATASET)
    evaluator = DetectionEvaluator(DATASET, output_folder=None)
    inputs = [{"image_id": image_id} for image_id in truth.image_ids]
    evaluator.process(inputs, [output() for _ in inputs])
    assert "selection" not in evaluator.evaluate()
    evaluator.reset()
    everything = torch.arange(50)
    # The first image is given without a selection: it counts as one with an empty selection.
    outputs = [output()] + [output(selected_categories=everything) for _ in inputs[1:]]
    evaluator.process(inputs, outputs)
    labelled = len(np.unique(truth.image_index))
    assert evaluator.evaluate()["selection"]["ARC50"] == pytest.approx(
        100 * (labelled - 1) / labelled
    )
    evaluator.reset()
    evaluator.process(inputs, [output() for _ in inputs])
    assert "selection" not in evaluator.evaluate()
