# SPDX-License-Identifier: Apache-2.0
"""From Detectron2's list of dicts to padded batches, and back, for models without anchors.

B images of H x W pixels, G slots for ground-truth boxes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from vastdet.detr.structures import Targets
from vastdet.detr.tokens import pad_to_batch, padding_mask_of

Predictions = TypeVar("Predictions")


class ImageModel(nn.Module, ABC, Generic[Predictions]):
    """Takes Detectron2's list of dicts and returns losses in training, results at inference.

    In training a batch is padded before the backbone, as everywhere in the literature. At inference
    only images of one size go through the network together: convolutions and norms of backbone and
    neck see padding, and the query positions of some members depend on it. So what is found in an
    image does not depend on the images that it is batched with. `predict_padded` is the padded pass
    of the authors' codes.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 0,
    ) -> None:
        """Put the parts together.

        Args:
            backbone: gives maps by name.
            num_classes: categories that boxes may have.
            pixel_mean: subtracted from the image, per channel.
            pixel_std: then divides it.
            size_divisibility: of the padded batch's height and width; 0 leaves it to the backbone.
        """
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.size_divisibility = size_divisibility or backbone.size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, results at inference; see the class."""
        images = [self.normalize(x["image"]) for x in batched_inputs]
        sizes = [(x.shape[-2], x.shape[-1]) for x in images]
        if self.training:
            targets = self.targets(batched_inputs)
            return self.losses(self.predict_padded(images, targets), targets)
        found: dict[int, dict[str, Any]] = {}
        for size in dict.fromkeys(sizes):
            group = [i for i, other in enumerate(sizes) if other == size]
            predictions = self.predict_padded([images[i] for i in group])
            results = self.results(predictions, size, [batched_inputs[i] for i in group])
            found.update(zip(group, results, strict=True))
        return [found[i] for i in range(len(batched_inputs))]

    @abstractmethod
    def predict_padded(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> Predictions:
        """Predictions of normalised images (3, H, W), padded to one batch."""

    @abstractmethod
    def losses(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses by name."""

    @abstractmethod
    def results(
        self,
        predictions: Predictions,
        size: tuple[int, int],
        batched_inputs: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """What is returned for images of one network input `size` (height, width)."""

    def normalize(self, image: Tensor) -> Tensor:
        """Pixels (3, H, W) in [0, 255] to the network's input."""
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std

    def targets(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Targets:
        """The ground truth of a batch, boxes in float32, or float64 for such a model.

        Raises:
            ValueError: an input has no `instances`.
        """
        for x in batched_inputs:
            if "instances" not in x:
                raise ValueError(
                    f"a training input needs 'instances' with gt_boxes and gt_classes; got the "
                    f"keys {sorted(x)}"
                )
        instances = [x["instances"] for x in batched_inputs]
        names = [str(x.get("file_name", f"image {i}")) for i, x in enumerate(batched_inputs)]
        targets = Targets.from_instances(instances, names, self.device)
        dtype = torch.promote_types(self.pixel_mean.dtype, torch.float32)
        return replace(targets, boxes=targets.boxes.to(dtype))

    def padded_batch(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """One batch (B, 3, H, W) of images, and its mask (B, H, W), True at padding."""
        batch = pad_to_batch(images, self.size_divisibility)
        sizes = [(x.shape[-2], x.shape[-1]) for x in images]
        mask = padding_mask_of(sizes, (batch.shape[-2], batch.shape[-1]))
        return batch, mask.to(self.device)


def empty_instances(batched_input: Mapping[str, Any], like: Tensor) -> Instances:
    """No detection, in the frame of the original image."""
    image = batched_input["image"]
    height = batched_input.get("height", image.shape[-2])
    width = batched_input.get("width", image.shape[-1])
    return Instances(
        (height, width),
        pred_boxes=Boxes(like.new_zeros(0, 4)),
        scores=like.new_zeros(0),
        pred_classes=like.new_zeros(0).long(),
    )
