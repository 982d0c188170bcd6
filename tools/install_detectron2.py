# SPDX-License-Identifier: Apache-2.0
"""Install Detectron2 into the environment of the Python that runs this file.

An importable Detectron2 is kept. Otherwise the variable DETECTRON2_SOURCE says where it comes from:

* `pypi` (the default): the distribution sal-detectron2 0.7.2, Detectron2's main branch of late
  2024 in pure Python, pinned by hash. Its wheel is tagged for CPython 3.10 because of one compiled
  module that other versions cannot load and that vastdet does not use; it also carries a package
  called `tools`, which would shadow ours. So only its `detectron2` folder is unpacked.
* `github`: the main branch of Detectron2's own repository, built from source (needs git and g++).
* anything else is handed to pip as a requirement, for example
  `git+https://github.com/facebookresearch/detectron2@<commit>`.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

DISTRIBUTION = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
GITHUB = "git+https://github.com/facebookresearch/detectron2"


def main() -> int:
    """Install Detectron2 unless it is there; return the exit status."""
    spec = importlib.util.find_spec("detectron2")
    if spec is not None and spec.origin is not None:
        print(f"kept: {Path(spec.origin).parent}")
        return 0
    source = os.environ.get("DETECTRON2_SOURCE", "pypi")
    try:
        if source == "pypi":
            install_wheel(Path(sysconfig.get_path("purelib")))
        else:
            pip("install", "--no-build-isolation", GITHUB if source == "github" else source)
        subprocess.run([sys.executable, "-W", "ignore", "-c", "import detectron2"], check=True)
    except subprocess.CalledProcessError as error:
        print(
            f"Detectron2 could not be installed from {source!r} (exit {error.returncode}, message "
            "above).\nEither give this machine access to a Python package index, or set "
            "DETECTRON2_SOURCE=github (needs git and g++), or install Detectron2 yourself into "
            f"{sys.prefix} and run again.",
            file=sys.stderr,
        )
        return 1
    print(f"installed from {source}")
    return 0


def install_wheel(site_packages: Path) -> None:
    """Download the pinned wheel and put its `detectron2` folder, and nothing else, in place."""
    with tempfile.TemporaryDirectory(dir=site_packages, prefix=".detectron2-") as scratch:
        requirement = Path(scratch, "requirement.txt")
        requirement.write_text(f"{DISTRIBUTION} --hash=sha256:{SHA256}\n", "utf-8")
        pip(
            *("download", "--no-deps", "--only-binary=:all:", "--python-version", "3.10"),
            *("--require-hashes", "--requirement", str(requirement), "--dest", scratch),
        )
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith("detectron2/")]
            archive.extractall(scratch, members)
        # A rename is the last step, so an interrupted install leaves no half package behind.
        shutil.move(Path(scratch, "detectron2"), site_packages / "detectron2")


def pip(*arguments: str) -> None:
    """Run pip of this interpreter; raise CalledProcessError when it fails."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
