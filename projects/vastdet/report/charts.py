# SPDX-License-Identifier: Apache-2.0
"""Line charts as inline SVG, coloured by the page's style sheet (so they follow dark mode)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 460, 264
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
MAX_POINTS = 300
NUM_COLORS = 8


@dataclass(frozen=True)
class Series:
    """One named line: `x` ascending, `y` finite, of equal length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """A linear map from [low, high] to pixels [start, end], with ticks at round numbers."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def nice_step(span: float, count: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that cuts `span` into at most `count` steps."""
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))


def make_axis(
    values: Sequence[float], start: float, end: float, *, from_zero: bool, num_ticks: int
) -> Axis:
    """An axis over `values`; its ends are ticks when it starts at zero."""
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        high = low + (abs(low) or 1.0)
    step = nice_step(high - low, num_ticks)
    first = math.floor(low / step + 1e-9) if from_zero else math.ceil(low / step - 1e-9)
    last = math.ceil(high / step - 1e-9) if from_zero else math.floor(high / step + 1e-9)
    if from_zero:
        low, high = first * step, last * step
    return Axis(low, high, start, end, tuple(i * step for i in range(first, last + 1)))


def make_log_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis over decimal logarithms from one whole power of ten to another."""
    low, high = math.floor(min(values)), math.ceil(max(values))
    high = max(high, low + 1)
    between = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [p + math.log10(m) for p in range(low, high) for m in between]
    return Axis(low, high, start, end, (*ticks, high))


def format_number(value: float) -> str:
    """A short form for tick labels and tables: 0, 0.02, 1.5, 40, 2k, 1e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2g}"
    if abs(value) >= 1000:
        return f"{value / 1000:.4g}k"
    return f"{value:.3g}"


def thin(series: Series, max_points: int = MAX_POINTS) -> Series:
    """The series with at most `max_points` points, each the mean of its neighbours."""
    num = len(series.x)
    if num <= max_points:
        return series
    edges = [round(i * num / max_points) for i in range(max_points + 1)]
    parts = [slice(a, b) for a, b in pairwise(edges)]
    return Series(
        series.name,
        [sum(series.x[p]) / (p.stop - p.start) for p in parts],
        [sum(series.y[p]) / (p.stop - p.start) for p in parts],
    )


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "iteration",
    y_label: str = "",
    log_y: bool = False,
) -> str:
    """A figure with the lines, axes, a legend, and the numbers a pointer reads (script.js).

    Every text is escaped. Series without points are left out; with none left the figure says so.
    With `log_y` values are at the places of their logarithms, and those that have none are left
    out.
    """
    if log_y:
        series = [logarithms(s) for s in series]
    lines = [thin(s) for s in series if len(s.x)]
    if not lines:
        return f'<p class="missing">{escape(title)}: nothing recorded yet.</p>'
    xs = [v for s in lines for v in s.x]
    ys = [v for s in lines for v in s.y]
    # A single iteration, such as that of an evaluation at the end, stands at the end.
    x = make_axis(xs, LEFT, WIDTH - RIGHT, from_zero=min(xs) == max(xs), num_ticks=5)
    if log_y:
        y = make_log_axis(ys, HEIGHT - BOTTOM, TOP)
    else:
        y = make_axis(ys, HEIGHT - BOTTOM, TOP, from_zero=True, num_ticks=5)
    ends = [format_number(10 ** s.y[-1] if log_y else s.y[-1]) for s in lines]
    drawn = "".join(draw_line(s, i, x, y) for i, s in enumerate(lines))
    last = ", ".join(f"{s.name} ends at {end}" for s, end in zip(lines, ends, strict=True))
    scale = " ".join(
        f"{v:.10g}" for v in (x.low, x.high, x.start, x.end, y.low, y.high, y.start, y.end)
    )
    keys = "".join(
        f'<li><span class="swatch c{i % NUM_COLORS}"></span>{escape(s.name)}'
        f' <output data-last="{end}">{end}</output></li>'
        for i, (s, end) in enumerate(zip(lines, ends, strict=True))
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-scale="{scale}"{" data-log" * log_y}'
        f' aria-label="{escape(f"{title}: {last}")}">'
        f"{draw_axes(x, y, x_label, y_label, log_y=log_y)}{drawn}"
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="0" x2="0"/></svg>'
        f'<ul class="keys">{keys}<li>at <output data-at>the end</output></li></ul></figure>'
    )


def draw_line(series: Series, index: int, x: Axis, y: Axis) -> str:
    """One series as a polyline, or as a dot where it has a single point."""
    points = [(x(a), y(b)) for a, b in zip(series.x, series.y, strict=True)]
    color = f"c{index % NUM_COLORS}"
    dashed = " dashed" if index >= NUM_COLORS else ""
    text = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    line = f'<polyline class="line {color}{dashed}" points="{text}"/>'
    if len(points) <= 12:
        line += "".join(
            f'<circle class="dot {color}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points
        )
    return line


def logarithms(series: Series) -> Series:
    """The series of the decimal logarithms, of those values that have one."""
    points = [(x, math.log10(y)) for x, y in zip(series.x, series.y, strict=True) if y > 0]
    return Series(series.name, [x for x, _ in points], [y for _, y in points])


def draw_axes(x: Axis, y: Axis, x_label: str, y_label: str, *, log_y: bool = False) -> str:
    """Horizontal grid lines, tick labels and axis names."""
    grid = "".join(
        f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{x.start - 7}" y="{y(t) + 4:.1f}" text-anchor="end">'
        f"{format_number(10**t if log_y else t)}</text>"
        for t in y.ticks
    )
    ticks = "".join(
        f'<text x="{x(t):.1f}" y="{y.start + 17}" text-anchor="middle">{format_number(t)}</text>'
        for t in x.ticks
    )
    below = f'class="axis" y="{HEIGHT - 5}"'
    names = f'<text {below} x="{x.end}" text-anchor="end">{escape(x_label)}</text>'
    if y_label:
        names += f'<text {below} x="{x.start}">{escape(y_label)}</text>'
    return grid + ticks + names
