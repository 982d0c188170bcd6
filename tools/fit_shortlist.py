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
from tqdm import tqdm

import vastdet  # noqa: F401  (registers models and datasets)
from vastdet.data.loader import build_train_loader
from vastdet.detr.tokens import resize_mask
from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import choose_device, load_config, with_all_weights
from vastdet.engine.tools import add_register_argument, exit_status, register_datasets
from vastdet.files import write_atomically
from vastdet.models.cq_dino import (
    ScoredImages,
    ShortlistSelection,
    fit_match,
    made_up_embeddings,
)

EPILOG = """
Images of DATASETS.TRAIN, augmented as in training, go through the backbone and the selection once;
their labels are not read. They are scored against the trained categories and against some that are
made up from their embeddings, three quarters of them alike in mean and covariance, the others
mixtures of two, so that the match holds where categories are added. Only the match of tokens and
keys is changed. Use the file with MODEL.CQ_DINO.SELECTION.NAME shortlist.

Scores and made-up categories, others for each 200 images, are kept in memory: with the defaults
0.4 GB at 128 channels, 1.2 GB at 768. Scoring takes most of the time: lower --made-up where that is
too long, or append MODEL.CQ_DINO.SELECTION.SCORING bfloat16 on processors that have it.

Example:
    $ fit_shortlist.py --config-file configs/quick/cq_dino_kinds.yaml \\
        --weights output/model_final.pth --output output/shortlist.pth
"""

# That are scored against the same made-up categories.
IMAGES_PER_DRAW = 200


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML", help="the model's config")
    parser.add_argument("--weights", required=True, metavar="FILE", help="with or without a match")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.pth")
    parser.add_argument(
        "--images", type=int, default=2000, metavar="N", help="to learn from (default: 2000)"
    )
    parser.add_argument(
        "--steps", type=int, default=6000, metavar="N", help="of learning (default: 6000)"
    )
    parser.add_argument(
        "--made-up",
        type=int,
        default=32768,
        metavar="N",
        help="categories beside the trained ones, for each 200 images (default: 32768)",
    )
    add_register_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides as KEY VALUE ...")
    options = parser.parse_args(arguments)
    if options.images < 1 or options.steps < 1:
        parser.error("--images and --steps must be at least 1")
    if options.made_up < 0:
        parser.error("--made-up must be at least 0")
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


def made_up_queries(categories: Any, count: int, generator: torch.Generator) -> Tensor:
    """Queries of categories that nobody trained, a quarter of them mixtures."""
    embedding = categories.queries.embedding
    if not count:
        return embedding.new_empty(0, embedding.shape[1])
    parts = (count // 4, "mixtures"), (count - count // 4, "normal")
    rows = [made_up_embeddings(embedding, size, kind, generator) for size, kind in parts]
    queries: Tensor = categories.queries.of_leaves(torch.cat(rows))
    return queries


@torch.no_grad()
def draws_of(model: Any, cfg: CfgNode, num_images: int, num_made_up: int) -> list[ScoredImages]:
    """Training images, scored, with other made-up categories for each `IMAGES_PER_DRAW`."""
    selection, trained = model.categories.selection, model.categories.queries()
    generator = torch.Generator().manual_seed(0)
    draws: list[list[ScoredImages]] = []
    with tqdm(total=num_images, desc="images", unit="image") as progress:
        for records in build_train_loader(cfg, seed=0):
            pixels, mask = model.padded_batch([model.normalize(x["image"]) for x in records])
            features = model.backbone(pixels)[model.selection_feature]
            mask = resize_mask(mask, (features.shape[-2], features.shape[-1]))
            tokens = model.categories.image_tokens(features, mask)
            if progress.n >= IMAGES_PER_DRAW * len(draws):
                made_up = made_up_queries(model.categories, num_made_up, generator)
                prepared = selection.prepare_all(torch.cat([trained, made_up]))
                draws.append([])
            logits = selection.score_all(prepared, tokens)
            draws[-1].append(ScoredImages(tokens, made_up, logits.half()))
            progress.update(len(records))
            if progress.n >= num_images:
                break
    return [ScoredImages.joined(parts) for parts in draws]


def run(arguments: argparse.Namespace) -> None:
    """Load, collect, fit, write."""
    register_datasets(arguments)
    model, cfg = load(arguments)
    selection = model.categories.selection
    assert isinstance(selection, ShortlistSelection)
    # Where there can be none, it says so before images are read.
    with torch.no_grad():
        made_up_queries(model.categories, min(2, arguments.made_up), torch.Generator())
    draws = draws_of(model, cfg, arguments.images, arguments.made_up)
    with torch.no_grad():
        queries = model.categories.queries()
    loss = fit_match(selection.match, queries, draws, num_steps=arguments.steps, progress=True)
    weights = {"model": model.state_dict()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, lambda file: torch.save(weights, file))
    num_images = sum(len(x.logits) for x in draws)
    print(f"{arguments.output}: a shortlist from {num_images} images, loss {loss:.4f}")


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    logging.basicConfig(level=logging.ERROR)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
