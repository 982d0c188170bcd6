# SPDX-License-Identifier: Apache-2.0
"""RT-DETR: a hybrid encoder of attention and convolutions (Zhao et al., 2024), and RT-DETRv2."""

from vastdet.models.rt_detr.config import add_rt_detr_config
from vastdet.models.rt_detr.rt_detr import RTDETR

__all__ = ["RTDETR", "add_rt_detr_config"]
