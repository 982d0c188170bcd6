# SPDX-License-Identifier: Apache-2.0
"""The trainer on toy data, in this process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from vastdet.data import register_coco
from vastdet.engine import Trainer, load_config
from vastdet.engine.dataset_checks import check_datasets
from vastdet.engine.trainer import forget_metrics

FASTER_RCNN = [
    "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']",
    "MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']",
    "MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']",
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']",
    "MODEL.ROI_HEADS.NUM_CLASSES", "3",
    "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC", "1",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
]  # fmt: skip


@pytest.fixture
def make_cfg(toy_folder: Path, tmp_path: Path) -> Iterator[Callable[..., CfgNode]]:
    register_coco("toy", toy_folder / "toy.json", toy_folder / "images")
    output = ["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "3"]
    yield lambda *opts: load_config(toy_folder / "retinanet.yaml", [*output, *opts])
    DatasetCatalog.remove("toy")
    MetadataCatalog.remove("toy")


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


@pytest.mark.parametrize("architecture", [[], FASTER_RCNN], ids=["retinanet", "faster_rcnn"])
@pytest.mark.parametrize("amp", ["True", "False"])
def test_trains_and_evaluates(
    architecture: list[str], amp: str, make_cfg: Callable, tmp_path: Path
) -> None:
    opts = ["SOLVER.AMP.ENABLED", amp, "DATASETS.TEST", "('toy',)", "TEST.EVAL_PERIOD", "2"]
    opts += ["TEST.AMP.ENABLED", amp]
    opts += ["MODEL.ACTIVATION_CHECKPOINTING", "True", "SOLVER.OPTIMIZER", "AdamW"]
    opts += ["SOLVER.BASE_LR", "0.0001"]
    # Of a map one cell wide (P6 of 64 pixels) oneDNN's bfloat16 gradient of the convolution with
    # stride 2 to P7 holds memory that nobody wrote, at times a NaN (torch 2.14).
    opts += ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", "128"]
    trainer = Trainer(make_cfg(*architecture, *opts))
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert results is not None
    assert "AP" in results["bbox"]
    assert all(np.isfinite(losses(tmp_path)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    # Both evaluations are on record, though they are nearer than the writers' period.
    assert [line["iteration"] for line in lines if "bbox/AP" in line] == [1, 3]
    assert (tmp_path / "inference" / "toy" / "coco_instances_results.json").exists()


def test_evaluation_and_checkpoint_use_the_average(make_cfg: Callable, tmp_path: Path) -> None:
    cfg = make_cfg("DATASETS.TEST", "('toy',)", "SOLVER.EMA.DECAY", "0.5")
    seen = []

    class Spy(Trainer):
        @classmethod
        def test(cls, cfg: CfgNode, model: Any, evaluators: Any = None) -> dict[str, Any]:
            torch.rand(3)
            seen.append({k: v.clone() for k, v in model.state_dict().items()})
            return {}

    trainer = Spy(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    (evaluated,) = seen
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    own = trainer.model.state_dict()
    assert all(torch.equal(evaluated[k], saved[k]) for k in saved)
    assert any(not torch.equal(own[k], saved[k]) for k in saved)


def test_average_starts_from_the_loaded_weights(make_cfg: Callable, tmp_path: Path) -> None:
    first = Trainer(make_cfg())
    path = tmp_path / "start.pth"
    torch.save({"model": first.model.state_dict()}, path)
    trainer = Trainer(make_cfg("MODEL.WEIGHTS", str(path), "SEED", "99"))
    trainer.resume_or_load(resume=False)
    assert trainer.ema is not None
    for name, value in first.model.state_dict().items():
        assert torch.equal(trainer.ema.weights[name], value)


def test_precise_statistics_are_those_of_fixed_batches(make_cfg: Callable) -> None:
    opts = ["TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2"]
    trainer = Trainer(make_cfg(*opts))
    hook = next(hook for hook in trainer._hooks if "PreciseBN" in type(hook).__name__)
    found = []
    for _ in range(2):
        state = torch.get_rng_state()
        hook.update_stats()
        assert torch.equal(torch.get_rng_state(), state)
        found.append(trainer.model.backbone.bottom_up.stem.conv1.norm.running_mean.clone())
    assert torch.equal(*found)


def test_nan_in_training_stops_with_names(make_cfg: Callable) -> None:
    trainer = Trainer(make_cfg("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0"))
    with pytest.raises(FloatingPointError, match=r"(?s)iteration 1.*loss_cls.*\.png"):
        trainer.train()


def test_class_count_must_fit(make_cfg: Callable) -> None:
    with pytest.raises(ValueError, match=r"'toy' has 3 categories.*built for 5") as error:
        Trainer(make_cfg("MODEL.RETINANET.NUM_CLASSES", "5"))
    assert "Set MODEL.RETINANET.NUM_CLASSES to 3" in str(error.value)
    with pytest.raises(ValueError, match=r"Set MODEL\.ROI_HEADS\.NUM_CLASSES to 3"):
        Trainer(make_cfg(*FASTER_RCNN, "MODEL.ROI_HEADS.NUM_CLASSES", "7"))


def test_datasets_must_exist(make_cfg: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="toy"):
        Trainer(make_cfg("DATASETS.TRAIN", "('tony',)"))
    register_coco("astray", "no/such/file.json", "no/such/folder")
    try:
        with pytest.raises(FileNotFoundError, match=r"no/such/file\.json.*--register"):
            check_datasets(["astray"])
    finally:
        DatasetCatalog.remove("astray")
        MetadataCatalog.remove("astray")
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        check_datasets(["coco_2017_train"])


def test_broken_image_is_skipped_and_reported(
    make_cfg: Callable, toy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (toy_folder / "images").iterdir():
        cv2.imwrite(str(images / path.name), cv2.imread(str(path)))
    (images / "3.png").write_bytes(b"")
    register_coco("with_broken", toy_folder / "toy.json", images)
    opts = ["DATASETS.TRAIN", "('with_broken',)", "SOLVER.MAX_ITER", "4"]
    try:
        trainer = Trainer(make_cfg(*opts))
        with caplog.at_level("WARNING"):
            trainer.train()
        assert list(trainer.data_loader.broken) == [str(images / "3.png")]
        assert "1 broken training records were skipped" in caplog.text
        with pytest.raises(ValueError, match=r"3\.png"):
            Trainer(make_cfg(*opts, "DATALOADER.BROKEN_RECORDS", "raise")).train()
    finally:
        DatasetCatalog.remove("with_broken")
        MetadataCatalog.remove("with_broken")


def test_metrics_of_a_stopped_run_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    forget_metrics(path, 3)
    assert not path.exists()
    lines = [json.dumps({"iteration": i}) + "\n" for i in (1, 2, 3, 4)]
    path.write_text("".join(lines) + '{"iterat')
    forget_metrics(path, 3)
    assert path.read_text() == "".join(lines[:2])
    path.write_text(lines[0] + '{"iterat')
    forget_metrics(path, 3)
    assert path.read_text() == lines[0]
