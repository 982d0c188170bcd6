# SPDX-License-Identifier: Apache-2.0
"""Files of category embeddings: safetensors whose metadata say which row is which category."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vastdet.files import local_path, write_atomically
from vastdet.text.category_embeddings import CategoryEmbeddings
from vastdet.text.projection import Projection
from vastdet.vocabulary import CategorySpace

# The one metadata key: safetensors writes several in no fixed order, and equal content should
# make equal files.
FILE_FORMAT = "vastdet.CategoryEmbeddings"
FILE_VERSION = 1
# Of files with a projection, which older readers would take for damaged.
PROJECTED_VERSION = 2
SUFFIX = ".safetensors"


def save_category_embeddings(path: str | Path, embeddings: CategoryEmbeddings) -> None:
    """Write embeddings to a .safetensors file, replacing it whole or not at all.

    It holds `embeddings` (K, D), for a text encoder `probe` (E,), for a projection its
    `projection.mean` (E,) and `projection.weights` (E, D), and everything else as JSON in the
    metadata under "vastdet.CategoryEmbeddings".

    Raises:
        ValueError: the path ends otherwise.
    """
    if Path(path).suffix != SUFFIX:
        raise ValueError(f"embeddings are written as {SUFFIX}, but the path is {path}")
    projection = embeddings.projection
    about = {
        "version": FILE_VERSION if projection is None else PROJECTED_VERSION,
        "encoder": embeddings.encoder,
        "templates": embeddings.templates,
        "synonyms": embeddings.synonyms,
        "names": embeddings.names,
        "dataset_ids": [int(i) for i in embeddings.dataset_ids],
    }
    tensors = {"embeddings": embeddings.rows.contiguous()}
    if embeddings.probe is not None:
        tensors["probe"] = embeddings.probe.contiguous()
    if projection is not None:
        tensors["projection.mean"] = projection.mean.contiguous()
        tensors["projection.weights"] = projection.weights.contiguous()
    metadata = {FILE_FORMAT: json.dumps(about, ensure_ascii=False)}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def read_category_embeddings(path: str | Path) -> CategoryEmbeddings:
    """Read a file that `save_category_embeddings` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, a newer version, or damaged content.
    """
    local = local_path(path)
    try:
        with safe_open(local, framework="pt") as file:
            text = (file.metadata() or {}).get(FILE_FORMAT)
            keys = file.keys() if text else ()
            tensors = {key: file.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is damaged: {error}") from error
    if not text:
        raise ValueError(
            f"{path} does not say which categories its rows belong to (metadata {FILE_FORMAT!r}); "
            "expected a file of tools/compute_category_embeddings.py"
        )
    return _from_content(path, json.loads(text), tensors)


def _from_content(
    path: str | Path, about: dict[str, Any], tensors: dict[str, Tensor]
) -> CategoryEmbeddings:
    version = about.pop("version", None)
    if version not in (FILE_VERSION, PROJECTED_VERSION):
        raise ValueError(
            f"{path} has version {version!r}, this vastdet reads {FILE_VERSION} and "
            f"{PROJECTED_VERSION}; update vastdet, or compute the embeddings again"
        )
    try:
        for field in ("names", "dataset_ids", "templates"):
            about[field] = tuple(about[field])
        if version == PROJECTED_VERSION:
            about["projection"] = Projection(
                tensors["projection.mean"], tensors["projection.weights"]
            )
        return CategoryEmbeddings(rows=tensors["embeddings"], probe=tensors.get("probe"), **about)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; compute the embeddings again") from error


def load_category_embeddings(path: str | Path, space: CategorySpace) -> Tensor:
    """The embeddings (K, D) of a space's categories in its order, found by id and name.

    Further categories in the file are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_category_embeddings`; or a category of the space has no embedding in
            the file, or its id has another name there.
    """
    return read_category_embeddings(path).rows_of(space, where=str(path))


def add_category_embeddings(
    path: str | Path,
    space: CategorySpace,
    embed: Callable[[CategorySpace], CategoryEmbeddings],
    *,
    output: str | Path | None = None,
) -> int:
    """Add those categories of a space to a file that it does not have, and return their number.

    Old rows keep their bits and their places; the new ones follow in the order of the space.

    Args:
        path: the file.
        space: the vocabulary; old categories need not be in it.
        embed: called with the new categories, as `partial(embed_categories, encoder=encoder)`;
            not called when there are none.
        output: where to write; by default the file is replaced.

    Raises:
        ValueError: as `read_category_embeddings`; an id of the space has another name in the file;
            or the new rows were not made as the old ones were (`CategoryEmbeddings.with_added`).
    """
    embeddings = read_category_embeddings(path)
    new = embeddings.missing_from(space, where=str(path))
    if new:
        missing = CategorySpace(
            names=tuple(space.names[k] for k in new),
            dataset_ids=tuple(space.dataset_ids[k] for k in new),
            synonyms=tuple(space.synonyms[k] for k in new),
        )
        embeddings = embeddings.with_added(embed(missing))
    if new or output is not None:
        save_category_embeddings(path if output is None else output, embeddings)
    return len(new)
