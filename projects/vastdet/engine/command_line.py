# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/train_net.py."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from vastdet.data import BrokenRecordError, category_space
from vastdet.engine.batch_size import report_implied_settings
from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import (
    choose_device,
    load_config,
    merge_opts,
    set_num_classes,
    with_all_weights,
)
from vastdet.engine.dataset_checks import check_class_counts, check_datasets
from vastdet.engine.gradient_hook import NotObservedError
from vastdet.engine.launch import launch, process_group, share_processor_cores
from vastdet.engine.tools import add_register_argument, register_datasets
from vastdet.engine.trainer import Trainer

EPILOG = """
Examples:

Train:
    $ train_net.py --config-file configs/quick/fcos_generated.yaml OUTPUT_DIR output/fcos

Train on your own data, in COCO format; the number of classes is taken from it:
    $ train_net.py --config-file configs/quick/fcos_generated.yaml \\
        --register my_train train.json images/ --register my_val val.json images/ \\
        DATASETS.TRAIN "('my_train',)" DATASETS.TEST "('my_val',)"

Go on with a run that was stopped:
    $ train_net.py --config-file configs/quick/fcos_generated.yaml --resume OUTPUT_DIR output/fcos

Evaluate weights:
    $ train_net.py --config-file configs/quick/fcos_generated.yaml --eval-only \\
        MODEL.WEIGHTS output/fcos/model_final.pth

Several processes: --num-gpus N (CPU processes on a machine without CUDA), or start with
torchrun --nproc-per-node N, or srun.
"""


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments and --register."""
    parser = default_argument_parser(EPILOG)
    parser.description = "Train or evaluate a detector."
    add_register_argument(parser)
    # A free port of this machine, so that two runs do not meet.
    parser.set_defaults(dist_url="auto")
    return parser


def build_config(arguments: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line, with the class count of registered data."""
    cfg = load_config(arguments.config_file, arguments.opts)
    used = cfg.DATASETS.TEST if arguments.eval_only else cfg.DATASETS.TRAIN
    check_datasets(used)
    own = [name for name, *_ in arguments.register if name in used]
    if own:
        set_num_classes(cfg, len(category_space(own[0])))
        merge_opts(cfg, arguments.opts)
    cfg = choose_device(cfg)
    cfg.freeze()
    return cfg


def load_for_evaluation(cfg: CfgNode, *, resume: bool) -> nn.Module:
    """The model with MODEL.WEIGHTS, or with `resume` those of the newest checkpoint."""
    path = cfg.MODEL.WEIGHTS
    earlier = VastdetCheckpointer(nn.Identity(), cfg.OUTPUT_DIR)
    if resume and earlier.has_checkpoint():
        path = earlier.newest_good_checkpoint()
    if not path:
        raise ValueError(
            "There is nothing to evaluate: set MODEL.WEIGHTS, or --resume for the newest "
            "checkpoint of OUTPUT_DIR."
        )
    model = Trainer.build_model(with_all_weights(cfg, path))
    check_class_counts(cfg, model, cfg.DATASETS.TEST)
    checkpointer = VastdetCheckpointer(model, cfg.OUTPUT_DIR)
    checkpointer.load(path, checkpointables=[], complete=True)
    return model


def build_trainer(cfg: CfgNode, *, resume: bool) -> Trainer:
    """A trainer with MODEL.WEIGHTS, or with `resume` the state of the newest checkpoint."""
    earlier = VastdetCheckpointer(nn.Identity(), cfg.OUTPUT_DIR).checkpoints()
    if resume and earlier:
        cfg = with_all_weights(cfg, str(earlier[0]))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


class UnusableInputError(Exception):
    """Raised from the error of something that the user can mend."""


@contextmanager
def user_input() -> Iterator[None]:
    """Mark errors as the user's to mend; those of training itself keep their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UnusableInputError(str(error)) from error
    except KeyError as error:
        # What Detectron2's registries raise for a name in the config that they do not hold.
        if "No object named" not in str(error):
            raise
        raise UnusableInputError(error.args[0]) from error


def reason_of(error: BrokenRecordError) -> str:
    """The message of an error; of one from a DataLoader's worker, without its traceback."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "\nOriginal Traceback" in text else text


def unusable_input_of(error: ProcessRaisedException) -> str | None:
    """The message of an UnusableInputError that ended a spawned process; None for other errors.

    Only the text of the traceback crosses the border between processes.
    """
    name = f"{UnusableInputError.__module__}.{UnusableInputError.__qualname__}: "
    _, found, message = error.msg.rpartition(f"\n{name}")
    return message.strip() if found else None


def run(cfg: CfgNode, arguments: argparse.Namespace) -> None:
    """Train or evaluate in this process of the run."""
    register_datasets(arguments)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="vastdet")
    default_setup(cfg, arguments)
    share_processor_cores(cfg.MODEL.DEVICE)
    if arguments.eval_only:
        with user_input():
            model = load_for_evaluation(cfg, resume=arguments.resume)
        Trainer.test(cfg, model)
        return
    report_implied_settings(cfg)
    with user_input():
        trainer = build_trainer(cfg, resume=arguments.resume)
    try:
        trainer.train()
    except BrokenRecordError as error:
        raise UnusableInputError(reason_of(error)) from error
    except NotObservedError as error:
        raise UnusableInputError(str(error)) from error


def main(argv: list[str] | None = None) -> int:
    """Run tools/train_net.py; return its exit code: 2 for unusable input, 130 interrupted."""
    arguments = argument_parser().parse_args(argv)
    try:
        with user_input():
            register_datasets(arguments)
            cfg = build_config(arguments)
            group = process_group(arguments, cfg.MODEL.DEVICE)
            PathManager.mkdirs(cfg.OUTPUT_DIR)
        launch(run, arguments, group, device=cfg.MODEL.DEVICE, args=(cfg, arguments))
    except UnusableInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ProcessRaisedException as error:
        message = unusable_input_of(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the newest checkpoint", file=sys.stderr)
        return 130
    return 0
