# SPDX-License-Identifier: Apache-2.0
"""The section about the gradients of class logits."""

from pathlib import Path

import pytest
import torch

from vastdet.engine.gradient_history import FILE_NAME, GradientHistory, Subject
from vastdet.engine.gradient_sums import CATEGORY_SUMS, DEFINITIONS, SUMS
from vastdet.layers.observed_logits import PARTS
from vastdet.report.gradients import gradients_section
from vastdet.report.run_folder import read_run


def write_history(
    folder: Path,
    *,
    frequency: tuple[str | None, ...],
    num_steps: int = 40,
    architecture: str = "CQDINO",
) -> None:
    """Steps in which positives have half the gradient of negatives, the last one without any."""
    names = tuple("abc")[: len(frequency)]
    counts = (1,) * len(names)
    history = GradientHistory(
        Subject(architecture, ("d",), ("probability", 0.1), names, counts, frequency)
    )
    for step in range(num_steps):
        parts = torch.ones(len(PARTS), len(DEFINITIONS), len(SUMS), dtype=torch.float64)
        parts[..., SUMS.index("negative")] = 2.0
        categories = torch.ones(
            len(DEFINITIONS), len(CATEGORY_SUMS), len(names), dtype=torch.float64
        )
        history.append(2 * step, parts, categories, torch.ones(len(names), dtype=torch.float64))
    history.save(folder / FILE_NAME)


def run_in(folder: Path) -> Path:
    (folder / "config.yaml").write_text("MODEL: {}\n")
    return folder


def test_no_measurement_no_section(tmp_path: Path) -> None:
    assert gradients_section(read_run(run_in(tmp_path))) == []


def test_the_charts_are_named_and_ratios_right(tmp_path: Path) -> None:
    write_history(run_in(tmp_path), frequency=("r", "f", None))
    (section,) = gradients_section(read_run(tmp_path))
    text = section.html()
    assert section.anchor == "gradients"
    assert "Positive to negative gradient: training loss ends at 0.5" in text
    assert "cross-entropy ends at 0.5" in text
    assert "training loss ends at 50" in text  # hard negatives, in percent
    assert "rare ends at 1, frequent ends at 1" in text
    assert "a probability of at least 0.1" in text


def test_one_frequency_group_has_no_chart_of_its_own(tmp_path: Path) -> None:
    write_history(run_in(tmp_path), frequency=("f", "f"))
    (section,) = gradients_section(read_run(tmp_path))
    assert "by frequency" not in section.html()


@pytest.mark.parametrize("architecture", ["CQDINO", "FCOS"])
def test_what_cq_dino_does_is_said_of_cq_dino_alone(tmp_path: Path, architecture: str) -> None:
    write_history(run_in(tmp_path), frequency=("f", "f"), architecture=architecture)
    (section,) = gradients_section(read_run(tmp_path))
    assert ("CQ-DINO" in section.html()) == (architecture == "CQDINO")
    assert "all others are negatives" in section.html()


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (run_in(tmp_path) / FILE_NAME).write_text("{}")
    with pytest.raises(ValueError, match="holds no gradients"):
        gradients_section(read_run(tmp_path))
