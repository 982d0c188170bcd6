# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled kernels, and tells what was built. Loading compiles nothing."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from vastdet.layers.build import (
    COMMAND,
    BuildRecord,
    library_files,
    read_record,
    sources_digest,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtensionInfo:
    """What the compiled kernels of this process are.

    Attributes:
        library: the file that is loaded; None where the PyTorch reference is used instead.
        reason: why none is loaded, and what to do; None where one is.
        torch_version: the PyTorch that it was compiled against.
        compiler: the C++ compiler and its version.
        cpu_variant: the instruction set in use.
        cpu_variants: those that were compiled.
        cuda_architectures: those of the CUDA kernel, such as "8.0"; empty where there is none.
        cuda_reason: why there is no CUDA kernel; None where there is one.
        outdated: whether the sources have changed since it was built.
    """

    library: Path | None = None
    reason: str | None = None
    torch_version: str | None = None
    compiler: str | None = None
    cpu_variant: str | None = None
    cpu_variants: tuple[str, ...] = ()
    cuda_architectures: tuple[str, ...] = ()
    cuda_reason: str | None = None
    outdated: bool = False


@dataclass(frozen=True)
class Loaded:
    """The result of the attempt to load: a library with its record, or why there is none."""

    library: Path | None = None
    record: BuildRecord | None = None
    reason: str | None = None


def find_library(files: tuple[Path, ...], torch_version: str) -> Loaded:
    """The first library of `files` that was built for this torch, or why there is none.

    A library for another version of torch is refused: its calls into torch could do anything.
    """
    refused = []
    for library in files:
        if not library.exists():
            continue
        try:
            record = read_record(library)
        except (OSError, ValueError) as error:
            refused.append(f"{library} has no usable record ({error})")
            continue
        if record.torch == torch_version:
            return Loaded(library, record)
        refused.append(f"{library} was built for torch {record.torch}, this is {torch_version}")
    reason = "; ".join(refused) or "the compiled kernels are not built"
    return Loaded(reason=f"{reason}. Build them with: {COMMAND}")


@functools.cache
def load() -> Loaded:
    """Load the library, once a process."""
    found = find_library(library_files(torch.__version__), torch.__version__)
    if found.library is None:
        return found
    try:
        torch.ops.load_library(found.library)
    except OSError as error:
        return Loaded(
            reason=f"{found.library} cannot be loaded ({error}). Build it again with: {COMMAND}"
        )
    return found


def extension_info() -> ExtensionInfo:
    """What was built, what of it is in use, and why not what is missing."""
    loaded = load()
    if loaded.record is None:
        return ExtensionInfo(reason=loaded.reason)
    record = loaded.record
    return ExtensionInfo(
        library=loaded.library,
        torch_version=record.torch,
        compiler=record.compiler,
        cpu_variant=torch.ops.vastdet.cpu_variant(),
        cpu_variants=record.cpu_variants,
        cuda_architectures=record.cuda_architectures,
        cuda_reason=record.cuda_reason,
        outdated=record.sources != sources_digest(),
    )


def warn_of_missing_kernel(device_type: str) -> None:
    """Log why the operators run in plain PyTorch on a device, each reason once a process."""
    loaded = load()
    if loaded.record is None:
        missing = loaded.reason
    elif device_type == "cuda" and not loaded.record.cuda_architectures:
        missing = f"there is no CUDA kernel ({loaded.record.cuda_reason}). Build it with: {COMMAND}"
    else:
        missing = f"there is no kernel for devices of type {device_type}"
    warn_once(f"multi-scale deformable attention runs in plain PyTorch, which is slow: {missing}")


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, the same text only once a process."""
    logger.warning(message)
