# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from vastdet.data.generated import GeneratedSplit, register_generated

MODEL = """
MODEL:
  META_ARCHITECTURE: {name}
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {{NAME: {backbone}, FREEZE_AT: 0}}
  TIMM: {{NAME: test_resnet, OUT_FEATURES: [res4, res5]}}
  {own}
DATASETS: {{TRAIN: [few_scenes], TEST: []}}
DATALOADER: {{NUM_WORKERS: 0}}
INPUT: {{MIN_SIZE_TRAIN: [64]}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 10, STEPS: []}}
VERSION: 2
"""
FCOS = """FPN: {IN_FEATURES: [res4, res5], OUT_CHANNELS: 32}
  FCOS: {NUM_CLASSES: 10, IN_FEATURES: [p4, p5], SIZES_OF_INTEREST: [48], NUM_CONVS: 1}"""
SMALL = "NUM_CLASSES: 10, NUM_QUERIES: 10, EMBED_DIM: 32, NUM_HEADS: 2, FEEDFORWARD_DIM: 32"
DINO = f"DINO: {{{SMALL}, IN_FEATURES: [res4, res5], NUM_LEVELS: 2, NUM_DECODER_LAYERS: 1}}"
DETR = f"DETR: {{{SMALL}, NUM_DECODER_LAYERS: 1}}"


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Tiny models on eight generated scenes."""
    folder = tmp_path_factory.mktemp("configs")
    register_generated("few_scenes", replace(GeneratedSplit.default(10, "train"), num_images=8))
    files = {}
    for name, backbone, own in (
        ("FCOS", "build_timm_fpn_backbone", FCOS),
        ("DINO", "build_timm_backbone", DINO),
        ("DETR", "build_timm_backbone", DETR),
    ):
        path = folder / f"{name.lower()}.yaml"
        path.write_text(MODEL.format(name=name, backbone=backbone, own=own))
        files[name] = str(path)
    yield files
    DatasetCatalog.remove("few_scenes")
    MetadataCatalog.remove("few_scenes")


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("analyze_gradients")


def test_trains_draws_and_draws_again(
    configs: dict[str, str], tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = [
        "--config-file", configs["FCOS"],
        "--run", "ce", configs["DINO"], "MODEL.DINO.LOSS.CLASS_LOSS", "cross_entropy",
        "--iterations", "3", "--output", str(output),
        "SOLVER.BASE_LR", "0.0001",
    ]  # fmt: skip
    assert tool.main(arguments) == 0
    table = (output / "gradients.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:4]] == ["ce", "fcos"]
    names = {"ratio.png", "hard_negatives.png", "categories.png", "gradients.md", "ce", "fcos"}
    assert {path.name for path in output.iterdir()} == names
    measured = json.loads((output / "ce" / "gradients.json").read_text())
    assert measured["iterations"] == [0, 1, 2]
    # Neither weights nor evaluations are left behind.
    assert not list(output.rglob("*.pth"))
    assert not list(output.rglob("inference"))

    # The same again, and with one run more.
    first = (output / "ce" / "gradients.json").read_bytes()
    again = ["--run", "again", configs["DINO"], "MODEL.DINO.LOSS.CLASS_LOSS", "cross_entropy"]
    again += ["--iterations", "3", "--output", str(output), "SOLVER.BASE_LR", "0.0001"]
    assert tool.main(again) == 0
    assert (output / "again" / "gradients.json").read_bytes() == first
    runs = [
        line.split("|")[1].strip() for line in (output / "gradients.md").open().readlines()[2:5]
    ]
    assert runs == ["again", "ce", "fcos"]

    assert tool.main(["--from", str(output), "--output", str(tmp_path / "redrawn")]) == 0
    redrawn = (tmp_path / "redrawn" / "gradients.md").read_text()
    assert redrawn == (output / "gradients.md").read_text()


def test_wrong_input_is_one_line(
    configs: dict[str, str], tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "out")]
    short = ["--iterations", "2"]
    for arguments, message in (
        (["--config-file", configs["DETR"], *short], "DETR has no class loss with sigmoids"),
        (["--config-file", configs["FCOS"], "--iterations", "11"], "got 11 iterations for a sched"),
        (["--config-file", configs["FCOS"], configs["FCOS"]], "several runs are called fcos"),
        (["--run", "alone"], "--run alone: expected NAME YAML KEY VALUE"),
        ([], "give either runs (--config-file, --run) or folders to draw (--from)"),
        (["--from", str(tmp_path)], "holds a gradients.json"),
        (["--config-file", "missing.yaml"], "There is no config file missing.yaml"),
    ):
        assert tool.main([*arguments, *output]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    assert not list(tmp_path.rglob("gradients.json"))
