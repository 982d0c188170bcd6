# SPDX-License-Identifier: Apache-2.0
"""`pip install .` into a second environment: the package and its configs work from the wheel."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

USE = """
import json, vastdet
from vastdet import model_zoo
from detectron2.modeling import build_model
cfg = model_zoo.get_config("quick/fcos_generated.yaml")
model = build_model(cfg)
print(json.dumps({
    "package": vastdet.__file__,
    "config": model_zoo.get_config_file("quick/fcos_generated.yaml"),
    "architecture": type(model).__name__,
    "num_configs": len(model_zoo.list_configs()),
}))
"""


def run(*command: str, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_wheel_works_in_a_second_environment(repository: Path, tmp_path: Path) -> None:
    source, environment = tmp_path / "source", tmp_path / "environment"
    skipped = shutil.ignore_patterns(
        *(".venv", ".git", "output", "build", "*.egg-info", "__pycache__", "tests")
    )
    shutil.copytree(repository, source, ignore=skipped)
    venv.create(environment, with_pip=False, symlinks=True)
    python = str(environment / "bin" / "python")
    site_packages = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
        ).strip()
    )
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, *build, "--wheel-dir", str(tmp_path), str(source), cwd=tmp_path)
    (wheel,) = tmp_path.glob("vastdet-*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel), cwd=tmp_path)
    # The other packages are this environment's: they take minutes and gigabytes to install.
    (site_packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")

    found = json.loads(run(python, "-W", "ignore", "-c", USE, cwd=tmp_path).splitlines()[-1])
    assert Path(found["package"]).is_relative_to(environment)
    assert Path(found["config"]).is_relative_to(environment)
    assert found["architecture"] == "FCOS"
    assert found["num_configs"] == len(list((repository / "configs").rglob("*.yaml")))
