# SPDX-License-Identifier: Apache-2.0
"""Config files: read safely, with errors that say what to write instead."""

import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

import vastdet.config

logger = logging.getLogger(__name__)

# Heads that count other things than detection categories.
OTHER_CLASS_COUNTS = ("SEM_SEG_HEAD", "PANOPTIC_FPN", "PANOPTIC_DEEPLAB")


def load_config(config_file: str | Path | None = None, opts: Sequence[Any] = ()) -> CfgNode:
    """Detectron2's and vastdet's defaults, then a YAML file, then KEY VALUE pairs.

    The YAML may name its base in `_BASE_`; it is loaded without running code. Raises
    FileNotFoundError for a missing file and ValueError for an unknown key (naming the closest
    one), a value of the wrong type, YAML that is malformed or asks for Python objects, or a KEY
    without VALUE.
    """
    cfg = get_cfg()
    vastdet.config.add_vastdet_config(cfg)
    if config_file:
        merge_file(cfg, str(config_file))
    merge_opts(cfg, opts)
    return cfg


def without_pretrained(cfg: CfgNode) -> None:
    """Let timm fetch no weights, in place: for models whose weights may be random.

    timm's backbones refuse to freeze random weights, so nothing is frozen; see `with_all_weights`
    for models whose weights are all in one file.
    """
    if cfg.MODEL.TIMM.PRETRAINED:
        cfg.MODEL.TIMM.PRETRAINED = False
        cfg.MODEL.BACKBONE.FREEZE_AT = 0


def with_all_weights(cfg: CfgNode, path: str) -> CfgNode:
    """A copy of `cfg` for a model that gets all of its weights from `path`: timm fetches none.

    What the config freezes stays frozen, since the weights are not random.
    """
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = path
    cfg.MODEL.TIMM.PRETRAINED = False
    if frozen:
        cfg.freeze()
    return cfg


def merge_file(cfg: CfgNode, path: str) -> None:
    """Merge a YAML file into `cfg` in place; see `load_config` for errors."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no config file {path}; look for one in configs/.")
    try:
        content = CfgNode.load_yaml_with_base(path, allow_unsafe=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: its _BASE_ {error.filename} does not exist.") from error
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"{path} asks for Python objects ({error.problem}), which could run code. Write plain "
            "values; lists are accepted where a config holds tuples."
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not well-formed YAML: {error}") from error
    except TypeError as error:
        raise ValueError(f"{path} is empty; it must hold KEY: VALUE lines.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected KEY: VALUE lines.")
    for key in leaf_keys(content):
        check_key(cfg, key, path)
    cfg.merge_from_file(path, allow_unsafe=False)


def merge_opts(cfg: CfgNode, opts: Sequence[Any]) -> None:
    """Merge KEY VALUE pairs into `cfg` in place; see `load_config` for errors."""
    late = [opt for opt in opts if str(opt).startswith("--")]
    if late:
        raise ValueError(f"{late[0]} must come before the KEY VALUE pairs, which end the command.")
    if len(opts) % 2:
        raise ValueError(
            f"KEY VALUE pairs are expected; {opts[-1]!r} has no value in {list(opts)}."
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        check_key(cfg, key, "the command line")
        is_list = isinstance(value_of(cfg, key), (tuple, list))
        if is_list and isinstance(value, str) and not set(value) & set("([,"):
            raise ValueError(f"{key} is a list, got {value!r}; write {key} \"('{value}',)\"")
    cfg.merge_from_list(list(opts))


def leaf_keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of all values in nested dicts."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def check_key(cfg: CfgNode, key: str, source: str) -> None:
    """Raise ValueError, naming the closest known key, when `cfg` has no such key."""
    node = cfg
    for part in key.split("."):
        if not isinstance(node, dict):
            break
        if part not in node:
            if isinstance(node, CfgNode) and node.is_new_allowed():
                return
            break
        node = node[part]
    else:
        return
    known = list(leaf_keys(cfg))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    # A key in the wrong node: the same last part elsewhere.
    close = close or [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    hint = f"Did you mean {close[0]}?" if close else "See the config.py of each sub-package."
    raise ValueError(f"Unknown config key {key} in {source}. {hint}")


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def class_count_keys(cfg: CfgNode) -> list[str]:
    """The keys that hold a number of detection categories, such as MODEL.ROI_HEADS.NUM_CLASSES."""
    return [
        key
        for key in leaf_keys(cfg)
        if key.startswith("MODEL.")
        and key.endswith(".NUM_CLASSES")
        and not any(part.startswith(OTHER_CLASS_COUNTS) for part in key.split("."))
    ]


def class_count_key(cfg: CfgNode) -> str:
    """The key that holds the number of detection categories of the config's meta-architecture."""
    own = cfg.MODEL.META_ARCHITECTURE.removeprefix("Clipped").lower()
    nodes = {key.split(".")[-2].replace("_", "").lower(): key for key in class_count_keys(cfg)}
    # An architecture that trains a part of another one reads its node and adds to its name.
    names = [name for name in nodes if own.startswith(name)]
    return nodes[max(names, key=len)] if names else "MODEL.ROI_HEADS.NUM_CLASSES"


def set_num_classes(cfg: CfgNode, num_classes: int) -> None:
    """Set every number of detection categories in `cfg` in place."""
    frozen = cfg.is_frozen()
    cfg.defrost()
    for key in class_count_keys(cfg):
        cfg.merge_from_list([key, num_classes])
    if frozen:
        cfg.freeze()


def choose_device(cfg: CfgNode) -> CfgNode:
    """`cfg` itself, or a copy on the CPU when it asks for CUDA and none is visible (logged)."""
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return cfg
    logger.warning("No CUDA device is visible: MODEL.DEVICE cpu is used.")
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if frozen:
        cfg.freeze()
    return cfg
