# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation, drawn without matplotlib's global state.

Colours are those of Okabe and Ito (Color Universal Design, 2008) and the maps cividis and Blues,
which readers with any colour vision can tell apart. Shapes: K categories, R recall thresholds.
"""

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    SymmetricalLogLocator,
)

from vastdet.evaluation.confusion import ConfusionMatrix
from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.metrics import FREQUENCY_NAMES, Scores, category_groups
from vastdet.files import write_atomically

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
GREY = "#7F7F7F"
GROUP_COLOURS = {
    "rare": VERMILION,
    "common": ORANGE,
    "frequent": BLUE,
    "base": BLUE,
    "novel": VERMILION,
}
MAX_MATRIX = 80  # categories that a confusion matrix can show with readable names
MAX_CELL_NUMBERS = 16
NUM_EXTREMES = 5
MIN_BOXES = 5
MIN_BIN = 10
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)))
NUM_PAIRS = 30
DPI = 130
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11}
SMALL: dict[str, Any] = {"fontsize": 8, "title_fontsize": 8, "frameon": False}
# A legend to the right of its panel, where no curve can run through it.
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "alignment": "left"}


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, atomically."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    write_atomically(path, buffer.getvalue())


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that makes room for its labels by itself."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes, *, title: str, x: str, y: str) -> None:
    """The same look for every panel."""
    axes.set_title(title, **TITLE)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def short(label: str, width: int = 24) -> str:
    """A category name cut to a width in letters."""
    return textwrap.shorten(label, width, placeholder="…") if " " in label else label[:width]


def plot_precision_recall(scores: Scores, ground_truth: GroundTruth) -> Figure:
    """Mean curves for each IoU threshold, and the curves of single categories at IoU 0.5."""
    figure = new_figure(13, 5)
    left, right = figure.subplots(1, 2)
    curves = scores.curves
    precision = curves.precision[:, :, :, curves.area_labels.index("all"), -1]
    with_truth = np.flatnonzero(~np.isnan(scores.categories.ap))
    colours = colormaps["cividis"](np.linspace(0, 0.92, len(curves.iou_thresholds)))
    for t, iou in enumerate(curves.iou_thresholds):
        mean = precision[t][:, with_truth].mean(axis=1) if len(with_truth) else None
        if mean is not None:
            label = f"{iou:.2f}   {mean.mean() * 100:4.1f}"
            left.plot(curves.recall_thresholds, mean, color=colours[t], label=label)
    limits(left)
    tidy(left, title=f"Mean over {len(with_truth):,} categories", x="recall", y="precision")
    if len(with_truth):
        left.legend(title="IoU    AP", **BESIDE, **SMALL)
    plot_extremes(right, precision[0], scores, ground_truth, with_truth)
    return figure


def limits(axes: Axes) -> None:
    """Precision and recall span 0 to 1."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.03)


def plot_extremes(
    axes: Axes,
    precision: np.ndarray,
    scores: Scores,
    ground_truth: GroundTruth,
    with_truth: np.ndarray,
) -> None:
    """Curves at IoU 0.5, (R, K), of the categories with the highest and the lowest AP50.

    Categories with a handful of boxes are left out when enough others remain: theirs are all or
    nothing.
    """
    ap50, recall = scores.categories.ap50, scores.curves.recall_thresholds
    frequent = with_truth[scores.categories.num_boxes[with_truth] >= MIN_BOXES]
    enough = len(frequent) >= 2 * NUM_EXTREMES
    order = frequent if enough else with_truth
    order = order[np.argsort(-ap50[order], kind="stable")]
    best, worst = order[:NUM_EXTREMES], order[max(NUM_EXTREMES, len(order) - NUM_EXTREMES) :]
    for chosen, shades in (
        (best, colormaps["Blues_r"](np.linspace(0.1, 0.55, NUM_EXTREMES))),
        (worst, colormaps["Oranges"](np.linspace(0.45, 0.9, NUM_EXTREMES))),
    ):
        for k, shade, style in zip(chosen, shades, LINE_STYLES, strict=False):
            label = f"{ap50[k]:5.1f}  {short(ground_truth.labels[k])}"
            axes.plot(recall, precision[:, k], color=shade, linestyle=style, label=label)
    limits(axes)
    title = "Single categories, IoU 0.50"
    if len(order) > 2 * NUM_EXTREMES:
        title += f": {NUM_EXTREMES} best, {NUM_EXTREMES} worst"
        title += f" of those with {MIN_BOXES} boxes or more" if enough else ""
    tidy(axes, title=title, x="recall", y="precision")
    if len(order):
        axes.legend(title="AP50", **BESIDE, **SMALL)


def plot_confusion(matrix: ConfusionMatrix, ground_truth: GroundTruth) -> Figure:
    """The row-normalised matrix, or the most confused pairs when there are too many categories."""
    if matrix.num_categories > MAX_MATRIX:
        return plot_confused_pairs(matrix, ground_truth)
    occurring = np.union1d(matrix.labelled, matrix.predicted)
    shown = np.union1d(occurring, [matrix.num_categories]).astype(np.int64)
    counts = matrix.dense()[np.ix_(shown, shown)]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(counts)
    # Never narrower than the title.
    side = max(0.17 * size + 3.2, 4.6)
    figure = new_figure(side + 0.9, side)
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [short(ground_truth.labels[k], 20) for k in shown[:-1]]
    font = 9 if size <= 30 else 7.5
    axes.set_xticks(range(size), [*names, "missed"], rotation=90, fontsize=font)
    axes.set_yticks(range(size), [*names, "background"], fontsize=font)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.axhline(size - 1.5, color=GREY, linewidth=1)
    axes.axvline(size - 1.5, color=GREY, linewidth=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("labelled")
    axes.set_title(confusion_title(matrix, hidden=matrix.num_categories + 1 - size), **TITLE)
    if size <= MAX_CELL_NUMBERS + 1:
        write_cells(axes, share, counts)
    bar = figure.colorbar(picture, ax=axes, shrink=0.5, aspect=25, label="share of the row")
    bar.outline.set_visible(False)
    return figure


def confusion_title(matrix: ConfusionMatrix, *, hidden: int) -> str:
    """What the counts of the matrix mean."""
    absent = f"; {hidden} categories without either not shown" if hidden else ""
    return (
        f"Confusion at IoU ≥ {matrix.iou_threshold:g}, score ≥ {matrix.score_threshold:g}\n"
        f"bottom row: detections where nothing is labelled{absent}"
    )


def write_cells(axes: Axes, share: np.ndarray, counts: np.ndarray) -> None:
    """Percent and count in each cell that is not empty."""
    for row, column in zip(*np.nonzero(counts), strict=True):
        value = share[row, column]
        axes.text(
            column,
            row,
            f"{value * 100:.0f}%\n{counts[row, column]}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value > 0.55 else "black",
        )


def plot_confused_pairs(matrix: ConfusionMatrix, ground_truth: GroundTruth) -> Figure:
    """Bars of the most frequent pairs of different categories."""
    pairs = matrix.confused_pairs()[:NUM_PAIRS]
    figure = new_figure(9, max(2.5, 0.27 * len(pairs) + 1.4))
    axes = figure.subplots()
    labels = [
        f"{short(ground_truth.labels[a], 30)} → {short(ground_truth.labels[b], 30)}"
        for a, b, _ in pairs
    ]
    rows = np.arange(len(pairs))
    bars = axes.barh(rows, [count for *_, count in pairs], color=BLUE)
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(rows, labels, fontsize=8)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = (
        f"Most confused pairs, labelled → predicted "
        f"(IoU ≥ {matrix.iou_threshold:g}, score ≥ {matrix.score_threshold:g})"
    )
    tidy(axes, title=title if pairs else f"{title}: none", x="boxes", y="")
    axes.grid(visible=False, axis="y")
    return figure


def plot_sizes(scores: Scores) -> Figure:
    """AP and AR of COCO's three size ranges beside those of all sizes."""
    figure = new_figure(6.5, 4.2)
    axes = figure.subplots()
    most = scores.curves.max_dets[-1]
    labels = ["all", "small\n< 32² px", "medium\n32² to 96² px", "large\n> 96² px"]
    rows = (
        ("AP", ["AP", "APs", "APm", "APl"], BLUE),
        (f"AR, {most:,} detections", [f"AR{most}", "ARs", "ARm", "ARl"], ORANGE),
    )
    for offset, (name, keys, colour) in zip((-0.19, 0.19), rows, strict=True):
        values = np.array([scores.summary[key] for key in keys])
        bars = axes.bar(
            np.arange(4) + offset, np.nan_to_num(values), 0.36, color=colour, label=name
        )
        texts = ["none" if np.isnan(value) else f"{value:.1f}" for value in values]
        axes.bar_label(bars, texts, padding=2, fontsize=8)
    axes.set_xticks(range(4), labels)
    axes.set_ylim(0, 108)
    tidy(axes, title="By size of the object", x="", y="%")
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, loc="upper left", ncols=2)
    return figure


def plot_frequency(scores: Scores, ground_truth: GroundTruth) -> Figure:
    """AP of each category against how much of it there is in training, where that is known.

    Otherwise against its labelled boxes in this set. Colours and dashed lines, the means, are of
    the groups by frequency, else of base and novel; the black line is the mean AP in bins that
    double in width, where a bin has enough categories for a mean.
    """
    figure = new_figure(8, 4.8)
    axes = figure.subplots()
    ap, (counts, counted) = scores.categories.ap, category_counts(scores, ground_truth)
    chosen = ~np.isnan(ap)
    for name, colour, mask in coloured_groups(ground_truth):
        members = chosen & mask
        if not members.any():
            continue
        total, mean = members.sum(), ap[members].mean()
        axes.scatter(
            counts[members],
            ap[members],
            s=26 if total < 200 else 10 if total < 2000 else 4,
            color=colour,
            alpha=0.7 if total < 2000 else 0.35,
            linewidths=0,
            label=f"{name}: {total:,} categories, mean {mean:.1f}",
        )
        axes.axhline(mean, color=colour, linewidth=1, linestyle="--")
    if chosen.sum() <= 30:
        for k in np.flatnonzero(chosen):
            axes.annotate(
                short(ground_truth.labels[k], 16),
                (counts[k], ap[k]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7,
                color="0.3",
            )
    else:
        centres, means = binned_means(counts[chosen], ap[chosen])
        axes.plot(centres, means, color="black", linewidth=1.5, label="mean by frequency")
    scale_counts(axes, counts[chosen])
    axes.set_ylim(-2, 102)
    tidy(axes, title="By frequency of the category", x=counted, y="AP, %")
    if chosen.any():
        legend = axes.legend(
            frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=3
        )
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set(alpha=1, sizes=[26])
    return figure


def category_counts(scores: Scores, ground_truth: GroundTruth) -> tuple[np.ndarray, str]:
    """(K,) how much there is of each category, and what is counted."""
    space = ground_truth.space
    for values, counted in (
        (space.image_counts, "training images with the category"),
        (space.instance_counts, "training boxes of the category"),
    ):
        if values is not None:
            return np.array(values, dtype=np.int64), counted
    return scores.categories.num_boxes, "labelled boxes in this set"


def coloured_groups(ground_truth: GroundTruth) -> list[tuple[str, str, np.ndarray]]:
    """Name, colour and (K,) mask of groups without a category in common, the rest being last."""
    groups = category_groups(ground_truth)
    names = [name for name in FREQUENCY_NAMES.values() if name in groups] or list(groups)
    rest = np.ones(ground_truth.num_categories, dtype=bool)
    for name in names:
        rest &= ~groups[name]
    return [
        *((name, GROUP_COLOURS[name], groups[name]) for name in names),
        ("all" if not names else "others", GREY if names else BLUE, rest),
    ]


def binned_means(counts: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean count and mean value in the bins 0, 1, 2-3, 4-7, ... of at least `MIN_BIN` entries."""
    bins = np.where(counts > 0, np.floor(np.log2(np.maximum(counts, 1))) + 1, 0).astype(np.int64)
    size = np.bincount(bins)
    large = size >= MIN_BIN
    centres, means = (np.bincount(bins, weights=w)[large] / size[large] for w in (counts, values))
    return centres, means


def scale_counts(axes: Axes, counts: np.ndarray) -> None:
    """A logarithmic axis of counts; where some are 0, with a linear part from 0 to 1."""
    if (counts == 0).any():
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xlim(-0.3, max(counts.max() * 1.5, 1.5))
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1))
    else:
        axes.set_xscale("log")
        axes.margins(x=0.08)
        wide = counts.size and counts.max() > 1000 * counts.min()
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    # Counts are whole: where the range is narrow, ticks between them are left without a number.
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if value == round(value) else "")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
