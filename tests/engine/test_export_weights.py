# SPDX-License-Identifier: Apache-2.0
"""Exported weights: which of a checkpoint's, in which precision, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from vastdet.engine import VastdetCheckpointer
from vastdet.engine.ema import WeightAverage
from vastdet.engine.export_weights import METADATA, export_weights


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.same_head = self.head
        self.register_buffer("mask", torch.tensor([True, False]))


def toy(seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    model = Toy()
    model.backbone[1].running_var.uniform_(0.5, 2)
    model.backbone[1].num_batches_tracked.fill_(100_001)  # more than float16 counts
    return model


def checkpoint(folder: Path, model: nn.Module, *, averaged: bool = False) -> Path:
    """As a training writes it, with an optimiser's state."""
    ema = WeightAverage(model, decay=0.5, warmup=0) if averaged else None
    if ema is not None:
        with torch.no_grad():
            model.head.weight.add_(1)
        ema.update()
    optimizer = torch.optim.AdamW(model.parameters())
    VastdetCheckpointer(model, str(folder), ema=ema, optimizer=optimizer).save("m", iteration=7)
    return folder / "m.pth"


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[METADATA])


@pytest.mark.parametrize("half", [False, True])
def test_exports_all_of_the_weights_and_nothing_else(tmp_path: Path, half: bool) -> None:
    model, output = toy(), tmp_path / "new" / "w.safetensors"
    exported = export_weights(checkpoint(tmp_path, model), output, half=half)
    assert (exported.iteration, exported.averaged) == (7, False)
    written = load_file(output)
    assert metadata_of(output) == {"iteration": 7, "averaged": False}
    state = model.state_dict()
    assert written.keys() == state.keys()
    for name, value in state.items():
        floating = value.is_floating_point()
        assert written[name].dtype == (torch.float16 if half and floating else value.dtype)
        assert torch.equal(written[name], value.half() if half and floating else value)
    content = output.read_bytes()
    export_weights(tmp_path / "m.pth", output, half=half)
    assert output.read_bytes() == content


def test_the_average_is_what_is_exported(tmp_path: Path) -> None:
    model, output = toy(), tmp_path / "w.safetensors"
    before = model.head.weight.detach().clone()
    exported = export_weights(checkpoint(tmp_path, model, averaged=True), output)
    assert exported.averaged
    assert metadata_of(output)["averaged"] is True
    torch.testing.assert_close(load_file(output)["head.weight"], before + 0.5)
    assert torch.equal(model.head.weight, before + 1)


def test_half_precision_loads_into_a_model_of_float32(tmp_path: Path) -> None:
    model, other, output = toy(), toy(seed=1), tmp_path / "w.safetensors"
    export_weights(checkpoint(tmp_path, model), output, half=True)
    ema = WeightAverage(other, decay=0.9, warmup=0)
    VastdetCheckpointer(other, ema=ema).load(str(output), checkpointables=[], complete=True)
    for state in (other.state_dict(), ema.weights):
        for name, value in model.state_dict().items():
            assert state[name].dtype == value.dtype
            torch.testing.assert_close(state[name], value, rtol=2**-11, atol=2**-25)
    # And once more: what is half already changes no more.
    again = tmp_path / "again.safetensors"
    assert export_weights(output, again, half=True).iteration is None
    assert all(torch.equal(x, load_file(output)[k]) for k, x in load_file(again).items())


@pytest.mark.parametrize(
    ("value", "half", "message"),
    [
        (float("nan"), False, "head.weight has values that are not finite"),
        (float("-inf"), True, "head.weight has values that are not finite"),
        (-70_000.0, True, r"head.weight has values up to 7e\+04, float16 ends at 65504"),
    ],
)
def test_values_that_the_file_could_not_hold(
    tmp_path: Path, value: float, half: bool, message: str
) -> None:
    model, output = toy(), tmp_path / "w.safetensors"
    output.write_bytes(b"old")
    with torch.no_grad():
        model.head.weight[1, 2] = value
    path = checkpoint(tmp_path, model)
    with pytest.raises(ValueError, match=message):
        export_weights(path, output, half=half)
    assert output.read_bytes() == b"old"


def test_other_files_are_refused(tmp_path: Path) -> None:
    path, output = tmp_path / "m.pth", tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError, match="no weights at"):
        export_weights(path, output)
    with pytest.raises(ValueError, match=r"exported as .safetensors, but the output is .*w\.pth"):
        export_weights(path, tmp_path / "w.pth")
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"m\.pth"):
        export_weights(path, output)
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match="holds no weights"):
        export_weights(path, output)
    torch.save({"model": {"a": torch.ones(1), "epoch": 3}}, path)
    with pytest.raises(ValueError, match=r"\['epoch'\], which are no tensors"):
        export_weights(path, output)
    torch.save({"model": {"a": torch.ones(1)}, "matching_heuristics": True}, path)
    with pytest.raises(ValueError, match=r"m\.pth are matched .* by their endings.*as it is"):
        export_weights(path, output)
    assert not output.exists()
