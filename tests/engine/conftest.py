# SPDX-License-Identifier: Apache-2.0
"""A toy dataset, a toy config, and real processes that train on them.

Starting Python with torch takes seconds, so one process imports everything once and forks a child
for each training run: children are real processes, which a test may kill at any point.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

NUM_IMAGES = 11
CATEGORIES = ("dot", "ring", "bar")

RETINANET = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  DEVICE: cpu
  WEIGHTS: ""
  PIXEL_STD: [64.0, 64.0, 64.0]
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS:
    {DEPTH: 50, STEM_OUT_CHANNELS: 4, RES2_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 2, NORM: BN,
     OUT_FEATURES: [res3, res4, res5]}
  FPN: {IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 8}
  ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [128]]}
  RETINANET: {NUM_CLASSES: 3, NUM_CONVS: 1, IOU_LABELS: [0, -1, 1], IOU_THRESHOLDS: [0.4, 0.5]}
DATASETS: {TRAIN: [toy], TEST: []}
INPUT: {MIN_SIZE_TRAIN: [48, 64], MAX_SIZE_TRAIN: 96, MIN_SIZE_TEST: 48, MAX_SIZE_TEST: 96}
SOLVER:
  {IMS_PER_BATCH: 4, MAX_ITER: 8, BASE_LR: 0.02, STEPS: [6], WARMUP_ITERS: 3, CHECKPOINT_PERIOD: 2,
   EMA: {ENABLED: true, DECAY: 0.9, WARMUP: 4}}
DATALOADER: {NUM_WORKERS: 0}
SEED: 7
"""


def write_toy_dataset(folder: Path) -> None:
    """Noise pictures with one to three boxes each, portrait and landscape, as COCO files."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(NUM_IMAGES):
        height, width = ((48, 64), (64, 48))[i % 2]
        image = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for _ in range(1 + i % 3):
            x, y, w, h = (int(v) for v in generator.integers(4, 24, 4))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": 1 + i % 3,
                 "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "toy.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with toy.json, images/ and retinanet.yaml."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy_dataset(folder)
    (folder / "retinanet.yaml").write_text(RETINANET)
    return folder


@pytest.fixture(scope="session")
def toy_arguments(toy_folder: Path) -> list[str]:
    """The command line that trains the toy config; append options and KEY VALUE pairs."""
    register = ["--register", "toy", str(toy_folder / "toy.json"), str(toy_folder / "images")]
    return ["--config-file", str(toy_folder / "retinanet.yaml"), *register]


Train = Callable[..., list[int]]


@pytest.fixture(scope="session")
def train(toy_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    """Run train_net in forked processes: train(*options, ...) -> exit codes.

    `processes` of them are started as torchrun or slurm (`starter`) would. `kill` names a point of
    training_process.py where the process kills itself. A code of -9 means killed by SIGKILL.
    """
    script = Path(__file__).with_name("training_process.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tmp_path_factory.mktemp("log") / "training.txt"
    with log.open("w") as log_file:
        server = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            env=environment,
        )
        assert server.stdin is not None
        assert server.stdout is not None

        def run(
            *options: str,
            kill: str | None = None,
            processes: int = 1,
            starter: str | None = None,
        ) -> list[int]:
            job = {"argv": [*toy_arguments, *options], "kill": kill, "processes": processes}
            job["starter"] = starter or ("torchrun" if processes > 1 else "none")
            start = log.stat().st_size
            server.stdin.write(json.dumps(job) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
            assert answer, f"the training process died:\n{log.read_text()[-3000:]}"
            # Shown by pytest when the test fails.
            print(log.read_text()[start:][-3000:])
            return json.loads(answer)

        yield run
        server.stdin.close()
        server.wait(timeout=30)


@pytest.fixture(scope="session")
def load() -> Callable[[Path], dict[str, Any]]:
    """Read a checkpoint as anyone would."""
    return lambda path: torch.load(path, map_location="cpu", weights_only=True)
