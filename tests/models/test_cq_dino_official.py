# SPDX-License-Identifier: Apache-2.0
"""CQ-DINO with the preset `official` beside a plain account of the authors' code, on its names.

In float64, so that no near tie is decided by rounding; what our modules keep in float32 (places of
cells, shares in the tree) is left as the difference.
"""

import math
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from tests.models.cq_dino_reference_losses import Noised, Truth, all_losses, giou, make_noised
from tests.models.cq_dino_reference_model import Tree, detect, tree_weight
from torch import Tensor

from vastdet.backbones.swin import SIZES, SwinSize
from vastdet.detr.denoising import Noise
from vastdet.detr.prompt import PromptedTokens
from vastdet.detr.prompt_denoising import positions_of_labels
from vastdet.layers.boxes import generalized_iou
from vastdet.model_zoo.cq_dino_models import category_pairs, transformer_pairs
from vastdet.model_zoo.key_map import Converter
from vastdet.model_zoo.swin_models import BUFFERS, MMDET, swin_pairs
from vastdet.models.cq_dino import CQDINO, DescendantWeight
from vastdet.models.cq_dino.cq_dino import build_transformer
from vastdet.vocabulary import CategoryHierarchy, CategorySpace

SIZE = SwinSize(16, (2, 2, 2, 2), (1, 2, 2, 4))
WINDOW, WIDTH, NUM_LAYERS, NUM_SELECTED, NUM_DENOISING = 3, 64, 2, 5, 9
# A chain of nine, with further children on three levels; the last has two parents.
EDGES = [*((k, k + 1) for k in range(8)), (0, 9), (6, 10), (7, 11), (9, 12), (2, 12)]
NUM_CLASSES = 13
# Each has padding on every level in the batch of both.
SHAPES = [(96, 90), (60, 128)]
# Corners in pixels and categories; 12 is above none, 0 above all.
TRUTHS = [
    ([[10.0, 12.0, 50.0, 60.0], [50.0, 20.0, 86.0, 90.0], [5.0, 50.0, 30.0, 88.0]], [3, 12, 3]),
    ([[20.0, 8.0, 100.0, 56.0], [40.0, 30.0, 43.0, 32.0]], [8, 6]),
]


def tree() -> Tree:
    """What their file says of EDGES."""
    children = [[c for p, c in EDGES if p == k] for k in range(NUM_CLASSES)]
    parents = [[p for p, c in EDGES if c == k] for k in range(NUM_CLASSES)]

    def above(k: int) -> set[int]:
        return set(parents[k]).union(*(above(p) for p in parents[k]))

    def level(k: int) -> int:
        return 1 + max((level(p) for p in parents[k]), default=0)

    numbers = range(NUM_CLASSES)
    return Tree([level(k) for k in numbers], children, [sorted(above(k)) for k in numbers])


def vocabulary() -> str:
    """The same, registered."""
    name = "vastdet_official_tree"
    if name not in MetadataCatalog.list():
        nodes = [str(k) for k in range(NUM_CLASSES)]
        edges = [(str(p), str(c)) for p, c in EDGES]
        MetadataCatalog.get(name).category_space = CategorySpace(
            names=tuple(nodes),
            dataset_ids=tuple(range(1, NUM_CLASSES + 1)),
            synonyms=((),) * NUM_CLASSES,
            hierarchy=CategoryHierarchy.from_ids(edges, category_nodes=nodes),
        )
    return name


def small_model(cfg: CfgNode, *, has_tree: bool) -> CQDINO:
    """Two layers of everything, the authors' losses, no dropout.

    With a tree three maps and four levels, as their Swin-B on V3Det; else one more, as their
    Swin-L on COCO.
    """
    cfg.MODEL.META_ARCHITECTURE = "CQDINO"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_swin_backbone", 0
    cfg.MODEL.SWIN.SIZE, cfg.MODEL.SWIN.WINDOW_SIZE = "tiny", WINDOW
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 300
    maps = ["res3", "res4", "res5"] if has_tree else ["res2", "res3", "res4", "res5"]
    node = cfg.MODEL.CQ_DINO
    cfg.MODEL.SWIN.OUT_FEATURES = node.IN_FEATURES = maps
    node.NUM_LEVELS = len(maps) + 1
    node.PRESET, node.VOCABULARY, node.NUM_CLASSES = "official", vocabulary(), NUM_CLASSES
    node.EMBED_DIM, node.FEEDFORWARD_DIM, node.NUM_QUERIES = WIDTH, 48, 25
    node.NUM_ENCODER_LAYERS = node.NUM_DECODER_LAYERS = NUM_LAYERS
    node.CATEGORY.EMBEDDINGS, node.CATEGORY.DIM = "random", 48
    node.CATEGORY.CORRELATION = "tree" if has_tree else "self_attention"
    node.SELECTION.NUM_SELECTED, node.SELECTION.IMAGE_DIM = NUM_SELECTED, 32
    node.SELECTION.FEEDFORWARD_DIM, node.SELECTION.DROPOUT = 56, 0.0
    node.FUSION.DIM, node.FUSION.DROPOUT = 80, 0.0
    node.DENOISING.NUM_QUERIES = NUM_DENOISING
    if not has_tree:
        node.SELECTION.LOSS_WEIGHT, node.SELECTION.GAMMA_NEGATIVE, node.SELECTION.CLIP = 0.2, 0, 0
    model = build_model(cfg).double()
    assert isinstance(model, CQDINO)
    return model


def small_converter(*, has_tree: bool) -> Converter:
    """The names of the small model."""
    norms = (1, 2, 3) if has_tree else (0, 1, 2, 3)
    return Converter(
        name="small CQ-DINO",
        config="",
        pairs=(
            *swin_pairs(MMDET, SIZE.depths, "backbone.", "backbone.", output_norms=norms),
            *transformer_pairs(NUM_LAYERS, NUM_LAYERS, num_maps=len(norms)),
            *category_pairs(self_attention=not has_tree),
        ),
        ignored=BUFFERS,
    )


def random_state(names: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values under which every part matters."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, like in names.items():
        value = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        if name.endswith(("gamma_v", "gamma_l")):
            value = 0.5 + 0.1 * value
        elif "norm" in name.lower() and name.endswith("weight"):
            value = 1 + 0.1 * value
        elif like.dim() > 1 and "embed" not in name:
            value = value / math.sqrt(like[0].numel())
        elif "sampling_offsets" in name:
            value = 2 * value
        elif like.dim() == 1:
            value = 0.2 * value
        state[name] = value.requires_grad_()
    return state


def inputs() -> tuple[list[dict[str, Any]], list[Truth]]:
    """The batch as our model takes it, and its boxes."""
    generator = torch.Generator().manual_seed(1)
    batch, truths = [], []
    for (height, width), (corners, labels) in zip(SHAPES, TRUTHS, strict=True):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(corners))
        instances.gt_classes = torch.tensor(labels)
        image = torch.rand(3, height, width, generator=generator, dtype=torch.float64) * 255
        batch.append({"image": image, "instances": instances})
        x0, y0, x1, y1 = torch.tensor(corners).unbind(-1)
        boxes = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)
        boxes = boxes / torch.tensor([width, height, width, height])
        truths.append(Truth(boxes.double(), labels, (height, width)))
    return batch, truths


class Comparison:
    """Both networks with the same weights, on the same batch and noise."""

    def __init__(self, cfg: CfgNode, *, has_tree: bool) -> None:
        self.converter = small_converter(has_tree=has_tree)
        self.model = small_model(cfg, has_tree=has_tree)
        self.state = random_state(self.converter.from_detectron2(self.model.state_dict()))
        self.model.load_state_dict(self.converter.to_detectron2(self.state))
        self.batch, self.truths = inputs()
        self.tree = tree() if has_tree else None

    def noise(self) -> Noise:
        """Draws for (image, group, version, slot), of which those of empty slots are not read."""
        generator = torch.Generator().manual_seed(2)
        shape = (2, NUM_DENOISING // 3, 2, 3)
        moves = torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 2 - 1
        moves[:, :, 1] += moves[:, :, 1].sign()
        return Noise(
            torch.rand(shape, generator=generator) < 0.4,
            torch.randint(256, shape, generator=generator),
            moves,
        )

    def reference(self, images: list[Tensor], noised: Noised | None = None) -> dict[str, Any]:
        """Their predictions."""
        return detect(
            self.state,
            images,
            window=WINDOW,
            heads=SIZE.num_heads,
            num_selected=NUM_SELECTED,
            tree=self.tree,
            denoising=None if noised is None else (noised.content, noised.boxes, noised.blocked),
        )


@pytest.fixture(params=[True, False], ids=["tree", "self-attention"])
def both(
    request: pytest.FixtureRequest, cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> Comparison:
    monkeypatch.setitem(SIZES, "tiny", SIZE)
    return Comparison(cfg, has_tree=request.param)


def gap(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max())


def test_inference_equals_the_authors(both: Comparison) -> None:
    model = both.model.eval()
    with torch.no_grad():
        for i, (record, (height, width)) in enumerate(zip(both.batch, SHAPES, strict=True)):
            output = model([record])[0]
            found = both.reference([model.normalize(record["image"])])
            assert torch.equal(output["selected_categories"], found["chosen"][0])
            logits, boxes = found["decoder"][0][-1, 0], found["decoder"][1][-1, 0]
            # All pairs of a query and a category, best first; boxes in pixels, cut at the border.
            scores, pairs = logits.sigmoid().flatten().sort(descending=True)
            query, rank = pairs // NUM_SELECTED, pairs % NUM_SELECTED
            corners = Truth(boxes, [], (height, width)).pixels(boxes)[query]
            corners = torch.minimum(corners.clamp(min=0), corners.new_tensor([width, height] * 2))
            kept = (corners[:, 2:] > corners[:, :2]).all(dim=1)
            instances = output["instances"]
            assert torch.equal(instances.pred_classes, found["chosen"][0][rank[kept]])
            gaps = (
                gap(instances.scores.double(), scores[kept]),
                gap(instances.pred_boxes.tensor, corners[kept]),
            )
            print(f"image {i}: {len(instances)} detections, scores and pixels", gaps)
            # Measured: 7e-8 and 1e-5.
            assert max(gaps) < 1e-4


def test_training_equals_the_authors(both: Comparison) -> None:
    model, noise = both.model.train(), both.noise()
    model.transformer.denoising.draw_noise = lambda *_: noise  # type: ignore[method-assign]
    model.transformer.denoising.draw_positions = positions_of_labels  # type: ignore[method-assign]
    images = [model.normalize(x["image"]) for x in both.batch]
    targets = model.targets(both.batch)
    encoded: list[PromptedTokens] = []
    model.transformer.encoder.register_forward_hook(lambda *call: encoded.append(call[-1]))
    made = model.predict_padded(images, targets)
    losses = model.losses(made, targets)

    drawn = (noise.flip, noise.labels, noise.moves)
    noised = make_noised(both.state, both.truths, NUM_DENOISING, drawn, 25)
    found = both.reference(images, noised)
    expected = all_losses(found, both.truths, both.tree, noised)

    assert torch.equal(made.selected.indices, found["chosen"])
    chosen = zip(found["chosen"].tolist(), both.truths, strict=True)
    is_chosen = [label in best for best, truth in chosen for label in truth.labels]
    assert any(is_chosen)
    assert not all(is_chosen)
    start = noised.content.shape[1]
    gaps = {
        "scores": gap(made.selected.all_logits, found["scores"]),
        # At padding as well.
        "memory": gap(encoded[0].values, found["memory"]),
        "fused categories": gap(encoded[0].prompt.values, found["text"]),
        "encoder logits": gap(made.encoder.logits[0], found["encoder"][0]),
        "encoder boxes": gap(made.encoder.boxes[0], found["encoder"][1]),
    }
    for i, kind in enumerate(("logits", "boxes")):
        theirs = found["decoder"][i]
        gaps[kind] = gap(getattr(made.decoder, kind), theirs[:, :, start:])
        ours = getattr(made.denoising.layers, kind)
        gaps[f"denoising {kind}"] = gap(ours, theirs[:, :, :start])
    print({k: f"{x:.1e}" for k, x in gaps.items()})
    # Measured: 7e-7.
    assert max(gaps.values()) < 1e-5

    assert losses.keys() == expected.keys()
    ratios = {k: float((losses[k] / expected[k] - 1).abs().detach()) for k in losses}
    print({k: f"{expected[k].item():.3g} {x:.1e}" for k, x in ratios.items()})
    # Measured: 5e-8.
    assert max(ratios.values()) < 2e-6

    sum(losses.values()).backward()
    sum(expected.values()).backward()
    gradients = both.converter.from_detectron2(
        {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    )
    worst = {
        n: gap(gradients[n], torch.zeros_like(p) if p.grad is None else p.grad)
        / max(1e-3, float(gradients[n].abs().max()))
        for n, p in both.state.items()
    }
    print("gradients", sorted(((x, n) for n, x in worst.items()), reverse=True)[:5])
    # Measured: 9e-7 of the largest.
    assert max(worst.values()) < 1e-5


def test_queries_and_their_places_start_as_the_authors(cfg: CfgNode) -> None:
    node = cfg.MODEL.CQ_DINO
    node.NUM_CLASSES, node.CATEGORY.EMBEDDINGS, node.CATEGORY.CORRELATION = 5, "random", "none"
    node.SELECTION.NUM_SELECTED = 5
    bounds = {}
    for name in ("paper", "official"):
        node.PRESET = name
        transformer = build_transformer(node)
        starts = [transformer.query_source.content.weight]
        starts += [x.weight for x in transformer.decoder.query_position.ref_point_head.layers]
        bounds[name] = [float(x.detach().abs().max()) for x in starts]
    # Xavier's bounds, sqrt(6 / (rows + columns)).
    expected = [math.sqrt(6 / sum(shape)) for shape in ((900, 256), (256, 512), (256, 256))]
    assert bounds["official"] == pytest.approx(expected, rel=2e-3)
    # DINO's: a normal distribution, and torch's own start of a layer.
    assert bounds["paper"][0] > 3
    assert bounds["paper"][1:] == pytest.approx([512**-0.5, 256**-0.5], rel=2e-3)


def test_dropout_acts_where_the_authors_have_it(both: Comparison, cfg: CfgNode) -> None:
    cfg.MODEL.CQ_DINO.SELECTION.DROPOUT = cfg.MODEL.CQ_DINO.FUSION.DROPOUT = 0.1
    model = build_model(cfg)
    for layer in model.categories.selection.layers:
        assert layer.cross_attn.dropout == layer.dropout.p == 0.1
        assert layer.ffn.dropout.p == 0.0
    for layer in model.transformer.encoder.fusion_layers:
        assert layer.attention.dropout == 0.1
    others = [
        m.p
        for n, m in model.transformer.named_modules()
        if isinstance(m, torch.nn.Dropout) and "fusion" not in n
    ]
    assert others
    assert not any(others)


@pytest.mark.parametrize(
    ("num_below", "share"), [(1, 0.446), (10, 0.505), (100, 0.595), (1000, 0.691), (13204, 0.8)]
)
def test_weight_of_the_tree(num_below: int, share: float) -> None:
    nodes = [str(k) for k in range(num_below + 1)]
    star = CategoryHierarchy.from_ids([("0", k) for k in nodes[1:]], category_nodes=nodes)
    found = DescendantWeight()(star)[0]
    assert found == pytest.approx(share, abs=5e-4)
    assert found == pytest.approx(tree_weight(num_below), abs=1e-12)


def test_small_boxes_overlap_as_in_pixels(both: Comparison) -> None:
    size = torch.tensor([1333.0, 800.0, 1333.0, 800.0])
    one = torch.tensor([100.0, 200.0, 108.0, 208.0])
    for eps in (both.model.criterion.giou_eps, both.model.criterion.assigner.giou_eps):
        for other in (one, one + 3, one + torch.tensor([0.0, 0.0, 1.0, -7.0])):
            _, found = generalized_iou(one / size, other / size, eps)
            # Measured: 1e-6.
            assert float(found) == pytest.approx(float(giou(one, other)), abs=1e-5)
