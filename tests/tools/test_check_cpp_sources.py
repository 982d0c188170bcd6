# SPDX-License-Identifier: Apache-2.0
"""tools/check_cpp_sources.py: what it takes for a warning."""

import runpy
from pathlib import Path

import pytest

from vastdet.layers import build

SOURCE = "int twice(int x) {{ {unused}return 2 * x; }}\n"


@pytest.mark.parametrize("unused", ["", "int y; "], ids=["clean", "unused variable"])
def test_a_warning_of_the_compiler_is_found(repository: Path, tmp_path: Path, unused: str) -> None:
    warnings_of = runpy.run_path(str(repository / "tools" / "check_cpp_sources.py"))["warnings_of"]
    source, target = tmp_path / "twice.cpp", tmp_path / "twice.o"
    source.write_text(SOURCE.format(unused=unused))
    command = (build.find_compiler(), "-std=c++17", "-c", str(source), "-o", str(target))
    found = warnings_of(build.Job("twice", target, command))
    assert bool(found) == bool(unused), found
    assert not target.exists(), "read, not compiled"
    if unused:
        assert "unused variable" in found
