# SPDX-License-Identifier: Apache-2.0
"""Trainer, hooks, optimiser groups, checkpointing."""

from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import load_config, set_num_classes
from vastdet.engine.trainer import Trainer

__all__ = ["Trainer", "VastdetCheckpointer", "load_config", "set_num_classes"]
