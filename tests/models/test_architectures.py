# SPDX-License-Identifier: Apache-2.0
"""What every architecture must do; a new one joins by one line in ARCHITECTURES."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

NUM_CLASSES = 3
# Small, medium and large, so that every pyramid level and size range has work.
GT_BOXES = torch.tensor([[4.0, 6.0, 24.0, 30.0], [30.0, 10.0, 90.0, 70.0], [2.0, 2.0, 94.0, 94.0]])


def timm_pyramid(cfg: CfgNode, backbone: str, levels: list[str]) -> None:
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "test_resnet"
    cfg.MODEL.FPN.IN_FEATURES = levels
    cfg.MODEL.FPN.OUT_CHANNELS = 64


def fcos(cfg: CfgNode) -> None:
    timm_pyramid(cfg, "build_timm_fpn_backbone", ["res3", "res4", "res5"])
    cfg.MODEL.META_ARCHITECTURE = "FCOS"
    cfg.MODEL.FCOS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.FCOS.SIZES_OF_INTEREST = [24, 48]
    cfg.MODEL.FCOS.NUM_CONVS = 1
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.0


def fcos_p7(cfg: CfgNode) -> None:
    fcos(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_retinanet_fpn_backbone"
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.FCOS.SIZES_OF_INTEREST = [16, 32, 48, 64]
    cfg.MODEL.FCOS.LOC_LOSS_TYPE = "giou"
    cfg.MODEL.FCOS.CENTERNESS_ON_REG = True


def retinanet(cfg: CfgNode) -> None:
    timm_pyramid(cfg, "build_timm_retinanet_fpn_backbone", ["res3", "res4", "res5"])
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [24], [32], [48], [64]]
    cfg.MODEL.RETINANET.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0


def rcnn(cfg: CfgNode) -> None:
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 200
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 100
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 100
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50


def faster_rcnn_fpn(cfg: CfgNode) -> None:
    rcnn(cfg)
    timm_pyramid(cfg, "build_timm_fpn_backbone", ["res2", "res3", "res4", "res5"])
    levels = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[12], [24], [48], [72], [96]]
    cfg.MODEL.RPN.IN_FEATURES = [*levels, "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = levels
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 5


def faster_rcnn_c4(cfg: CfgNode) -> None:
    rcnn(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[24, 48, 96]]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7


def set_prediction(cfg: CfgNode, name: str, node: CfgNode) -> None:
    """A small member of the DETR family; `node` holds its config keys."""
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "test_resnet"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res3", "res4", "res5"]
    node.NUM_CLASSES = NUM_CLASSES
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = 64, 4, 64
    node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS = 1, 2
    node.NUM_QUERIES, node.DROPOUT = 20, 0.0


def dino(cfg: CfgNode) -> None:
    set_prediction(cfg, "DINO", cfg.MODEL.DINO)
    cfg.MODEL.DINO.DENOISING.NUM_QUERIES = 10


def relation_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "RelationDETR", cfg.MODEL.RELATION_DETR)
    cfg.MODEL.RELATION_DETR.DENOISING.NUM_QUERIES = 10
    cfg.MODEL.RELATION_DETR.ONE_TO_MANY.NUM_QUERIES = 30


def deformable_detr(cfg: CfgNode, variant: str) -> None:
    set_prediction(cfg, "DeformableDETR", cfg.MODEL.DEFORMABLE_DETR)
    cfg.MODEL.DEFORMABLE_DETR.VARIANT = variant


def h_deformable_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "HDeformableDETR", cfg.MODEL.H_DEFORMABLE_DETR)
    cfg.MODEL.H_DEFORMABLE_DETR.ONE_TO_MANY.NUM_QUERIES = 30


def rank_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "RankDETR", cfg.MODEL.RANK_DETR)
    cfg.MODEL.RANK_DETR.ONE_TO_MANY.NUM_QUERIES = 30


def deta(cfg: CfgNode) -> None:
    set_prediction(cfg, "DETA", cfg.MODEL.DETA)


def dab_deformable_detr(cfg: CfgNode, num_groups: int) -> None:
    set_prediction(cfg, "DABDeformableDETR", cfg.MODEL.DAB_DEFORMABLE_DETR)
    cfg.MODEL.DAB_DEFORMABLE_DETR.DENOISING.NUM_GROUPS = num_groups


def detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "DETR", cfg.MODEL.DETR)


def panoptic_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "PanopticDETR", cfg.MODEL.PANOPTIC_DETR)
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]


def rt_detr(cfg: CfgNode, num_points: list[int]) -> None:
    node = cfg.MODEL.RT_DETR
    set_prediction(cfg, "RTDETR", node)
    node.ENCODER_DIM, node.ENCODER_FEEDFORWARD_DIM, node.EXPANSION = 32, 64, 0.5
    node.NUM_POINTS = num_points
    node.DENOISING.NUM_QUERIES = 10


def conditional_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "ConditionalDETR", cfg.MODEL.CONDITIONAL_DETR)


def dab_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "DABDETR", cfg.MODEL.DAB_DETR)


def dn_detr(cfg: CfgNode, num_patterns: int) -> None:
    set_prediction(cfg, "DNDETR", cfg.MODEL.DN_DETR)
    cfg.MODEL.DN_DETR.DENOISING.NUM_GROUPS = 2
    cfg.MODEL.DN_DETR.NUM_PATTERNS = num_patterns


def cascade_rcnn(cfg: CfgNode) -> None:
    faster_rcnn_fpn(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True


def fast_rcnn(cfg: CfgNode) -> None:
    faster_rcnn_fpn(cfg)
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"


@dataclass(frozen=True)
class Architecture:
    """One entry of the suite."""

    name: str
    configure: Callable[[CfgNode], None]
    padding_invariant: bool = False  # whether other images of a batch may not change a result
    learning_rate: float = 0.02
    steps: int = 10  # after which the loss must be lower
    # Prefixes of parameters whose gradient is zero on images as small as these.
    idle: tuple[str, ...] = ()


# Where contents start at zero, all queries of the first layer hold the same: who looks at whom does
# not matter yet, and there is nothing to project.
EMPTY_CONTENTS = tuple(
    f"transformer.decoder.layers.0.self_attn.{name}"
    for name in ("query_content", "query_position", "key_content", "key_position", "value.weight")
)

ARCHITECTURES = [
    Architecture("FCOS", fcos),
    Architecture("FCOS-P7", fcos_p7),
    Architecture("RetinaNet", retinanet),
    Architecture("DINO", dino, padding_invariant=True, learning_rate=0.005),
    Architecture("Relation-DETR", relation_detr, padding_invariant=True, learning_rate=0.005),
    *(
        Architecture(
            f"Deformable DETR {variant}",
            partial(deformable_detr, variant=variant),
            padding_invariant=True,
            learning_rate=0.005,
        )
        for variant in ("plain", "refined", "two_stage")
    ),
    Architecture(
        "H-Deformable-DETR", h_deformable_detr, padding_invariant=True, learning_rate=0.005
    ),
    Architecture("Rank-DETR", rank_detr, padding_invariant=True, learning_rate=0.005),
    Architecture("DETA", deta, padding_invariant=True, learning_rate=0.005),
    *(
        Architecture(
            name,
            configure,
            padding_invariant=True,
            learning_rate=0.005,
            # Contents start at zero, so the first layer has nothing to tell the queries of each
            # other.
            idle=("transformer.decoder.layers.0.self_attn.in_proj_weight",),
        )
        for name, configure in (("DETR", detr), ("Panoptic DETR", panoptic_detr))
    ),
    *(
        Architecture(
            name,
            partial(dab_deformable_detr, num_groups=num_groups),
            padding_invariant=True,
            learning_rate=0.005,
        )
        for name, num_groups in (("DAB-Deformable-DETR", 0), ("DN-Deformable-DETR", 2))
    ),
    *(
        Architecture(
            name,
            partial(rt_detr, num_points=num_points),
            padding_invariant=True,
            learning_rate=0.02,
        )
        for name, num_points in (("RT-DETR", [4, 4, 4]), ("RT-DETRv2", [4, 2, 1]))
    ),
    Architecture(
        "Conditional DETR",
        conditional_detr,
        padding_invariant=True,
        learning_rate=0.005,
        idle=EMPTY_CONTENTS,
    ),
    Architecture(
        "DAB-DETR", dab_detr, padding_invariant=True, learning_rate=0.005, idle=EMPTY_CONTENTS
    ),
    *(
        Architecture(
            name,
            partial(dn_detr, num_patterns=num_patterns),
            padding_invariant=True,
            learning_rate=0.005,
        )
        for name, num_patterns in (("DN-DETR", 0), ("DN-DETR with patterns", 3))
    ),
    Architecture("Faster R-CNN FPN", faster_rcnn_fpn),
    # Batch norm of two images makes its first steps rough.
    Architecture("Faster R-CNN C4", faster_rcnn_c4, steps=16),
    Architecture("Cascade R-CNN", cascade_rcnn),
    # Boxes under 112 pixels are all pooled from p2.
    Architecture("Fast R-CNN", fast_rcnn, idle=("backbone.fpn_output", "backbone.fpn_lateral")),
]


def named(architectures: list[Architecture]) -> Any:
    return pytest.mark.parametrize("architecture", architectures, ids=lambda a: a.name)


every = named(ARCHITECTURES)


def build(architecture: Architecture, cfg: CfgNode, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_STD = [57.375, 57.12, 58.395]
    architecture.configure(cfg)
    return build_model(cfg)


def sample(
    boxes: Tensor = GT_BOXES, *, size: tuple[int, int] = (96, 96), seed: int = 0
) -> dict[str, Any]:
    """One mapped record: an image with a bright patch a box, and proposals about the boxes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    image = torch.randint(0, 100, (3, height, width), generator=generator)
    for i, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
        image[i % 3, y0:y1, x0:x1] += 120
    instances = Instances(size)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.arange(len(boxes)) % NUM_CLASSES
    instances.gt_masks = BitMasks(torch.zeros(len(boxes), height, width, dtype=torch.bool))
    for mask, (x0, y0, x1, y1) in zip(instances.gt_masks.tensor, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    corners = torch.rand(40, 2, 2, generator=generator).sort(dim=1).values
    spread = (corners * torch.tensor([width, height])).flatten(1)
    shifted = boxes.repeat(4, 1) + 4 * torch.rand(4 * len(boxes), 4, generator=generator)
    proposals = Instances(size)
    proposals.proposal_boxes = Boxes(torch.cat([shifted, spread]))
    proposals.proposal_boxes.clip(size)
    proposals = proposals[proposals.proposal_boxes.nonempty(2)]
    proposals.objectness_logits = torch.zeros(len(proposals))
    return {
        "image": image.to(torch.uint8),
        "height": height,
        "width": width,
        "instances": instances,
        "proposals": proposals,
    }


def train_losses(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    model.train()
    with EventStorage():
        return model(copy.deepcopy(batch))


@torch.no_grad()
def detect(model: nn.Module, batch: list[dict[str, Any]]) -> list[Instances]:
    model.eval()
    return [output["instances"] for output in model(copy.deepcopy(batch))]


def assert_same(one: Instances, other: Instances) -> None:
    assert len(one) == len(other) > 0
    torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-4)
    # Where two scores all but tie, their order may change, and at the end which of them is kept:
    # compare as sets of rows, without those that tie with the last.
    for first, second in ((one, other), (other, one)):
        last = first.scores[-1]
        clear = first[first.scores > last + 2 * (1e-5 + 1e-4 * last)]
        assert len(clear) > 0
        gap = torch.cdist(rows(clear), rows(second), p=float("inf"))
        assert gap.amin(dim=1).max() < 1e-2


def rows(instances: Instances) -> Tensor:
    fields = (instances.pred_boxes.tensor, instances.pred_classes[:, None] * 1000.0)
    return torch.cat([*fields, instances.scores[:, None] * 10], dim=1)


def train(model: nn.Module, learning_rate: float, steps: int) -> list[float]:
    """The loss of each step on one fixed batch."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    batch = [sample(seed=0), sample(GT_BOXES.flip(0), seed=1)]
    history = []
    for _ in range(steps):
        loss = sum(train_losses(model, batch).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        history.append(loss.item())
    return history


@every
def test_training_lowers_the_loss(architecture: Architecture, cfg: CfgNode) -> None:
    # RetinaNet divides by a moving average, so a twin that does not learn is the measure.
    steps = architecture.steps
    idle = train(build(architecture, cfg), 0.0, steps)
    trained = train(build(architecture, cfg), architecture.learning_rate, steps)
    assert min(trained[-3:]) < 0.9 * min(idle[-3:]), (trained, idle)


@every
def test_every_parameter_gets_a_gradient(architecture: Architecture, cfg: CfgNode) -> None:
    model = build(architecture, cfg)
    train(model, architecture.learning_rate, steps=2)  # residual branches start at zero
    model.zero_grad()
    losses = train_losses(model, [sample(seed=0), sample(seed=1)])
    assert all(name.startswith("loss_") and loss.dim() == 0 for name, loss in losses.items())
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, grad in gradients.items() if grad is None]
    idle = [name for name, grad in gradients.items() if not grad.any()]
    assert not [name for name in idle if not name.startswith(architecture.idle)]


@every
def test_no_ground_truth(architecture: Architecture, cfg: CfgNode) -> None:
    model = build(architecture, cfg)
    losses = train_losses(model, [sample(torch.zeros(0, 4))])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    # Distributed training waits for parameters that are left out of the graph.
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@every
@pytest.mark.parametrize(
    "box", [[8.0, 8.0, 40.0, 40.0], [10.0, 10.0, 11.0, 11.0]], ids=["plain", "one pixel"]
)
def test_one_box(architecture: Architecture, cfg: CfgNode, box: list[float]) -> None:
    losses = train_losses(build(architecture, cfg), [sample(torch.tensor([box]))])
    assert all(loss.isfinite() for loss in losses.values())


@every
def test_odd_sizes(architecture: Architecture, cfg: CfgNode) -> None:
    model = build(architecture, cfg)
    batch = [sample(GT_BOXES[:1], size=(61, 83)), sample(GT_BOXES[:1], size=(37, 97), seed=1)]
    losses = train_losses(model, batch)
    assert all(loss.isfinite() for loss in losses.values())
    for record, detections in zip(batch, detect(model, batch), strict=True):
        assert detections.image_size == (record["height"], record["width"])


@every
def test_detections_are_in_the_original_frame(architecture: Architecture, cfg: CfgNode) -> None:
    model = build(architecture, cfg)
    record = sample()
    plain = detect(model, [record])[0]
    twice = detect(model, [{**record, "height": 192, "width": 288}])[0]
    assert twice.image_size == (192, 288)
    assert len(twice) == len(plain) > 0
    boxes = twice.pred_boxes.tensor
    torch.testing.assert_close(boxes, plain.pred_boxes.tensor * torch.tensor([3, 2, 3, 2]))
    assert boxes.min() >= 0
    assert boxes[:, [0, 2]].max() <= 288
    assert boxes[:, [1, 3]].max() <= 192
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    assert twice.scores.min() >= 0
    assert twice.scores.max() <= 1
    assert (twice.scores.diff() <= 1e-6).all(), "best first"
    assert twice.pred_classes.dtype == torch.int64
    assert set(twice.pred_classes.tolist()) <= set(range(NUM_CLASSES))


@every
def test_a_batch_equals_single_images(architecture: Architecture, cfg: CfgNode) -> None:
    model = build(architecture, cfg)
    batch = [sample(seed=s) for s in range(3)]
    for record, together in zip(batch, detect(model, batch), strict=True):
        assert_same(detect(model, [record])[0], together)


@named([a for a in ARCHITECTURES if a.padding_invariant])
def test_padding_changes_nothing(architecture: Architecture, cfg: CfgNode) -> None:
    model = build(architecture, cfg)
    small, large = sample(size=(96, 96)), sample(size=(128, 160), seed=1)
    assert_same(detect(model, [small])[0], detect(model, [small, large])[0])


@every
def test_bf16_autocast_forward(architecture: Architecture, cfg: CfgNode) -> None:
    batch = [sample(seed=0), sample(seed=1)]
    losses = []
    for enabled in (False, True):
        model = build(architecture, cfg)  # anew: RetinaNet divides by a moving average
        torch.manual_seed(1)  # the same samples and noise
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses.append(train_losses(model, batch))
    full, mixed = losses
    assert mixed.keys() == full.keys()
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in mixed.values())
    totals = [sum(x.values()).item() for x in losses]
    gap = abs(totals[1] - totals[0]) / totals[0]
    terms = max((abs(mixed[k] - full[k]) / (full[k] + 0.5)).item() for k in full)
    print(f"bf16 beside float32: all losses {gap:.1e}, one loss {terms:.1e} of it + 0.5")
    # Measured: 1.1e-2 (batch norm of two images) and 7e-2 (DINO): untrained queries all but tie, so
    # that rounding decides on some matches.
    assert gap < 0.03
    assert terms < 0.2
    sum(mixed.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = detect(model, batch)
    for detections in found:
        assert len(detections) > 0
        assert detections.pred_boxes.tensor.dtype == torch.float32
        assert detections.pred_boxes.tensor.isfinite().all()
        assert detections.scores.isfinite().all()


@every
def test_weights_make_a_round_trip(
    architecture: Architecture, cfg: CfgNode, tmp_path: Path
) -> None:
    model, other = build(architecture, cfg, seed=0), build(architecture, cfg, seed=1)
    train_losses(model, [sample()])  # moves the running statistics of norms too
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert_same(detect(model, [sample()])[0], detect(other, [sample()])[0])
