# SPDX-License-Identifier: Apache-2.0
"""CenterNet2 under the names of the authors, which are ours."""

import ast
from pathlib import Path

import torch

from vastdet.model_zoo.centernet2_models import centernet2_converter
from vastdet.model_zoo.convert_file import expected_tensors, model_config

NAMES = Path(__file__).with_name("centernet2_names.txt")
NUM_TENSORS = 330  # of the whole model, the ResNet included


def listed() -> dict[str, tuple[int, ...]]:
    lines = NAMES.read_text("utf-8").splitlines()
    rows = (line.split(" ", 1) for line in lines if not line.startswith("#"))
    return {name: ast.literal_eval(shape) for name, shape in rows}


def test_every_tensor_has_the_name_and_the_shape_of_the_authors() -> None:
    converter = centernet2_converter()
    model = expected_tensors(converter, model_config(converter, {})[0])
    ours = {name: tuple(t.shape) for name, t in model.items() if "bottom_up" not in name}
    assert ours == listed()
    assert len(model) == len(converter.pairs) == NUM_TENSORS


def test_a_file_of_the_authors_keeps_every_tensor() -> None:
    converter = centernet2_converter()
    model = expected_tensors(converter, model_config(converter, {})[0])
    numbers = enumerate(model.items())
    theirs = {name: torch.full((1,), float(i)).expand(t.shape) for i, (name, t) in numbers}
    extra = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    converted = converter.to_detectron2(theirs | extra)
    assert converted.keys() == theirs.keys()
    assert all(torch.equal(converted[name], t) for name, t in theirs.items())


def test_classes_can_be_picked() -> None:
    rows = {p.source: p.class_rows for p in centernet2_converter().pairs if p.class_rows}
    assert len(rows) == 6  # weight and bias of three stages
    for name, of_classes in rows.items():
        assert ".cls_score." in name
        # Two of three classes, and background, which is last.
        assert of_classes.selected(4, [0, 2]) == [0, 2, 3]
