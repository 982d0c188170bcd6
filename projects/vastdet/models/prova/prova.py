# SPDX-License-Identifier: Apache-2.0
"""The Prova meta-architecture (Chen et al., AAAI 2025): DINO with another class head."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from vastdet.detr.build import class_loss, deformable_parts
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.dino import dino_criterion, dino_transformer
from vastdet.detr.federated_loss import FederatedLoss
from vastdet.detr.heads import class_head
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import SetTransformer
from vastdet.models.prova.prototypes import (
    AlignmentHead,
    PrototypeClassifier,
    PrototypeDenoising,
    Prototypes,
)
from vastdet.text import load_category_embeddings
from vastdet.vocabulary import CategorySpace

RANDOM = "random:"


@META_ARCH_REGISTRY.register()
class Prova(SetDetector):
    """DINO whose classes are told apart by textual and visual prototypes as well."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.PROVA`, and read the files that it names.

        Raises:
            FileNotFoundError: a file of prototypes does not exist.
            ValueError: a source of prototypes is missing or wrong, or does not have the categories
                of the training set.
        """
        node = cfg.MODEL.PROVA
        return {
            **deformable_parts(cfg, node),
            "transformer": build_transformer(
                node,
                textual=load_prototypes(cfg, "TEXTUAL_PROTOTYPES"),
                visual=load_prototypes(cfg, "VISUAL_PROTOTYPES"),
            ),
            "criterion": build_criterion(cfg),
        }


def build_transformer(node: CfgNode, *, textual: Prototypes, visual: Prototypes) -> SetTransformer:
    """The transformer of DINO, whose class heads and label embedding share the prototypes."""
    width = node.EMBED_DIM

    def new_class_head() -> PrototypeClassifier:
        align = partial(AlignmentHead, width, scale=node.LOGIT_SCALE)
        return PrototypeClassifier(
            class_head(width, node.NUM_CLASSES), [align(visual), align(textual)]
        )

    return dino_transformer(
        node, new_class_head=new_class_head, denoising=partial(PrototypeDenoising, visual)
    )


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """DINO's, whose class losses but that of the proposals may be federated."""
    node = cfg.MODEL.PROVA
    if not node.LOSS.FED_LOSS_NUM_CLASSES:
        return dino_criterion(node)
    power = node.LOSS.FED_LOSS_FREQ_WEIGHT_POWER
    whole = class_loss(node.LOSS)
    federated = FederatedLoss(
        whole,
        num_classes=node.LOSS.FED_LOSS_NUM_CLASSES,
        class_weights=partial(federated_weights, cfg.DATASETS.TRAIN, power),
    )
    return dino_criterion(node, class_loss=federated, proposal_class_loss=whole)


def federated_weights(datasets: Sequence[str], power: float) -> torch.Tensor:
    """How likely the federated loss draws a class, (K,): its number of training images ** power.

    Raises:
        ValueError: there is no training set, or it does not state these numbers.
    """
    key = "MODEL.PROVA.LOSS.FED_LOSS_NUM_CLASSES"
    if not datasets:
        raise ValueError(f"{key} needs the categories of DATASETS.TRAIN, which is empty")
    counts = CategorySpace.from_metadata(MetadataCatalog.get(datasets[0])).image_counts
    if counts is None:
        raise ValueError(
            f"{key}: dataset {datasets[0]!r} does not state how many of its images show a category "
            "(image_count in its annotation file); state it, or set 0 to look at all classes"
        )
    return torch.tensor(counts, dtype=torch.float32) ** power


def load_prototypes(cfg: CfgNode, key: str) -> Prototypes:
    """The prototypes that `MODEL.PROVA.<key>` names, for the categories of the training set.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the value is empty or no number of dimensions, the file has not all categories,
            or there are others than `NUM_CLASSES`.
    """
    node = cfg.MODEL.PROVA
    source, name = node[key], f"MODEL.PROVA.{key}"
    if source.startswith(RANDOM):
        dim = source.removeprefix(RANDOM)
        if not dim.isdecimal() or int(dim) < 1:
            raise ValueError(f"{name} is {source!r}; expected a number as in '{RANDOM}512'")
        rows = torch.randn(node.NUM_CLASSES, int(dim))
    elif source:
        rows = _rows_of_file(source, cfg.DATASETS.TRAIN, name)
    else:
        raise ValueError(
            f"{name} is empty; name a .safetensors of tools/compute_category_embeddings.py or of "
            f"tools/compute_image_prototypes.py, or '{RANDOM}512' for random numbers"
        )
    if len(rows) != node.NUM_CLASSES:
        raise ValueError(
            f"{name} gives prototypes of the {len(rows)} categories of {cfg.DATASETS.TRAIN[0]!r}, "
            f"but MODEL.PROVA.NUM_CLASSES is {node.NUM_CLASSES}; make it {len(rows)}"
        )
    return Prototypes(rows, learned=node.LEARN_PROTOTYPES)


def _rows_of_file(path: str, datasets: tuple[str, ...], name: str) -> torch.Tensor:
    if not datasets:
        raise ValueError(
            f"{name} is a file, whose rows are found by the categories of "
            "DATASETS.TRAIN, which is empty; name the training set"
        )
    space = CategorySpace.from_metadata(MetadataCatalog.get(datasets[0]))
    try:
        return load_category_embeddings(path, space)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: there is no file {path}; compute it (projects/vastdet/models/prova/README.md "
            f"has the commands), or, where all weights come from a checkpoint, set '{RANDOM}D' "
            "with the D of that file"
        ) from error
