# SPDX-License-Identifier: Apache-2.0
"""CQ-DINO: categories as queries, a few of them chosen for each image (Sun et al., 2025)."""

from vastdet.models.cq_dino.config import add_cq_dino_config
from vastdet.models.cq_dino.cq_dino import CQDINO
from vastdet.models.cq_dino.image_labels import (
    AncestorMask,
    AsymmetricLoss,
    ReleasedAsymmetricLoss,
    image_labels,
)
from vastdet.models.cq_dino.key_index import KeyIndex
from vastdet.models.cq_dino.match_fitting import ScoredImages, fit_match, made_up_embeddings
from vastdet.models.cq_dino.presets import PRESETS, Preset, preset
from vastdet.models.cq_dino.scoring import HALF_PRECISION, PreparedCategories, Scoring
from vastdet.models.cq_dino.selection import (
    CategorySelection,
    CategoryToImageLayer,
    ImageTokens,
    MeanAndCells,
    SelectedCategories,
    UnmaskedMeanAndCells,
    category_to_image_layers,
)
from vastdet.models.cq_dino.selection_build import build_selection
from vastdet.models.cq_dino.selector import CQDINOSelector
from vastdet.models.cq_dino.shortlist import (
    Shortlist,
    ShortlistSelection,
    TokenMatch,
    match_loss,
)
from vastdet.models.cq_dino.tree import (
    AdaptiveWeight,
    CategoryTree,
    DescendantWeight,
    FixedWeight,
    ReleasedCategoryTree,
)

__all__ = [
    "CQDINO",
    "HALF_PRECISION",
    "PRESETS",
    "AdaptiveWeight",
    "AncestorMask",
    "AsymmetricLoss",
    "CQDINOSelector",
    "CategorySelection",
    "CategoryToImageLayer",
    "CategoryTree",
    "DescendantWeight",
    "FixedWeight",
    "ImageTokens",
    "KeyIndex",
    "MeanAndCells",
    "PreparedCategories",
    "Preset",
    "ReleasedAsymmetricLoss",
    "ReleasedCategoryTree",
    "ScoredImages",
    "Scoring",
    "SelectedCategories",
    "Shortlist",
    "ShortlistSelection",
    "TokenMatch",
    "UnmaskedMeanAndCells",
    "add_cq_dino_config",
    "build_selection",
    "category_to_image_layers",
    "fit_match",
    "image_labels",
    "made_up_embeddings",
    "match_loss",
    "preset",
]
