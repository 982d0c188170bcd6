# SPDX-License-Identifier: Apache-2.0
"""Names to configs and weights; converters."""

from detectron2.config import CfgNode

from vastdet.engine import load_config
from vastdet.model_zoo.config_files import get_config_file, list_configs
from vastdet.model_zoo.weights import OWN_WEIGHTS, PUBLISHED_WEIGHTS, find_weights

__all__ = ["OWN_WEIGHTS", "PUBLISHED_WEIGHTS", "get_config", "get_config_file", "list_configs"]


def get_config(name: str, trained: bool = False) -> CfgNode:
    """The config of a name, on Detectron2's defaults with every vastdet key.

    Args:
        name: path below `configs/`, with or without `.yaml`; see `list_configs`.
        trained: set `MODEL.WEIGHTS` to the trained model that is shipped with the config, or else
            to that below `VASTDET_WEIGHTS`; otherwise it keeps the YAML's initial weights, as in
            Detectron2's model zoo.

    Raises:
        ValueError: no config has this name, or `trained` where no weights are shipped with it and
            `VASTDET_WEIGHTS` is not set.
        FileNotFoundError: `trained` and no weights there; the message says how to get them.
    """
    cfg = load_config(get_config_file(name))
    if trained:
        cfg.MODEL.WEIGHTS = find_weights(name.removesuffix(".yaml"))
    return cfg
