# SPDX-License-Identifier: Apache-2.0
"""Puts the sections of the report together and writes index.html, of one run or of several."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from vastdet.files import write_atomically
from vastdet.report.charts import format_number
from vastdet.report.gallery import Gallery, read_gallery
from vastdet.report.gradients import gradients_section
from vastdet.report.run_folder import Evaluation, Run, read_run
from vastdet.report.sections import (
    Section,
    backbone_name,
    categories_section,
    commands_section,
    config_section,
    curves_section,
    facts_section,
    gallery_section,
    model_name,
    note,
    plots_section,
    scores_section,
    selection_section,
    training_seconds,
)
from vastdet.version import __version__

logger = logging.getLogger(__name__)

MAX_PAGE_BYTES = 5_000_000
DEFAULT_NUM_PICTURES = 12


@dataclass(frozen=True)
class Part:
    """A run as one of several on a page.

    Attributes:
        folder: its OUTPUT_DIR.
        anchor: a word that its ids begin with.
        title: heading.
        text: a paragraph under it.
        sections: the anchors of the sections to show, in this order; all when empty.
    """

    folder: str | Path
    anchor: str
    title: str
    text: str = ""
    sections: Sequence[str] = ()


def write_report(
    output_dir: str | Path,
    *,
    title: str = "",
    num_pictures: int = DEFAULT_NUM_PICTURES,
    score_threshold: float | None = None,
    page: str | Path | None = None,
) -> Path:
    """Write a self-contained page about a training run, and return its path.

    The page opens offline, loads nothing, names no host and no absolute path, and stays under
    5 MB (pictures are left out until it does). Parts that the run has not written yet are named
    as missing. Pictures need the evaluated dataset to be registered in this process.

    Args:
        output_dir: folder of the run (its cfg.OUTPUT_DIR).
        title: heading; by default the architecture and the dataset.
        num_pictures: how many pictures to show, evenly spaced over the first evaluated dataset.
        score_threshold: score in [0, 1] from which detections are shown at first; by default
            where F1 over the dataset is highest.
        page: file to write, by default `output_dir`/index.html. It is replaced atomically.

    Raises:
        FileNotFoundError: `output_dir` is not the folder of a run.
        ValueError: a file in it is damaged, or an argument is out of range.
    """
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold must lie in [0, 1], got {score_threshold}")
    run = read_run(output_dir)

    def render_with(num: int) -> str:
        gallery, reason = find_gallery(run, num, score_threshold)
        return render(run, title, gallery, reason)

    path = Path(page) if page is not None else run.folder / "index.html"
    return write_page(path, render_with, num_pictures)


def write_joint_report(
    parts: Sequence[Part],
    page: str | Path,
    *,
    title: str,
    lead: str,
    num_pictures: int = DEFAULT_NUM_PICTURES,
) -> Path:
    """Write one page about several runs, like that of `write_report`, and return its path.

    Args:
        parts: the runs, in this order.
        page: file to write.
        title: heading of the page.
        lead: a paragraph under it.
        num_pictures: how many pictures to show of each run.

    Raises:
        FileNotFoundError: the folder of a part is not that of a run.
        ValueError: a file in it is damaged, or `num_pictures` is negative.
    """
    runs = [read_run(part.folder) for part in parts]

    def render_with(num: int) -> str:
        return render_parts(parts, runs, title, lead, num)

    return write_page(Path(page), render_with, num_pictures)


def write_page(path: Path, render_with: Callable[[int], str], num_pictures: int) -> Path:
    """Write the page, rendered with so many pictures or with as many as keep it small."""
    if num_pictures < 0:
        raise ValueError(f"num_pictures must be 0 or more, got {num_pictures}")
    while True:
        html = render_with(num_pictures).encode("utf-8")
        if len(html) <= MAX_PAGE_BYTES or num_pictures == 0:
            break
        num_pictures //= 2
        logger.info("page of %.1f MB: trying %d pictures", len(html) / 1e6, num_pictures)
    write_atomically(path, html)
    return path


def find_gallery(
    run: Run, num_pictures: int, score_threshold: float | None
) -> tuple[Gallery | None, str]:
    """The gallery of the first evaluated dataset, or the reason why there is none."""
    evaluations = [e for e in run.evaluations if e.detections_file is not None]
    if not evaluations:
        return None, (
            "There are no detections yet: they come with the first evaluation, unless it has so "
            "many that its results file is not JSON."
        )
    evaluation = evaluations[0]
    assert evaluation.detections_file is not None
    try:
        return (
            read_gallery(
                evaluation.dataset,
                evaluation.detections_file,
                evaluation.selection_file,
                num_pictures=num_pictures,
                score_threshold=score_threshold,
            ),
            "",
        )
    except FileNotFoundError as error:
        # A dataset that is not at hand is no reason to withhold the rest.
        logger.warning("no pictures on the page: %s", error)
        return None, f"No pictures of {evaluation.dataset}: its images are not at hand here."


def sections_of(
    run: Run, gallery: Gallery | None, no_gallery: str, prefix: str = ""
) -> list[Section]:
    """Every section that a run has; `prefix` keeps the ids of several runs apart."""
    return [
        curves_section(run),
        *gradients_section(run),
        gallery_section(gallery, no_gallery, prefix),
        *selection_section(gallery),
        scores_section(run.evaluations),
        categories_section(run.evaluations, prefix),
        plots_section(run.evaluations),
        facts_section(run),
        commands_section(run),
        config_section(run),
    ]


def render(run: Run, title: str, gallery: Gallery | None, no_gallery: str) -> str:
    """The text of a page about one run."""
    sections = sections_of(run, gallery, no_gallery)
    return fill_template(
        title=title or default_title(run),
        lead=lead(run),
        tiles=draw_tiles(headline(run, gallery)),
        links="".join(link(s.anchor, s.title) for s in sections),
        sections="\n".join(s.html() for s in sections),
    )


def render_parts(
    parts: Sequence[Part], runs: Sequence[Run], title: str, lead: str, num_pictures: int
) -> str:
    """The text of a page about several runs."""
    links, bodies = [], []
    for part, run in zip(parts, runs, strict=True):
        prefix = f"{part.anchor}-"
        gallery, reason = find_gallery(run, num_pictures, None)
        sections = sections_of(run, gallery, reason, prefix)
        if part.sections:
            sections = [s for a in part.sections for s in sections if s.anchor == a]
        links += [link(part.anchor, part.title, "part")]
        links += [link(prefix + s.anchor, s.title) for s in sections]
        bodies.append(
            f'<div class="run" id="{part.anchor}"><h2>{escape(part.title)}</h2>{note(part.text)}'
            f"{draw_tiles(headline(run, gallery))}</div>"
        )
        bodies += [s.html(prefix, level=3) for s in sections]
    return fill_template(
        title=title, lead=lead, tiles="", links="".join(links), sections="\n".join(bodies)
    )


def fill_template(*, title: str, lead: str, tiles: str, links: str, sections: str) -> str:
    """The page; title and lead are plain text, the others HTML."""
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return Template(read_resource("template.html")).substitute(
        title=escape(title),
        lead=escape(lead),
        tiles=tiles,
        links=links,
        sections=sections,
        footer=f"Written by vastdet {escape(__version__)} on {now}.",
        style=read_resource("style.css"),
        script=read_resource("script.js"),
    )


def link(anchor: str, title: str, kind: str = "") -> str:
    """An entry of the navigation."""
    mark = f' class="{kind}"' if kind else ""
    return f'<li{mark}><a href="#{anchor}">{escape(title)}</a></li>'


def draw_tiles(tiles: Sequence[tuple[str, str]]) -> str:
    """Values with their meaning, large."""
    items = "".join(
        f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for value, name in tiles
    )
    return f'<ul class="tiles">{items}</ul>'


def read_resource(name: str) -> str:
    """A text file of this sub-package."""
    return (Path(__file__).parent / name).read_text("utf-8")


def default_title(run: Run) -> str:
    """Architecture and dataset, as far as the config tells."""
    name = model_name(run.config) or "Training run"
    return f"{name} on {run.evaluations[0].dataset}" if run.evaluations else name


def lead(run: Run) -> str:
    """One sentence under the title."""
    trained = ", ".join(run.config.get("DATASETS", {}).get("TRAIN") or ())
    model = " with ".join(p for p in (model_name(run.config), backbone_name(run.config)) if p)
    parts = [model, f"trained on {trained}" if trained else "", run_length(run)]
    evaluated = ", ".join(e.dataset for e in run.evaluations)
    parts.append(f"evaluated on {evaluated}" if evaluated else "not evaluated yet")
    text = ", ".join(p for p in parts if p)
    return f"{text if model else text[:1].upper() + text[1:]}."


def run_length(run: Run) -> str:
    """How far the training is, in iterations."""
    iterations, _ = run.series("total_loss")
    if not iterations:
        return ""
    done = int(iterations[-1]) + 1
    planned = run.config.get("SOLVER", {}).get("MAX_ITER")
    return f"{done} of {planned} iterations" if planned and done < planned else f"{done} iterations"


def headline(run: Run, gallery: Gallery | None) -> list[tuple[str, str]]:
    """Value and meaning of the numbers at the top of the page."""
    tiles: list[tuple[str, str]] = []
    if run.evaluations:
        tiles += headline_scores(run.evaluations[0])
    if gallery is not None:
        point = gallery.point
        tiles.append((f"{point.recall:.0%}", f"of objects found at score {point.threshold:.2f}"))
        tiles.append(
            (f"{point.precision:.0%}", f"of detections right at score {point.threshold:.2f}")
        )
    seconds = training_seconds(run)
    if seconds:
        tiles.append((format_duration(seconds), "of training"))
    losses = run.series("total_loss")[1]
    if losses and not run.evaluations:
        tiles.append((format_number(losses[-1]), "total loss so far"))
    return tiles


def headline_scores(evaluation: Evaluation) -> list[tuple[str, str]]:
    """AP and AP50 of the first task, and the recall of a selection of categories."""
    found = []
    wanted: Sequence[tuple[str, str]] = (
        ("AP", "AP, the mean over IoU 0.50-0.95"),
        ("AP50", "AP50, at IoU 0.50"),
    )
    for key, meaning in wanted:
        value = evaluation.metrics.get(f"bbox/{key}")
        if value is not None:
            found.append((f"{value:.1f}", meaning))
    for key, value in evaluation.metrics.items():
        named = re.fullmatch(r"selection/ARC(\d+)", key)
        if named and value is not None:
            size = f" of {len(evaluation.categories):,}" if evaluation.categories else ""
            meaning = f"AR^C, % of a picture's categories among the {named[1]} selected{size}"
            found.append((f"{value:.1f}", meaning))
    return found


def format_duration(seconds: float) -> str:
    """Hours and minutes, minutes (below ten with seconds), or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
