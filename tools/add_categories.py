#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Append categories to a trained CQ-DINO: they are found by their names, without training."""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save

from vastdet.data.register import category_space
from vastdet.engine.checkpoint import check_exists, read_weights
from vastdet.engine.config_files import load_config
from vastdet.engine.tools import add_register_argument, exit_status, register_datasets
from vastdet.files import write_atomically
from vastdet.layers.precision import at_least_float32
from vastdet.models.cq_dino.added_categories import (
    ROUNDING,
    add_rows,
    appended_space,
    change_of_old_queries,
)
from vastdet.models.cq_dino.build import vocabulary
from vastdet.text import load_category_embeddings
from vastdet.vocabulary import CategorySpace

SUFFIXES = (".pth", ".safetensors")
EPILOG = """
The file of embeddings is the one that the model was trained from, with the new names in it:
    $ compute_category_embeddings.py --names okapi saola --first-id 14001 --encoder ENCODER \\
        --append trained.safetensors --output more.safetensors
A map from embedding to trained query is fitted on the old categories; if it does not predict a
category that is left out better than its embedding does, new queries are the embeddings themselves.
Old categories keep their ids, places and queries. Without --link-parents none of them becomes a
parent of a new one in the tree.

Example:
    $ add_categories.py --config-file configs/quick/cq_dino_kinds.yaml --weights model_final.pth \\
        --embeddings more.safetensors --names okapi saola --first-id 14001 --output more.pth
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML", help="of the training")
    parser.add_argument("--weights", required=True, metavar="FILE", help="of the training")
    parser.add_argument("--embeddings", required=True, metavar="FILE.safetensors")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--vocabulary",
        metavar="JSON|DATASET",
        help="the new categories, with or without the old: a .json of CategorySpace.save, or a "
        "registered dataset",
    )
    given.add_argument("--names", nargs="+", metavar="NAME", help="the names of new categories")
    parser.add_argument(
        "--first-id", type=int, metavar="N", help="dataset id of the first of --names"
    )
    parser.add_argument(
        "--link-parents",
        action="store_true",
        help="let old categories become parents of new ones as the tree of --vocabulary says; "
        "their queries change",
    )
    add_register_argument(parser)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="weights, .pth or .safetensors; the vocabulary is written beside them as .json",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides as KEY VALUE ...")
    options = parser.parse_args(arguments)
    if (options.names is None) != (options.first_id is None):
        parser.error("--names and --first-id belong together")
    return options


def given_space(options: argparse.Namespace) -> CategorySpace:
    """The categories that the command line names."""
    if options.names:
        ids = range(options.first_id, options.first_id + len(options.names))
        return CategorySpace(names=tuple(options.names), dataset_ids=tuple(ids))
    if options.vocabulary.endswith(".json"):
        return CategorySpace.load(options.vocabulary)
    return category_space(options.vocabulary)


def trained_weights(path: str) -> dict[str, torch.Tensor]:
    """The weights of a model; those in half precision in float32, as models have them."""
    tensors = {k: torch.as_tensor(x) for k, x in read_weights(path)["model"].items()}
    return {k: at_least_float32(x) if x.is_floating_point() else x for k, x in tensors.items()}


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write the weights of a model, the file whole or not at all."""
    if path.suffix == ".safetensors":
        write_atomically(path, save({name: x.contiguous() for name, x in weights.items()}))
    else:
        write_atomically(path, lambda file: torch.save({"model": weights}, file))


def run(options: argparse.Namespace) -> None:
    """Append, check, write, and say how to use it."""
    if options.output.suffix not in SUFFIXES:
        raise ValueError(f"--output {options.output}: expected {' or '.join(SUFFIXES)}")
    register_datasets(options)
    cfg = load_config(options.config_file, options.opts)
    node = cfg.MODEL.CQ_DINO
    old = vocabulary(cfg)
    space = appended_space(old, given_space(options), link_parents=options.link_parents)
    check_exists(options.weights)
    trained = trained_weights(options.weights)
    embeddings = load_category_embeddings(options.embeddings, space)
    weights, query_map = add_rows(trained, embeddings, len(old))
    if query_map.error > query_map.mean_error:
        raise ValueError(
            f"{options.embeddings} does not fit {options.weights}: it predicts a trained query no "
            f"better (mean squared error {query_map.error:.4g}) than the mean of the others does "
            f"({query_map.mean_error:.4g}); give the file that the model was trained from, with "
            "the new names in it"
        )
    change = change_of_old_queries(node, weights, old, space)
    if change > ROUNDING and not options.link_parents:
        raise ValueError(
            f"old queries would change by up to {change:.2g}: a new category has more children "
            "than any old one, and Eq. 7 counts by the most; give it fewer, or --link-parents"
        )
    vocabulary_file = options.output.with_suffix(".json")
    write_weights(options.output, weights)
    space.save(vocabulary_file)
    way = "mapped embeddings" if query_map.error < query_map.raw_error else "embeddings as they are"
    print(
        f"{len(old):,} categories and {len(space) - len(old):,} new ones. New queries: {way} "
        f"(mean squared error on old ones {query_map.error:.4g}, of plain embeddings "
        f"{query_map.raw_error:.4g}). Largest change of an old query: {change:.2g}."
    )
    print(
        f"MODEL.WEIGHTS {options.output} MODEL.CQ_DINO.VOCABULARY {vocabulary_file} "
        f"MODEL.CQ_DINO.NUM_CLASSES {len(space)} "
        f"MODEL.CQ_DINO.CATEGORY.EMBEDDINGS {options.embeddings}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    options = parse_arguments(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
