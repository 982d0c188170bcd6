# SPDX-License-Identifier: Apache-2.0
"""Pictures and the table of compared trainings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vastdet.engine.gradient_history import GradientHistory, Subject
from vastdet.engine.gradient_report import (
    Run,
    as_markdown,
    number,
    ratio,
    read_runs,
    share_of_negatives,
    trailing_sums,
    write_gradient_report,
)
from vastdet.layers.observed_logits import PARTS

GROUPS = ("r", "c", "f", None)


def run_of(name: str, num_categories: int, num_steps: int) -> Run:
    """In step t rho is 1 / (t + 1), eta 0.25; each has a gradient of 10 a category."""
    history = GradientHistory(
        Subject(
            "DINO",
            ("toy",),
            ("probability", 0.1),
            tuple(f"category {k}" for k in range(num_categories)),
            tuple(range(num_categories)),
            tuple(GROUPS[k % 4] for k in range(num_categories)),
        )
    )
    for t in range(num_steps):
        parts = torch.zeros(len(PARTS), 2, 5, dtype=torch.float64)
        row = torch.tensor([8.0, 8.0 * (t + 1), 2.0 * (t + 1), 4.0, 3.0], dtype=torch.float64)
        parts[0] = row
        categories = torch.full((2, 3, num_categories), 10.0, dtype=torch.float64)
        categories[:, 0, num_categories // 2 :] = 0
        history.append(t, parts, categories, torch.ones(num_categories))
    return Run(name, history)


def test_ratios_are_those_of_sums_over_the_last_steps() -> None:
    assert trailing_sums(np.array([1.0, 2.0, 4.0, 8.0]), 2).tolist() == [1, 3, 6, 12]
    assert trailing_sums(np.array([1.0, 2.0]), 9).tolist() == [1, 3]
    assert np.isnan(ratio(np.array([1.0]), np.array([0.0]))).all()
    history = run_of("a", 4, 3).history
    np.testing.assert_allclose(
        share_of_negatives(history, "positive", "loss", 1), [1, 1 / 2, 1 / 3]
    )
    np.testing.assert_allclose(
        share_of_negatives(history, "positive", "loss", 2), [1, 2 / 3, 2 / 5]
    )
    np.testing.assert_allclose(share_of_negatives(history, "hard", "cross_entropy", 2), [0.25] * 3)


def test_table_speaks_of_the_first_and_the_last_steps() -> None:
    text = as_markdown([run_of("small", 8, 8), run_of("one", 1, 1)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[:4]]
    header, _, small, one = rows
    found = dict(zip(header, small, strict=True))
    assert found["run"] == "small"
    assert (found["categories"], found["steps"]) == ("8", "8")
    assert found["ρ, first 10%"] == "1"
    assert found["ρ"] == number(2, 7 + 8)
    assert found["ρ, matched queries"] == "2"
    assert (found["η"], found["η, matched queries"]) == ("0.25", "0.75")
    # Half of the categories have positives: one of two rare ones.
    assert found["ρ rare"] == "0.5"
    assert one[:5] == ["one", "DINO", "1", "1", "1"]
    assert "have a probability of at least 0.1" in text


def test_numbers() -> None:
    assert number(1, 0) == "–"
    assert number(0, 1) == "0"
    assert number(1, 3) == "0.333"
    assert number(12_345_678, 1) == "12,345,678"


@pytest.mark.parametrize("sizes", [(1,), (4, 60), (3, 3, 3, 1500), (9,) * 8])
def test_pictures_of_few_and_many(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    runs = [run_of(f"run {r}", size, 1 + 5 * r) for r, size in enumerate(sizes)]
    write_gradient_report(runs, tmp_path)
    for name in ("ratio", "hard_negatives", "categories"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 500
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    assert (tmp_path / "gradients.md").read_text() == as_markdown(runs)


def test_runs_are_read_from_their_folders_and_from_above(tmp_path: Path) -> None:
    for name, size in (("b", 3), ("a", 3), ("c", 2)):
        run_of(name, size, 2).history.save(tmp_path / "all" / name / "gradients.json")
    (tmp_path / "all" / "notes").mkdir()
    assert [run.name for run in read_runs([tmp_path / "all"])] == ["c", "a", "b"]
    chosen = read_runs([tmp_path / "all" / "b", tmp_path / "all" / "c"])
    assert [run.name for run in chosen] == ["c", "b"]
    with pytest.raises(FileNotFoundError, match=r"nor a folder in it holds a gradients\.json"):
        read_runs([tmp_path / "all" / "notes"])
