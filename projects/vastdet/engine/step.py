# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: forward and backward passes, mixed precision, accumulation, loss checks."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Batch = list[dict[str, Any]]


class TrainStep(SimpleTrainer):
    """Detectron2's SimpleTrainer with gradient accumulation and mixed precision on any device."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        accumulation_steps: int = 1,
        dtype: torch.dtype | None = None,
        after_update: Callable[[], None] = lambda: None,
    ) -> None:
        """`dtype`: of mixed precision, None for none. `after_update` runs after each update."""
        super().__init__(model, data_loader, optimizer)
        self.accumulation_steps = accumulation_steps
        self.dtype = dtype
        self.device_type = next(model.parameters()).device.type
        self.after_update = after_update
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=dtype is torch.float16 and self.device_type == "cuda"
        )

    def run_step(self) -> None:
        """Update the weights once, from `accumulation_steps` batches.

        Raises FloatingPointError when a loss is infinite or not a number.
        """
        assert self.model.training
        self.optimizer.zero_grad()
        means: dict[str, torch.Tensor] = {}
        data_time = 0.0
        for part in range(self.accumulation_steps):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with self._gradient_exchange(last=part == self.accumulation_steps - 1):
                losses = self._losses(batch)
                self._stop_unless_finite(losses, batch)
                # Each loss is a mean over its batch: the mean of means is that of the whole step.
                share = {name: loss / self.accumulation_steps for name, loss in losses.items()}
                self.grad_scaler.scale(torch.stack(list(share.values())).sum()).backward()
            for name, loss in share.items():
                means[name] = means.get(name, 0.0) + loss.detach().float()
        self.after_backward()
        self._write_metrics(means, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.after_update()

    def _losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        enabled = self.dtype is not None
        autocast = torch.autocast(self.device_type, dtype=self.dtype, enabled=enabled)
        # TorchScript (fvcore's focal loss) rewrites itself after the first run, and then rounds
        # differently: a resumed process would leave the path of the one that was killed.
        with autocast, torch.jit.optimized_execution(False):
            losses = self.model(batch)
        return {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses

    def _gradient_exchange(self, *, last: bool) -> AbstractContextManager:
        """Gradients travel between processes once a step, in its last backward pass."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _stop_unless_finite(self, losses: dict[str, torch.Tensor], batch: Batch) -> None:
        # One transfer from the device for all of them.
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        if all(map(math.isfinite, values)):
            return
        files = "\n".join(f"  {sample.get('file_name', 'no file name')}" for sample in batch)
        rows = zip(losses, values, strict=True)
        table = "\n".join(f"  {name} = {value:g}" for name, value in rows)
        raise FloatingPointError(
            f"A loss became infinite or NaN at iteration {self.iter}.\nLosses:\n{table}\n"
            f"Images of the batch:\n{files}\n"
            "Look at these images and their boxes (tools/visualize_data.py). If they are right, "
            "lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, set "
            "SOLVER.CLIP_GRADIENTS.ENABLED True, or SOLVER.AMP.ENABLED False where it is on."
        )

    def state_dict(self) -> dict[str, Any]:
        """Iteration, optimiser and gradient scaler."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state saved by `state_dict`, or by Detectron2's trainers."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
