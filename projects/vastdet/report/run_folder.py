# SPDX-License-Identifier: Apache-2.0
"""Reads the folder of a training run: scalars over time, config, evaluations.

A part that is not there yet (no evaluation so far, a run still going on) is left empty; a part that
is there and cannot be read is an error.
"""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vastdet.evaluation.selected import FILE_NAME as SELECTION_NAME
from vastdet.files import read_json

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator wrote about one dataset.

    `metrics` maps names such as "bbox/AP" to percent (0-100); a value that is not defined (no
    ground truth of that size) is None. `categories` are the rows of per_category.csv as text;
    `note` says how the numbers must be read, where that needs saying.
    """

    dataset: str
    note: str = ""
    metrics: dict[str, float | None] = field(default_factory=dict)
    categories: list[dict[str, str]] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    detections_file: Path | None = None
    selection_file: Path | None = None


@dataclass(frozen=True)
class Run:
    """A training run's folder as far as it has been written.

    `scalars` has one dict an iteration, ascending, each with "iteration"; `config` is the parsed
    config.yaml and `config_text` its text.
    """

    folder: Path
    scalars: list[dict[str, float | None]]
    config: dict[str, Any]
    config_text: str
    evaluations: list[Evaluation]

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Iterations and values of one scalar, without the points that are not finite."""
        points = [(s["iteration"], s.get(name)) for s in self.scalars]
        kept = [(i, v) for i, v in points if i is not None and v is not None]
        return [i for i, _ in kept], [v for _, v in kept]

    def scalar_names(self) -> list[str]:
        """Every scalar's name, in alphabetical order."""
        return sorted({name for s in self.scalars for name in s} - {"iteration"})


def read_run(folder: str | Path) -> Run:
    """Read a run's folder (the layout is in the module `vastdet.report`).

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it comes from a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: give the OUTPUT_DIR of a training run, for example output/demo"
        )
    config_file = folder / "config.yaml"
    config_text = config_file.read_text("utf-8") if config_file.is_file() else ""
    config = parse_config(config_file, config_text)
    named = list((config.get("DATASETS") or {}).get("TEST") or ())
    run = Run(
        folder=folder,
        scalars=read_scalars(folder / "metrics.json"),
        config=config,
        config_text=config_text,
        evaluations=sorted(
            read_evaluations(folder / "inference"),
            # In the order of the config, whose first set is the one that matters most.
            key=lambda e: named.index(e.dataset) if e.dataset in named else len(named),
        ),
    )
    if not (run.scalars or run.config or run.evaluations):
        raise FileNotFoundError(
            f"{folder} has no metrics.json, config.yaml or inference/ of a training run: "
            "give the run's OUTPUT_DIR"
        )
    return run


def parse_config(file: Path, text: str) -> dict[str, Any]:
    """The config as plain data; YAML that would build Python objects is refused."""
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not plain YAML, as training writes it: {error}") from error


def read_scalars(file: Path) -> list[dict[str, float | None]]:
    """Read the lines of Detectron2's JSONWriter, ascending by iteration; no file, no lines.

    A resumed run appends to the file and starts again at its last checkpoint, so what an earlier
    try wrote beyond that point is dropped. A last line cut short by a killed process is dropped
    too; such a line anywhere else raises ValueError.
    """
    if not file.is_file():
        return []
    rows: list[dict[str, float | None]] = []
    lines = file.read_text("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{file}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or "iteration" not in row:
            continue
        while rows and rows[-1]["iteration"] > row["iteration"]:
            rows.pop()
        values = {k: finite_or_none(v) for k, v in row.items() if isinstance(v, (int, float))}
        if rows and rows[-1]["iteration"] == row["iteration"]:
            rows[-1].update(values)
        else:
            rows.append(values)
    return rows


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Read inference/<dataset>/; a file directly in inference/ belongs to no dataset."""
    if not folder.is_dir():
        return []
    found = []
    for dataset_folder in sorted(p for p in folder.iterdir() if p.is_dir()):
        metrics_file = dataset_folder / "metrics.json"
        table_file = dataset_folder / "per_category.csv"
        detections_file = dataset_folder / "coco_instances_results.json"
        selection_file = dataset_folder / SELECTION_NAME
        content = {}
        if metrics_file.is_file():
            content = read_json(metrics_file, advice="evaluate again to rewrite it")
        evaluation = Evaluation(
            dataset=str(content.get("dataset") or dataset_folder.name),
            note=str(content.get("note") or ""),
            metrics=flatten(content),
            categories=read_table(table_file) if table_file.is_file() else [],
            pictures=sorted(
                p for p in dataset_folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES
            ),
            detections_file=detections_file if detections_file.is_file() else None,
            selection_file=selection_file if selection_file.is_file() else None,
        )
        if evaluation.metrics or evaluation.categories or detections_file.is_file():
            found.append(evaluation)
    return found


def read_table(file: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header line, every value as text."""
    with file.open(encoding="utf-8", newline="") as stream:
        return [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(stream)]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Turn {"bbox": {"AP": 1.0}} into {"bbox/AP": 1.0}, numbers only."""
    flat: dict[str, float | None] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}/"))
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            flat[f"{prefix}{key}"] = finite_or_none(value)
    return flat


def finite_or_none(value: float | None) -> float | None:
    """The number, or None for nan, infinity and None."""
    return float(value) if value is not None and math.isfinite(value) else None
