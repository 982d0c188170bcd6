# SPDX-License-Identifier: Apache-2.0
"""Embeddings that know their categories, so that their order cannot slip.

K categories, D numbers an embedding, E of the encoder: D without a projection.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vastdet.text.encoders import TextEncoder
from vastdet.text.projection import Projection
from vastdet.vocabulary import CategorySpace
from vastdet.vocabulary.prompts import DEFAULT_TEMPLATES, fill_templates, readable_name

# Its embedding is kept with those of the categories and tells whether an encoder is the same one.
PROBE_TEXT = "a photo of a probe."
# Devices round differently, by 1e-5 and less; other weights differ by the size of the numbers.
PROBE_TOLERANCE = 1e-3
# Batches of texts that are sorted together, since texts of one length need the least padding.
SORTED_BATCHES = 16


@dataclass(frozen=True, eq=False, repr=False)
class CategoryEmbeddings:
    """K embeddings of length 1, with the categories they belong to and what made them.

    Attributes:
        rows: (K, D) float32.
        names: K names as the dataset writes them; duplicates are allowed.
        dataset_ids: K unique integers.
        encoder: what made them, as `TextEncoder.name`.
        templates: the prompt templates, () for random rows.
        synonyms: whether a category's other names went into its row.
        probe: (E,) the encoder's embedding of `PROBE_TEXT`, None for random rows.
        projection: what made the rows of the encoder's, None where they are these.

    Raises:
        ValueError: no category, other numbers of names or ids than rows, an id given twice, rows
            or a probe of another shape, values that are not finite.
    """

    rows: Tensor
    names: tuple[str, ...]
    dataset_ids: tuple[int, ...]
    encoder: str
    templates: tuple[str, ...] = ()
    synonyms: bool = False
    probe: Tensor | None = None
    projection: Projection | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.rows.shape)
        if len(shape) != 2 or not shape[0] or self.rows.dtype != torch.float32:
            raise ValueError(
                f"embeddings must be float32 (categories, dimension) of at least one category, got "
                f"{self.rows.dtype} {shape}"
            )
        if not len(self.names) == len(self.dataset_ids) == shape[0]:
            raise ValueError(
                f"{shape[0]} embeddings for {len(self.names)} names and {len(self.dataset_ids)} ids"
            )
        if len(set(self.dataset_ids)) != len(self.dataset_ids):
            raise ValueError("the dataset ids of embeddings must be unique; one is given twice")
        if self.projection is not None and self.projection.weights.shape[1] != self.dim:
            raise ValueError(
                f"embeddings of {self.dim} numbers for a projection to "
                f"{self.projection.weights.shape[1]}"
            )
        if self.probe is not None and tuple(self.probe.shape) != (self.encoder_dim,):
            raise ValueError(
                f"a probe of shape {tuple(self.probe.shape)} for embeddings {shape} by an encoder "
                f"of {self.encoder_dim} numbers"
            )
        bad = (~torch.isfinite(self.rows).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{len(bad)} embeddings are not finite; the first is that of id "
                f"{self.dataset_ids[bad[0]]} '{self.names[bad[0]]}'"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"CategoryEmbeddings({len(self)} x {self.dim} by {self.encoder})"

    @property
    def dim(self) -> int:
        """D, the numbers of an embedding."""
        return self.rows.shape[1]

    @property
    def encoder_dim(self) -> int:
        """E, the numbers of what the encoder gives."""
        return self.dim if self.projection is None else len(self.projection.mean)

    def rows_of(self, space: CategorySpace, *, where: str = "the embeddings") -> Tensor:
        """The rows (K of `space`, D) of a space's categories in its order, found by id and name.

        Categories that the space does not have are left out.

        Args:
            space: the vocabulary.
            where: what errors call these embeddings, a file's path.

        Raises:
            ValueError: a category of the space has no embedding, or its id has another name here.
        """
        absent = self.missing_from(space, where=where)
        if absent:
            first = space.names[absent[0]]
            raise ValueError(
                f"{where}: {len(absent)} of the {len(space)} categories have no embedding, the "
                f"first is id {space.dataset_ids[absent[0]]} '{first}'; add them with "
                "tools/compute_category_embeddings.py --append"
            )
        row_by_id = self._row_by_id()
        return self.rows[[row_by_id[i] for i in space.dataset_ids]]

    def missing_from(self, space: CategorySpace, *, where: str = "the embeddings") -> list[int]:
        """The contiguous ids of the space's categories that have no row here, ascending.

        Raises:
            ValueError: an id of the space has another name here.
        """
        row_by_id = self._row_by_id()
        foreign = [
            (dataset_id, name, self.names[row_by_id[dataset_id]])
            for dataset_id, name in zip(space.dataset_ids, space.names, strict=True)
            if dataset_id in row_by_id and self.names[row_by_id[dataset_id]] != name
        ]
        if foreign:
            dataset_id, name, stored = foreign[0]
            raise ValueError(
                f"{where}: {len(foreign)} of the {len(space)} categories have another name there, "
                f"the first is id {dataset_id}, '{name}' here and '{stored}' there; the embeddings "
                "are of another vocabulary: compute them for this one"
            )
        return [k for k, dataset_id in enumerate(space.dataset_ids) if dataset_id not in row_by_id]

    def restricted_to(self, space: CategorySpace) -> "CategoryEmbeddings":
        """The embeddings of the space's categories alone, in its order; errors as `rows_of`."""
        return replace(
            self, rows=self.rows_of(space), names=space.names, dataset_ids=space.dataset_ids
        )

    def with_components(self, count: int) -> "CategoryEmbeddings":
        """The same with `count` numbers an embedding; errors as `Projection.fit`."""
        return self.projected(Projection.fit(self.rows, count))

    def projected(self, projection: Projection) -> "CategoryEmbeddings":
        """The same with projected rows.

        Raises:
            ValueError: they are projected already, or have other numbers than `projection` takes.
        """
        if self.projection is not None:
            raise ValueError(f"these rows by {self.encoder} are components already; take its own")
        return replace(self, rows=projection(self.rows), projection=projection)

    def with_added(self, other: "CategoryEmbeddings") -> "CategoryEmbeddings":
        """These rows, unchanged, followed by those of another encoding of other categories.

        Where these are projected, the others are the encoder's and get the same projection.

        Raises:
            ValueError: the others have another dimension, encoder, templates or use of synonyms,
                are projected already, or have an id that is here already.
        """
        if self.projection is not None:
            other = other.projected(self.projection)
        self._require_same_making(other)
        twice = self._row_by_id().keys() & set(other.dataset_ids)
        if twice:
            raise ValueError(f"{len(twice)} ids have an embedding already, such as {min(twice)}")
        return replace(
            self,
            rows=torch.cat([self.rows, other.rows]),
            names=self.names + other.names,
            dataset_ids=self.dataset_ids + other.dataset_ids,
        )

    def _require_same_making(self, other: "CategoryEmbeddings") -> None:
        if other.projection is not self.projection:
            raise ValueError(f"components of an encoder cannot be added to rows by {self.encoder}")
        for field in ("dim", "templates", "synonyms"):
            if getattr(self, field) != getattr(other, field):
                raise ValueError(
                    f"embeddings with {field} {getattr(other, field)} cannot be added to some with "
                    f"{field} {getattr(self, field)}; compute them alike"
                )
        if self.probe is None or other.probe is None:
            same = self.encoder == other.encoder
        else:
            # Not by name: a folder may have moved, and another one may have taken its name.
            same = float((self.probe - other.probe).abs().max()) <= PROBE_TOLERANCE
        if not same:
            raise ValueError(
                f"embeddings by {other.encoder} cannot be added to some by {self.encoder}, which "
                "embeds the same text differently; use the same encoder with the same weights"
            )

    def _row_by_id(self) -> dict[int, int]:
        return {dataset_id: row for row, dataset_id in enumerate(self.dataset_ids)}


def embed_categories(
    space: CategorySpace,
    encoder: TextEncoder,
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    synonyms: bool = False,
    batch_size: int = 256,
    progress: bool = False,
) -> CategoryEmbeddings:
    """The embeddings of a space's categories: means over their prompts, of length 1.

    Each prompt's embedding has length 1 before the mean (CLIP, arXiv 2103.00020, section 3.1.4).

    Args:
        space: the vocabulary.
        encoder: embeds the prompts.
        templates: texts with one `{}` for the name.
        synonyms: fill the templates with a category's synonyms as well; all prompts weigh the same.
        batch_size: texts encoded at once, at least 1.
        progress: show a bar, on a terminal only.

    Raises:
        ValueError: a template without one `{}`, a name that leaves nothing to read, a batch size
            below 1, an encoder's embeddings that are no numbers.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    probe = encoder.encode([PROBE_TEXT])[0]
    rows = torch.empty(len(space), len(probe))
    prompts = _prompts(space, templates, synonyms)
    with tqdm(total=len(space), unit="category", disable=None if progress else True) as bar:
        for first, texts in _chunks(prompts, SORTED_BATCHES * batch_size):
            rows[first : first + len(texts)] = _mean_embeddings(texts, encoder, batch_size)
            bar.update(len(texts))
    return CategoryEmbeddings(
        rows=rows,
        names=space.names,
        dataset_ids=space.dataset_ids,
        encoder=encoder.name,
        templates=tuple(templates),
        synonyms=synonyms,
        probe=probe,
    )


def random_embeddings(space: CategorySpace, dim: int, seed: int) -> CategoryEmbeddings:
    """Random directions in place of text embeddings: rows of length 1, evenly over the sphere.

    A row depends on the seed, the dimension and its dataset id alone, so a category keeps it in any
    other vocabulary that has it under the same id.

    Raises:
        ValueError: `dim` is below 1, or `seed` below 0.
    """
    if dim < 1 or seed < 0:
        raise ValueError(
            f"expected a dimension of at least 1 and a seed of at least 0, got {dim=} and {seed=}"
        )
    rows = np.empty((len(space), dim), dtype=np.float32)
    for k, dataset_id in enumerate(space.dataset_ids):
        # Modulo, since seeds cannot be negative and ids can.
        rows[k] = np.random.default_rng((seed, dataset_id % 2**64)).standard_normal(dim)
    return CategoryEmbeddings(
        rows=F.normalize(torch.from_numpy(rows), dim=1),
        names=space.names,
        dataset_ids=space.dataset_ids,
        encoder=f"random, seed {seed}",
    )


def _prompts(space: CategorySpace, templates: Sequence[str], synonyms: bool) -> Iterator[list[str]]:
    """The different prompts of each category."""
    for dataset_id, name, others in zip(
        space.dataset_ids, space.names, space.synonyms, strict=True
    ):
        # A dict keeps the order; LVIS lists a category's own name among its synonyms.
        readable = dict.fromkeys(map(readable_name, (name, *others) if synonyms else (name,)))
        readable.pop("", None)
        if not readable:
            raise ValueError(
                f"category {dataset_id} has the name {name!r}, which leaves nothing to read; "
                "rename it"
            )
        filled = fill_templates(list(readable), templates)
        yield [prompt for prompts in filled for prompt in prompts]


def _chunks(prompts: Iterator[list[str]], num_texts: int) -> Iterator[tuple[int, list[list[str]]]]:
    """Runs of categories with at least `num_texts` prompts: number of the first, prompts."""
    first, chunk, count = 0, [], 0
    for texts in prompts:
        chunk.append(texts)
        count += len(texts)
        if count >= num_texts:
            yield first, chunk
            first, chunk, count = first + len(chunk), [], 0
    if chunk:
        yield first, chunk


def _mean_embeddings(
    prompts: Sequence[Sequence[str]], encoder: TextEncoder, batch_size: int
) -> Tensor:
    """The normalised means (len(prompts), D) of each category's prompts."""
    texts = [text for own in prompts for text in own]
    owners = torch.tensor([k for k, own in enumerate(prompts) for _ in own])
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    embedded: Tensor | None = None
    for start in range(0, len(texts), batch_size):
        places = order[start : start + batch_size]
        batch = encoder.encode([texts[n] for n in places])
        if embedded is None:
            embedded = torch.empty(len(texts), batch.shape[1])
        embedded[places] = batch
    assert embedded is not None
    sums = torch.zeros(len(prompts), embedded.shape[1], dtype=torch.float64)
    # Dividing by the number of prompts would change nothing, as rows get length 1.
    sums.index_add_(0, owners, embedded.double())
    return F.normalize(sums, dim=1).float()
