# SPDX-License-Identifier: Apache-2.0
"""The sections of the report, each a function of what was read from the run's folder.

Every text that comes from the run is escaped here or in the functions called from here.
"""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vastdet.report.charts import Series, format_number, line_chart
from vastdet.report.gallery import MIN_SHOWN_SCORE, Gallery
from vastdet.report.images import image_data_uri
from vastdet.report.run_folder import Evaluation, Run
from vastdet.report.scenes import STATE_TEXTS, draw_scene
from vastdet.report.tables import category_table, metrics_table
from vastdet.version import __version__

ARCHITECTURE_NAMES = {"GeneralizedRCNN": "R-CNN", "CQDINO": "CQ-DINO"}
PLOT_NAMES = {
    "precision_recall": "Precision and recall",
    "ap_by_size": "Size of the object",
    "ap_by_frequency": "Frequency of the category",
    "confusion_matrix": "Confusion matrix",
}
SELECTION_LEGEND = "".join(
    f'<li><i class="dot {state}"></i>selected, {text}</li>' for state, text in STATE_TEXTS.items()
)
WIDE_PLOT = 1.7  # width to height from which a plot takes the whole row


@dataclass(frozen=True)
class Section:
    """A titled part of the page; `body` is HTML."""

    anchor: str
    title: str
    body: str

    def html(self, prefix: str = "", level: int = 2) -> str:
        """The section element; `prefix` keeps the ids of several runs apart."""
        anchor, heading = f"{prefix}{self.anchor}", f"h{level}"
        return (
            f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
            f'<{heading} id="{anchor}-title" class="section">{escape(self.title)}</{heading}>'
            f"{self.body}</section>"
        )


def note(text: str) -> str:
    """An explaining paragraph; `text` is plain."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def missing(text: str) -> str:
    """Says that a part is not there; `text` is plain."""
    return f'<p class="missing">{escape(text)}</p>'


def model_name(config: dict[str, Any]) -> str:
    """The architecture under its usual name, or "" without a config."""
    model = config.get("MODEL", {})
    name = ARCHITECTURE_NAMES.get(model.get("META_ARCHITECTURE"), model.get("META_ARCHITECTURE"))
    if not name:
        return ""
    if name == "R-CNN":
        name = {"CascadeROIHeads": "Cascade R-CNN"}.get(
            model.get("ROI_HEADS", {}).get("NAME"),
            "Fast R-CNN" if model.get("LOAD_PROPOSALS") else "Faster R-CNN",
        )
    return str(name)


def backbone_name(config: dict[str, Any]) -> str:
    """The backbone in short, for example "ResNet-50 FPN", or "" without a config."""
    model = config.get("MODEL", {})
    builder = str(model.get("BACKBONE", {}).get("NAME", ""))
    plain = re.sub(r"^build_(retinanet_|fcos_)?|_backbone.*$", "", builder)
    pyramid = " FPN" if "fpn" in plain else ""
    if "timm" in plain:
        return f"{model.get('TIMM', {}).get('NAME', 'timm')}{pyramid}"
    if "resnet" in plain:
        return f"ResNet-{model.get('RESNETS', {}).get('DEPTH', '')}{pyramid}"
    return plain.replace("_", " ")


def curves_section(run: Run) -> Section:
    """Losses, learning rate, AP and recall of the selection over the iterations."""
    title = "Learning curves"
    if not run.scalars:
        return Section("curves", title, missing("No metrics.json yet: training writes it."))
    names = run.scalar_names()
    parts = [n for n in names if n.startswith("loss_") or "/loss_" in n]
    scores = [n for n in names if re.fullmatch(r"(.+/)?bbox/AP(50|75)?", n)]
    charts = [
        chart(run, ["total_loss"], "Total loss"),
        chart(run, parts, "Parts of the loss"),
        chart(run, scores, "Average precision", y_label="percent")
        if scores
        else missing("No AP yet: it comes with the first evaluation during training."),
        *recall_charts(run, names),
        chart(run, ["lr"], "Learning rate"),
    ]
    text = "Move over a chart to read the values; the losses are medians over 20 iterations."
    return Section("curves", title, note(text) + f'<div class="grid">{"".join(charts)}</div>')


def recall_charts(run: Run, names: Sequence[str]) -> list[str]:
    """Category recall over the iterations; none for a detector that selects no categories."""
    series = []
    if "category_recall" in names:
        iterations, values = run.series("category_recall")
        done = [i + 1 for i in iterations]
        series.append(Series("training batches", done, [100 * v for v in values]))
    for name in names:
        if re.fullmatch(r"(.+/)?selection/ARC\d+", name):
            iterations, values = run.series(name)
            # Of several datasets, each has its name in front.
            dataset, _, key = name.rpartition("selection/")
            series.append(
                Series(f"{dataset}{key}, evaluation", [i + 1 for i in iterations], values)
            )
    title = "Category recall of the selection"
    return [line_chart(series, title=title, y_label="percent")] if series else []


def chart(run: Run, names: Sequence[str], title: str, y_label: str = "") -> str:
    """One line chart of the scalars `names`."""
    series = []
    for name in names:
        iterations, values = run.series(name)
        # Detectron2 counts iterations from 0; a reader counts those that are done.
        done = [i + 1 for i in iterations]
        series.append(Series(name.removeprefix("bbox/"), done, values))
    return line_chart(series, title=title, y_label=y_label)


def gallery_section(gallery: Gallery | None, reason: str, prefix: str = "") -> Section:
    """Pictures with a slider for the score threshold; `prefix` is of ids."""
    title = "Detections"
    if gallery is None or not gallery.scenes:
        return Section("detections", title, missing(reason or "No pictures were asked for."))
    threshold = gallery.point.threshold
    text = (
        f"{len(gallery.scenes)} of the {gallery.num_images} images of {gallery.dataset}, evenly "
        "spaced over it and not picked by result. A detection is right when its category is and "
        "it overlaps an object by at least half (IoU 0.5). Select a picture to enlarge it."
    )
    slider = f"{prefix}threshold"
    controls = (
        f'<div class="card controls" hidden><label for="{slider}">Score at least '
        f'<output class="threshold-value" for="{slider}"></output>'
        f'<input type="range" id="{slider}" min="{MIN_SHOWN_SCORE}" max="0.95" step="0.01"'
        f' value="{max(threshold, MIN_SHOWN_SCORE):.2f}"></label>'
        '<span class="threshold-sum" aria-live="polite"></span></div>'
    )
    legend = (
        '<ul class="legend"><li class="right"><i></i>found object, right detection</li>'
        '<li class="wrong"><i></i>missed object, false detection</li>'
        "<li>left: ground truth</li><li>right: detections</li>"
        f"{SELECTION_LEGEND if gallery.recall else ''}</ul>"
    )
    scenes = "".join(
        draw_scene(s, f"{prefix}scene-{i}", threshold) for i, s in enumerate(gallery.scenes)
    )
    body = f'{note(text)}{legend}{controls}<div class="scenes">{scenes}</div>'
    return Section("detections", title, body)


def selection_section(gallery: Gallery | None) -> list[Section]:
    """Category recall by the number of selected categories; none where nothing is selected."""
    if gallery is None or gallery.recall is None or not gallery.recall.values:
        return []
    recall = gallery.recall
    best, all_categories = recall.num_selected, recall.num_categories
    text = (
        f"For each picture all {all_categories:,} categories get a score, and only the {best} best "
        "are looked for by the detector. Category recall is the share of a picture's labelled "
        "categories among the best scored ones, averaged over pictures; at "
        f"{best} it is the AR^C of the scores below. Categories drawn at random would have "
        f"{100 * best / all_categories:.0f}% there."
    )
    counts = range(1, best + 1)
    curves = line_chart(
        [Series(name, counts, values) for name, values in recall.values.items()],
        title=f"Category recall on {gallery.dataset}",
        x_label="best selected categories",
        y_label="percent",
    )
    body = f'{note(text)}<div class="grid single">{curves}</div>'
    return [Section("selection", "Selection of categories", body)]


def scores_section(evaluations: Sequence[Evaluation]) -> Section:
    """The evaluators' summary numbers."""
    body = "".join(
        f"<h3>{escape(e.dataset)}</h3>{note(e.note)}{metrics_table(e.metrics)}" for e in evaluations
    )
    empty = missing("Not evaluated yet: run tools/train_net.py with --eval-only.")
    return Section("scores", "Scores", body or empty)


def categories_section(evaluations: Sequence[Evaluation], prefix: str = "") -> Section:
    """The scores of each category; `prefix` is of ids."""
    body = "".join(
        f"<h3>{escape(e.dataset)}</h3>{category_table(e.categories, f'{prefix}table-{i}')}"
        for i, e in enumerate(evaluations)
        if e.categories
    )
    empty = missing("No scores by category yet: they come with an evaluation.")
    return Section("categories", "Categories", body or empty)


def plots_section(evaluations: Sequence[Evaluation]) -> Section:
    """The pictures that the evaluators drew."""
    figures = []
    for evaluation in evaluations:
        known = list(PLOT_NAMES)
        for file in sorted(
            evaluation.pictures,
            key=lambda f: known.index(f.stem) if f.stem in known else len(known),
        ):
            name = PLOT_NAMES.get(file.stem, file.stem.replace("_", " ").capitalize())
            text = escape(f"{name} on {evaluation.dataset}" if len(evaluations) > 1 else name)
            with Image.open(file) as picture:
                wide = " wide" if picture.width > WIDE_PLOT * picture.height else ""
            figures.append(
                f'<figure class="plot{wide}"><figcaption>{text}</figcaption>'
                f'<img src="{image_data_uri(file)}" alt="{text}" loading="lazy"></figure>'
            )
    body = f'<div class="grid">{"".join(figures)}</div>' if figures else ""
    return Section("plots", "Plots", body or missing("No plots yet: an evaluation draws them."))


def training_seconds(run: Run) -> float:
    """Seconds that the iterations took, from the median times in metrics.json; 0 if unknown."""
    iterations, times = run.series("time")
    previous = [-1.0, *iterations]
    return sum(t * (i - p) for i, p, t in zip(iterations, previous, times, strict=False))


def facts_section(run: Run) -> Section:
    """How fast it was, and on what."""
    facts: list[tuple[str, str]] = []
    _, times = run.series("time")
    _, waits = run.series("data_time")
    batch_size = run.config.get("SOLVER", {}).get("IMS_PER_BATCH")
    if times:
        median = sorted(times)[len(times) // 2]
        speed = f"{format_number(median)} s an iteration"
        speed += f", {format_number(batch_size / median)} images/s" if batch_size else ""
        facts.append(("Training speed", speed))
    if times and waits:
        share = sorted(waits)[len(waits) // 2] / max(sorted(times)[len(times) // 2], 1e-9)
        facts.append(("Waiting for data", f"{share:.0%} of the time"))
    if batch_size:
        facts.append(("Images an iteration", str(batch_size)))
    model = ", ".join(p for p in (model_name(run.config), backbone_name(run.config)) if p)
    facts += [("Model", model or "unknown"), *machine_facts(run)]
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    return Section("machine", "Speed and machine", f'<dl class="card facts">{rows}</dl>')


def machine_facts(run: Run) -> list[tuple[str, str]]:
    """Cores, device and versions of the machine that writes the page; no names of hosts."""
    versions = [f"vastdet {__version__}", f"Python {platform.python_version()}"]
    for package in ("torch", "torchvision", "numpy"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    device = str(run.config.get("MODEL", {}).get("DEVICE", "cpu"))
    if device.startswith("cuda") and torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return [
        ("Device", device),
        ("Processor", f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"),
        ("Versions", ", ".join(versions)),
    ]


def shown_path(path: Path) -> str:
    """A path as a command may use it from here; an absolute one elsewhere by its last part."""
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return path.name if path.is_absolute() else path.as_posix()


def commands_section(run: Run) -> Section:
    """What to type next."""
    folder = shown_path(run.folder)
    config, weights = f"{folder}/config.yaml", f"{folder}/model_final.pth"
    commands = [
        (
            "Detect objects in your own pictures",
            f"python tools/demo.py --config-file {config} --weights {weights} "
            "--input photos/*.jpg --output output/detections",
        ),
        (
            "Train on your own data (COCO format)",
            f"python tools/train_net.py --config-file {config} --register mine annotations.json "
            "images/ DATASETS.TRAIN \"('mine',)\" DATASETS.TEST \"('mine',)\" "
            "OUTPUT_DIR output/mine",
        ),
        (
            "Go on with this training, for longer",
            f"python tools/train_net.py --config-file {config} --resume "
            f"SOLVER.MAX_ITER {2 * int(run.config.get('SOLVER', {}).get('MAX_ITER', 0) or 5000)}",
        ),
        (
            "Evaluate again",
            f"python tools/train_net.py --config-file {config} --eval-only MODEL.WEIGHTS {weights}",
        ),
        ("Write this page again", f"python tools/make_report.py --output {folder}"),
    ]
    body = "".join(
        f'<div class="command"><p>{escape(what)}</p>'
        f'<div><pre tabindex="0">{escape(line)}</pre></div></div>'
        for what, line in commands
    )
    where = "Run these in the project's folder, after: source .venv/bin/activate"
    return Section("next", "Go on from here", note(where) + body)


def without_folders(text: str) -> str:
    """The text with every absolute path cut to its last part, for a page that is passed on."""
    return re.sub(r"(?<![\w.:/])(?:/[^/\s'\",]+)+/(?=[^/\s'\",])", "…/", text)


def config_section(run: Run) -> Section:
    """The config, folded."""
    if not run.config_text:
        return Section("config", "Config", missing("No config.yaml in the run's folder."))
    text = escape(without_folders(run.config_text))
    body = (
        f"<details><summary>All {len(run.config_text.splitlines())} lines of config.yaml</summary>"
        f'<pre tabindex="0">{text}</pre></details>'
    )
    return Section("config", "Config", body)
