# SPDX-License-Identifier: Apache-2.0
"""The CQ-DINO meta-architecture (Sun et al., 2025): the parts it is made of.

B images, C categories, K selected ones, D channels of a category query, Q object queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from vastdet.detr.alignment import ContrastiveAlignment
from vastdet.detr.build import (
    class_loss,
    deformable_parts,
    deformable_settings,
    focal_settings,
    levels_to_tokens,
    loss_weights,
    matcher_weights,
)
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.enhancer import feature_enhancer
from vastdet.detr.heads import box_head, per_layer
from vastdet.detr.matcher import HungarianMatcher, prompt_focal_cost
from vastdet.detr.prompt import PromptTokens
from vastdet.detr.prompted_decoder import PromptedDecoder, prompted_decoder_layer
from vastdet.detr.prompted_transformer import PromptedTransformer
from vastdet.detr.query_position import BoxPosition
from vastdet.detr.query_selection import PromptedTokenSelection
from vastdet.detr.query_source import MixedQueries
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.structures import SetPredictions, Targets
from vastdet.detr.tokens import resize_mask
from vastdet.layers.observed_logits import logits_from
from vastdet.models.cq_dino.build import (
    build_category_side,
    build_selection_criterion,
    selection_feature,
    vocabulary,
)
from vastdet.models.cq_dino.category_prompt import category_prompt
from vastdet.models.cq_dino.category_side import (
    CategorySide,
    ImageCategories,
    SelectionCriterion,
    labels_of_slots,
    log_recall,
    ranks_of,
    selection_outputs,
)
from vastdet.models.cq_dino.presets import preset
from vastdet.models.cq_dino.selection import SelectedCategories

# Bounds the logits of reference boxes in the authors' code.
LOGIT_EPS = 1e-3
# Added to the divisors of GIoU. Theirs are areas in pixels and at least 1e-6: of an image of a
# million pixels that is this share.
GIOU_EPS = 1e-12


@dataclass(frozen=True)
class CategoryPredictions(SetPredictions):
    """Predictions whose logits are those of the selected categories of each image, best first."""

    selected: SelectedCategories | None = None


@META_ARCH_REGISTRY.register()
class CQDINO(SetDetector):
    """Detects those of a vast number of categories that a selection finds likely in an image.

    Beside `instances`, an image's output holds `selected_categories` (K,) int64, the ids in [0, C)
    of the selected categories, best first, and `selection_scores` (K,) in [0, 1].
    """

    @configurable
    def __init__(
        self,
        *,
        categories: CategorySide,
        prompt_proj: nn.Module,
        selection_criterion: SelectionCriterion,
        selection_feature: str,
        warmup_iters: int = 0,
        **parts: Any,
    ) -> None:
        """Put the parts together.

        Args:
            categories: selects.
            prompt_proj: maps `ImageCategories` to prompt tokens (B, K, C) of the transformer's
                width.
            selection_criterion: the loss of the selection.
            selection_feature: the map of the backbone that the selection looks at.
            warmup_iters: iterations in which an image's own categories are selected whatever their
                scores.
            parts: see `SetDetector`.
        """
        super().__init__(**parts)
        self.categories = categories
        self.prompt_proj = prompt_proj
        self.selection_criterion = selection_criterion
        self.selection_feature = selection_feature
        self.warmup_iters = warmup_iters

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.CQ_DINO`."""
        node, space = cfg.MODEL.CQ_DINO, vocabulary(cfg)
        parts = deformable_parts(cfg, node)
        prompt_proj = category_prompt(node.CATEGORY.PROMPT, node.CATEGORY.DIM, node.EMBED_DIM)
        return {
            **parts,
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
            "categories": build_category_side(cfg, space, parts["backbone"].output_shape()),
            "prompt_proj": prompt_proj,
            "selection_criterion": build_selection_criterion(node, space),
            "selection_feature": selection_feature(node),
            "warmup_iters": node.SELECTION.WARMUP_ITERS,
        }

    def predict_padded(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> CategoryPredictions:
        """See `SetDetector.predict_padded`."""
        pixels, mask = self.padded_batch(images)
        features = self.backbone(pixels)
        categories = self.select(features[self.selection_feature], mask, targets)
        prompt = PromptTokens(self.prompt_proj(categories), label_features=categories.queries)
        predictions = self.transformer(*self.levels(features, mask), prompt, targets)
        return CategoryPredictions(**vars(predictions), selected=categories.selected)

    def select(self, features: Tensor, mask: Tensor, targets: Targets | None) -> ImageCategories:
        """Select by a map (B, F, H, W), with the mask of the padded batch."""
        mask = resize_mask(mask, (features.shape[-2], features.shape[-1]))
        required = None
        if targets is not None and iteration() < self.warmup_iters:
            required = labels_of_slots(targets, self.num_classes)
        return self.categories(features, mask, required)

    def losses(self, predictions: SetPredictions, targets: Targets) -> dict[str, Tensor]:
        """Those of the detector, whose labels are ranks among the selected, and the selection's."""
        assert isinstance(predictions, CategoryPredictions)
        selected = predictions.selected
        assert selected is not None
        ranks = torch.where(targets.filled, ranks_of(targets.labels, selected.indices), 0)
        with logits_from(categories=selected.indices):
            losses = self.criterion(predictions, replace(targets, labels=ranks))
        present = labels_of_slots(targets, self.num_classes)
        log_recall(selected, present)
        return losses | self.selection_criterion(selected, present)

    def results(
        self,
        predictions: SetPredictions,
        size: tuple[int, int],
        batched_inputs: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """See `SetDetector.results`; classes are categories, and the selected ones are told."""
        assert isinstance(predictions, CategoryPredictions)
        selected = predictions.selected
        assert selected is not None
        results = super().results(predictions, size, batched_inputs)
        for result, own in zip(results, selection_outputs(selected), strict=True):
            found = result["instances"]
            found.pred_classes = own["selected_categories"][found.pred_classes]
            result.update(own)
        return results


def iteration() -> int:
    """The iteration of the training, 0 where none runs."""
    return get_event_storage().iter if has_event_storage() else 0


def build_transformer(node: CfgNode) -> PromptedTransformer:
    """Feature enhancer, query selection, denoising and decoder of `MODEL.CQ_DINO`."""
    width, num_layers = node.EMBED_DIM, node.NUM_DECODER_LAYERS
    attention = deformable_settings(node)
    parts = preset(node.PRESET)
    new_box_head = partial(box_head, width)
    denoising = None
    if node.DENOISING.NUM_QUERIES:
        denoising = parts.denoising(
            width,
            node.CATEGORY.DIM,
            num_queries=node.DENOISING.NUM_QUERIES,
            label_noise=node.DENOISING.LABEL_NOISE,
            box_noise=node.DENOISING.BOX_NOISE,
            eps=LOGIT_EPS,
        )
    transformer = PromptedTransformer(
        to_tokens=levels_to_tokens(
            node, temperature=node.POSITION_TEMPERATURE, offset=node.POSITION_OFFSET
        ),
        encoder=feature_enhancer(
            node.NUM_ENCODER_LAYERS,
            fusion_dim=node.FUSION.DIM,
            fusion_heads=node.FUSION.NUM_HEADS,
            fusion_dropout=node.FUSION.DROPOUT,
            **attention,
        ),
        query_source=MixedQueries(
            PromptedTokenSelection(
                width, node.NUM_QUERIES, class_head=ContrastiveAlignment(), box_head=new_box_head()
            ),
            width,
        ),
        denoising=denoising,
        decoder=PromptedDecoder(
            (prompted_decoder_layer(**attention) for _ in range(num_layers)),
            query_position=BoxPosition(width),
            refinement=LookForwardTwice(LOGIT_EPS, prediction_eps=parts.prediction_eps),
            class_heads=per_layer(ContrastiveAlignment, num_layers, shared=False),
            box_heads=per_layer(new_box_head, num_layers, shared=False),
            norm=nn.LayerNorm(width),
        ),
    )
    parts.start(transformer)
    return transformer


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matcher and losses of `MODEL.CQ_DINO`."""
    focal = focal_settings(node.LOSS)
    return SetCriterion(
        assigner=HungarianMatcher(
            **matcher_weights(node.MATCHER),
            giou_eps=GIOU_EPS,
            class_cost=partial(prompt_focal_cost, **focal),
        ),
        class_loss=class_loss(node.LOSS),
        weights=loss_weights(node.LOSS),
        giou_eps=GIOU_EPS,
    )
