# SPDX-License-Identifier: Apache-2.0
"""Fast and Faster R-CNN are Detectron2's; what they lack for the tools is here."""

import vastdet.models.faster_rcnn.observation  # noqa: F401  (registers how ROI heads are observed)
