# SPDX-License-Identifier: Apache-2.0
"""Models with any number of made-up categories, and the passes by which their cost is found."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from vastdet.detr.set_detector import SetDetector
from vastdet.engine.config_files import class_count_key, set_num_classes, value_of
from vastdet.engine.model_inputs import random_inputs
from vastdet.engine.optimizer import build_optimizer
from vastdet.vocabulary import CategoryHierarchy, CategorySpace

# Children of a category in the made-up tree: V3Det's 13,204 categories under 893 parents have 15.
BRANCHING = 15
# A model, and what runs it once.
Pass = tuple[nn.Module, Callable[[], object]]


@dataclass(frozen=True)
class Size:
    """A model's own memory: number of parameters, and bytes of parameters and buffers."""

    num_parameters: int
    num_bytes: int


def with_categories(cfg: CfgNode, num_categories: int) -> CfgNode:
    """A copy of a config whose model has so many made-up categories and needs no files.

    Where the model has a vocabulary, that is one of a balanced tree of `BRANCHING` children each;
    embeddings of names are random.

    Raises:
        ValueError: the number is below 1.
    """
    if num_categories < 1:
        raise ValueError(f"a vocabulary needs at least 1 category, got {num_categories}")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    set_num_classes(cfg, num_categories)
    node = value_of(cfg, class_count_key(cfg).rpartition(".")[0])
    if "VOCABULARY" in node:
        node.VOCABULARY = register_balanced(num_categories)
    if "EMBEDDINGS" in node.get("CATEGORY", {}):
        node.CATEGORY.EMBEDDINGS = "random"
    return cfg


def register_balanced(num_categories: int) -> str:
    """The name of a made-up vocabulary in Detectron2's catalog, with a balanced tree."""
    name = f"vastdet_balanced_{num_categories}"
    if name not in MetadataCatalog.list():
        nodes = [str(k) for k in range(num_categories)]
        edges = [(nodes[(k - 1) // BRANCHING], nodes[k]) for k in range(1, num_categories)]
        MetadataCatalog.get(name).category_space = CategorySpace(
            names=tuple(f"category {k}" for k in nodes),
            dataset_ids=tuple(range(1, num_categories + 1)),
            hierarchy=CategoryHierarchy.from_ids(edges, category_nodes=nodes),
        )
    return name


def meta_model(cfg: CfgNode) -> nn.Module:
    """A config's model whose tensors have shapes and no values."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    # Embeddings of names were read or drawn.
    return model.to("meta")


def model_size(cfg: CfgNode) -> Size:
    """The size of a config's model."""
    model = meta_model(cfg)
    parameters = list(model.parameters())
    return Size(
        sum(p.numel() for p in parameters),
        sum(x.numel() * x.element_size() for x in (*parameters, *model.buffers())),
    )


def shapes_pass(cfg: CfgNode, image_size: tuple[int, int]) -> Pass:
    """A model without values, and the pass from one image to its detections.

    Raises:
        NotImplementedError: the model is none of set prediction. The pass raises it where shapes
            depend on values.
    """
    model = meta_model(cfg).eval()
    if not isinstance(model, SetDetector):
        raise NotImplementedError(f"{type(model).__name__} is no model of set prediction")
    image = torch.empty(3, *image_size, device="meta")

    @torch.no_grad()
    def detect() -> object:
        predictions = model.predict_padded([model.normalize(image)])
        return model.detections(predictions.decoder, [image_size])

    return model, detect


def inference_pass(cfg: CfgNode, image_size: tuple[int, int]) -> Pass:
    """A model, and the detection of objects in one random image."""
    model = build_model(cfg).eval()
    (record,) = random_inputs(cfg, batch_size=1, image_size=image_size)

    # Not in inference mode, where operators made of others are seen as one.
    @torch.no_grad()
    def detect() -> object:
        return model([{"image": record["image"]}])

    return model, detect


def training_pass(cfg: CfgNode, image_size: tuple[int, int]) -> Pass:
    """A model, and a training step on one random image; the learning rate is zero."""
    cfg = cfg.clone()
    cfg.SOLVER.BASE_LR = 0.0
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    inputs = random_inputs(cfg, batch_size=1, image_size=image_size)

    def step() -> None:
        with EventStorage():
            losses = model([dict(record) for record in inputs])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return model, step


PASSES: dict[str, Callable[[CfgNode, tuple[int, int]], Pass]] = {
    "inference": inference_pass,
    "train": training_pass,
}


def make_pass(cfg: CfgNode, task: str, image_size: tuple[int, int]) -> Pass:
    """A pass of one of `PASSES`, of a model that has the same weights each time."""
    torch.manual_seed(0)
    return PASSES[task](cfg, image_size)
