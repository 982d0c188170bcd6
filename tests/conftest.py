# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test module may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from vastdet import add_vastdet_config
from vastdet.engine.tools import close_logs
from vastdet.layers import extension_info

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_report_header() -> str:
    """Which kernels the tests run on: without compiled ones, the tests of these are left out."""
    info = extension_info()
    return f"deformable attention: {info.reason or f'compiled, {info.cpu_variant} in use'}"


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    """Small models run fastest, and repeat bit for bit, on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_loggers() -> Iterator[None]:
    """A test sees no handler of another one, whose streams are closed, nor of a fixture's run."""
    close_logs()
    yield
    close_logs()


@pytest.fixture
def cfg() -> CfgNode:
    """Detectron2's defaults with every vastdet key, on the CPU."""
    cfg = get_cfg()
    add_vastdet_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (VASTDET_SHARED_DATA, or ../shared/data beside the checkout)."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("VASTDET_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set VASTDET_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout, for tests of tools/ and configs/."""
    return REPOSITORY
