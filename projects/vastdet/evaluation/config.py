# SPDX-License-Identifier: Apache-2.0
"""Config keys of `vastdet.evaluation`."""

from detectron2.config import CfgNode


def add_evaluation_config(cfg: CfgNode) -> None:
    """Add the keys of `vastdet.evaluation` to `cfg` in place."""
    # What matches and accumulates: "hotcoco" (fast) or "pycocotools" (the reference, much slower,
    # which has none of LVIS's rules).
    cfg.TEST.COCO_ENGINE = "hotcoco"
    # COCO's AP: detections an image and category that count, ascending. AR is reported at each, AP
    # at the last. Raise the last one together with TEST.DETECTIONS_PER_IMAGE. LVIS and V3Det have
    # limits of their own, 300.
    cfg.TEST.MAX_DETS = [1, 10, 100]
    # When pictures (precision-recall, confusion, AP by size and frequency) are drawn: "never",
    # "final" (the last evaluation of a training run, and every evaluation outside one), "always".
    cfg.TEST.PLOTS = "final"
    # The confusion matrix counts detections with at least this score.
    cfg.TEST.CONFUSION_SCORE_THRESH = 0.3
