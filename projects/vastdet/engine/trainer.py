# SPDX-License-Identifier: Apache-2.0
"""The trainer of every architecture: Detectron2's, on any device, and resumable bit for bit."""

import json
import logging
import os
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.utils.data import DataLoader

from vastdet.data import build_test_loader, build_train_loader
from vastdet.data.loader import TrainLoader
from vastdet.data.random_state import preserved_random_state
from vastdet.engine.activation_checkpointing import checkpoint_activations
from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import choose_device
from vastdet.engine.dataset_checks import check_class_counts, check_datasets
from vastdet.engine.ema import WeightAverage
from vastdet.engine.gradient_hook import build_gradient_hook
from vastdet.engine.hooks import (
    BrokenRecordReport,
    PeriodicCheckpointer,
    PeriodicWriter,
    PreciseBN,
)
from vastdet.engine.optimizer import build_optimizer
from vastdet.engine.precision import amp_dtype, inference_autocast
from vastdet.engine.process_state import ProcessState
from vastdet.engine.step import TrainStep

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains, evaluates and checkpoints the model of a config.

    Use: `trainer = Trainer(cfg); trainer.resume_or_load(resume); trainer.train()`. A run that is
    killed and resumed gives the weights of an undisturbed one; bit for bit where the kernels of
    the device are deterministic, as they are on a CPU, and with the same number of processes.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Raises ValueError or FileNotFoundError when the config and the data do not fit."""
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("vastdet").handlers:
            setup_logger(name="vastdet")
        cfg = DefaultTrainer.auto_scale_workers(choose_device(cfg), comm.get_world_size())
        check_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.process_states: list[dict[str, Any]] = []

        model = self.build_model(cfg)
        check_class_counts(cfg, model, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        self.process_state = ProcessState(model)
        optimizer = self.build_optimizer(cfg, model)
        self.ema = None
        if cfg.SOLVER.EMA.ENABLED:
            average = cfg.SOLVER.EMA
            self.ema = WeightAverage(model, decay=average.DECAY, warmup=average.WARMUP)
        device_ids = [comm.get_local_rank()] if next(model.parameters()).is_cuda else None
        self._trainer = TrainStep(
            create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids),
            self._new_train_loader(cfg),
            optimizer,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            dtype=amp_dtype(cfg),
            after_update=self.ema.update if self.ema else lambda: None,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = VastdetCheckpointer(
            model, cfg.OUTPUT_DIR, ema=self.ema, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the newest good checkpoint of OUTPUT_DIR, or load MODEL.WEIGHTS.

        Without a checkpoint to resume from, training starts at iteration 0 from MODEL.WEIGHTS, and
        the metrics and the `last_checkpoint` of an earlier run in OUTPUT_DIR are dropped.
        """
        resume = resume and self.checkpointer.has_checkpoint()
        # All processes look before the main one changes the folder.
        comm.synchronize()
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume:
            self.start_iter = self.iter + 1
            first_batch = self.start_iter * self.cfg.SOLVER.ACCUMULATION_STEPS
            self.data_loader.restart(seed=self.seed, start_batch=first_batch)
        if comm.is_main_process():
            forget_metrics(Path(self.cfg.OUTPUT_DIR) / "metrics.json", self.start_iter)
        comm.synchronize()

    def train(self) -> dict[str, Any] | None:
        """Train up to SOLVER.MAX_ITER; return the results of the last evaluation, if any."""
        TrainerBase.train(self, self.start_iter, self.max_iter)
        return getattr(self, "_last_eval_results", None)

    def before_train(self) -> None:
        """Take up the state of this process last, when nothing more is drawn before training."""
        super().before_train()
        if not self.process_states:
            return
        if len(self.process_states) == comm.get_world_size():
            self.process_state.load_state_dict(self.process_states[comm.get_rank()])
        else:
            logger.warning(
                "Resuming a run of %d processes with %d: the images are the same, but random "
                "choices in the model will differ from an undisturbed run.",
                len(self.process_states),
                comm.get_world_size(),
            )

    def gather_process_states(self) -> None:
        """Collect, in the main process, what a checkpoint must hold of each; all must call it."""
        self.process_states = comm.gather(self.process_state.state_dict())

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's default hooks, in its order, made resumable."""
        cfg = self.cfg
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            # Before whatever saves, evaluates or writes.
            build_gradient_hook(cfg, self.data_loader.dataset.records)
            if cfg.ANALYSIS.GRADIENTS.ENABLED
            else None,
            self._build_precise_bn(),
            PeriodicCheckpointer(
                self.checkpointer,
                cfg.SOLVER.CHECKPOINT_PERIOD,
                max_to_keep=cfg.SOLVER.CHECKPOINTS_KEPT or None,
            ),
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            BrokenRecordReport(),
            PeriodicWriter(self.build_writers(), cfg.TEST.EVAL_PERIOD)
            if comm.is_main_process()
            else None,
        ]

    def _new_train_loader(self, cfg: CfgNode) -> TrainLoader:
        loader = self.build_train_loader(cfg)
        loader.restart(seed=self.seed, start_batch=0)
        return loader

    def _build_precise_bn(self) -> PreciseBN | None:
        cfg = self.cfg.clone()
        if not (cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model)):
            return None
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = self._new_train_loader(cfg)
        return PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

    def _evaluate(self) -> dict[str, Any]:
        """Score the weights that a checkpoint offers for use, leaving training undisturbed."""
        averaged = self.ema.applied() if self.ema else nullcontext()
        with averaged, preserved_random_state(cuda=True):
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def state_dict(self) -> dict[str, Any]:
        """Iteration, seed, hooks, optimiser, and the states last gathered from the processes."""
        return {**super().state_dict(), "seed": self.seed, "processes": self.process_states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state saved by `state_dict`, or by Detectron2's DefaultTrainer."""
        super().load_state_dict(state_dict)
        self.seed = state_dict.get("seed", self.seed)
        self.process_states = state_dict.get("processes", [])

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Detectron2's evaluation, in mixed precision where `cfg.TEST.AMP` asks for it."""
        with inference_autocast(cfg):
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Detectron2's `build_model`, with activation checkpointing when the config asks for it."""
        model = super().build_model(cfg)
        if cfg.MODEL.ACTIVATION_CHECKPOINTING:
            count = checkpoint_activations(model)
            logger.info("Recomputing the activations of %d blocks of the backbone.", count)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of `cfg.SOLVER`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """The training loader; override it to pass another `mapper` to `build_train_loader`."""
        return build_train_loader(cfg, seed=max(cfg.SEED, 0))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """The loader of one test dataset."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator that fits the dataset, writing into OUTPUT_DIR/inference/<dataset>."""
        from vastdet.evaluation import build_evaluator

        folder = Path(cfg.OUTPUT_DIR) / "inference" / dataset_name
        return build_evaluator(cfg, dataset_name, str(folder))


def forget_metrics(path: Path, start_iter: int) -> None:
    """Cut off the lines of metrics.json that a resumed run writes again, or half a line.

    The file is cut in place: Detectron2's writer has it open.
    """
    if not path.exists():
        return
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            is_old = json.loads(line)["iteration"] < start_iter
        except (json.JSONDecodeError, KeyError):
            is_old = False
        if not is_old:
            break
        kept += len(line)
    os.truncate(path, kept)
