# SPDX-License-Identifier: Apache-2.0
"""Augmentations that Detectron2 lacks, and the list of augmentations that a config asks for.

All randomness is drawn from `numpy.random`, as in Detectron2's own augmentations.
"""

from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform

# Luma weights of R, G, B (ITU-R BT.601), as in Pillow and torchvision.
LUMA = np.array([0.299, 0.587, 0.114])
# RGB to YIQ (luma and two chroma axes, NTSC 1953 primaries): hue is the angle in the IQ plane.
RGB_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


class RandomColorJitter(T.Augmentation):
    """Random brightness, contrast, saturation and hue of a uint8 colour image, in one pass.

    Each of the four is an affine map of colours, so their composition is applied once, as a 3x4
    matrix; values are clipped only at the end. Hue is a rotation of the IQ plane, which keeps the
    luma of every pixel (a rotation in HSV, as torchvision's, does not).
    """

    def __init__(
        self,
        *,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        image_format: str = "BGR",
    ) -> None:
        """Check and keep the strengths.

        Args:
            brightness: in [0, 1]; the factor is uniform in [1 - brightness, 1 + brightness].
            contrast: likewise.
            saturation: likewise.
            hue: in [0, 0.5], the largest turn either way as a part of the colour circle.
            image_format: "BGR" or "RGB", the order of the channels.
        """
        super().__init__()
        if image_format not in ("BGR", "RGB"):
            raise ValueError(
                f"colour jitter needs images in BGR or RGB, got INPUT.FORMAT {image_format!r}; "
                "set every INPUT.COLOR_JITTER strength to 0"
            )
        strengths = {"BRIGHTNESS": brightness, "CONTRAST": contrast, "SATURATION": saturation}
        for name, strength in strengths.items():
            _check_range(f"COLOR_JITTER.{name}", strength, 0.0, 1.0)
        _check_range("COLOR_JITTER.HUE", hue, 0.0, 0.5)
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the factors and compose them for `image`, HxWx3 uint8."""
        brightness, contrast, saturation = (
            self._rand_range(1 - strength, 1 + strength)
            for strength in (self.brightness, self.contrast, self.saturation)
        )
        hue = self._rand_range(-self.hue, self.hue)
        matrix = color_matrix(
            image, brightness, contrast, saturation, hue, image_format=self.image_format
        )
        return T.ColorTransform(partial(cv2.transform, m=matrix))


class ResizeToSquare(T.Augmentation):
    """Resizes an image to a square, its side drawn from a list, whatever its shape."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """`sizes` are the sides, in pixels.

        Raises:
            ValueError: there is none, or one is not positive.
        """
        super().__init__()
        if not sizes or min(sizes) < 1:
            raise ValueError(
                f"the sides of INPUT.SQUARE are {tuple(sizes)}; expected positive numbers of "
                "pixels in INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST"
            )
        self.sizes = tuple(sizes)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the side and resize `image`, HxW or HxWxC, with bilinear interpolation."""
        side = self.sizes[int(self._rand_range(0, len(self.sizes)))]
        return T.ResizeTransform(*image.shape[:2], side, side)


def color_matrix(
    image: np.ndarray,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    *,
    image_format: str,
) -> np.ndarray:
    """The 3x4 matrix that applies the four changes, in this order, to the colours of `image`.

    Args:
        image: HxWx3 in [0, 255]; contrast pulls towards its mean luma.
        brightness: factor, 1 = unchanged.
        contrast: factor, 1 = unchanged.
        saturation: factor, 0 = grey, 1 = unchanged.
        hue: turn as a part of the colour circle, 0 = unchanged.
        image_format: "BGR" or "RGB", the order of the channels.
    """
    order = [2, 1, 0] if image_format == "BGR" else [0, 1, 2]
    grey = np.tile(LUMA, (3, 1))
    mean_luma = brightness * float(LUMA @ np.array(cv2.mean(image)[:3])[order])
    cos, sin = np.cos(2 * np.pi * hue), np.sin(2 * np.pi * hue)
    rotation = np.linalg.inv(RGB_TO_YIQ) @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]] @ RGB_TO_YIQ
    tail = rotation @ (saturation * np.eye(3) + (1 - saturation) * grey)
    linear = brightness * contrast * tail
    offset = tail @ np.full(3, (1 - contrast) * mean_luma)
    return np.column_stack([linear[order][:, order], offset[order]])


class RandomZoomOut(T.Augmentation):
    """Shrink the image and put it at a random place of a canvas of its own size.

    This is the expansion of SSD (sec. 3.6) without its cost: instead of enlarging the canvas
    before the resize, the image is shrunk after it, by a factor uniform in [1, `max_ratio`].
    """

    def __init__(self, max_ratio: float, fill: int) -> None:
        """Check and keep the largest factor, and the value in [0, 255] of the canvas."""
        super().__init__()
        _check_range("ZOOM_OUT.MAX_RATIO", max_ratio, 1.0, 100.0)
        self.max_ratio = max_ratio
        self.fill = fill

    def get_transform(self, image: np.ndarray) -> T.TransformList:
        """Draw the size of `image` (HxWxC) and its place on the canvas."""
        height, width = image.shape[:2]
        ratio = self._rand_range(1, self.max_ratio)
        new_h, new_w = max(1, round(height / ratio)), max(1, round(width / ratio))
        top = int(self._rand_range(0, height - new_h + 1))
        left = int(self._rand_range(0, width - new_w + 1))
        right, bottom = width - new_w - left, height - new_h - top
        return T.TransformList(
            [
                T.ResizeTransform(height, width, new_h, new_w),
                PadTransform(left, top, right, bottom, new_w, new_h, self.fill),
            ]
        )


class ResizeShortestEdgeDown(T.Augmentation):
    """As Detectron2's `ResizeShortestEdge`, with both sides rounded down.

    So MMDetection resizes at test time for its Grounding DINO and what is built on it
    (`FixScaleResize`): 480 x 640 becomes 800 x 1066, Detectron2's 800 x 1067.
    """

    def __init__(self, size: int, max_size: int) -> None:
        """Take the short side, 0 for images as they are, and the most that the long side may be."""
        super().__init__()
        self.size, self.max_size = size, max_size

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The resize of `image` (HxWxC)."""
        if self.size == 0:
            return T.NoOpTransform()
        height, width = image.shape[:2]
        short, long = sorted((height, width))
        factor = min(self.max_size / long, self.size / short)
        new_height, new_width = (max(1, int(side * factor)) for side in (height, width))
        return T.ResizeTransform(height, width, new_height, new_width)


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The augmentations of a config in the order in which they are applied.

    In training: INPUT.ZOOM_IN, INPUT.RESIZE_CROP, Detectron2's INPUT.CROP and resize,
    INPUT.COLOR_JITTER, INPUT.ZOOM_OUT, Detectron2's flip. In inference: Detectron2's resize, or one
    by INPUT.ROUNDING_TEST. With INPUT.SQUARE, a resize to a square takes the place of both.

    Raises:
        ValueError: a strength, probability or ratio is out of its range, or a way of rounding is
            unknown.
    """
    resize, *flip = detection_utils.build_augmentation(cfg, is_train)
    rounding = cfg.INPUT.ROUNDING_TEST
    if rounding not in ("nearest", "down"):
        raise ValueError(f"INPUT.ROUNDING_TEST is {rounding!r}; expected 'nearest' or 'down'")
    if cfg.INPUT.SQUARE:
        sizes = cfg.INPUT.MIN_SIZE_TRAIN if is_train else (cfg.INPUT.MIN_SIZE_TEST,)
        resize = ResizeToSquare(sizes)
    elif not is_train and rounding == "down":
        resize = ResizeShortestEdgeDown(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    if not is_train:
        return [resize]
    zoom_in, zoom_out = cfg.INPUT.ZOOM_IN, cfg.INPUT.ZOOM_OUT
    _check_range("ZOOM_IN.PROB", zoom_in.PROB, 0.0, 1.0)
    _check_range("ZOOM_IN.MIN_RATIO", zoom_in.MIN_RATIO, 0.01, 1.0)
    _check_range("ZOOM_OUT.PROB", zoom_out.PROB, 0.0, 1.0)
    _check_range("RESIZE_CROP.PROB", cfg.INPUT.RESIZE_CROP.PROB, 0.0, 1.0)
    augmentations: list[T.Augmentation] = []
    if zoom_in.PROB > 0:
        crop = T.RandomCrop("relative_range", [zoom_in.MIN_RATIO, zoom_in.MIN_RATIO])
        augmentations.append(T.RandomApply(crop, zoom_in.PROB))
    if cfg.INPUT.RESIZE_CROP.PROB > 0:
        augmentations.append(resize_crop(cfg))
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    augmentations.append(resize)
    strengths = {name.lower(): strength for name, strength in cfg.INPUT.COLOR_JITTER.items()}
    if any(strengths.values()):
        # Before the flip, whose result is a view that OpenCV has to copy.
        augmentations.append(RandomColorJitter(**strengths, image_format=cfg.INPUT.FORMAT))
    if zoom_out.PROB > 0:
        # A canvas of the mean grey comes close to zero when the model normalises.
        fill = round(float(np.mean(cfg.MODEL.PIXEL_MEAN)))
        augmentations.append(T.RandomApply(RandomZoomOut(zoom_out.MAX_RATIO, fill), zoom_out.PROB))
    return augmentations + flip


def resize_crop(cfg: CfgNode) -> T.Augmentation:
    """INPUT.RESIZE_CROP: with its probability, resize and then cut.

    Raises:
        ValueError: there are no two ascending crop sizes.
    """
    node = cfg.INPUT.RESIZE_CROP
    if len(node.CROP_SIZES) != 2 or not 0 < node.CROP_SIZES[0] <= node.CROP_SIZES[1]:
        raise ValueError(
            f"INPUT.RESIZE_CROP.CROP_SIZES is {node.CROP_SIZES}; expected the smallest and the "
            "largest side of a crop, in pixels"
        )
    first = T.ResizeShortestEdge(node.MIN_SIZES, sample_style="choice")
    crop = T.RandomCrop("absolute_range", tuple(node.CROP_SIZES))
    return T.RandomApply(T.AugmentationList([first, crop]), node.PROB)


def _check_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"INPUT.{key} is {value}; it must lie in [{low}, {high}]")
