# SPDX-License-Identifier: Apache-2.0
"""Tables of an evaluation for the terminal."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.metrics import Scores
from vastdet.evaluation.protocols import Protocol

# Above this many categories only the best and the worst are listed.
MAX_ROWS = 40
NUM_EXTREMES = 10


def number(value: float) -> str:
    """A percentage to one decimal, a dash where it is undefined."""
    return "-" if np.isnan(value) else f"{value:.1f}"


def new_table(title: str) -> Table:
    """An empty table, wide enough for its title to stay on one line."""
    return Table(title=title, title_justify="left", min_width=len(title))


def summary_table(
    protocols: Sequence[Protocol], scores: Mapping[str, Scores], *, title: str
) -> Table:
    """Every summary number, a row each, in one column a protocol."""
    table = new_table(title)
    table.add_column("%")
    for protocol in protocols:
        table.add_column(protocol.title, justify="right")
    keys = dict.fromkeys(key for p in protocols for key in scores[p.key].summary)
    for key in keys:
        values = (scores[p.key].summary.get(key) for p in protocols)
        table.add_row(key, *("" if value is None else number(value) for value in values))
    return table


def group_table(scores: Scores, *, title: str) -> Table | None:
    """Means over groups of categories (rare, novel, ...); None where there are no groups."""
    if not scores.groups:
        return None
    table = new_table(title)
    table.add_column("group")
    columns = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")
    for heading in ("categories", *columns):
        table.add_column(heading, justify="right")
    for group, row in scores.groups.items():
        table.add_row(group, f"{row['categories']:.0f}", *(number(row[k]) for k in columns))
    return table


def size_table(protocols: Sequence[Protocol], scores: Mapping[str, Scores], *, title: str) -> Table:
    """AP and AR of all objects, and of small, medium and large ones, in two columns a protocol."""
    table = new_table(title)
    table.add_column("size")
    for protocol in protocols:
        for name in ("AP", "AR"):
            table.add_column(f"{protocol.key} {name}", justify="right")
    for label, letter in (
        ("all", ""),
        ("small, < 32² px", "s"),
        ("medium, 32² to 96² px", "m"),
        ("large, > 96² px", "l"),
    ):
        cells = []
        for protocol in protocols:
            result = scores[protocol.key]
            recall = f"AR{letter or result.curves.max_dets[-1]}"
            cells += [number(result.summary[key]) for key in (f"AP{letter}", recall)]
        table.add_row(label, *cells)
    return table


def category_table(scores: Scores, ground_truth: GroundTruth) -> Table:
    """One row a category by falling AP; of more than `MAX_ROWS`, `NUM_EXTREMES` from either end.

    Of categories with equal AP, those with more boxes are nearer to the end.
    """
    rows = scores.categories
    known = np.flatnonzero(~np.isnan(rows.ap))
    best = known[np.lexsort((-rows.num_boxes[known], -rows.ap[known]))]
    title = f"by category ({len(known)} of {ground_truth.num_categories} have ground truth"
    if len(known) > MAX_ROWS:
        worst = known[np.lexsort((-rows.num_boxes[known], rows.ap[known]))]
        best = np.concatenate([best[:NUM_EXTREMES], worst[:NUM_EXTREMES][::-1]])
        title += f"; the {NUM_EXTREMES} best and the {NUM_EXTREMES} worst"
    table = new_table(f"{title})")
    table.add_column("category")
    for heading in ("AP", "AP50", "AP75", "AR", "boxes", "detections"):
        table.add_column(heading, justify="right")
    for position, k in enumerate(best.tolist()):
        percents = (rows.ap[k], rows.ap50[k], rows.ap75[k], rows.ar[k])
        counts = (rows.num_boxes[k], rows.num_detections[k])
        table.add_row(
            ground_truth.labels[k],
            *map(number, percents),
            *(f"{n:,}" for n in counts),
            end_section=len(known) > MAX_ROWS and position == NUM_EXTREMES - 1,
        )
    return table
