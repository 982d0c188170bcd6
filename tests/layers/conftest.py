# SPDX-License-Identifier: Apache-2.0
"""What computes multi-scale deformable attention in a test: each gives the device to use."""

from collections.abc import Iterator

import pytest
import torch
from tests.layers.ms_deform_attn_inputs import CUDA_MARKS

from vastdet.layers import extension, extension_info
from vastdet.layers.ms_deform_attn import _plain_backward, _plain_forward

COMPILED = extension_info().library is not None
ON_CUDA = pytest.param("cuda", marks=CUDA_MARKS)
VARIANTS = torch.ops.vastdet.cpu_variants() if COMPILED else []


@pytest.fixture
def plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU operators as they are where the kernels were never built."""
    monkeypatch.setattr(extension, "load", lambda: extension.Loaded(reason="not built"))
    extension.warn_once.cache_clear()
    library = torch.library.Library("vastdet", "IMPL")
    # The fallback of all devices, registered over the kernel of this one.
    library.impl("ms_deform_attn", _plain_forward, "CPU", allow_override=True)
    library.impl("ms_deform_attn_backward", _plain_backward, "CPU", allow_override=True)
    yield
    library._destroy()


@pytest.fixture(params=[*(["compiled"] if COMPILED else []), "plain", ON_CUDA])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU with compiled kernels, the CPU without, and CUDA."""
    if request.param == "plain":
        request.getfixturevalue("plain_pytorch")
    return "cuda" if request.param == "cuda" else "cpu"


@pytest.fixture(params=[*(["cpu"] if COMPILED else []), ON_CUDA])
def compiled_device(request: pytest.FixtureRequest) -> str:
    """The devices that have a compiled kernel."""
    return request.param


@pytest.fixture(params=[*VARIANTS, "plain", ON_CUDA])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `device`, with every instruction set that this CPU can run."""
    if request.param == "plain":
        request.getfixturevalue("plain_pytorch")
    elif request.param != "cuda":
        monkeypatch.setenv("VASTDET_CPU_VARIANT", request.param)
    return "cuda" if request.param == "cuda" else "cpu"


@pytest.fixture(params=VARIANTS)
def cpu_variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernels for each instruction set that this CPU can run."""
    monkeypatch.setenv("VASTDET_CPU_VARIANT", request.param)
