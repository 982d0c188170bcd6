# SPDX-License-Identifier: Apache-2.0
"""The three global random generators (python, numpy, torch) as one state."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def random_state(*, cuda: bool = False) -> RandomState:
    """The state of the global generators, of types that a safe checkpoint may hold.

    With `cuda`, the generator of the current CUDA device is included when CUDA is in use.
    """
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)  # noqa: NPY002
    assert name == "MT19937"
    assert isinstance(keys, np.ndarray)
    state = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached_gaussian),
        "torch": torch.get_rng_state(),
    }
    if cuda and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: RandomState) -> None:
    """Put the global generators back to a state taken by `random_state`."""
    random.setstate(state["python"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved_random_state(*, cuda: bool = False) -> Iterator[None]:
    """Run a block of code whose random draws leave the global generators as they were."""
    state = random_state(cuda=cuda)
    try:
        yield
    finally:
        set_random_state(state)


def seed_generators(*keys: int) -> None:
    """Seed the global CPU generators from a tuple of non-negative integers.

    The keys are mixed by `numpy.random.SeedSequence`, so that neighbouring keys give unrelated
    streams. CUDA generators are left alone: data is prepared on the CPU.
    """
    words = np.random.SeedSequence(keys).generate_state(4, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002
    torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))
