# SPDX-License-Identifier: Apache-2.0
"""The scripts of benchmarks/ import what there is, and say what they do."""

import runpy
import sys
from pathlib import Path

import pytest
from detectron2.modeling import META_ARCH_REGISTRY

SCRIPTS = sorted(
    path.stem for path in Path(__file__).parents[2].joinpath("benchmarks").glob("*.py")
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_imports(script: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = repository / "benchmarks"
    # As when the script itself is started: its neighbours can be imported.
    monkeypatch.syspath_prepend(str(folder))
    # What a script registers goes again, so that it can be run twice.
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", dict(META_ARCH_REGISTRY._obj_map))
    content = runpy.run_path(str(folder / f"{script}.py"), run_name=script)
    assert content["__doc__"]
    for name in SCRIPTS:
        sys.modules.pop(name, None)
