# SPDX-License-Identifier: Apache-2.0
"""What weight files are wrapped in, and what is no weight file."""

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from vastdet.model_zoo.convert_file import source_weights

RAW = {"conv.weight": torch.zeros(2), "conv.bias": torch.zeros(1)}
AVERAGE = {name: tensor + 1 for name, tensor in RAW.items()}
PARALLEL = OrderedDict((f"module.{name}", tensor) for name, tensor in RAW.items())


def saved(folder: Path, content: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        RAW,
        {"model": RAW, "epoch": 11},
        {"model": RAW, "args": argparse.Namespace(lr=0.1, names=["a"])},
        {"state_dict": PARALLEL, "meta": {"classes": ("person",)}},
        {"model": {"model": PARALLEL}},
    ],
    ids=["alone", "model", "with arguments", "parallel", "twice"],
)
def test_weights_are_found_in_what_wraps_them(tmp_path: Path, content: Any) -> None:
    found = source_weights(saved(tmp_path, content))
    assert found.keys() == RAW.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in RAW.items())


@pytest.mark.parametrize(
    "content",
    [
        {"model": RAW, "ema_model": AVERAGE},
        {"model": RAW, "ema": {"module": AVERAGE, "updates": 7}},
        {"state_dict": RAW, "model_ema": {"state_dict": AVERAGE}},
    ],
)
def test_the_average_where_it_is_asked_for(tmp_path: Path, content: dict[str, Any]) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(ValueError, match="say --ema or --no-ema"):
        source_weights(path)
    assert float(source_weights(path, averaged=False)["conv.bias"]) == 0
    assert float(source_weights(path, averaged=True)["conv.bias"]) == 1


def test_the_average_where_there_is_nothing_else(tmp_path: Path) -> None:
    path = saved(tmp_path, {"ema": {"module": AVERAGE, "updates": 7}, "date": "today"})
    assert float(source_weights(path)["conv.bias"]) == 1


def test_what_is_no_weight_file(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": RAW})
    with pytest.raises(ValueError, match=r"holds no moving average.*\['model'\]"):
        source_weights(path, averaged=True)
    path = saved(tmp_path, {"model": {**RAW, "epoch": 3}})
    with pytest.raises(ValueError, match=r"no plain state dict: \['epoch'\] are no tensors"):
        source_weights(path)
    with pytest.raises(ValueError, match="it is empty"):
        source_weights(saved(tmp_path, {}))
    with pytest.raises(FileNotFoundError, match="there is no weight file"):
        source_weights(tmp_path / "absent.pth")
