# SPDX-License-Identifier: Apache-2.0
"""RetinaNet: Detectron2's own, and a variant for weights trained by torchvision."""

import vastdet.models.retinanet.observation  # noqa: F401  (registers how RetinaNet is observed)
from vastdet.models.retinanet.retinanet import ClippedRetinaNet

__all__ = ["ClippedRetinaNet"]
