# SPDX-License-Identifier: Apache-2.0
"""The one entry to the config system: every node vastdet adds to Detectron2's config."""

from detectron2.config import CfgNode

from vastdet.backbones.config import add_backbone_config
from vastdet.data.config import add_data_config
from vastdet.engine.config import add_engine_config
from vastdet.evaluation.config import add_evaluation_config
from vastdet.models import ARCHITECTURE_CONFIGS


def add_vastdet_config(cfg: CfgNode) -> None:
    """Add every vastdet key, with its default, to a Detectron2 config in place.

    Call it right after `detectron2.config.get_cfg()` and before merging a YAML file. Existing
    Detectron2 keys keep their defaults, so a plain Detectron2 config means the same as before.
    """
    for add_nodes in (
        add_backbone_config,
        add_data_config,
        add_engine_config,
        add_evaluation_config,
        *ARCHITECTURE_CONFIGS,
    ):
        add_nodes(cfg)
