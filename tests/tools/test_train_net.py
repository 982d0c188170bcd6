# SPDX-License-Identifier: Apache-2.0
"""The script itself; what it does is tested in tests/engine."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vastdet.data.derive import keep_images


def test_missing_config_file_is_one_line(repository: Path) -> None:
    script = str(repository / "tools" / "train_net.py")
    command = [sys.executable, script, "--config-file", "configs/none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: There is no config file")
    assert "Traceback" not in done.stderr
    assert "FutureWarning" not in done.stderr


def test_commands_in_help_name_configs_that_exist(repository: Path) -> None:
    files = [*(repository / "tools").glob("*.py")]
    files += [repository / "projects/vastdet/engine/command_line.py"]
    named = {
        name for file in files for name in re.findall(r"configs/[\w/]+\.yaml", file.read_text())
    }
    assert named
    assert not [name for name in sorted(named) if not (repository / name).is_file()]


@pytest.mark.slow
def test_photographs_with_the_categories_of_v3det(
    shared_data: Path, repository: Path, tmp_path: Path
) -> None:
    """COCO's and LVIS's photographs, the tree of 13,204 categories: datasets/README.md."""
    meta, registered = shared_data / "v3det_meta", []
    for name, source, num_images, options in (
        ("coco", "coco_cc/annotations/val.json", 8, ["coco80_to_v3det.json"]),
        ("lvis", "lvis_mini/annotations/lvis_v0.5_val_cc.json", 3,
         ["lvis_v1_to_v3det.json", "--by", "synset"]),
    ):  # fmt: skip
        some, output = tmp_path / f"{name}_some.json", tmp_path / f"{name}.json"
        document = json.loads((shared_data / source).read_text())
        kept = sorted(image["id"] for image in document["images"])[:num_images]
        some.write_text(json.dumps(keep_images(document, kept)))
        run(
            [repository / "datasets/prepare_recategorized.py", "--input", some],
            ["--output", output, "--key", "v3det_id", "--mapping", meta / options[0], *options[1:]],
            ["--categories", meta / "v3det_2023_v1_train_cat_info.json"],
        )
        images = (shared_data / source).parents[1] / "images"
        tree = meta / "v3det_category_tree_from_wordnet.json"
        registered += ["--register-v3det", name, output, images, tree]
    run(
        [repository / "tools/train_net.py", *registered],
        ["--config-file", repository / "configs/quick/cq_dino_photographs.yaml"],
        ["OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2],
        ["DATASETS.TRAIN", "('coco',)", "DATASETS.TEST", "('lvis',)"],
        ["DATALOADER.NUM_WORKERS", 0, "SOLVER.AMP.ENABLED", False],
        ["MODEL.WEIGHTS", repository / "configs/quick/weights/box_classifier_kinds.safetensors"],
    )
    assert (tmp_path / "run/model_final.pth").is_file()
    metrics: dict[str, float] = {}
    for line in (tmp_path / "run/metrics.json").read_text().splitlines():
        metrics |= json.loads(line)
    assert math.isfinite(metrics["total_loss"])
    for key in ("bbox/AP", "bbox/APnovel", "bbox_tree/AP", "selection/ARC100"):
        assert 0 <= metrics[key] <= 100


def run(*parts: list[object]) -> None:
    """Run a script of the repository with arguments; it must succeed."""
    arguments = [str(part) for group in parts for part in group]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
