# SPDX-License-Identifier: Apache-2.0
"""Tables of an evaluation for the terminal."""

import numpy as np
from rich.table import Table

from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.metrics import Scores

# Above this many categories only the best and the worst are listed.
MAX_ROWS = 40


def number(value: float) -> str:
    """A percentage to one decimal, a dash where it is undefined."""
    return "-" if np.isnan(value) else f"{value:.1f}"


def new_table(title: str) -> Table:
    """An empty table, wide enough for its title to stay on one line."""
    return Table(title=title, title_justify="left", min_width=len(title))


def summary_table(scores: Scores, *, title: str) -> Table:
    """COCO's summary in two rows of columns: precision, then recall."""
    table = new_table(title)
    keys = list(scores.summary)
    precision = [key for key in keys if key.startswith("AP")]
    recall = [key for key in keys if key.startswith("AR")]
    for heading in ("precision", "%", "recall", "%"):
        table.add_column(heading, justify="right" if heading == "%" else "left")
    for row in range(max(len(precision), len(recall))):
        cells = []
        for column in (precision, recall):
            key = column[row] if row < len(column) else None
            cells += [key or "", "" if key is None else number(scores.summary[key])]
        table.add_row(*cells)
    return table


def frequency_table(scores: Scores) -> Table | None:
    """Means over rare, common and frequent categories; None where there are no such groups."""
    if not scores.frequency:
        return None
    table = new_table("by frequency in training")
    table.add_column("group")
    for heading in ("categories", "AP", "AP50", "AR"):
        table.add_column(heading, justify="right")
    for group, row in scores.frequency.items():
        table.add_row(
            group, f"{row['categories']:.0f}", *(number(row[k]) for k in ("AP", "AP50", "AR"))
        )
    return table


def category_table(scores: Scores, ground_truth: GroundTruth) -> Table:
    """One row a category by falling AP; of many, the best and the worst halves of `MAX_ROWS`."""
    rows = scores.categories
    order = np.argsort(-np.nan_to_num(rows.ap, nan=-1.0), kind="stable")
    order = order[~np.isnan(rows.ap[order])]
    title = f"by category ({len(order)} of {ground_truth.num_categories} have ground truth"
    if len(order) > MAX_ROWS:
        half = MAX_ROWS // 2
        order = np.concatenate([order[:half], order[-half:]])
        title += f"; the best and the worst {half}"
    table = new_table(f"{title})")
    table.add_column("category")
    for heading in ("AP", "AP50", "AP75", "AR", "boxes", "detections"):
        table.add_column(heading, justify="right")
    for k in order.tolist():
        percents = (rows.ap[k], rows.ap50[k], rows.ap75[k], rows.ar[k])
        counts = (rows.num_boxes[k], rows.num_detections[k])
        table.add_row(ground_truth.labels[k], *map(number, percents), *(f"{n:,}" for n in counts))
    return table
