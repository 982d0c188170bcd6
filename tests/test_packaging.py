# SPDX-License-Identifier: Apache-2.0
"""`pip install .` into a second environment: the package and its configs work from the wheel."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

USE = """
import json, vastdet
from vastdet import model_zoo
from vastdet.layers import extension_info
from detectron2.modeling import build_model
cfg = model_zoo.get_config("quick/fcos_generated.yaml")
model = build_model(cfg)
print(json.dumps({
    "package": vastdet.__file__,
    "config": model_zoo.get_config_file("quick/fcos_generated.yaml"),
    "architecture": type(model).__name__,
    "num_configs": len(model_zoo.list_configs()),
    "weights": model_zoo.get_config("quick/fcos_generated", trained=True).MODEL.WEIGHTS,
    "kernels": str(extension_info().library),
    "reason": extension_info().reason,
}))
"""
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
# Quick to compile: what is tested here is where the result goes.
FLAGS = {"CXXFLAGS": "-O0", "VASTDET_CUDA": "0"}


def run(*command: str, cwd: Path) -> str:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **FLAGS}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def source(repository: Path, tmp_path: Path) -> Path:
    """The package's sources without what was built from them."""
    skipped = (".venv", ".git", "output", "build", "*.egg-info", "__pycache__", "tests", "_C.*")
    folder = tmp_path / "source"
    shutil.copytree(repository, folder, ignore=shutil.ignore_patterns(*skipped))
    weights = folder / "configs" / "quick" / "weights" / "fcos_generated.safetensors"
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(b"shipped")
    return folder


def new_environment(folder: Path) -> tuple[str, Path]:
    """An empty environment: its interpreter and its site-packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin" / "python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return python, Path(run(python, "-c", ask, cwd=folder).strip())


def build_wheel(source: Path, folder: Path, *, python: str = sys.executable) -> Path:
    folder.mkdir()
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder))
    run(*PIP, "--python", python, "wheel", *options, str(source), cwd=folder)
    (wheel,) = folder.glob("vastdet-*.whl")
    return wheel


def use_wheel(wheel: Path, python: str, site_packages: Path) -> dict[str, Any]:
    """Install the wheel, borrow this environment's other packages, and build a model."""
    install = ("install", "--no-deps", "--no-index", str(wheel))
    run(*PIP, "--python", python, *install, cwd=wheel.parent)
    (site_packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = json.loads(run(python, "-W", "ignore", "-c", USE, cwd=wheel.parent).splitlines()[-1])
    assert Path(found["weights"]).is_relative_to(site_packages)
    assert Path(found["weights"]).read_bytes() == b"shipped"
    return found


@pytest.mark.slow
def test_wheel_works_in_a_second_environment(
    repository: Path, source: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    python, site_packages = new_environment(environment)
    wheel = build_wheel(source, tmp_path / "wheel")
    assert not wheel.name.endswith("-any.whl"), "compiled kernels belong to a platform"
    found = use_wheel(wheel, python, site_packages)
    assert Path(found["package"]).is_relative_to(environment)
    assert Path(found["config"]).is_relative_to(environment)
    assert Path(found["kernels"]).is_relative_to(environment)
    assert found["architecture"] == "FCOS"
    assert found["num_configs"] == len(list((repository / "configs").rglob("*.yaml")))


@pytest.mark.slow
def test_installs_where_torch_is_not_at_hand(source: Path, tmp_path: Path) -> None:
    python, site_packages = new_environment(tmp_path / "builder")
    ours = Path(sysconfig.get_path("purelib"))
    for pattern in ("setuptools*", "_distutils_hack", "wheel*", "packaging*", "pkg_resources"):
        for item in ours.glob(pattern):
            (site_packages / item.name).symlink_to(item)
    wheel = build_wheel(source, tmp_path / "wheel", python=python)
    assert wheel.name.endswith("-none-any.whl")
    found = use_wheel(wheel, *new_environment(tmp_path / "environment"))
    assert "python -m vastdet.layers.build" in found["reason"]
