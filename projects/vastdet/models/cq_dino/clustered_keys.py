# SPDX-License-Identifier: Apache-2.0
"""Finds the keys that some vectors point at among a million, without looking at all of them.

C keys, D channels, L clusters, S vectors, N keys that are found.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Keys that each centre is learned from, at most, and rounds of k-means.
KEYS_PER_CLUSTER = 64
NUM_ROUNDS = 8
# Vectors that the keys of a cluster are compared with.
NUM_VECTORS = 16
# Keys whose similarities to all centres are computed at once.
CHUNK = 16384


@dataclass(frozen=True)
class ClusteredKeys:
    """Keys in the order of their clusters.

    Attributes:
        keys: (C, D), those of a cluster side by side.
        ids: (C,) int64, where each key was before.
        starts: (L + 1) places at which clusters start, and the end.
        centers: (L, D), of length 1.
    """

    keys: Tensor
    ids: Tensor
    starts: tuple[int, ...]
    centers: Tensor

    @classmethod
    def of(cls, keys: Tensor, num_clusters: int) -> "ClusteredKeys":
        """Cluster keys (C, D) of length 1 by their directions; the same keys, the same clusters.

        Raises:
            ValueError: `num_clusters` is not in 1..C.
        """
        if not 1 <= num_clusters <= len(keys):
            raise ValueError(
                f"{len(keys)} keys cannot be in {num_clusters} clusters; give 1 to {len(keys)}"
            )
        centers = _centers(keys, num_clusters)
        nearest = _nearest(keys, centers)
        order = nearest.argsort(stable=True)
        counts = nearest.bincount(minlength=num_clusters)
        starts = (0, *counts.cumsum(0).tolist())
        return cls(keys[order], order, starts, centers)

    def best(self, vectors: Tensor, *, num_best: int, num_scanned: int) -> Tensor:
        """The keys with the highest products with any of the vectors, nearly.

        Clusters are looked at in the order of the products of their centres, until they hold
        `num_scanned` keys, and each with the vectors that its centre has the highest products with.

        Args:
            vectors: (S, D).
            num_best: N, at most C.
            num_scanned: at least N.

        Returns:
            (N,) int64, best first.
        """
        products = vectors @ self.centers.T
        order = products.amax(0).argsort(descending=True)
        starts = torch.tensor(self.starts)
        sizes = starts.diff()[order.cpu()]
        num_needed = int((sizes.cumsum(0) < num_scanned).sum()) + 1
        chosen = order[:num_needed]
        # Where there is one cluster, its centre says little of its keys.
        num_vectors = len(vectors) if len(self.centers) == 1 else min(NUM_VECTORS, len(vectors))
        nearest = vectors[products[:, chosen].topk(num_vectors, dim=0).indices.T]
        scores, ids = [], []
        for cluster, own in zip(chosen.tolist(), nearest, strict=True):
            start, stop = self.starts[cluster], self.starts[cluster + 1]
            # One cluster at a time: its products stay in the cache.
            scores.append((own @ self.keys[start:stop].T).amax(0))
            ids.append(self.ids[start:stop])
        return torch.cat(ids)[torch.cat(scores).topk(num_best).indices]


def _centers(keys: Tensor, num_clusters: int) -> Tensor:
    """Spherical k-means on a sample: (L, D)."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    chosen = torch.randperm(len(keys), generator=generator)[: num_clusters * KEYS_PER_CLUSTER]
    sample = keys[chosen.to(keys.device)].float()
    centers = sample[:num_clusters]
    for _ in range(NUM_ROUNDS):
        nearest = _nearest(sample, centers)
        # Adding a little of the old centre keeps that of an empty cluster.
        sums = (centers * 1e-3).index_add_(0, nearest, sample)
        centers = F.normalize(sums, dim=1)
    return centers.to(keys.dtype)


def _nearest(keys: Tensor, centers: Tensor) -> Tensor:
    """The centre that each key points at: (C,) int64."""
    return torch.cat([(piece @ centers.T).argmax(1) for piece in keys.split(CHUNK)])
