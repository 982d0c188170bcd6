# SPDX-License-Identifier: Apache-2.0
"""Trainings compared by the gradients of their class logits: pictures and a table.

rho is the ratio of positive to negative gradients, eta the share of hard negatives; see
`vastdet.engine.gradient_sums`. T measured steps, C categories.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from vastdet.engine.gradient_history import FILE_NAME, GROUPS, GradientHistory
from vastdet.evaluation.metrics import FREQUENCY_NAMES
from vastdet.evaluation.plots import (
    BESIDE,
    BLUE,
    GREEN,
    GREY,
    GROUP_COLOURS,
    LINE_STYLES,
    ORANGE,
    SMALL,
    VERMILION,
    binned_means,
    new_figure,
    save,
    scale_counts,
    tidy,
)
from vastdet.files import write_atomically

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, "#CC79A7", "#56B4E9", "black")
TITLES = {
    "loss": "Gradient of the training loss",
    "cross_entropy": "Gradient of cross-entropy, σ(z) − y",
}
# A line shows sums over this share of the steps, up to each of them.
SMOOTHED_SHARE = 0.05
FIRST_SHARE, LAST_SHARE = 0.1, 0.25
MAX_PANELS_A_ROW = 3
# Powers of ten as numbers.
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


@dataclass(frozen=True)
class Run:
    """A training under the name that a legend gives it."""

    name: str
    history: GradientHistory


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs of some folders: each holds a gradients.json, or has sub-folders that do.

    Runs are sorted by their number of categories, then by name, the name of their folder.

    Raises:
        FileNotFoundError: a folder has neither.
        ValueError: an unreadable file.
    """
    runs = []
    for folder in map(Path, folders):
        own = [folder / FILE_NAME]
        files = [f for f in own if f.is_file()] or sorted(folder.glob(f"*/{FILE_NAME}"))
        if not files:
            raise FileNotFoundError(
                f"neither {folder} nor a folder in it holds a {FILE_NAME}; train with "
                "ANALYSIS.GRADIENTS.ENABLED True, or let tools/analyze_gradients.py train"
            )
        runs += [Run(f.parent.name, GradientHistory.load(f)) for f in files]
    return sorted(runs, key=lambda run: (len(run.history.subject.names), run.name))


def write_gradient_report(runs: Sequence[Run], output: str | Path) -> str:
    """Write ratio.png, hard_negatives.png, categories.png and gradients.md; return the table."""
    output = Path(output)
    save(plot_ratio(runs), output / "ratio.png")
    save(plot_hard_negatives(runs), output / "hard_negatives.png")
    save(plot_categories(runs), output / "categories.png")
    table = as_markdown(runs)
    write_atomically(output / "gradients.md", table.encode())
    return table


# Ratios of sums ----------------------------------------------------------------------------------


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotients, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


def trailing_sums(values: np.ndarray, width: int) -> np.ndarray:
    """(T,) sums of each value and the up to `width` - 1 before it."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    return total[end] - total[np.maximum(end - width, 0)]


def share_of_negatives(
    history: GradientHistory, name: str, definition: str, width: int
) -> np.ndarray:
    """(T,) one of `SUMS` over that of the negatives, both over the last `width` steps.

    That is rho for "positive" and eta for "hard".
    """
    sums = (history.sums(s, definition=definition) for s in (name, "negative"))
    return ratio(*(trailing_sums(x, width) for x in sums))


# Pictures ----------------------------------------------------------------------------------------


def plot_ratio(runs: Sequence[Run]) -> Figure:
    """Rho over time, as in Figure 2 of the paper."""
    figure, panels = plot_over_time(runs, "positive", y="ρ, positive / negative")
    for axes in panels:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(PLAIN)
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    return figure


def plot_hard_negatives(runs: Sequence[Run]) -> Figure:
    """Eta over time."""
    figure, panels = plot_over_time(runs, "hard", y="η, hard / all negatives")
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def plot_over_time(runs: Sequence[Run], name: str, *, y: str) -> tuple[Figure, list[Axes]]:
    """A panel for each definition of the gradient, a line for each run; faint: single steps."""
    figure = new_figure(11, 4.2)
    panels = list(figure.subplots(1, len(TITLES), sharex=True))
    for axes, (definition, title) in zip(panels, TITLES.items(), strict=True):
        for r, run in enumerate(runs):
            colour = COLOURS[r % len(COLOURS)]
            style = LINE_STYLES[r // len(COLOURS) % len(LINE_STYLES)]
            steps = np.array(run.history.iterations) + 1
            width = max(1, round(SMOOTHED_SHARE * len(steps)))
            single, smooth = (
                share_of_negatives(run.history, name, definition, w) for w in (1, width)
            )
            axes.plot(steps, single, color=colour, alpha=0.18, linewidth=0.7)
            axes.plot(steps, smooth, color=colour, linestyle=style, label=run_label(run))
        tidy(axes, title=title, x="iteration", y=y)
    panels[-1].legend(**BESIDE, **SMALL)
    return figure, panels


def run_label(run: Run) -> str:
    """The name of a run and the size of its vocabulary."""
    return f"{run.name} ({len(run.history.subject.names):,})"


def plot_categories(runs: Sequence[Run], definition: str = "loss") -> Figure:
    """A panel for each run: rho of each category over the whole training, by training images.

    The black line is the geometric mean in bins that double in width.
    """
    columns = min(len(runs), MAX_PANELS_A_ROW)
    rows = -(-len(runs) // columns)
    figure = new_figure(4.6 * columns + 0.4, 3.7 * rows + 0.4)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for axes, run in zip(panels, runs, strict=False):
        plot_categories_of(axes, run, definition)
    for axes in list(panels)[len(runs) :]:
        axes.set_visible(False)
    return figure


def plot_categories_of(axes: Axes, run: Run, definition: str) -> None:
    """One panel of `plot_categories`."""
    history, subject = run.history, run.history.subject
    counts, frequency = np.array(subject.image_counts), np.array(subject.frequency, dtype=object)
    sums = (history.category_sums(s, definition=definition) for s in ("positive", "negative"))
    rho = ratio(*sums)
    shown = np.nan_to_num(rho) > 0
    for group in (*GROUPS, None):
        chosen = shown & (frequency == group)
        if chosen.any():
            name = FREQUENCY_NAMES[group] if group else "others"
            size = 16 if chosen.sum() < 200 else 6
            axes.scatter(
                counts[chosen],
                rho[chosen],
                s=size,
                color=GROUP_COLOURS.get(name, GREY),
                alpha=0.6,
                linewidths=0,
                label=f"{name}: {chosen.sum():,}",
            )
    if shown.any():
        centres, means = binned_means(counts[shown], np.log(rho[shown]))
        axes.plot(centres, np.exp(means), color="black", linewidth=1.3)
        scale_counts(axes, counts[shown])
        axes.legend(fontsize=7, frameon=False, loc="best")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    absent = f"; {(~shown).sum():,} without a positive" if (~shown).any() else ""
    tidy(axes, title=f"{run_label(run)}{absent}", x="training images with the category", y="ρ")


# Table -------------------------------------------------------------------------------------------


def as_markdown(runs: Sequence[Run]) -> str:
    """The comparison as a markdown table, with the meaning of its columns."""
    header = [
        "run", "architecture", "categories", "steps", "ρ, first 10%", "ρ", "ρ, matched queries",
        "η", "η, matched queries", "ρ, σ(z) − y", "η, σ(z) − y", "ρ rare", "ρ common", "ρ frequent",
    ]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row_of(run)) + " |" for run in runs]
    rules = sorted({run.history.subject.hard_negatives for run in runs})
    hard = " or ".join(
        f"have a probability of at least {value:g}"
        if rule == "probability"
        else f"are the likeliest {value:.2g} of the classes of a query"
        for rule, value in rules
    )
    notes = (
        "ρ: gradient of positives over that of negatives, η: share of hard negatives in that of "
        f"negatives, both of the training loss, over the last {LAST_SHARE:.0%} of the steps and "
        "all queries of all decoder layers or levels; matched queries: those that answer for a "
        "box; σ(z) − y: of cross-entropy in place of the training loss. Hard negatives "
        f"{hard}. Rare, common, frequent: categories by their training images."
    )
    return "\n".join([*lines, "", notes, ""])


def row_of(run: Run) -> list[str]:
    """The cells of a run."""
    history = run.history
    count = len(history.iterations)
    first = slice(0, max(1, round(FIRST_SHARE * count)))
    last = slice(count - max(1, round(LAST_SHARE * count)), count)

    def of(above: str, below: str, steps: slice = last, definition: str = "loss") -> str:
        sums = (history.sums(s, definition=definition)[steps].sum() for s in (above, below))
        return number(*sums)

    def of_group(group: str) -> str:
        return number(*(history.group_sums(group, s)[last].sum() for s in ("positive", "negative")))

    return [
        run.name,
        history.subject.architecture,
        f"{len(history.subject.names):,}",
        f"{count:,}",
        of("positive", "negative", first),
        of("positive", "negative"),
        of("positive", "matched_negative"),
        of("hard", "negative"),
        of("matched_hard", "matched_negative"),
        of("positive", "negative", definition="cross_entropy"),
        of("hard", "negative", definition="cross_entropy"),
        *(of_group(group) for group in GROUPS),
    ]


def number(above: float, below: float) -> str:
    """The quotient to three digits, or as a whole number; a dash where there is none."""
    if not below:
        return "–"
    value = above / below
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
