#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Teach a trained CQ-DINO which categories to shortlist, and write its weights with that."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

import vastdet  # noqa: F401  (registers models and datasets)
from vastdet.data.loader import build_train_loader
from vastdet.detr.tokens import resize_mask
from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import choose_device, load_config, with_all_weights
from vastdet.engine.tools import add_register_argument, exit_status, register_datasets
from vastdet.files import write_atomically
from vastdet.models.cq_dino import ImageTokens, ShortlistSelection, fit_match

EPILOG = """
Images of DATASETS.TRAIN, augmented as in training, go through the backbone and the selection once;
their labels are not read. Only the match of tokens and keys is changed. Use the file with
MODEL.CQ_DINO.SELECTION.NAME shortlist.

Example:
    $ fit_shortlist.py --config-file configs/quick/cq_dino_kinds.yaml \\
        --weights output/model_final.pth --output output/shortlist.pth
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML", help="the model's config")
    parser.add_argument("--weights", required=True, metavar="FILE", help="with or without a match")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.pth")
    parser.add_argument(
        "--images", type=int, default=320, metavar="N", help="to learn from (default: 320)"
    )
    parser.add_argument(
        "--steps", type=int, default=600, metavar="N", help="of learning (default: 600)"
    )
    add_register_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides as KEY VALUE ...")
    options = parser.parse_args(arguments)
    if options.images < 1 or options.steps < 1:
        parser.error("--images and --steps must be at least 1")
    return options


def load(arguments: argparse.Namespace) -> tuple[Any, CfgNode]:
    """The model, with a shortlist whatever the config says, and its config."""
    opts = [*arguments.opts, "MODEL.CQ_DINO.SELECTION.NAME", "shortlist"]
    cfg = choose_device(load_config(arguments.config_file, opts))
    cfg = with_all_weights(cfg, arguments.weights)
    model = build_model(cfg).eval()
    if not isinstance(getattr(model, "categories", None), torch.nn.Module):
        raise ValueError(
            f"the config builds a {type(model).__name__}; only CQDINO and CQDINOSelector select "
            "categories"
        )
    checkpointer = VastdetCheckpointer(model)
    checkpointer.load(arguments.weights, checkpointables=[])
    missing = [x for x in checkpointer.missing_keys if ".match." not in x]
    if missing:
        raise ValueError(
            f"{arguments.weights} lacks {len(missing)} of the weights of the model, such as "
            f"{missing[0]}; give the config that it was trained with"
        )
    return model, cfg


@torch.no_grad()
def batches_of(model: Any, cfg: CfgNode, num_images: int) -> list[tuple[ImageTokens, Tensor]]:
    """Tokens and all logits of training images."""
    selection, queries = model.categories.selection, model.categories.queries()
    batches, count = [], 0
    for records in build_train_loader(cfg, seed=0):
        pixels, mask = model.padded_batch([model.normalize(x["image"]) for x in records])
        features = model.backbone(pixels)[model.selection_feature]
        mask = resize_mask(mask, (features.shape[-2], features.shape[-1]))
        tokens = model.categories.image_tokens(features, mask)
        batches.append((tokens, selection(queries, tokens).all_logits))
        count += len(records)
        if count >= num_images:
            break
    return batches


def run(arguments: argparse.Namespace) -> None:
    """Load, collect, fit, write."""
    register_datasets(arguments)
    model, cfg = load(arguments)
    selection = model.categories.selection
    assert isinstance(selection, ShortlistSelection)
    batches = batches_of(model, cfg, arguments.images)
    with torch.no_grad():
        queries = model.categories.queries()
    loss = fit_match(selection.match, queries, batches, num_steps=arguments.steps)
    weights = {"model": model.state_dict()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, lambda file: torch.save(weights, file))
    num_images = sum(len(logits) for _, logits in batches)
    print(f"{arguments.output}: a shortlist from {num_images} images, loss {loss:.4f}")


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    logging.basicConfig(level=logging.ERROR)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
