# SPDX-License-Identifier: Apache-2.0
"""Outlines of the shapes that the generated dataset is made of.

An outline is a list of closed contours, each N x 2 float64 (x right, y down), centred on the
origin, with the longer side of its bounding box equal to 1. A second contour is a hole.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CURVE_POINTS = 32


@dataclass(frozen=True)
class Shape:
    """One outer shape: its name, its family in the category tree, synonyms and contours."""

    name: str
    family: str
    synonyms: tuple[str, ...]
    contours: tuple[np.ndarray, ...]

    @property
    def aspect_ratio(self) -> float:
        """Width over height of the outline's bounding box."""
        low, high = self.contours[0].min(axis=0), self.contours[0].max(axis=0)
        return float((high[0] - low[0]) / (high[1] - low[1]))


def _arc(
    start: float,
    stop: float,
    radius: float = 0.5,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    points: int = CURVE_POINTS,
) -> np.ndarray:
    """Points on a circle, angles in degrees, clockwise on the screen from the x axis."""
    angles = np.deg2rad(np.linspace(start, stop, points, endpoint=False))
    return np.array(centre) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(sides: int) -> np.ndarray:
    return _arc(-90, 270, points=sides)


def _star(points: int, inner: float) -> np.ndarray:
    outline = _regular(2 * points)
    outline[1::2] *= inner
    return outline


def _polar(radius: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 2 * CURVE_POINTS, endpoint=False)
    return radius(angles)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rectangle(width: float, height: float) -> np.ndarray:
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, height / 2]


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 2 * CURVE_POINTS, endpoint=False)
    # The usual sextic heart curve (MathWorld, "Heart Curve").
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


def _crescent() -> np.ndarray:
    # The inner circle meets the outer one at the horns, (0.41, +-0.287).
    return np.concatenate([_arc(35, 325), _arc(296, 64, 0.32, centre=(0.27, 0))])


def _capsule() -> np.ndarray:
    return np.concatenate(
        [_arc(-90, 90, 0.2, centre=(0.3, 0)), _arc(90, 270, 0.2, centre=(-0.3, 0))]
    )


def _teardrop() -> np.ndarray:
    return np.concatenate([_arc(-20, 200, 0.34, centre=(0, 0.16)), [[0.0, -0.5]]])


def _leaf() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 2 * CURVE_POINTS, endpoint=False)
    return np.stack([0.5 * np.cos(t), 0.25 * np.sin(t) * np.abs(np.sin(t)) ** 0.6], axis=1)


def _fish() -> np.ndarray:
    body = _arc(-150, 150, 0.34) * [1.0, 0.75] + [0.14, 0]
    return np.concatenate([body, [[-0.5, 0.3], [-0.38, 0.0], [-0.5, -0.3]]])


def _cloud() -> np.ndarray:
    left = _arc(90, 250, 0.17, centre=(-0.32, 0.1))
    middle = _arc(200, 330, 0.26, centre=(-0.04, -0.02))
    right = _arc(-80, 90, 0.19, centre=(0.3, 0.08))
    return np.concatenate([left, middle, right])


def _points(*xy: tuple[float, float]) -> np.ndarray:
    return np.array(xy, dtype=np.float64)


_CROSS = _points(
    (-0.17, -0.5), (0.17, -0.5), (0.17, -0.17), (0.5, -0.17), (0.5, 0.17), (0.17, 0.17),
    (0.17, 0.5), (-0.17, 0.5), (-0.17, 0.17), (-0.5, 0.17), (-0.5, -0.17), (-0.17, -0.17),
)  # fmt: skip
_ARROW = _points(
    (-0.5, -0.14), (0.02, -0.14), (0.02, -0.38), (0.5, 0.0), (0.02, 0.38), (0.02, 0.14),
    (-0.5, 0.14),
)  # fmt: skip
_CHEVRON = _points((-0.4, -0.5), (-0.02, -0.5), (0.4, 0), (-0.02, 0.5), (-0.4, 0.5), (0.0, 0))
_BOLT = _points((0.05, -0.5), (-0.3, 0.1), (-0.04, 0.1), (-0.16, 0.5), (0.3, -0.12), (0.03, -0.12))
_TEE = _points(
    (-0.45, -0.5), (0.45, -0.5), (0.45, -0.22), (0.15, -0.22), (0.15, 0.5), (-0.15, 0.5),
    (-0.15, -0.22), (-0.45, -0.22),
)  # fmt: skip
_HOURGLASS = _points((-0.38, -0.5), (0.38, -0.5), (0.1, 0), (0.38, 0.5), (-0.38, 0.5), (-0.1, 0))
_TRAPEZOID = _points((-0.22, -0.3), (0.22, -0.3), (0.5, 0.3), (-0.5, 0.3))


def _shape(name: str, family: str, synonyms: str, *contours: np.ndarray) -> Shape:
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    fitted = tuple((c - (low + high) / 2) / (high - low).max() for c in contours)
    return Shape(name, family, tuple(synonyms.split(", ")), fitted)


# The order is the one in which growing vocabularies take them up: easiest to tell apart first.
SHAPES: tuple[Shape, ...] = (
    _shape("circle", "round shape", "disc, disk", _arc(0, 360)),
    _shape("square", "angular shape", "box", _rectangle(1, 1)),
    _shape("triangle", "angular shape", "three-sided polygon", _regular(3)),
    _shape("star", "starry shape", "five-pointed star", _star(5, 0.45)),
    _shape("cross", "sign", "plus sign", _CROSS),
    _shape("heart", "natural shape", "love heart", _heart()),
    _shape("ring", "round shape", "hoop, annulus", _arc(0, 360), _arc(0, 360, 0.27)),
    _shape("arrow", "sign", "pointer", _ARROW),
    _shape("crescent", "round shape", "moon, half moon", _crescent()),
    _shape("rhombus", "angular shape", "diamond, lozenge", _regular(4) * [0.62, 1]),
    _shape("flower", "natural shape", "blossom", _polar(lambda a: 0.62 + 0.38 * np.cos(5 * a))),
    _shape("hourglass", "sign", "sand glass", _HOURGLASS),
    _shape("semicircle", "round shape", "half circle, dome", _arc(180, 361)),
    _shape("teardrop", "natural shape", "drop", _teardrop()),
    _shape("bar", "angular shape", "long rectangle, stick", _rectangle(1, 0.24)),
    _shape("lightning bolt", "sign", "flash", _BOLT),
    _shape("sunburst", "starry shape", "twelve-pointed star", _star(12, 0.72)),
    _shape("hexagon", "angular shape", "six-sided polygon", _regular(6)),
    _shape("chevron", "sign", "angle bracket", _CHEVRON),
    _shape("leaf", "natural shape", "blade", _leaf()),
    _shape("capsule", "round shape", "pill", _capsule()),
    _shape("cloud", "natural shape", "puff", _cloud()),
    _shape("frame", "angular shape", "square ring", _rectangle(1, 1), _rectangle(0.5, 0.5)),
    _shape("letter T", "sign", "tee", _TEE),
    _shape("fish", "natural shape", "swimmer", _fish()),
    _shape("spark", "starry shape", "four-pointed star", _star(4, 0.33)),
    _shape("trapezoid", "angular shape", "trapezium", _TRAPEZOID),
)
