#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Embed the categories of a dataset by an image encoder over crops of their boxes."""

import argparse
import sys
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog

import vastdet  # noqa: F401  (registers the datasets)
from vastdet.backbones.image_encoder import build_image_encoder
from vastdet.data.register import category_space, require_registered
from vastdet.engine.image_prototypes import embed_crops
from vastdet.engine.tools import add_register_argument, exit_status, register_datasets
from vastdet.text import save_category_embeddings


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Embed categories by an image encoder: crops of their boxes, their embeddings "
        "of length 1, the mean of these, again of length 1. The file (.safetensors) is of the same "
        "kind as that of tools/compute_category_embeddings.py: it says which row belongs to which "
        "id and name, and by what it was made.",
        epilog="example: tools/compute_image_prototypes.py --dataset v3det_train --encoder "
        "TimmImage:vit_large_patch14_clip_224.openai --fill-missing "
        "--output output/v3det_visual.safetensors",
    )
    parser.add_argument("--dataset", metavar="NAME", required=True, help="a registered dataset")
    add_register_argument(parser)
    parser.add_argument(
        "--encoder",
        required=True,
        metavar="TimmImage:MODEL",
        help="TimmImage:NAME (timm fetches the weights), TimmImage:NAME:FILE (a file of weights), "
        "or TimmImage:NAME:random (random weights)",
    )
    parser.add_argument(
        "--max-crops", metavar="N", type=int, default=100, help="of a category (default: 100)"
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of drawn crops and random weights"
    )
    parser.add_argument(
        "--fill-missing",
        action="store_true",
        help="give categories without a box the mean of the others; without it they are an error",
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=64, help="default: 64")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--output", metavar="FILE.safetensors", type=Path, required=True)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Embed, write, and say what was written."""
    register_datasets(options)
    require_registered(options.dataset)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = build_image_encoder(options.encoder, device=device, seed=options.seed)
    space = category_space(options.dataset)
    embeddings = embed_crops(
        DatasetCatalog.get(options.dataset),
        space,
        encoder,
        max_crops=options.max_crops,
        seed=options.seed,
        fill_missing=options.fill_missing,
        batch_size=options.batch_size,
        progress=True,
    )
    save_category_embeddings(options.output, embeddings)
    # Prototypes that are all alike tell nothing apart.
    mean = embeddings.rows.double().mean(dim=0).square().sum().item()
    count = len(space)
    alike = (count * mean - 1) / (count - 1) if count > 1 else 1.0
    print(
        f"{options.output}: {count} categories, {embeddings.dim} numbers each by "
        f"{embeddings.encoder}; the mean cosine of two of them is {alike:.3f}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    options = parse_arguments(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
