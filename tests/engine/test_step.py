# SPDX-License-Identifier: Apache-2.0
"""One step: accumulation, mixed precision, and losses that are not numbers."""

from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from vastdet.engine.step import TrainStep


class Toy(nn.Module):
    """Mean squared error of a linear map; records the type it computed in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        self.dtypes: list[torch.dtype] = []

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        predicted = self.linear(torch.stack([sample["x"] for sample in batch]))
        self.dtypes.append(predicted.dtype)
        target = torch.stack([sample["y"] for sample in batch])
        error = predicted.float() - target
        return {"loss_square": error.square().mean(), "loss_absolute": error.abs().mean()}


def samples(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "x": torch.randn(3, generator=generator),
            "y": torch.randn(2, generator=generator),
            "file_name": f"{i}.jpg",
        }
        for i in range(count)
    ]


def run(batches: list[list[dict[str, Any]]], **options: Any) -> tuple[Toy, EventStorage]:
    """One SGD step on the batches, all of them."""
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, batches, optimizer, accumulation_steps=len(batches), **options)
    step.iter = 5
    with EventStorage(5) as storage:
        step.run_step()
    return model, storage


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts: int) -> None:
    data = samples(8)
    whole, whole_storage = run([data])
    size = 8 // parts
    cut, cut_storage = run([data[i : i + size] for i in range(0, 8, size)])
    assert whole.linear.weight.grad is not None
    assert cut.linear.weight.grad is not None
    torch.testing.assert_close(cut.linear.weight.grad, whole.linear.weight.grad)
    torch.testing.assert_close(cut.linear.weight, whole.linear.weight)
    for name in ("loss_square", "loss_absolute", "total_loss"):
        logged = [storage.latest()[name][0] for storage in (whole_storage, cut_storage)]
        assert logged[0] == pytest.approx(logged[1])


def test_update_is_announced_once() -> None:
    calls = []
    run([samples(2), samples(2)], after_update=lambda: calls.append(1))
    assert calls == [1]


def test_bfloat16_on_the_cpu() -> None:
    plain, _ = run([samples(8)])
    mixed, _ = run([samples(8)], dtype=torch.bfloat16)
    assert plain.dtypes == [torch.float32]
    assert mixed.dtypes == [torch.bfloat16]
    assert mixed.linear.weight.dtype == torch.float32
    torch.testing.assert_close(mixed.linear.weight, plain.linear.weight, atol=2e-2, rtol=0)
    assert not torch.equal(mixed.linear.weight, plain.linear.weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_loss_names_iteration_files_and_losses(bad: float) -> None:
    good, poisoned = samples(4)[:2], samples(4)[2:]
    poisoned[1]["y"] = torch.tensor([bad, 0.0])
    with pytest.raises(FloatingPointError) as error:
        run([good, poisoned])
    text = str(error.value)
    assert "iteration 5" in text
    assert "loss_square" in text
    assert "loss_absolute" in text
    assert "2.jpg" in text
    assert "3.jpg" in text
    # The batch before it is innocent.
    assert "0.jpg" not in text


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float16_on_cuda_scales_gradients() -> None:
    model = Toy().cuda()
    data = [{k: v.cuda() if k != "file_name" else v for k, v in s.items()} for s in samples(4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, [data], optimizer, dtype=torch.float16)
    with EventStorage():
        step.run_step()
    assert step.grad_scaler.is_enabled()
    assert model.dtypes == [torch.float16]
    assert step.state_dict()["grad_scaler"]
