# SPDX-License-Identifier: Apache-2.0
"""The box classifier: means against loops, losses by hand, and its backbone in a detector."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from detectron2.utils.events import EventStorage
from tests.models.architectures import NUM_CLASSES, box_classifier, cq_dino, dino, fcos
from tests.models.test_architectures import GT_BOXES, sample, train_losses
from torch import Tensor
from torch.nn import functional as F

from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import class_count_key
from vastdet.models.box_classifier import BoxClassifier
from vastdet.models.box_classifier.box_classifier import mean_in_boxes, read_groups
from vastdet.vocabulary import CategoryHierarchy, CategorySpace

NONE = torch.zeros(0, 4)


def small(cfg: CfgNode, seed: int = 0) -> Any:
    box_classifier(cfg)
    torch.manual_seed(seed)
    return build_model(cfg)


class Means(Backbone):
    """Means of squares of the image: a map in which no cell sees padding beside an image."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"res2": F.avg_pool2d(images, 4), "res3": F.avg_pool2d(images, 8)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=3, stride=s) for name, s in (("res2", 4), ("res3", 8))}

    @property
    def size_divisibility(self) -> int:
        return 8


def over_means(*features: str) -> BoxClassifier:
    torch.manual_seed(0)
    return BoxClassifier(
        in_features=list(features),
        backbone=Means(),
        num_classes=NUM_CLASSES,
        pixel_mean=[100.0] * 3,
        pixel_std=[50.0] * 3,
    )


def logits_of(model: BoxClassifier, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    images = [model.normalize(record["image"]) for record in batch]
    return model.predict_padded(images, model.targets(batch))


def value_at(channel: Tensor, y: float, x: float) -> float:
    """A map between the centres of its cells, which lie at whole numbers; beyond, the nearest."""
    height, width = channel.shape
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
    total = 0.0
    for i in range(top, min(top + 2, height)):
        for j in range(left, min(left + 2, width)):
            total += float(channel[i, j]) * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def mean_by_loops(features: Tensor, box: list[float], stride: int) -> list[float]:
    """The mean of a map (C, H, W) at evenly spaced points: in each of 7 x 7 cells of a box, as many
    a side as the box has cells of the map in a seventh of its side, rounded up."""
    x0, y0, x1, y1 = (v / stride - 0.5 for v in box)
    points = []
    for low, high in ((y0, y1), (x0, x1)):
        number = 7 * max(1, math.ceil((high - low) / 7))
        points.append([low + (k + 0.5) * (high - low) / number for k in range(number)])
    means = []
    for channel in features:
        values = [value_at(channel, y, x) for y in points[0] for x in points[1]]
        means.append(sum(values) / len(values))
    return means


def test_means_are_those_of_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 12, 17, dtype=torch.float64, generator=generator)
    boxes = [
        # Inside, one pixel, the whole image, a line, and one that hardly fills a cell.
        [[8.3, 9.1, 60.0, 41.7], [10.0, 10.0, 11.0, 11.0], [0.0, 0.0, 136.0, 96.0]],
        [[5.0, 40.0, 131.0, 40.5], [127.0, 80.0, 136.0, 96.0]],
    ]
    own = [torch.tensor(rows, dtype=torch.float64) for rows in boxes]
    found = mean_in_boxes(maps, own, 8)
    expected = [
        mean_by_loops(m, box, 8) for m, rows in zip(maps, boxes, strict=True) for box in rows
    ]
    largest = (found - torch.tensor(expected, dtype=torch.float64)).abs().max().item()
    print(f"largest difference {largest:.1e}")
    assert largest < 1e-12  # Measured: 4.2e-16.


def test_a_mean_of_even_colour_is_that_colour() -> None:
    maps = torch.full((1, 2, 6, 6), 3.0)
    maps[:, 1] = -7.0
    found = mean_in_boxes(maps, [torch.tensor([[1.0, 2.0, 19.0, 20.0], [0, 0, 24, 24]])], 4)
    torch.testing.assert_close(found, torch.tensor([[3.0, -7.0]] * 2))


def test_losses_are_mean_cross_entropies_and_accuracies_are_logged() -> None:
    model = over_means("res2", "res3").double().train()
    batch = [sample(seed=0), sample(NONE, seed=1), sample(GT_BOXES[:1], seed=2)]
    with EventStorage() as storage:
        losses = model(batch)
        accuracies = {k: v[0] for k, v in storage.latest().items()}
    for name, logits in logits_of(model, batch).items():
        assert logits.shape == (4, NUM_CLASSES)
        labels = [0, 1, 2, 0]
        terms = [
            math.log(sum(math.exp(x) for x in row)) - row[label]
            for row, label in zip(logits.tolist(), labels, strict=True)
        ]
        assert losses[f"loss_class_{name}"].item() == pytest.approx(sum(terms) / 4, rel=1e-9)
        right = (logits.argmax(dim=1) == torch.tensor(labels)).double().mean().item()
        assert accuracies[f"accuracy_{name}"] == pytest.approx(right)
    assert len(losses) == len(accuracies) == 2


def test_groups_are_those_of_the_tree_and_their_loss_is_a_sum_of_binary_cross_entropies() -> None:
    groups = torch.tensor([[1, 0], [1, 1], [0, 0]], dtype=torch.bool)
    torch.manual_seed(0)
    model = BoxClassifier(
        in_features=["res2"],
        backbone=Means(),
        num_classes=NUM_CLASSES,
        pixel_mean=[100.0] * 3,
        pixel_std=[50.0] * 3,
        groups=groups,
        tree_loss_weight=0.5,
    ).double()
    batch = [sample(seed=0), sample(GT_BOXES[:1], seed=2)]
    losses = model.train()(batch)
    total = 0.0
    logits = logits_of(model, batch)["res2"]
    assert logits.shape == (4, NUM_CLASSES + 2)
    for row, label in zip(logits[:, NUM_CLASSES:].tolist(), [0, 1, 2, 0], strict=True):
        for x, present in zip(row, groups[label].tolist(), strict=True):
            total -= math.log(1 / (1 + math.exp(-x if present else x)))
    assert losses["loss_tree_res2"].item() == pytest.approx(0.5 * total / 4, rel=1e-9)
    assert list(losses) == ["loss_class_res2", "loss_tree_res2"]


def test_groups_of_generated_kinds(cfg: CfgNode) -> None:
    """Each shape and each colour is a group; the root, above all, is none."""
    cfg.DATASETS.TRAIN = ("generated_kinds_50_train",)
    cfg.MODEL.BOX_CLASSIFIER.NUM_CLASSES = 50
    groups = read_groups(cfg)
    space = CategorySpace.from_metadata(MetadataCatalog.get("generated_kinds_50_train"))
    same = (groups[:, None] == groups[None]).all(dim=-1)
    first, shape = space.names[0].split()[0], space.names[0].split()[-1]
    is_shape = torch.tensor([name.split()[-1] == shape for name in space.names])
    is_colour = torch.tensor([name.split()[0] == first for name in space.names])
    columns = groups.T
    assert any(torch.equal(column, is_shape) for column in columns)
    assert any(torch.equal(column, is_colour) for column in columns)
    assert not columns.all(dim=1).any()
    assert columns.any(dim=1).all()
    # Compositions of one shape and one colour differ by their pattern alone.
    assert torch.equal(same[0], is_shape & is_colour)


@pytest.fixture
def flat_tree() -> Iterator[None]:
    """A dataset whose tree is a root above all its categories, which are leaves."""
    hierarchy = CategoryHierarchy.from_ids([("r", "0"), ("r", "1")], category_nodes=["0", "1"])
    space = CategorySpace(names=("a", "b"), dataset_ids=(1, 2), hierarchy=hierarchy)
    MetadataCatalog.get("vastdet_flat_tree").category_space = space
    yield
    MetadataCatalog.remove("vastdet_flat_tree")


@pytest.mark.parametrize(
    ("dataset", "num_classes", "got"),
    [
        (("generated_kinds_50_train",), 7, "a tree of 50 categories"),
        (("coco_2017_train",), 80, "no tree"),
        ((), 80, r"name one in DATASETS\.TRAIN, or set the weight to 0"),
        (("vastdet_flat_tree",), 2, "the tree of 'vastdet_flat_tree' has no group.*weight to 0"),
    ],
)
@pytest.mark.usefixtures("flat_tree")
def test_groups_need_a_tree(
    cfg: CfgNode, dataset: tuple[str, ...], num_classes: int, got: str
) -> None:
    cfg.DATASETS.TRAIN = dataset
    cfg.MODEL.BOX_CLASSIFIER.NUM_CLASSES = num_classes
    cfg.MODEL.BOX_CLASSIFIER.TREE_LOSS_WEIGHT = 1.0
    with pytest.raises(ValueError, match=got):
        BoxClassifier.from_config(cfg)


def test_a_batch_without_any_box_has_no_loss_and_logs_nothing(cfg: CfgNode) -> None:
    model = small(cfg).train()
    with EventStorage() as storage:
        losses = model([sample(NONE), sample(NONE, seed=1)])
        assert not storage.latest()
    assert {k: v.item() for k, v in losses.items()} == {"loss_class_res4": 0, "loss_class_res5": 0}


@torch.no_grad()
def test_a_batch_equals_single_images_and_padding_changes_no_box_inside() -> None:
    model = over_means("res2", "res3")
    inner = GT_BOXES.clamp(4, 92)  # half a cell of the larger map off the border
    batch = [
        sample(inner),
        sample(NONE, seed=1),
        sample(GT_BOXES[:2], size=(128, 160), seed=2),
    ]
    together = logits_of(model, batch)
    single = [logits_of(model, [record]) for record in batch]
    for name in ("res2", "res3"):
        expected = torch.cat([logits[name] for logits in single])
        assert len(expected) == 5
        torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_inference_finds_nothing_in_the_frame_of_the_image(cfg: CfgNode) -> None:
    model = small(cfg).eval()
    one, other = model([{**sample(), "height": 192, "width": 288}, {"image": sample()["image"]}])
    assert (len(one["instances"]), one["instances"].image_size) == (0, (192, 288))
    assert (len(other["instances"]), other["instances"].image_size) == (0, (96, 96))
    assert one["instances"].pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("names", [["res4", "res9"], [], ["p3"]])
def test_maps_that_the_backbone_lacks_are_refused(cfg: CfgNode, names: list[str]) -> None:
    box_classifier(cfg)
    cfg.MODEL.BOX_CLASSIFIER.IN_FEATURES = names
    with pytest.raises(ValueError, match=r"IN_FEATURES is \[.*expected .*'res3', 'res4', 'res5'"):
        build_model(cfg)


def test_training_needs_ground_truth(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="needs 'instances'"):
        small(cfg).train()([{"image": sample()["image"]}])


def test_its_class_count_is_its_own(cfg: CfgNode) -> None:
    box_classifier(cfg)
    assert class_count_key(cfg) == "MODEL.BOX_CLASSIFIER.NUM_CLASSES"


def test_weights_make_a_round_trip(cfg: CfgNode, tmp_path: Path) -> None:
    model, other = small(cfg.clone()), small(cfg, seed=1)
    train_losses(model, [sample()])  # moves the running statistics of norms
    VastdetCheckpointer(model, str(tmp_path)).save("model")
    VastdetCheckpointer(other).load(str(tmp_path / "model.pth"), checkpointables=[], complete=True)
    state = other.state_dict()
    assert all(torch.equal(state[k], value) for k, value in model.state_dict().items())


@pytest.mark.parametrize("detector", [dino, cq_dino, fcos])
def test_a_detector_takes_up_the_whole_backbone_by_name(
    cfg: CfgNode, tmp_path: Path, detector: Any
) -> None:
    first = small(cfg.clone())
    train_losses(first, [sample()])
    VastdetCheckpointer(first, str(tmp_path)).save("model")
    detector(cfg)
    torch.manual_seed(1)
    second = build_model(cfg)
    before = {k: value.clone() for k, value in second.state_dict().items()}
    VastdetCheckpointer(second).load(str(tmp_path / "model.pth"), checkpointables=[])
    state = second.state_dict()
    # FCOS has the network below its feature pyramid.
    below = "bottom_up." if detector is fcos else ""
    own = {
        k.replace("backbone.", f"backbone.{below}"): value
        for k, value in first.state_dict().items()
        if k.startswith("backbone.")
    }
    names = [k for k in state if k.startswith(f"backbone.{below}body.")]
    assert names == list(own) != []
    assert all(torch.equal(state[k], own[k]) for k in names)
    assert all(torch.equal(state[k], before[k]) for k in state if k not in names)
