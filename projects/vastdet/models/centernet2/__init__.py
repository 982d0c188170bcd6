# SPDX-License-Identifier: Apache-2.0
"""CenterNet2: a two-stage detector whose first stage tells how likely a box is an object."""

from vastdet.models.centernet2.config import add_centernet2_config
from vastdet.models.centernet2.proposals import CenterNetProposals
from vastdet.models.centernet2.roi_heads import ProbabilisticCascadeROIHeads

__all__ = ["CenterNetProposals", "ProbabilisticCascadeROIHeads", "add_centernet2_config"]
