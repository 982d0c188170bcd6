# SPDX-License-Identifier: Apache-2.0
"""Pictures of generated scenes: background, clutter, objects, light, blur and noise.

H, W: image size. Images are H x W x 3 uint8 RGB.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np

from vastdet.data.generated.categories import COLOURS, GeneratedCategories
from vastdet.data.generated.scene import OCCLUDER_ID, Layout, SceneConfig, SceneObject, lay_out
from vastdet.data.generated.shapes import SHAPES
from vastdet.data.generated.textures import (
    BACKGROUND_SIZE,
    NUM_BACKGROUNDS,
    backgrounds,
    pattern_pyramid,
    unit_noise,
)

_COLOUR_JITTER = 10
_SHAPE_IDS = {shape.name: index for index, shape in enumerate(SHAPES)}
_PALETTE = np.array(list(COLOURS.values()), np.float64)


class Scene(NamedTuple):
    """A generated picture with its annotations.

    Attributes:
        image: H x W x 3 uint8 RGB.
        objects: the annotated objects, front to back.
        instance_ids: H x W uint8, i + 1 where object i is seen; see `Layout`.
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    instance_ids: np.ndarray


class _Look(NamedTuple):
    """How one category is painted: its shape's position, its pattern, its two colours (RGB)."""

    shape: int
    pattern: str
    colours: np.ndarray


@functools.lru_cache(maxsize=32)
def category_shapes(categories: GeneratedCategories) -> np.ndarray:
    """The position in `SHAPES` of each category's shape, an int array K."""
    return np.array([_SHAPE_IDS[composition.shape] for composition in categories.compositions])


@functools.lru_cache(maxsize=64)
def _cumulative(categories: GeneratedCategories, exponent: float, base_only: bool) -> np.ndarray:
    cumulative = np.cumsum(categories.probabilities(exponent, base_only=base_only))
    # The last category takes what rounding left over; trailing zero chances stay zero.
    cumulative[cumulative >= cumulative[-1]] = 1.0
    return cumulative


@functools.lru_cache(maxsize=4096)
def _look(categories: GeneratedCategories, category: int) -> _Look:
    composition = categories.compositions[category]
    second = composition.second_colour or composition.colour
    colours = np.array([COLOURS[composition.colour], COLOURS[second]], np.float64)
    return _Look(_SHAPE_IDS[composition.shape], composition.pattern, colours)


def scene_rngs(seed: tuple[int, ...]) -> tuple[np.random.Generator, ...]:
    """Independent generators of a scene's layout, its pixels, its texts and its labelling."""
    return tuple(np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4))


def scene_layout(
    config: SceneConfig,
    categories: GeneratedCategories,
    seed: tuple[int, ...],
    *,
    base_only: bool = False,
) -> Layout:
    """The layout of the scene that `render_scene` paints for the same arguments."""
    cumulative = _cumulative(categories, config.long_tail, base_only)
    return lay_out(config, scene_rngs(seed)[0], cumulative, category_shapes(categories))


def render_scene(
    config: SceneConfig,
    categories: GeneratedCategories,
    seed: tuple[int, ...],
    *,
    base_only: bool = False,
) -> Scene:
    """Render one scene; equal arguments give equal pixels in every process.

    Args:
        config: what scenes look like.
        categories: the vocabulary, from `generated_categories`.
        seed: non-negative integers that identify the scene.
        base_only: leave the held-out compositions out.
    """
    layout = scene_layout(config, categories, seed, base_only=base_only)
    rng = scene_rngs(seed)[1]
    image = _background(config, rng)
    _draw_clutter(config, rng, image)
    jitter = rng.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, (len(layout.objects), 2, 3))
    for number, item in enumerate(layout.objects):
        look = _look(categories, item.category)
        _paint(image, layout.instance_ids, number + 1, item, look, jitter[number])
    _crease(image, layout.instance_ids)
    hidden = layout.instance_ids == OCCLUDER_ID
    image[hidden] = rng.integers(20, 200, 3)
    return Scene(_expose(config, rng, image), layout.objects, layout.instance_ids)


def _crop(rng: np.random.Generator, texture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A random H x W window of a texture, which is enlarged when it is too small."""
    scale = max(height, width) / texture.shape[0]
    if scale > 1:
        side = max(height, width)
        texture = cv2.resize(texture, (side, side), interpolation=cv2.INTER_LINEAR)
    top = int(rng.integers(0, texture.shape[0] - height + 1))
    left = int(rng.integers(0, texture.shape[1] - width + 1))
    return texture[top : top + height, left : left + width]


def _background(config: SceneConfig, rng: np.random.Generator) -> np.ndarray:
    """A grey texture tinted between two muted colours, so that objects keep their contrast."""
    texture = backgrounds()[int(rng.integers(NUM_BACKGROUNDS))]
    # Now and then a coarser view, for variety of scale.
    if max(config.height, config.width) * 2 <= BACKGROUND_SIZE and rng.random() < 0.5:
        window = _crop(rng, texture, 2 * config.height, 2 * config.width)
        window = cv2.resize(window, (config.width, config.height), interpolation=cv2.INTER_AREA)
    else:
        window = _crop(rng, texture, config.height, config.width)
    middle = rng.uniform(75, 185) + rng.uniform(-24, 24, 3)
    swing = rng.uniform(10, 38) + rng.uniform(-14, 14, 3)
    ramp = np.linspace(-1, 1, 256)[:, None] * swing + middle
    table = np.clip(ramp, 0, 255).astype(np.uint8)
    return cv2.LUT(cv2.merge([window] * 3), table[None])


def _draw_clutter(config: SceneConfig, rng: np.random.Generator, image: np.ndarray) -> None:
    """Strokes, arcs and jagged fragments in the objects' colours that are no object."""
    count = int(rng.integers(0, config.clutter + 1))
    extent = np.array([config.width, config.height])
    side = min(config.height, config.width)
    kinds, draws = rng.integers(0, 3, count), rng.random((count, 20))
    picks = rng.integers(0, len(_PALETTE), count)
    thickness = max(side // 60, 1)
    for kind, draw, pick in zip(kinds.tolist(), draws, picks.tolist(), strict=True):
        colour = (0.75 * _PALETTE[pick] + 0.25 * 128).tolist()
        centre = draw[:2] * extent
        radius = (0.03 + 0.12 * draw[2]) * side
        if kind == 0:
            points = centre + (draw[4:12].reshape(4, 2) - 0.5) * 5 * radius
            cv2.polylines(image, [points.astype(np.int32)], False, colour, thickness)
        elif kind == 1:
            axes = (int(radius) + 1, int(radius * (0.4 + draw[3])) + 1)
            angles = (360 * draw[4], 360 * draw[5], 360 * draw[5] + 60 + 120 * draw[6])
            cv2.ellipse(image, centre.astype(int).tolist(), axes, *angles, colour, thickness)
        else:
            turns = 2 * np.pi * (np.arange(7) + 0.8 * draw[4:11]) / 7
            reach = 0.8 * radius * np.where(np.arange(7) % 2 == 0, 0.25 + draw[11:18], 0.3)
            spokes = reach[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
            cv2.fillPoly(image, [(centre + spokes).astype(np.int32)], colour)


def _paint(
    image: np.ndarray,
    ids: np.ndarray,
    number: int,
    item: SceneObject,
    look: _Look,
    jitter: np.ndarray,
) -> None:
    """Fill the visible pixels of one object with its pattern."""
    x0, y0, x1, y1 = item.box
    colours = np.clip(look.colours + jitter, 0, 255)
    visible = (ids[y0:y1, x0:x1] == number).view(np.uint8)
    if look.pattern == "plain":
        image[y0:y1, x0:x1][visible.view(bool)] = colours[0]
        return
    # The pattern level whose pixels are about half the image's: sharp, without aliasing.
    scale = np.sqrt(abs(np.linalg.det(item.transform[:, :2])))
    pyramid = pattern_pyramid(look.pattern, look.shape)
    step = [max(to_outline[0, 0], to_outline[1, 1]) * scale for _, to_outline in pyramid]
    level = max((i for i in range(len(pyramid)) if step[i] <= 0.6), default=0)
    share, to_outline = pyramid[level]
    to_image = item.transform @ to_outline
    to_image[:, 2] -= [x0 + 0.5, y0 + 0.5]
    window = cv2.warpAffine(
        share, to_image, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    ramp = np.linspace(0, 1, 256)[:, None]
    table = (colours[0] + ramp * (colours[1] - colours[0])).astype(np.uint8)
    painted = cv2.LUT(cv2.merge([window] * 3), table[None])
    cv2.copyTo(painted, visible, image[y0:y1, x0:x1])


def _crease(image: np.ndarray, ids: np.ndarray) -> None:
    """Darken the line where two objects meet, so that equal colours do not melt into one."""
    neighbourhood = np.ones((3, 3), np.uint8)
    lowest = cv2.erode(ids, neighbourhood)
    meeting = (lowest > 0) & (cv2.dilate(ids, neighbourhood) != lowest)
    image[meeting] = image[meeting] * 0.6


def _expose(config: SceneConfig, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Light, blur and noise over the finished picture."""
    height, width = image.shape[:2]
    # Pixels are painted whole; this least blur softens the steps at their edges.
    sigma = max(rng.uniform(-0.5, 1.0) * config.blur, 0.0) if config.blur else 0.0
    if config.blur:
        image = cv2.GaussianBlur(image, (0, 0), max(sigma, 0.45))
    exposed = image.astype(np.float32)
    if config.lighting:
        slope, level = rng.uniform(-1, 1, 2), rng.uniform(-0.5, 0.5)
        rows = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] * slope[0]
        columns = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None] * slope[1]
        gain = 1 + np.float32(config.lighting) * (rows + columns + np.float32(level)) / 1.5
        exposed *= gain.astype(np.float32)[:, :, None]
    if config.noise:
        noise = _crop(rng, unit_noise(), height, width)
        cv2.scaleAdd(np.ascontiguousarray(noise), rng.uniform(0, config.noise), exposed, exposed)
    return np.clip(exposed + 0.5, 0, 255).astype(np.uint8)
