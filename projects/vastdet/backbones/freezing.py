# SPDX-License-Identifier: Apache-2.0
"""Frozen layers need weights that are worth keeping."""

from detectron2.config import CfgNode


def check_frozen_weights(
    cfg: CfgNode, *, pretrained_key: str = "", pretrained: bool = False
) -> None:
    """Refuse to freeze random weights.

    Args:
        cfg: with `MODEL.BACKBONE.FREEZE_AT` and `MODEL.WEIGHTS`.
        pretrained_key: the key, if any, by which the backbone fetches weights of its own.
        pretrained: its value.

    Raises:
        ValueError: layers are frozen, but no weights are given.
    """
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    if freeze_at > 0 and not pretrained and not cfg.MODEL.WEIGHTS:
        fetched = f"{pretrained_key} is False and " if pretrained_key else ""
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, which would freeze random weights: "
            f"{fetched}MODEL.WEIGHTS is empty. Set MODEL.BACKBONE.FREEZE_AT to 0, or give weights"
        )
