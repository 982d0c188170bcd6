# SPDX-License-Identifier: Apache-2.0
"""Setting up: Detectron2's wheel leaves only `detectron2`; failures say what to do."""

import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def install(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("install_detectron2")


def test_only_detectron2_lands(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(*arguments: str) -> None:
        requirement = Path(arguments[arguments.index("--requirement") + 1])
        asked.append(requirement.read_text())
        folder = arguments[arguments.index("--dest") + 1]
        with zipfile.ZipFile(Path(folder, "some.whl"), "w") as wheel:
            wheel.writestr("detectron2/__init__.py", "")
            wheel.writestr("detectron2/model_zoo/a.yaml", "A: 1")
            wheel.writestr("tools/__init__.py", "")
            wheel.writestr("sal_detectron2-0.7.2.dist-info/METADATA", "")

    monkeypatch.setattr(install, "pip", download)
    install.install_wheel(tmp_path)
    assert os.listdir(tmp_path) == ["detectron2"]
    assert (tmp_path / "detectron2" / "model_zoo" / "a.yaml").read_text() == "A: 1"
    assert asked == [f"sal-detectron2==0.7.2 --hash=sha256:{install.SHA256}\n"]


def test_an_importable_detectron2_is_kept(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_pip(*arguments: str) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(install, "pip", no_pip)
    assert install.main() == 0
    assert capsys.readouterr().out.startswith("kept: ")


@pytest.mark.parametrize("source", ["pypi", "github", "detectron2 @ file:///nowhere"])
def test_a_failed_install_says_what_to_do(
    install: ModuleType,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def fail(*arguments: str) -> None:
        asked.append(arguments)
        raise subprocess.CalledProcessError(1, arguments)

    monkeypatch.setattr(install, "pip", fail)
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("DETECTRON2_SOURCE", source)
    assert install.main() == 1
    assert "DETECTRON2_SOURCE=github" in capsys.readouterr().err
    wanted = {"pypi": "download", "github": install.GITHUB}.get(source, source)
    assert wanted in asked[0]


@pytest.mark.parametrize(
    ("interpreter", "message"),
    [
        ("no_such_python", "no 'no_such_python' on this machine"),
        ("old_python", "Python 3.10 or newer is needed"),
    ],
)
def test_set_up_without_a_fitting_python(
    repository: Path, tmp_path: Path, interpreter: str, message: str
) -> None:
    old = tmp_path / "old_python"
    # Fails the version check, as an older Python would.
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.0 && exit\nexit 1\n')
    old.chmod(0o755)
    environment = {
        **os.environ,
        "VENV": str(tmp_path / "venv"),
        "PYTHON": interpreter,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    result = subprocess.run(
        ["bash", str(repository / "tools" / "setup_environment.sh")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert "make setup PYTHON=" in result.stderr
    assert not (tmp_path / "venv").exists()
