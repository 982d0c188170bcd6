# SPDX-License-Identifier: Apache-2.0
"""Layout of a generated scene: which objects are where, and what of each can be seen.

The layout needs no pixels of the picture, so annotations are cheap. It works front to back: an
object sees only what the earlier ones left free, and one that would show too little is dropped
before it hides anything. H, W: image size; boxes are XYXY absolute pixels, integers, of the
visible extent.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from vastdet.data.generated.shapes import SHAPES

# Value of the instance map where an unlabelled occluder hides what is behind; 0 is background.
OCCLUDER_ID = 255
_SUBPIXEL_BITS = 4
_CLUSTER_PROBABILITY = 0.35
_ELONGATED = 2.0


@dataclass(frozen=True)
class SceneConfig:
    """What generated scenes look like; the defaults are those of the registered sets.

    Attributes:
        height, width: image size in pixels, 32 to 4096.
        min_objects, max_objects: objects placed per image, before hidden ones are dropped.
        min_size: smallest longer side of an object before it is turned, pixels. Also the least
            longer side of a visible box, whose shorter side is at least a quarter of it.
        max_size: largest longer side, before turning, as a fraction of the shorter image side.
        min_visible: an object with a smaller fraction of its area in view is dropped; (0, 1].
        repeat: chance that an object takes the category of an earlier one in the image; [0, 1].
        max_rotation: objects turn by up to this many degrees either way.
        long_tail: exponent of Zipf's law over the categories; 0 is uniform.
        clutter: most unlabelled strokes and fragments behind the objects.
        occluders: most unlabelled strokes in front of the objects.
        noise: highest standard deviation of the pixel noise, in grey levels of 255.
        blur: highest standard deviation of the Gaussian blur, pixels.
        lighting: how far the lighting gradient dims and brightens; [0, 1).

    Raises:
        ValueError: a value is outside its range, or the ranges contradict each other.
    """

    height: int = 160
    width: int = 160
    min_objects: int = 2
    max_objects: int = 8
    min_size: float = 12.0
    max_size: float = 0.5
    min_visible: float = 0.4
    repeat: float = 0.2
    max_rotation: float = 25.0
    long_tail: float = 0.3
    clutter: int = 6
    occluders: int = 1
    noise: float = 10.0
    blur: float = 0.8
    lighting: float = 0.3

    def __post_init__(self) -> None:
        side = min(self.height, self.width)
        self._expect("height", 32 <= self.height <= 4096, "32 to 4096 pixels")
        self._expect("width", 32 <= self.width <= 4096, "32 to 4096 pixels")
        self._expect("min_objects", 0 <= self.min_objects <= self.max_objects, "0 to max_objects")
        self._expect("max_objects", 1 <= self.max_objects <= 200, "1 to 200")
        self._expect("min_size", 4 <= self.min_size <= side / 2, "4 pixels to half the image")
        self._expect(
            "max_size", self.min_size / side <= self.max_size <= 1, "min_size / image side to 1"
        )
        self._expect("min_visible", 0 < self.min_visible <= 1, "above 0, at most 1")
        self._expect("repeat", 0 <= self.repeat <= 1, "0 to 1")
        self._expect("max_rotation", 0 <= self.max_rotation <= 180, "0 to 180 degrees")
        self._expect("long_tail", 0 <= self.long_tail <= 10, "0 (uniform) to 10")
        self._expect("clutter", 0 <= self.clutter <= 1000, "0 to 1000")
        self._expect("occluders", 0 <= self.occluders <= 100, "0 to 100")
        self._expect("noise", 0 <= self.noise <= 128, "0 to 128")
        self._expect("blur", 0 <= self.blur <= 20, "0 to 20 pixels")
        self._expect("lighting", 0 <= self.lighting < 1, "at least 0, below 1")

    def _expect(self, field: str, is_valid: bool, expected: str) -> None:
        # A NaN fails every comparison above, so it is refused as well.
        if not is_valid:
            raise ValueError(
                f"SceneConfig.{field}: got {getattr(self, field)!r}; expected {expected}"
            )


class SceneObject(NamedTuple):
    """One visible object of a scene.

    Attributes:
        category: contiguous category id.
        box: XYXY absolute pixels of the visible extent; the right and lower edges are exclusive.
        area: visible pixels.
        visible_fraction: visible pixels over the pixels of the whole object, in (0, 1].
        transform: 2 x 3 matrix from the unit outline to image pixels (x right, y down).
    """

    category: int
    box: tuple[int, int, int, int]
    area: int
    visible_fraction: float
    transform: np.ndarray


class Layout(NamedTuple):
    """A laid-out scene without its pixels.

    Attributes:
        objects: front to back; object i has the value i + 1 in `instance_ids`.
        instance_ids: H x W uint8 map; 0 background, `OCCLUDER_ID` unlabelled occluder.
    """

    objects: tuple[SceneObject, ...]
    instance_ids: np.ndarray


@functools.cache
def _contours(shape: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The homogeneous contours of a shape and the corners of its bounding box, 4 x 3."""
    contours = SHAPES[shape].contours
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    corners = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
    return tuple(np.c_[c, np.ones(len(c))] for c in contours), np.c_[corners, np.ones(4)]


def _transforms(
    config: SceneConfig, draws: np.ndarray, shapes: np.ndarray, centres: np.ndarray
) -> np.ndarray:
    """Turn uniform draws N x 3 (size, aspect, rotation) into N x 2 x 3 matrices."""
    side = min(config.height, config.width)
    aspects = _aspect_ratios()[shapes]
    elongated = (aspects > _ELONGATED) | (aspects < 1 / _ELONGATED)
    # Thin shapes start larger, so that their shorter side can be seen at all.
    smallest = np.where(elongated, 2.0, 1.0) * config.min_size
    smallest = np.minimum(smallest, config.max_size * side)
    sizes = smallest * (config.max_size * side / smallest) ** draws[:, 0]
    # Log-uniform aspect changes: 0.85 to 1.18, and up to half as thin again for thin shapes.
    spread = np.where(elongated, 0.4, 0.16)
    stretch = np.exp(spread * (2 * draws[:, 1] - 1))
    height_scale = np.where(aspects >= 1, stretch, 1.0)
    width_scale = np.where(aspects < 1, stretch, 1.0)
    angles = np.deg2rad(config.max_rotation * (2 * draws[:, 2] - 1))
    cos, sin = np.cos(angles), np.sin(angles)
    matrix = np.empty((len(shapes), 2, 3))
    # A stretch above 1 is turned into a shrink, so that no object exceeds its drawn size.
    shrink = sizes / np.maximum(np.maximum(height_scale, width_scale), 1.0)
    matrix[:, 0, 0] = cos * width_scale * shrink
    matrix[:, 0, 1] = -sin * height_scale * shrink
    matrix[:, 1, 0] = sin * width_scale * shrink
    matrix[:, 1, 1] = cos * height_scale * shrink
    matrix[:, :, 2] = centres
    return matrix


@functools.cache
def _aspect_ratios() -> np.ndarray:
    return np.array([shape.aspect_ratio for shape in SHAPES])


def _outline_mask(contours: list[np.ndarray]) -> tuple[np.ndarray, int, int]:
    """Draw contours in image coordinates into their own uint8 mask; also its upper left pixel."""
    low = np.floor(contours[0].min(axis=0)).astype(int) - 1
    size = np.ceil(contours[0].max(axis=0)).astype(int) + 2 - low
    mask = np.zeros((size[1], size[0]), np.uint8)
    # A pixel's centre is at +0.5 in image coordinates and at 0 in OpenCV's.
    scale = 1 << _SUBPIXEL_BITS
    fixed = [np.round((c - low - 0.5) * scale).astype(np.int32) for c in contours]
    cv2.fillPoly(mask, fixed, 1, shift=_SUBPIXEL_BITS)
    return mask, int(low[0]), int(low[1])


def _place(
    config: SceneConfig, ids: np.ndarray, number: int, category: int, shape: int, matrix: np.ndarray
) -> SceneObject | None:
    """Add one object behind what `ids` holds, or return None when too little of it would show."""
    contours = [points @ matrix.T for points in _contours(shape)[0]]
    mask, left, top = _outline_mask(contours)
    x0, y0 = max(left, 0), max(top, 0)
    x1 = min(left + mask.shape[1], config.width)
    y1 = min(top + mask.shape[0], config.height)
    if x0 >= x1 or y0 >= y1:
        return None
    crop = ids[y0:y1, x0:x1]
    visible = mask[y0 - top : y1 - top, x0 - left : x1 - left] & (crop == 0)
    area = cv2.countNonZero(visible)
    fraction = area / cv2.countNonZero(mask)
    if fraction < config.min_visible:
        return None
    dx, dy, width, height = cv2.boundingRect(visible)
    if max(width, height) < config.min_size or min(width, height) < config.min_size / 4:
        return None
    crop[visible.view(bool)] = number
    box = (x0 + dx, y0 + dy, x0 + dx + width, y0 + dy + height)
    return SceneObject(category, box, area, fraction, matrix)


def _draw_occluders(config: SceneConfig, rng: np.random.Generator, ids: np.ndarray) -> None:
    count = int(rng.integers(0, config.occluders + 1))
    if not count:
        return
    extent = np.array([config.width, config.height])
    ends = rng.random((count, 2, 2)) * extent
    thickness = max(round(min(config.height, config.width) / 50), 1)
    for start, stop in ends.astype(int):
        cv2.line(ids, start.tolist(), stop.tolist(), OCCLUDER_ID, thickness)


def _centres(config: SceneConfig, draws: np.ndarray) -> np.ndarray:
    """Turn uniform draws N x 4 into centres N x 2, some of them near an earlier one."""
    extent = np.array([config.width, config.height])
    centres = (0.03 + 0.94 * draws[:, :2]) * extent
    for index in range(1, len(draws)):
        if draws[index, 2] < _CLUSTER_PROBABILITY:
            other = centres[int(draws[index, 3] * index)]
            near = other + (draws[index, :2] - 0.5) * 0.35 * extent
            centres[index] = np.clip(near, 0.03 * extent, 0.97 * extent)
    return centres


def _categories(config: SceneConfig, draws: np.ndarray, cumulative: np.ndarray) -> list[int]:
    """Draw categories from N x 3 uniform draws; some repeat an earlier one of the image."""
    chosen = np.searchsorted(cumulative, draws[:, 0], side="right").tolist()
    for index in range(1, len(chosen)):
        if draws[index, 1] < config.repeat:
            chosen[index] = chosen[int(draws[index, 2] * index)]
    return chosen


def lay_out(
    config: SceneConfig,
    rng: np.random.Generator,
    cumulative: np.ndarray,
    category_shapes: np.ndarray,
) -> Layout:
    """Lay out one scene.

    Args:
        config: what the scene looks like.
        rng: the scene's own generator; its state alone decides the layout.
        cumulative: float64 array K, running sum of the category probabilities.
        category_shapes: int array K, the position in `SHAPES` of each category's shape.
    """
    ids = np.zeros((config.height, config.width), np.uint8)
    _draw_occluders(config, rng, ids)
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    draws = rng.random((count, 10))
    categories = _categories(config, draws[:, :3], cumulative)
    shapes = category_shapes[categories]
    matrices = _transforms(config, draws[:, 3:6], shapes, _centres(config, draws[:, 6:]))
    objects: list[SceneObject] = []
    for category, shape, matrix in zip(categories, shapes.tolist(), matrices, strict=True):
        placed = _place(config, ids, len(objects) + 1, category, shape, matrix)
        if placed is not None:
            objects.append(placed)
    return Layout(tuple(objects), ids)
