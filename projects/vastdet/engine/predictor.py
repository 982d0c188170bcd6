# SPDX-License-Identifier: Apache-2.0
"""A trained detector for use from Python: three lines from an image file to its boxes.

from vastdet.engine.predictor import Predictor
predictor = Predictor(load_config("output/demo/config.yaml"), "output/demo/model_final.pth")
boxes = predictor("photo.jpg").pred_boxes
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances

from vastdet.data import category_space
from vastdet.data.augmentation import build_augmentations
from vastdet.data.image_io import read_image
from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import choose_device, with_all_weights
from vastdet.engine.dataset_checks import model_class_count
from vastdet.engine.precision import inference_autocast

ImageLike = str | PathLike | np.ndarray


class Predictor:
    """Builds the model of a config, loads its weights, and detects objects in images.

    Images are file names (or anything Detectron2's PathManager opens) or arrays HxWx3 uint8 in BGR
    order, OpenCV's and Detectron2's habit; they are resized as `cfg.INPUT.{MIN,MAX}_SIZE_TEST` and
    `cfg.INPUT.SQUARE` say.
    The result of an image is `Instances` on the CPU with `pred_boxes` (XYXY absolute pixels of the
    image as given), `scores` in [0, 1] and `pred_classes` in [0, K).

    Attributes:
        model: the detector, in eval mode on `cfg.MODEL.DEVICE` (the CPU where CUDA is missing).
        class_names: K names, by contiguous id.
        dataset: the dataset that gave the names; None for given or made-up names.
    """

    def __init__(
        self,
        cfg: CfgNode,
        weights: str | PathLike | None = None,
        *,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Build the model.

        Args:
            cfg: the config the weights were trained with; it is not changed.
            weights: checkpoint, by default `cfg.MODEL.WEIGHTS`.
            class_names: by default those of the first dataset in DATASETS.TEST, then
                DATASETS.TRAIN, that is registered and has as many classes as the model; else
                "class 0", "class 1", ...

        Raises:
            ValueError: no weights are given, they do not fit the model, or there are not as many
                names as classes.
            FileNotFoundError: there is no such file of weights.
        """
        weights = str(weights or cfg.MODEL.WEIGHTS)
        if not weights:
            raise ValueError(
                "no weights are given: name a checkpoint, for example output/demo/model_final.pth, "
                "as the argument weights, with --weights or in MODEL.WEIGHTS"
            )
        self.cfg = cfg = with_all_weights(choose_device(cfg), weights)
        self.model = build_model(cfg).eval()
        VastdetCheckpointer(self.model).load(weights, checkpointables=[], complete=True)
        self.class_names, self.dataset = find_class_names(
            cfg, model_class_count(self.model), class_names
        )
        self._augmentations = T.AugmentationList(build_augmentations(cfg, is_train=False))

    def __call__(self, image: ImageLike) -> Instances:
        """Detect objects in one image."""
        return self.run([self.prepare(image)])[0]

    def predict(self, images: Sequence[ImageLike]) -> list[Instances]:
        """Detect objects in several images at once, which they must fit in memory for."""
        return self.run([self.prepare(image) for image in images])

    def prepare(self, image: ImageLike) -> dict[str, Any]:
        """Turn an image into the model's input: {"image": CxHxW, "height", "width"}.

        Raises:
            ValueError: the file is damaged (vastdet.data.BrokenRecordError), the array has another
                form, or the image is so narrow that resizing would leave no pixel.
            FileNotFoundError: there is no such file.
        """
        order = self.cfg.INPUT.FORMAT
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise ValueError(
                    f"an image must be an array HxWx3 of uint8 in BGR order, got {image.dtype} of "
                    f"shape {image.shape}"
                )
            pixels = image[:, :, ::-1] if order == "RGB" else image
        else:
            pixels = read_image(image, format=order)
        height, width = pixels.shape[:2]
        self._check_shape(height, width)
        augmented = T.AugInput(np.ascontiguousarray(pixels))
        self._augmentations(augmented)
        tensor = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}

    @torch.inference_mode()
    def run(self, inputs: list[dict[str, Any]]) -> list[Instances]:
        """Run the model on prepared inputs, as `cfg.TEST.AMP` says."""
        if not inputs:
            return []
        with inference_autocast(self.cfg):
            outputs = self.model(inputs)
        found = [output["instances"].to("cpu") for output in outputs]
        for instances in found:
            # Detectron2's detectors leave them in the type of autocast, which NumPy does not know.
            instances.scores = instances.scores.float()
        return found

    def _check_shape(self, height: int, width: int) -> None:
        short, long = sorted((height, width))
        sizes = self.cfg.INPUT
        if sizes.MIN_SIZE_TEST == 0 or sizes.SQUARE:
            return
        scale = min(sizes.MIN_SIZE_TEST / short, sizes.MAX_SIZE_TEST / long)
        if short * scale < 0.5:
            raise ValueError(
                f"an image of {width}x{height} pixels has no pixel left across when resized to "
                f"INPUT.MAX_SIZE_TEST {sizes.MAX_SIZE_TEST}: cut it into tiles"
            )


def find_class_names(
    cfg: CfgNode, num_classes: int | None, given: Sequence[str] | None
) -> tuple[list[str], str | None]:
    """Names by contiguous id, and the dataset that gave them; see `Predictor` for the order."""
    if given is not None:
        if num_classes is not None and len(given) != num_classes:
            raise ValueError(
                f"{len(given)} class names are given, but the model has {num_classes} classes"
            )
        return list(given), None
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = names_of_dataset(name)
        if names and num_classes in (None, len(names)):
            return list(names), name
    return [f"class {i}" for i in range(num_classes or 0)], None


def names_of_dataset(name: str) -> Sequence[str]:
    """The names of a registered dataset; none where it is not registered or its files are away."""
    if name not in DatasetCatalog.list():
        return ()
    try:
        return category_space(name).names
    except FileNotFoundError:
        return ()
