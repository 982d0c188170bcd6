# SPDX-License-Identifier: Apache-2.0
"""Reads the .pkl weights of Detectron2's model zoo without running code from the file.

A pickle may name any importable function and have it called. This reader knows the few names that
numpy arrays in plain containers need and refuses every other.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy._core import multiarray
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]


def latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 spells bytes; other codecs are refused, for some of them expand or execute."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it uses the codec {encoding!r}")
    return text.encode("latin1")


# numpy 1 writes numpy.core, numpy 2 numpy._core.
ARRAY_PARTS: dict[tuple[str, str], Any] = {
    (f"numpy.{core}.{module}", name): part
    for core in ("core", "_core")
    for module, name, part in (
        ("multiarray", "_reconstruct", multiarray._reconstruct),
        ("multiarray", "scalar", multiarray.scalar),
        ("numeric", "_frombuffer", _frombuffer),
    )
}
ALLOWED: dict[tuple[str, str], Any] = {
    **ARRAY_PARTS,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): latin1_bytes,
}


# A damaged pickle may fail in any of these ways.
DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    MemoryError,
)


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler of numpy arrays and scalars in dicts, lists, tuples, strings and numbers."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name that the file wants; raise UnpicklingError for one not needed by data."""
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}") from None


def load_array_pickle(path: str | Path) -> Any:
    """Load a pickle of numpy arrays in plain containers.

    Raises ValueError, and runs nothing, when the file holds anything else or is damaged.
    """
    with open(path, "rb") as file:
        try:
            return ArrayUnpickler(file).load()
        except DAMAGE as error:
            raise ValueError(refusal(path, error)) from error


def refusal(path: str | Path, error: Exception) -> str:
    """The text for a user whose weights were not read."""
    return (
        f"{path} was not loaded: it is damaged or needs more than arrays in plain containers "
        f"({error}). A pickle can run any code while it is read, so only weights are accepted: "
        ".safetensors, .pth that torch.load reads with weights_only=True, or a model-zoo .pkl of "
        "numpy arrays. Convert the file with the program that wrote it, for example by "
        "torch.save({'model': model.state_dict()}, 'weights.pth')."
    )
