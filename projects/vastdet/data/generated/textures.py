# SPDX-License-Identifier: Apache-2.0
"""Cached pictures that scenes are put together from: patterns, backgrounds, noise.

All are made once a process from fixed seeds, so they are the same in every process.
"""

import functools

import cv2
import numpy as np

from vastdet.data.generated.shapes import SHAPES

PATTERN_SIZE = 128
BACKGROUND_SIZE = 512
NUM_BACKGROUNDS = 24
_SMALLEST_PATTERN = 16


def _bordered(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """True within a rim along the outline, a third of the way to the innermost point."""
    scale = PATTERN_SIZE
    mask = np.zeros(x.shape, np.uint8)
    offset = np.array([x[0, 0], y[0, 0]])
    polygons = [np.round((c - offset) * scale).astype(np.int32) for c in SHAPES[shape].contours]
    cv2.fillPoly(mask, polygons, 1)
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    return depth < max(0.34 * float(depth.max()), 0.05 * scale)


def _pattern(name: str, shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the second colour of a pattern goes, as a bool array over outline coordinates."""
    height = float(y.max() - y.min())
    if name == "plain":
        return np.zeros(x.shape, bool)
    if name == "striped":
        return np.mod((x + y) * 0.7071 + 0.03, 0.27) < 0.115
    if name == "dotted":
        rows = np.floor(y / 0.25 + 0.5)
        dx = np.mod(x + 0.125 * np.mod(rows, 2) + 0.125, 0.25) - 0.125
        return dx**2 + (y - 0.25 * rows) ** 2 < 0.08**2
    if name == "bordered":
        return _bordered(shape, x, y)
    if name == "halved":
        return y > 0.04 * height
    if name == "banded":
        return np.abs(y) < 0.15 * height
    if name == "gridded":
        return (np.mod(x + 0.04, 0.28) < 0.08) | (np.mod(y + 0.04, 0.28) < 0.08)
    assert name == "zigzag", name
    wave = 0.16 * np.abs(np.mod(x / 0.15, 2) - 1)
    return np.mod(y + wave - 0.02, 0.34) < 0.13


@functools.cache
def pattern_pyramid(name: str, shape: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """A pattern over one shape's bounding box, in halving resolutions.

    Returns:
        Pairs, largest first: a uint8 map (0 first colour, 255 second) and the 3 x 3 matrix from
        its pixels to outline coordinates.
    """
    outline = SHAPES[shape].contours[0]
    low, high = outline.min(axis=0), outline.max(axis=0)
    width, height = np.maximum(np.ceil((high - low) * PATTERN_SIZE).astype(int), 2)
    x = low[0] + (np.arange(width) + 0.5) / width * (high[0] - low[0])
    y = low[1] + (np.arange(height) + 0.5) / height * (high[1] - low[1])
    level = _pattern(name, shape, *np.meshgrid(x, y)).astype(np.uint8) * 255
    pyramid = []
    while True:
        step = (high - low) / [level.shape[1], level.shape[0]]
        to_outline = np.array(
            [[step[0], 0, low[0] + step[0] / 2], [0, step[1], low[1] + step[1] / 2], [0, 0, 1]]
        )
        pyramid.append((level, to_outline))
        if max(level.shape) <= _SMALLEST_PATTERN:
            return tuple(pyramid)
        half = (max(level.shape[1] // 2, 1), max(level.shape[0] // 2, 1))
        level = cv2.resize(level, half, interpolation=cv2.INTER_AREA)


def _clouds(rng: np.random.Generator, octaves: int, stretch: tuple[int, int]) -> np.ndarray:
    """Sum of smooth random grids, each octave twice as fine and half as strong."""
    total = np.zeros((BACKGROUND_SIZE, BACKGROUND_SIZE), np.float32)
    for octave in range(octaves):
        cells = (2 ** (octave + 2) * stretch[0], 2 ** (octave + 2) * stretch[1])
        grid = rng.random(cells, dtype=np.float32)
        size = (BACKGROUND_SIZE, BACKGROUND_SIZE)
        total += cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC) / 2**octave
    return total


def _tiles(rng: np.random.Generator, pitch: int) -> np.ndarray:
    cells = -(-BACKGROUND_SIZE // pitch)
    tiles = np.kron(rng.random((cells, cells)), np.ones((pitch, pitch)))
    tiles = tiles[:BACKGROUND_SIZE, :BACKGROUND_SIZE].copy()
    tiles[::pitch] = tiles[:, ::pitch] = 0.0
    return tiles


def _ripples(rng: np.random.Generator) -> np.ndarray:
    axis = np.arange(BACKGROUND_SIZE) / BACKGROUND_SIZE
    x, y = np.meshgrid(axis, axis)
    direction, bends = rng.random(2) * 2 * np.pi, _clouds(rng, 2, (1, 1))
    phase = x * np.cos(direction[0]) + y * np.sin(direction[0])
    return np.sin(2 * np.pi * (rng.integers(6, 24) * phase + 1.5 * bends))


@functools.cache
def backgrounds() -> tuple[np.ndarray, ...]:
    """Grey uint8 textures of BACKGROUND_SIZE squared: clouds, grain, planks, tiles, ripples."""
    rng = np.random.default_rng(0)
    makers = (
        lambda: _clouds(rng, 3, (1, 1)),
        lambda: _clouds(rng, 6, (1, 1)),
        lambda: _clouds(rng, 4, (1, 8)),
        lambda: _tiles(rng, int(rng.integers(24, 90))) + 0.3 * _clouds(rng, 5, (1, 1)),
        lambda: _ripples(rng),
        lambda: _clouds(rng, 2, (1, 1)),
    )
    textures = []
    for index in range(NUM_BACKGROUNDS):
        texture = makers[index % len(makers)]()
        grey = cv2.normalize(texture.astype(np.float32), None, 0, 255, cv2.NORM_MINMAX)
        textures.append(grey.astype(np.uint8))
    return tuple(textures)


@functools.cache
def unit_noise() -> np.ndarray:
    """Normal noise of unit variance, float32 of BACKGROUND_SIZE squared x 3."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((BACKGROUND_SIZE, BACKGROUND_SIZE, 3), dtype=np.float32)
