# SPDX-License-Identifier: Apache-2.0
"""Hooks that differ from Detectron2's where a resumed run must repeat an undisturbed one."""

import re
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.utils import comm

from vastdet.data.random_state import preserved_random_state


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook, run by every process, which also counts checkpoints of earlier runs."""

    def before_train(self) -> None:
        """Take up the files that a run killed before this one left in the folder."""
        super().before_train()
        folder = Path(self.checkpointer.save_dir)
        numbered = [f for f in folder.glob("model_*.pth") if re.fullmatch(r"model_\d+", f.stem)]
        start = self.trainer.start_iter
        self.recent_checkpoints = [
            str(f) for f in sorted(numbered) if int(f.stem.split("_")[1]) < start
        ]

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Save if it is time, with the state of every process."""
        final = self.max_iter is not None and iteration >= self.max_iter - 1
        if (iteration + 1) % self.period and not final:
            return
        self.trainer.gather_process_states()
        if comm.is_main_process():
            super().step(iteration, **kwargs)
        # No process may run ahead of a checkpoint that is not on disk yet.
        comm.synchronize()


class PeriodicWriter(hooks.PeriodicWriter):
    """Detectron2's hook, which also writes right after each evaluation.

    Its own period would overwrite the results of evaluations that are closer together.
    """

    def __init__(self, writers: list[Any], eval_period: int) -> None:
        super().__init__(writers, period=20)
        self._eval_period = eval_period

    def after_step(self) -> None:
        """Write every 20 iterations, after the last one, and after an evaluation."""
        super().after_step()
        next_iter = self.trainer.iter + 1
        if self._eval_period > 0 and next_iter % self._eval_period == 0 and next_iter % 20:
            for writer in self._writers:
                writer.write()


class PreciseBN(hooks.PreciseBN):
    """Detectron2's hook, on the same batches each time and without moving the random generators."""

    def update_stats(self) -> None:
        """Replace the statistics of the batch normalisations by those of fixed batches."""
        if self._disabled:
            return
        self._data_loader.restart(seed=self._data_loader.dataset.seed, start_batch=0)
        self._data_iter = None
        with preserved_random_state(cuda=True):
            super().update_stats()


class BrokenRecordReport(hooks.HookBase):
    """Says at the end which training records were broken."""

    def after_train(self) -> None:
        """Log the count and the first names of this process."""
        loader = self.trainer.data_loader
        if loader.broken:
            hooks.logging.getLogger(__name__).warning(
                "%d broken training records were skipped:\n%s", len(loader.broken), loader.report()
            )
