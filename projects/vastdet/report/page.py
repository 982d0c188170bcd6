# SPDX-License-Identifier: Apache-2.0
"""Puts the parts of the report together and writes index.html."""

import logging
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from vastdet.files import write_atomically
from vastdet.report.charts import format_number
from vastdet.report.gallery import Gallery, read_gallery
from vastdet.report.run_folder import Evaluation, Run, read_run
from vastdet.report.sections import (
    backbone_name,
    categories_section,
    commands_section,
    config_section,
    curves_section,
    facts_section,
    gallery_section,
    model_name,
    plots_section,
    scores_section,
    training_seconds,
)
from vastdet.version import __version__

logger = logging.getLogger(__name__)

MAX_PAGE_BYTES = 5_000_000
DEFAULT_NUM_PICTURES = 12


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
    if num_pictures < 0:
        raise ValueError(f"num_pictures must be 0 or more, got {num_pictures}")
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold must lie in [0, 1], got {score_threshold}")
    run = read_run(output_dir)
    path = Path(page) if page is not None else run.folder / "index.html"
    while True:
        gallery, reason = find_gallery(run, num_pictures, score_threshold)
        html = render(run, title, gallery, reason).encode("utf-8")
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
                num_pictures=num_pictures,
                score_threshold=score_threshold,
            ),
            "",
        )
    except FileNotFoundError as error:
        # A dataset that is not at hand is no reason to withhold the rest.
        logger.warning("no pictures on the page: %s", error)
        return None, f"No pictures of {evaluation.dataset}: its images are not at hand here."


def render(run: Run, title: str, gallery: Gallery | None, no_gallery: str) -> str:
    """The page's text."""
    sections = [
        curves_section(run),
        gallery_section(gallery, no_gallery),
        scores_section(run.evaluations),
        categories_section(run.evaluations),
        plots_section(run.evaluations),
        facts_section(run),
        commands_section(run),
        config_section(run),
    ]
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return Template(read_resource("template.html")).substitute(
        title=escape(title or default_title(run)),
        lead=escape(lead(run)),
        tiles="".join(
            f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>"
            for value, name in headline(run, gallery)
        ),
        links="".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections),
        sections="\n".join(s.html() for s in sections),
        footer=f"Written by vastdet {escape(__version__)} on {now}.",
        style=read_resource("style.css"),
        script=read_resource("script.js"),
    )


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
    """AP and AP50 of the first task."""
    found = []
    wanted: Sequence[tuple[str, str]] = (
        ("AP", "AP, the mean over IoU 0.50-0.95"),
        ("AP50", "AP50, at IoU 0.50"),
    )
    for key, meaning in wanted:
        value = evaluation.metrics.get(f"bbox/{key}")
        if value is not None:
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
