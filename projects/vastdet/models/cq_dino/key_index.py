# SPDX-License-Identifier: Apache-2.0
"""Finds the keys that some vectors point at among a million, without looking at all of them.

C keys, E channels, L lists, P vectors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vastdet.optional import require_packages

# Keys that the centre of each list is learned from.
KEYS_PER_LIST = 64
# Channels that share a code of 4 bits, and its values.
CHANNELS_PER_CODE = 2
VALUES_OF_CODE = 16


@dataclass(frozen=True)
class KeyIndex:
    """Codes of keys in lists of neighbours: faiss's inverted file with product quantisation.

    Johnson et al., "Billion-scale similarity search with GPUs" (2017), with 4-bit codes (Andre et
    al. 2015), whose products a processor reads from registers, of what a key differs by from the
    centre of its list. It is searched on the CPU; then the keys themselves decide.

    Attributes:
        index: faiss's.
        keys: (C, E), in half precision.
    """

    index: Any
    keys: Tensor

    @property
    def num_bytes(self) -> int:
        """About what is kept: each key's channels, half a byte for a pair of them, and its id."""
        num_keys, num_channels = self.keys.shape
        return self.keys.nbytes + num_keys * (num_channels // CHANNELS_PER_CODE // 2 + 8)

    @classmethod
    def of(cls, keys: Tensor, num_lists: int) -> "KeyIndex":
        """Index keys (C, E); the same keys, the same index. A million take ten seconds.

        Raises:
            ImportError: faiss is not installed.
            ValueError: `num_lists` is not in 1..C, E is odd, there are fewer keys than a code has
                values, or a key is not a finite number.
        """
        num_keys, num_channels = keys.shape
        if not 1 <= num_lists <= num_keys or num_keys < VALUES_OF_CODE:
            raise ValueError(
                f"{num_keys} keys cannot be in {num_lists} lists; give 1 to {num_keys} lists, and "
                f"at least {VALUES_OF_CODE} keys"
            )
        if num_channels % CHANNELS_PER_CODE:
            raise ValueError(
                f"keys of {num_channels} channels cannot be coded in pairs; give an even number"
            )
        if not keys.isfinite().all():
            raise ValueError("some keys are not finite numbers: the weights or queries are not")
        require_packages(
            "faiss", purpose="shortlists of many categories", install="vastdet[shortlist]"
        )
        import faiss

        num_codes = num_channels // CHANNELS_PER_CODE
        index = faiss.index_factory(
            num_channels, f"IVF{num_lists},PQ{num_codes}x4fsr", faiss.METRIC_INNER_PRODUCT
        )
        rows = keys.detach().float().cpu()
        generator = torch.Generator().manual_seed(0)
        sample = torch.randperm(num_keys, generator=generator)[: num_lists * KEYS_PER_LIST]
        index.train(rows[sample].numpy())
        index.add(rows.numpy())
        return cls(index, keys.detach().half())

    def best(
        self, vectors: Tensor, *, num_best: int, num_each: int, num_scanned: int, num_needed: int
    ) -> Tensor:
        """The keys with the highest products with any of the vectors, nearly.

        Args:
            vectors: (P, E).
            num_best: N.
            num_each: candidates that a vector brings.
            num_scanned: keys whose codes are compared with a vector, about: those of the lists
                whose centres it points at.
            num_needed: candidates of all vectors together; more is scanned until there are so many.
                At most `num_each`, and C.

        Returns:
            At most N, as many as there are candidates, best first: int64, on the device of the
            vectors.

        Raises:
            ValueError: a vector is not a finite number.
        """
        import faiss

        rows = vectors.detach().float().cpu().numpy()
        if not np.isfinite(rows).all():
            raise ValueError("an image's vectors are not finite numbers: its features are not")
        num_lists = self.index.nlist
        num_probed = max(1, round(num_scanned * num_lists / self.index.ntotal))
        while True:
            # Given with the call, so that threads may share an index.
            parameters = faiss.SearchParametersIVF()
            parameters.nprobe = min(num_probed, num_lists)
            found = distinct(self.index.search(rows, num_each, params=parameters)[1])
            if len(found) >= num_needed or num_probed >= num_lists:
                break
            num_probed *= 2
        candidates = torch.from_numpy(found).to(vectors.device)
        keys = F.embedding(candidates, self.keys).to(vectors.dtype)
        scores = (keys @ vectors.T).amax(1)
        return candidates[scores.topk(min(num_best, len(found))).indices]


def distinct(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The distinct ids of any shape, in order, without the -1 that faiss fills up with."""
    # Four times as fast as torch's unique, six times as numpy's, which hash or sort otherwise.
    ids = np.sort(ids, axis=None)
    is_first = np.diff(ids, prepend=-1) > 0
    distinct_ids: NDArray[np.int64] = ids[is_first]
    return distinct_ids
