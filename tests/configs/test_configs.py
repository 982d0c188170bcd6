# SPDX-License-Identifier: Apache-2.0
"""Every YAML of configs/: its opening comment, safe loading, building, consistent values."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2 import model_zoo as detectron2_model_zoo
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from vastdet.backbones import timm_backbone
from vastdet.data import build_train_loader, save_proposals
from vastdet.data.proposals import ImageProposals
from vastdet.data.samplers import SAMPLERS
from vastdet.engine import set_num_classes
from vastdet.engine.config_files import class_count_key, value_of
from vastdet.model_zoo import get_config, get_config_file, list_configs
from vastdet.model_zoo.cq_dino_models import number_categories

NAMES = list_configs()
# The others are bases: no models of their own.
MODELS = [name for name in NAMES if not name.rsplit("/", 1)[-1].startswith("Base-")]
HEADER_PARTS = ("Command:", "Hardware:", "Paper:", "Ours:")
# Bases of data alone, for any detector.
DATA_BASES = {"Base-V3Det": 13_204, "Base-LVIS": 1_203}
# Bases of a backbone alone, for any detector.
BACKBONE_BASES = ("Base-Swin-T", "Base-Swin-B", "Base-Swin-B-22k", "Base-Swin-L")
ITERATIONS = {"1x": 90_000, "2x": 180_000, "3x": 270_000}
# Our name -> Detectron2's config of the same model.
TWINS = {
    "FasterRCNN/faster_rcnn_R_50_C4_1x": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "FasterRCNN/faster_rcnn_R_50_C4_3x": "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml",
    "FasterRCNN/faster_rcnn_R_101_C4_3x": "COCO-Detection/faster_rcnn_R_101_C4_3x.yaml",
    "FasterRCNN/faster_rcnn_R_50_FPN_1x": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "FasterRCNN/faster_rcnn_R_50_FPN_3x": "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
    "FasterRCNN/faster_rcnn_R_101_FPN_3x": "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
    "RetinaNet/retinanet_R_50_FPN_1x": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "RetinaNet/retinanet_R_50_FPN_3x": "COCO-Detection/retinanet_R_50_FPN_3x.yaml",
    "RetinaNet/retinanet_R_101_FPN_3x": "COCO-Detection/retinanet_R_101_FPN_3x.yaml",
    "FastRCNN/fast_rcnn_R_50_FPN_1x": "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml",
    "FasterRCNN/faster_rcnn_R_50_FPN_1x_lvis": (
        "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    ),
}


def opening_comment(path: str) -> str:
    lines = Path(path).read_text("utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment)


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_paper_command_hardware_and_results(name: str) -> None:
    comment = opening_comment(get_config_file(name))
    missing = [part for part in HEADER_PARTS if part not in comment]
    assert not missing, f"the opening comment lacks {missing}"
    paper = re.search(r"\([^()]* (19|20)\d\d\b|arXiv:\d{4}\.\d{5}", comment)
    assert paper or "theirs" in comment, "no author and year, nor an arXiv number"
    if name in MODELS:
        assert f"configs/{name}.yaml" in comment, "the command names another file"
        assert re.search(r"\d+(\.\d+)?( AP| \(torchvision)|no published figure", comment)
        assert re.search(r"Ours: (not run here|see projects/|\d)", comment)


@pytest.mark.parametrize("name", NAMES)
def test_holds_no_python_tags(name: str) -> None:
    assert "!!" not in Path(get_config_file(name)).read_text("utf-8")


def without_files(cfg: CfgNode) -> CfgNode:
    """The config of a model whose categories need neither a dataset nor embeddings on disk."""
    cfg.MODEL.CQ_DINO.CATEGORY.EMBEDDINGS = "random"
    cfg.MODEL.PROVA.TEXTUAL_PROTOTYPES = cfg.MODEL.PROVA.VISUAL_PROTOTYPES = "random:768"
    if not cfg.DATASETS.TRAIN[0].startswith("generated_"):
        number_categories(cfg)
    return cfg


@pytest.mark.parametrize("name", MODELS)
def test_builds_its_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm_backbone._create
    # No weights are fetched here.
    monkeypatch.setattr(
        timm_backbone, "_create", lambda name, **x: create(name, **{**x, "pretrained": False})
    )
    cfg = without_files(get_config(name))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 100_000
    if name.startswith("quick/"):
        assert sum(p.numel() for p in model.parameters()) < 12_000_000


def test_small_configs_train_every_layer() -> None:
    for name in NAMES:
        if name.startswith("quick/") and not name.startswith("quick/Base-"):
            assert get_config(name).MODEL.BACKBONE.FREEZE_AT == 0, name


@pytest.mark.parametrize("name", NAMES)
def test_schedule_is_consistent(name: str) -> None:
    cfg = get_config(name)
    solver = cfg.SOLVER
    # A base says nothing of the scheduler that its users choose.
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and "Base-" not in name:
        assert list(solver.STEPS) == sorted(set(solver.STEPS))
        assert max(solver.STEPS, default=0) < solver.MAX_ITER
    assert solver.WARMUP_ITERS < solver.MAX_ITER
    assert solver.IMS_PER_BATCH % max(1, solver.ACCUMULATION_STEPS) == 0
    assert cfg.VERSION == 2
    if "IMS_PER_BATCH" in Path(get_config_file(name)).read_text("utf-8"):
        assert solver.REFERENCE_BATCH_SIZE == solver.IMS_PER_BATCH, "a recipe names its batch"
    schedule = name.rsplit("_", 1)[-1]
    if schedule in ITERATIONS:
        assert ITERATIONS[schedule] == solver.MAX_ITER
        assert solver.IMS_PER_BATCH == 16
    is_partial = name.startswith("quick/") or name in (*DATA_BASES, *BACKBONE_BASES)
    if solver.OPTIMIZER == "SGD" and not is_partial:
        # One-stage detectors use half the rate of two-stage ones (RetinaNet, section 4.1).
        two_stage = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
        assert (0.02 if two_stage else 0.01) == solver.BASE_LR


@pytest.mark.parametrize("name", MODELS)
def test_classes_and_files_fit_the_data(name: str) -> None:
    cfg = get_config(name)
    expected = {
        "coco_2017_train_panoptic": 133,
        "coco_2017_train": 80,
        "generated_24_train": 24,
        "generated_kinds_1000_train": 1_000,
        "bccd_train": 3,
        "v3det_train": DATA_BASES["Base-V3Det"],
        "lvis_v1_train": DATA_BASES["Base-LVIS"],
    }
    assert value_of(cfg, class_count_key(cfg)) == expected[cfg.DATASETS.TRAIN[0]]
    if cfg.MODEL.LOAD_PROPOSALS:
        assert cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals"
        for split, files in (
            (cfg.DATASETS.TRAIN, cfg.DATASETS.PROPOSAL_FILES_TRAIN),
            (cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST),
        ):
            assert [Path(file).stem for file in files] == list(split)
    assert max(cfg.INPUT.MIN_SIZE_TRAIN) <= cfg.INPUT.MAX_SIZE_TRAIN
    assert cfg.INPUT.MAX_SIZE_TEST >= cfg.INPUT.MIN_SIZE_TEST


@pytest.mark.parametrize("name", DATA_BASES)
def test_recipes_of_vast_data(name: str) -> None:
    base, kind = get_config(name), name.removeprefix("Base-").lower()
    users = [get_config(n) for n in MODELS if f"_{kind}" in n]
    samplers = {cfg.DATALOADER.SAMPLER_TRAIN for cfg in users}
    expected = {"RepeatFactorTrainingSampler"}
    if name == "Base-V3Det":
        expected.add("ClassAwareTrainingSampler")
    assert samplers == expected <= set(SAMPLERS)
    for cfg in users:
        assert base.DATASETS == cfg.DATASETS
        assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.001
        assert cfg.TEST.DETECTIONS_PER_IMAGE == max(cfg.TEST.MAX_DETS) == 300
        assert cfg.INPUT.MAX_SIZE_TRAIN == cfg.INPUT.MAX_SIZE_TEST == 1333
        assert cfg.TEST.EVAL_PERIOD == 0 or cfg.SOLVER.MAX_ITER % cfg.TEST.EVAL_PERIOD == 0
        evaluator = MetadataCatalog.get(cfg.DATASETS.TEST[0]).evaluator_type
        assert evaluator == kind


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith("CQDINO/")])
def test_only_second_stages_hardly_move_backbone_and_categories(name: str) -> None:
    cfg = get_config(name)
    warmup = cfg.MODEL.CQ_DINO.SELECTION.WARMUP_ITERS
    is_second = cfg.MODEL.META_ARCHITECTURE == "CQDINO" and warmup == 0
    assert (0.01 if is_second else 0.1) == cfg.SOLVER.BACKBONE_MULTIPLIER
    assert bool(cfg.SOLVER.LR_MULTIPLIERS) is is_second
    assert cfg.MODEL.ACTIVATION_CHECKPOINTING is ("_swin_L_" in name)
    if is_second and "_official" not in name:
        # The command of its first stage names a config of the same backbone and vocabulary.
        (command,) = re.findall(
            r"configs/(CQDINO/\w+stage1\w*)\.yaml", Path(get_config_file(name)).read_text()
        )
        first = get_config(command)
        assert first.MODEL.META_ARCHITECTURE == "CQDINOSelector"
        assert first.MODEL.SWIN.SIZE == cfg.MODEL.SWIN.SIZE
        assert first.MODEL.CQ_DINO.CATEGORY == cfg.MODEL.CQ_DINO.CATEGORY
        assert first.MODEL.CQ_DINO.SELECTION == cfg.MODEL.CQ_DINO.SELECTION
        assert first.DATASETS == cfg.DATASETS


@pytest.mark.parametrize("name", [n for n in MODELS if "_24ep_v3det" in n])
def test_baselines_of_v3det(name: str) -> None:
    cfg = get_config(name)
    # An epoch with repeat factors: 11,460 iterations of 16 images.
    assert cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH == 24 * 183_360
    assert cfg.INPUT.FORMAT == "RGB"
    assert min(cfg.MODEL.PIXEL_STD) > 50, "weights of RGB images are of standardised ones"
    if "_swin_" in name:
        size = name.split("_swin_")[1][0]
        assert size == cfg.MODEL.SWIN.SIZE
        assert "swin" in cfg.MODEL.BACKBONE.NAME
        assert cfg.MODEL.BACKBONE.FREEZE_AT == 0
        stem = {"B": "swin_base", "L": "swin_large"}[size]
        assert f"{stem}_patch4_window{cfg.MODEL.SWIN.WINDOW_SIZE}_" in cfg.MODEL.WEIGHTS
        assert ("_22k." in cfg.MODEL.WEIGHTS) == ("_B_22k_" in name or size == "L")
    if cfg.MODEL.META_ARCHITECTURE == "DINO":
        assert (0.5 if name.endswith("alpha50") else 0.25) == cfg.MODEL.DINO.LOSS.FOCAL_ALPHA


def leaves(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """KEY.SUBKEY -> value."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat.update(leaves(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# Detectron2's own RetinaNet YAML computes its anchors with Python, which it warns about.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TWINS)
def test_means_the_same_as_detectron2_s_config(name: str) -> None:
    ours = leaves(get_config(name))
    theirs = leaves(detectron2_model_zoo.get_config(TWINS[name]))
    # Heads that these detectors do not have, and where Detectron2's proposals come from.
    unused = ("MODEL.ROI_MASK_HEAD.", "DATASETS.PROPOSAL_FILES", "DATALOADER.NUM_WORKERS")
    if "RetinaNet" in name or "lvis" in name:
        unused += ("MODEL.MASK_ON",)
    differing = []
    for key, value in theirs.items():
        if key.startswith(unused):
            continue
        if key == "MODEL.ANCHOR_GENERATOR.SIZES":
            torch.testing.assert_close(
                torch.tensor(ours[key], dtype=torch.float64),
                torch.tensor(value, dtype=torch.float64),
                rtol=0,
                atol=1e-4,
            )
        elif ours[key] != value:
            differing.append(f"{key}: {ours[key]} where Detectron2 has {value}")
    assert not differing, "\n".join(differing)


@pytest.fixture(scope="module")
def proposal_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random proposals for every image of the generated training set."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 120, (100, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 40, (100, 2))], 1, dtype=np.float32)
    logits = np.zeros(100, np.float32)
    records = DatasetCatalog.get("generated_24_train")
    path = tmp_path_factory.mktemp("proposals") / "generated_24_train.npz"
    save_proposals(path, [ImageProposals(str(r["image_id"]), boxes, logits) for r in records])
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("quick/")])
def test_small_configs_take_a_training_step(name: str, proposal_file: str) -> None:
    cfg = get_config(name)
    if not cfg.DATASETS.TRAIN[0].startswith("generated_"):
        cfg.DATASETS.TRAIN = ("generated_24_train",)
        set_num_classes(cfg, 24)
        cfg.MODEL.CQ_DINO.SELECTION.NUM_SELECTED = 12
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (proposal_file,)
    cfg.MODEL.CQ_DINO.CATEGORY.EMBEDDINGS = "random"  # or those that a command has to compute
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    torch.manual_seed(0)
    model = build_model(cfg)
    batch = next(iter(build_train_loader(cfg, seed=0)))
    with EventStorage():
        losses = model(batch)
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    without_gradient = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without_gradient
