# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from vastdet.layers import build, extension_info
from vastdet.layers.extension import find_library

BUILD = Path(build.__file__)
RECORD = build.BuildRecord(
    torch="9.9",
    compiler="g++ 99",
    cpu_variants=("baseline",),
    cuda_architectures=(),
    cuda_reason="VASTDET_CUDA is 0",
    sources="0",
)


def run_build(python: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return run(python, str(BUILD), *arguments, **environment)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def write_library(folder: Path, record: str) -> Path:
    library = folder / "_C.so"
    library.write_bytes(b"")
    build.record_file(library).write_text(record)
    return library


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter without torch."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return str(folder / "bin/python")


# As setup.py loads it, by its path, and as users run it.
@pytest.mark.parametrize("program", [(str(BUILD),), tuple(build.COMMAND.split()[1:])])
def test_missing_torch_is_one_message(bare: str, program: tuple[str, ...]) -> None:
    result = run(bare, *program, PYTHONPATH=str(BUILD.parents[2]))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert f"PyTorch is not installed for {bare}" in result.stderr
    assert f"Install torch, then run: {build.COMMAND}" in result.stderr


def test_importing_without_torch_says_what_is_missing(bare: str) -> None:
    result = run(bare, "-c", "import vastdet", PYTHONPATH=str(BUILD.parents[2]))
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: PyTorch is not installed for {bare}")


def test_missing_compiler_is_one_message(tmp_path: Path) -> None:
    result = run_build(
        sys.executable, "--output", str(tmp_path / "_C.so"), PATH=str(tmp_path), CXX=""
    )
    assert result.returncode == 1
    assert "no C++ compiler: no g++, c++ or clang++ on PATH" in result.stderr
    assert "apt-get install g++" in result.stderr
    assert "Traceback" not in result.stderr


def test_failing_compiler_is_one_message(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'x.h:1: fatal error: no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    output = tmp_path / "out" / "_C.so"
    result = run_build(sys.executable, "--output", str(output), CXX=str(broken), VASTDET_CUDA="0")
    assert result.returncode == 1
    assert "compiling failed" in result.stderr
    assert "fatal error: no such header" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(output.parent.iterdir()) == []


def test_a_named_compiler_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="CXX is 'no-such-compiler', which is not there"):
        build.find_compiler()


def test_a_wrong_architecture_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;Hopper")
    with pytest.raises(build.BuildError, match="'Hopper' is not an architecture"):
        build.cuda_architectures("nvcc")


def test_listed_architectures_become_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0+PTX")
    assert build.cuda_architectures("nvcc") == ("8.0", "9.0+PTX")
    assert build.architecture_number("9.0+PTX") == "90"


def test_cuda_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VASTDET_CUDA", "0")
    assert build.find_cuda(torch) == "VASTDET_CUDA is 0"


def test_no_library_says_how_to_build(tmp_path: Path) -> None:
    found = find_library((tmp_path / "_C.so",), "9.9")
    assert found.library is None
    assert found.reason == f"the compiled kernels are not built. Build them with: {build.COMMAND}"


def test_a_library_in_the_package_is_in_use() -> None:
    # Else its tests would all be left out, and nothing would say so.
    if not (library := build.library_files(torch.__version__)[0]).exists():
        pytest.skip(f"{library} is not built")
    assert extension_info().library == library, extension_info().reason


def test_a_library_for_another_torch_is_refused(tmp_path: Path) -> None:
    library = write_library(tmp_path, json.dumps(dataclasses.asdict(RECORD)))
    assert find_library((library,), "9.9").record == RECORD
    found = find_library((library,), "9.8")
    assert found.library is None
    assert "was built for torch 9.9, this is 9.8" in (found.reason or "")
    assert not build.up_to_date(library, torch)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_library_without_a_record_is_refused(tmp_path: Path, text: str) -> None:
    found = find_library((write_library(tmp_path, text),), "9.9")
    assert found.library is None
    assert "has no usable record" in (found.reason or "")
    assert not build.up_to_date(tmp_path / "_C.so", torch)


def test_the_summary_says_what_is_missing(tmp_path: Path) -> None:
    library = write_library(tmp_path, json.dumps(dataclasses.asdict(RECORD)))
    assert "without CUDA (VASTDET_CUDA is 0); torch 9.9" in build.summary(library)


def test_info_of_this_process() -> None:
    info = extension_info()
    if info.library is None:
        assert build.COMMAND in (info.reason or "")
    else:
        assert info.torch_version == torch.__version__
        assert info.cpu_variant in info.cpu_variants
        assert bool(info.cuda_architectures) == (info.cuda_reason is None)
