# SPDX-License-Identifier: Apache-2.0
"""The report's tables: summary scores and, sortable, the scores of each category."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from vastdet.evaluation.metrics import FREQUENCY_NAMES

MAX_CATEGORY_ROWS = 400
MIN_ROWS_TO_SEARCH = 15
NAME_COLUMNS = ("name", "category", "category_name", "class")
HIDDEN_COLUMNS = ("category_id",)
COLUMN_TITLES = {
    "name": "category", "ap": "AP", "ap50": "AP50", "ap75": "AP75", "aps": "AP small",
    "apm": "AP medium", "apl": "AP large", "ar": "AR", "num_boxes": "objects",
    "num_images": "images", "num_detections": "detections",
}  # fmt: skip
MEANINGS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "small objects, under 32 x 32 pixels",
    "APm": "medium objects, under 96 x 96 pixels",
    "APl": "large objects",
    "APr": "rare categories",
    "APc": "common categories",
    "APf": "frequent categories",
    "APbase": "categories seen in training",
    "APnovel": "categories held out of training",
    "APovd": "V3Det's open-vocabulary AP: a quarter base, three quarters novel",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}


def metrics_table(metrics: Mapping[str, float | None]) -> str:
    """Summary scores with their meaning, grouped as "bbox", "bbox/groups/rare", ..."""
    rows = []
    for name, value in metrics.items():
        group, _, short = name.rpartition("/")
        if not group or not short.startswith("A") or short.startswith("AP-"):
            continue
        text = "undefined" if value is None else f"{value:.1f}"
        where = group.removeprefix("bbox").strip("/").replace("groups/", "")
        label = f"{short} {where}".strip()
        rows.append(
            f"<tr><th scope='row'>{escape(label)}</th><td>{text}</td>"
            f'<td class="meaning">{escape(meaning(short, group))}</td></tr>'
        )
    if not rows:
        return '<p class="missing">No summary numbers were written.</p>'
    return (
        '<div class="card scroll whole"><table><thead><tr><th scope="col">Metric</th>'
        '<th scope="col">Percent</th><th scope="col" class="meaning">Meaning</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def meaning(name: str, group: str = "bbox") -> str:
    """What a metric's short name stands for in a group, or "" for an unknown one."""
    if name.startswith("ARC") and group == "selection":
        number = name[3:].rstrip("rcf")
        kind = FREQUENCY_NAMES.get(name[-1], "")
        labelled = f"labelled {kind} categories" if kind else "labelled categories"
        return f"{labelled} that are among the {number} selected for an image"
    if name.startswith("ARC"):
        return f"labelled categories that are among an image's {name[3:]} best detected ones"
    if name.startswith("AR") and name[2:].isdigit():
        return f"recall with at most {name[2:]} detections an image"
    return MEANINGS.get(name, "")


def to_number(text: str) -> float | None:
    """The number in a cell, None for an empty or undefined one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def category_table(rows: Sequence[Mapping[str, str]], table_id: str) -> str:
    """A sortable table of per_category.csv, the best AP first; long ones keep both ends."""
    columns, numeric = choose_columns(rows)
    ap = next((c for c in columns if c.lower() == "ap"), None)

    def sort_key(row: Mapping[str, str]) -> float:
        value = to_number(row[ap]) if ap else None
        return math.inf if value is None else -value

    def kind(column: str) -> str:
        return "number" if column in numeric else "text"

    sorted_mark = ' aria-sort="descending"'
    ordered = sorted(rows, key=sort_key)
    shown = ordered
    if len(ordered) > MAX_CATEGORY_ROWS:
        scored = [r for r in ordered if sort_key(r) != math.inf] or ordered
        half = MAX_CATEGORY_ROWS // 2
        shown = scored[:half] + scored[max(half, len(scored) - half) :]
    head = "".join(
        f'<th scope="col" data-kind="{kind(c)}"{sorted_mark if c == ap else ""}>'
        f"{escape(COLUMN_TITLES.get(c, c.replace('_', ' ')))}</th>"
        for c in columns
    )
    body = "".join(category_row(r, columns, numeric, ap) for r in shown)
    left_out = (
        f'<p class="note">The {len(shown)} best and worst of {len(rows)} categories; '
        "per_category.csv has them all.</p>"
        if len(shown) < len(rows)
        else ""
    )
    search = (
        f'<input class="search" type="search" data-table="{table_id}" hidden'
        ' placeholder="Find a category" aria-label="Find a category">'
        if len(shown) >= MIN_ROWS_TO_SEARCH
        else ""
    )
    return (
        f'{left_out}{search}<div class="card scroll" tabindex="0">'
        f'<table class="sortable" id="{table_id}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def choose_columns(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], set[str]]:
    """The columns worth showing, the name first, and which of them hold numbers.

    Empty columns are left out, and text that is the same in every row (a single frequency group).
    """
    columns = [c for c in rows[0] if c not in HIDDEN_COLUMNS and any(r.get(c) for r in rows)]
    name = next((c for c in NAME_COLUMNS if c in columns), columns[0])
    rest = [c for c in columns if c != name]
    numeric = {c for c in rest if all(to_number(r[c]) is not None or not r[c] for r in rows)}
    return [name, *(c for c in rest if c in numeric or len({r[c] for r in rows}) > 1)], numeric


def category_row(
    row: Mapping[str, str], columns: Sequence[str], numeric: set[str], ap: str | None
) -> str:
    """One category; its AP comes with a bar."""
    cells = [f'<th scope="row">{escape(row[columns[0]])}</th>']
    for column in columns[1:]:
        value = to_number(row[column]) if column in numeric else None
        if column not in numeric:
            cells.append(f"<td>{escape(row[column])}</td>")
        elif value is None:
            cells.append('<td data-value="">–</td>')
        else:
            text = f"{value:.0f}" if column.startswith("num_") else f"{value:.1f}"
            bar = f' class="bar" style="--share:{value:.0f}%"' if column == ap else ""
            cells.append(f'<td data-value="{value:.6g}"{bar}>{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"
