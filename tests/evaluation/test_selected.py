# SPDX-License-Identifier: Apache-2.0
"""AR^C of a model's own selection of categories."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from vastdet.data.register import category_space
from vastdet.evaluation.coco import DetectionEvaluator
from vastdet.evaluation.ground_truth import ground_truth_of_dataset
from vastdet.evaluation.selected import (
    FILE_NAME,
    SelectedCategories,
    read_selection,
    selection_scores,
    write_selection,
)

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
    selection = collected.gather()
    assert selection is not None
    scores = selection_scores(truth, selection)
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


def test_the_file_has_ids_of_the_dataset_and_goes_with_the_selection(tmp_path: Path) -> None:
    truth = ground_truth_of_dataset(DATASET)
    collected = SelectedCategories()
    chosen, scores = torch.tensor([49, 0, 7]), torch.tensor([0.75, 0.5, 0.25])
    collected.add(1, output(selected_categories=chosen, selection_scores=scores))
    collected.add(3, output(selected_categories=torch.tensor([2])))
    write_selection(tmp_path, collected.gather(), truth)
    found = read_selection(tmp_path / FILE_NAME)
    assert found.images.tolist() == [truth.image_ids[1], truth.image_ids[3]]
    assert found.categories.tolist() == [[50, 1, 8], [3, -1, -1]]
    assert found.scores[0].tolist() == [0.75, 0.5, 0.25]
    assert np.isnan(found.scores[1]).all()
    assert found.num_selected == 3
    write_selection(tmp_path, None, truth)
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_writes_the_selection_and_its_recall(tmp_path: Path) -> None:
    truth = ground_truth_of_dataset(DATASET)
    evaluator = DetectionEvaluator(DATASET, output_folder=tmp_path)
    inputs = [{"image_id": image_id} for image_id in truth.image_ids]
    evaluator.process(inputs, [output(selected_categories=torch.arange(50)) for _ in inputs])
    recall = evaluator.evaluate()["selection"]
    assert json.loads((tmp_path / "metrics.json").read_text())["selection"] == recall
    assert len(read_selection(tmp_path / FILE_NAME).images) == len(inputs)


@pytest.mark.parametrize(
    ("categories", "scores"),
    [
        (np.ones(1, dtype=np.int64), np.ones(1)),
        (np.ones((1, 2, 1), dtype=np.int64), np.ones((1, 2, 1))),
        (np.ones((1, 2), dtype=np.int64), np.ones((1, 3))),
        (np.ones((1, 2)), np.ones((1, 2))),
    ],
)
def test_columns_must_be_tables_of_one_shape(
    tmp_path: Path, categories: np.ndarray, scores: np.ndarray
) -> None:
    path = tmp_path / FILE_NAME
    header = {"format": "vastdet.SelectedCategories", "version": 1, "image_ids": [1]}
    np.savez(path, header=np.array(json.dumps(header)), categories=categories, scores=scores)
    with pytest.raises(ValueError, match="holds no selected categories"):
        read_selection(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK", "is damaged.*evaluate again"),
        ({}, "is damaged.*evaluate again"),
        ({"format": "other"}, "holds no selected categories"),
        ({"image_ids": [1, 2]}, "holds no selected categories"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / FILE_NAME
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        header = {"format": "vastdet.SelectedCategories", "version": 1, "image_ids": [1]} | content
        own = {"header": np.array(json.dumps(header))} if content else {}
        np.savez(path, categories=np.ones((1, 2), dtype=np.int64), scores=np.ones((1, 2)), **own)
    with pytest.raises(ValueError, match=message):
        read_selection(path)
