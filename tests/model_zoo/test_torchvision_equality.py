# SPDX-License-Identifier: Apache-2.0
"""torchvision's detectors and ours give the same detections from the same random weights.

Largest differences met with torch 2.14.1 on a CPU, both fed the same normalised pixels: boxes 0,
scores 1.2e-7 (Faster R-CNN; 0 for RetinaNet and FCOS). With torchvision's own normalisation (pixels
in [0, 1]) the inputs differ in the last bit of a float32 and the random network amplifies that:
boxes up to 5e-4 pixels, scores up to 2e-6; a detection whose overlap lies on the NMS threshold may
then be kept by one and not by the other, so that case has a bound of its own below.
"""

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from torch import Tensor, nn

from vastdet.engine import set_num_classes
from vastdet.model_zoo import get_config
from vastdet.model_zoo.torchvision_models import torchvision_converters

NUM_CLASSES = 5
# Layers whose outputs are brought to a spread that gives many detections of all classes, in the
# order in which they act: name -> standard deviation.
OUTPUT_SPREAD = {
    "fasterrcnn_resnet50_fpn": {
        "rpn.head.cls_logits": 3.0,
        "rpn.head.bbox_pred": 0.15,
        "roi_heads.box_predictor.cls_score": 2.0,
        "roi_heads.box_predictor.bbox_pred": 1.0,
    },
    "retinanet_resnet50_fpn": {
        "head.classification_head.cls_logits": 1.5,
        "head.regression_head.bbox_reg": 0.15,
    },
    "fcos_resnet50_fpn": {
        "head.classification_head.cls_logits": 1.5,
        "head.regression_head.bbox_reg": 2.0,
        "head.regression_head.bbox_ctrness": 1.0,
    },
}
# Heights and widths: a batch with padding and odd sides, which no level divides, and a square.
BATCHES = {"padded batch": [(131, 161), (97, 199)], "exact": [(128, 128)]}


@torch.no_grad()
def spread_outputs(model: nn.Module, images: list[Tensor], spread: dict[str, float]) -> None:
    """Scale and shift each named layer to outputs of mean 0 and the given deviation."""
    for name, deviation in spread.items():
        layer = model.get_submodule(name)
        outputs: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _m, _i, output, seen=outputs: seen.append(output))
        model(images)
        hook.remove()
        rows = torch.cat(
            [o.transpose(0, 1).flatten(1) if o.dim() == 4 else o.T for o in outputs], 1
        )
        scale = deviation / rows.std(dim=1).mean()
        layer.weight.mul_(scale)
        layer.bias.copy_((layer.bias - rows.mean(dim=1)) * scale)


@torch.no_grad()
def random_torchvision_model(name: str) -> nn.Module:
    """A torchvision detector whose weights, norms included, are all random."""
    torch.manual_seed(0)
    rows = NUM_CLASSES + 1 if name.startswith("fasterrcnn") else NUM_CLASSES
    model = getattr(torchvision.models.detection, name)(
        weights=None, weights_backbone=None, num_classes=rows
    ).eval()
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif buffer_name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    without_resizing(model)
    spread_outputs(model, [torch.rand(3, 96, 128)], OUTPUT_SPREAD[name])
    return model


def without_resizing(model: nn.Module) -> None:
    """Let a torchvision model take images in the size they are given."""
    model.transform.resize = lambda image, target=None: (image, target)


def our_model(name: str, state_dict: dict[str, Tensor]) -> nn.Module:
    """Our twin of a torchvision model, from the config that the converter names."""
    converter = torchvision_converters()[name]
    cfg = get_config(converter.config)
    cfg.MODEL.DEVICE = "cpu"
    set_num_classes(cfg, NUM_CLASSES)
    model = build_model(cfg).eval()
    model.load_state_dict(converter.to_detectron2(state_dict), strict=True)
    return model


@pytest.fixture(scope="module", params=list(OUTPUT_SPREAD))
def pair(request: pytest.FixtureRequest) -> tuple[str, nn.Module, nn.Module]:
    """(name, torchvision's model, ours) with the same random weights."""
    model = random_torchvision_model(request.param)
    return request.param, model, our_model(request.param, model.state_dict())


def random_images(sizes: list[tuple[int, int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8) for h, w in sizes
    ]


@torch.no_grad()
def detections(
    name: str, theirs: nn.Module, ours: nn.Module, images: list[Tensor], divisor: float
) -> list[tuple[Tensor, ...]]:
    """Per image: boxes, scores and classes of theirs, then of ours.

    torchvision keeps boxes without area in dense detectors, Detectron2 drops them at the end, so
    they are left out of torchvision's.
    """
    expected = theirs([image / divisor for image in images])
    results = ours([{"image": i, "height": i.shape[1], "width": i.shape[2]} for i in images])
    compared = []
    for one, other in zip(expected, results, strict=True):
        instances = other["instances"]
        has_area = (one["boxes"][:, 2:] > one["boxes"][:, :2]).all(dim=1)
        labels = one["labels"] - 1 if name.startswith("fasterrcnn") else one["labels"]
        compared.append(
            (
                *(t[has_area] for t in (one["boxes"], one["scores"], labels)),
                instances.pred_boxes.tensor,
                instances.scores,
                instances.pred_classes,
            )
        )
    return compared


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES.keys())
def test_same_detections(
    pair: tuple[str, nn.Module, nn.Module],
    sizes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, theirs, ours = pair
    # The same pixels in the same unit: what is left to differ is the network.
    monkeypatch.setattr(theirs.transform, "image_mean", [123.675, 116.28, 103.53])
    monkeypatch.setattr(theirs.transform, "image_std", [58.395, 57.12, 57.375])
    for boxes, scores, labels, our_boxes, our_scores, our_classes in detections(
        name, theirs, ours, random_images(sizes), divisor=1.0
    ):
        assert len(boxes) > 20
        assert len(labels.unique()) > 1
        torch.testing.assert_close(our_boxes, boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(our_scores, scores, rtol=0, atol=1e-5)
        assert torch.equal(our_classes, labels)


def test_normalisation_of_pixels_is_the_same(pair: tuple[str, nn.Module, nn.Module]) -> None:
    _, theirs, ours = pair
    images = random_images(BATCHES["padded batch"])
    batch, _ = theirs.transform([image / 255 for image in images])
    ours_batch = ours.preprocess_image([{"image": image} for image in images])
    assert batch.image_sizes == [tuple(size) for size in ours_batch.image_sizes]
    # The largest pixel is 2.6; a float32 there has steps of 2.4e-7.
    torch.testing.assert_close(ours_batch.tensor, batch.tensors, rtol=0, atol=2e-6)


def test_detections_with_own_normalisation_stay_close(
    pair: tuple[str, nn.Module, nn.Module],
) -> None:
    name, theirs, ours = pair
    images = random_images(BATCHES["exact"])
    for boxes, scores, _, our_boxes, our_scores, _ in detections(name, theirs, ours, images, 255.0):
        distance = (our_boxes[:, None] - boxes).abs().amax(dim=2)
        distance = torch.maximum(distance, (our_scores[:, None] - scores).abs())
        # At most one detection in twenty may fall on the other side of a threshold.
        assert (distance.min(dim=1).values < 5e-3).float().mean() > 0.95


def test_round_trip_through_detectron2_is_exact(pair: tuple[str, nn.Module, nn.Module]) -> None:
    name, _, ours = pair
    converter = torchvision_converters()[name]
    state = ours.state_dict()
    there_and_back = converter.to_detectron2(converter.from_detectron2(state))
    assert there_and_back.keys() == state.keys()
    assert all(torch.equal(there_and_back[key], state[key]) for key in state)


def test_round_trip_through_torchvision_is_exact(pair: tuple[str, nn.Module, nn.Module]) -> None:
    name, theirs, ours = pair
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith("batches_tracked")}
    back = torchvision_converters()[name].from_detectron2(ours.state_dict())
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        if key.startswith("roi_heads.box_predictor.bbox_pred"):
            # Background has no box: its rows are not read and come back as zeros.
            tensor = torch.cat([torch.zeros_like(tensor[:4]), tensor[4:]])
        assert torch.equal(back[key], tensor), key
    theirs.load_state_dict(back, strict=True)


# FCOS alone has scales.
@pytest.mark.parametrize("pair", ["fcos_resnet50_fpn"], indirect=True)
def test_fcos_with_learnt_scales_cannot_be_written(pair: tuple[str, nn.Module, nn.Module]) -> None:
    name, _, ours = pair
    state = dict(ours.state_dict())
    state["head.scales"] = state["head.scales"] * 1.5
    with pytest.raises(ValueError, match=r"head\.scales is \[1\.5.*no such parameter"):
        torchvision_converters()[name].from_detectron2(state)
