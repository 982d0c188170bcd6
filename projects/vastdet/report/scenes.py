# SPDX-License-Identifier: Apache-2.0
"""Draws pictures with ground truth and detections: a JPEG in each panel, boxes as SVG over it.

The boxes stay in the pixels of the picture as stored; the embedded copy may be smaller. Below are
the categories that were selected for the picture, for a detector that selects.
"""

import math
from collections import Counter
from collections.abc import Sequence
from html import escape

from vastdet.report.gallery import MIN_SHOWN_SCORE, Scene, ShownBox
from vastdet.report.images import jpeg_data_uri
from vastdet.report.selection import ABSENT, ANCESTOR, PRESENT, PictureSelection, ShownCategory

MAX_LABEL_LENGTH = 28
MAX_NAMES = 6
MAX_FURTHER = 4
STATE_TEXTS = {
    PRESENT: "in the picture",
    ANCESTOR: "above a category in the picture",
    ABSENT: "not in the picture",
}
MAX_LABELLED_BOXES = 3  # more labels than this cover a small picture


def draw_scene(scene: Scene, anchor: str, threshold: float) -> str:
    """The card of one picture: ground truth and detections side by side."""
    source = jpeg_data_uri(scene.pixels)
    kept = [b for b in scene.detections if b.score >= threshold]
    num_found = sum(b.score >= max(threshold, MIN_SHOWN_SCORE) for b in scene.ground_truth)
    num_false = sum(not b.correct for b in kept)
    few = max(len(scene.ground_truth), len(kept)) <= MAX_LABELLED_BOXES
    left = describe("Ground truth", scene.ground_truth)
    right = describe(f"Detections above {threshold:.2f}", kept)
    return (
        f'<article class="scene{" few" if few else ""}" id="{anchor}">'
        '<div class="panels">'
        f"{draw_panel(scene, source, left, scene.ground_truth, threshold, 'truth')}"
        f"{draw_panel(scene, source, right, scene.detections, threshold, 'guess')}</div>"
        f'<p class="tally"><b data-found>{num_found}</b> of <span data-all>'
        f"{len(scene.ground_truth)}</span> found, <b data-false>{num_false}</b> false"
        f'<span class="file">{escape(shorten(scene.name, 40))}</span></p>'
        f'<p class="names">{escape(list_names(scene.ground_truth))}</p>'
        f"{draw_selection(scene.selection) if scene.selection else ''}</article>"
    )


def draw_panel(
    scene: Scene, source: str, alt: str, boxes: Sequence[ShownBox], threshold: float, kind: str
) -> str:
    """A picture under its boxes; `kind` is "truth" or "guess" (script.js restyles by it)."""
    height, width = scene.pixels.shape[:2]
    marks = "".join(draw_box(b, kind, threshold, width, height) for b in boxes)
    unit = max(width, height) / 30
    return (
        f'<div class="panel" style="--ratio:{width}/{height}">'
        f'<img src="{source}" alt="{escape(alt)}" loading="lazy" decoding="async">'
        f'<svg class="boxes {kind}" viewBox="0 0 {width} {height}" aria-hidden="true"'
        f' style="--unit:{unit:.2f}px">{marks}</svg></div>'
    )


def draw_box(box: ShownBox, kind: str, threshold: float, width: int, height: int) -> str:
    """One rectangle with its label, styled for the threshold the page opens with."""
    x0, y0, x1, y1 = box.xyxy
    shown = box.score >= max(threshold, MIN_SHOWN_SCORE)
    if kind == "truth":
        state, text = ("right" if shown else "wrong"), box.label
    else:
        state = ("right" if box.correct else "wrong") + ("" if shown else " off")
        text = f"{box.label} {box.score:.2f}"
    unit = max(width, height) / 30
    shown_text = shorten(text, MAX_LABEL_LENGTH)
    # The style sheet's font is at most 1.25 units high, a letter about 0.8 wide.
    label_x = max(min(x0, width - 0.8 * unit * len(shown_text)), 0)
    label_y = y0 - 0.3 * unit if y0 > 1.3 * unit else min(y1 + unit, height - 0.3 * unit)
    return (
        f'<g class="{state}" data-score="{box.score:.4f}"><title>{escape(text)}</title>'
        f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"/>'
        f'<text x="{label_x:.1f}" y="{label_y:.1f}">'
        f"{escape(shown_text)}</text></g>"
    )


def draw_selection(selection: PictureSelection) -> str:
    """The best selected categories with score and path in the tree, and those that are lower."""
    rows = "".join(draw_selected(category) for category in selection.shown)
    further = [
        f"{name} ({'not selected' if rank is None else f'rank {rank + 1}'})"
        for name, rank in selection.further
    ]
    if len(further) > MAX_FURTHER:
        further[MAX_FURTHER:] = [f"{len(further) - MAX_FURTHER} more"]
    rest = f"; not shown: {', '.join(further)}" if further else ""
    text = (
        f"{selection.num_found} of the {selection.num_labelled} labelled categories are among the "
        f"{selection.num_selected} selected{rest}"
    )
    return (
        f'<div class="selection"><p>Selected categories, the {len(selection.shown)} best</p>'
        f"<ol>{rows}</ol><p>{escape(text)}</p></div>"
    )


def draw_selected(category: ShownCategory) -> str:
    """One selected category: a mark for its state, its path, its score with a bar."""
    *ancestors, name = category.path
    text = STATE_TEXTS[category.state]
    trail = f'<span class="trail">{escape(" › ".join(ancestors))} › </span>' if ancestors else ""
    score = ""
    if not math.isnan(category.score):
        score = (
            f'<span class="score" style="--share:{100 * category.score:.0f}%">'
            f"{category.score:.2f}</span>"
        )
    return (
        f'<li class="{category.state}"><i role="img" title="{text}" aria-label="{text}"></i>'
        f"<span>{trail}<b>{escape(name)}</b></span>{score}</li>"
    )


def describe(what: str, boxes: Sequence[ShownBox]) -> str:
    """An alternative text: how many boxes, and the categories of the first few."""
    names = ", ".join(b.label for b in boxes[:6]) + (", and more" if len(boxes) > 6 else "")
    return f"{what}: {len(boxes)} box{'' if len(boxes) == 1 else 'es'}{': ' * bool(boxes)}{names}"


def list_names(boxes: Sequence[ShownBox]) -> str:
    """The categories in a picture, the most frequent first, each with its count above one."""
    counts = Counter(b.label for b in boxes).most_common()
    names = [f"{name} ({count})" if count > 1 else name for name, count in counts]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more or "no objects"


def shorten(text: str, length: int) -> str:
    """The text, cut in its middle to at most `length` characters."""
    if len(text) <= length:
        return text
    tail = length // 2 - 1
    return f"{text[: length - tail - 1]}…{text[-tail:]}"
