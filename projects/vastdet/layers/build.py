# SPDX-License-Identifier: Apache-2.0
"""Compile the native kernels: `python -m vastdet.layers.build`.

Needs PyTorch, a C++ compiler (CXX, else g++, c++ or clang++) with its headers, and for the CUDA
kernel nvcc (CUDA_HOME, PATH, or the nvidia packages of PyPI) and a CUDA build of PyTorch. Nothing
is compiled at import. setup.py loads this file by its path before anything is installed, so neither
vastdet nor torch is imported at the top.

Environment: CXX and CXXFLAGS as everywhere; TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX") names the CUDA
architectures; VASTDET_CUDA=0 leaves the CUDA kernel out.
"""

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

LAYERS = Path(__file__).resolve().parent
SOURCES = LAYERS / "csrc" / "ms_deform_attn"
CUDA_SOURCES = ("cuda_kernel.cu", "ops_cuda.cpp")
COMMAND = "python -m vastdet.layers.build"
JOBS = 2

# Turing to Blackwell, each if nvcc knows it; PTX of the last serves what comes later.
CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX")

# The instruction sets that the CPU kernel is compiled for, beside the compiler's default.
X86_VARIANTS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    # The warning is about GCC's own header (_mm512_undefined_ps), not about our code.
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
        "-Wno-maybe-uninitialized",
    ],
}
# The kernel decides without branches on floating-point exceptions, and may fuse multiply and add.
KERNEL_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
COMMON_FLAGS = ["-fPIC", "-fvisibility=hidden", "-DNDEBUG"]


class BuildError(RuntimeError):
    """Why nothing was built, and what to do."""


@dataclass(frozen=True)
class BuildRecord:
    """What is written beside the library.

    Attributes:
        torch: version of the PyTorch that the library was compiled against.
        compiler: first line of the compiler's --version.
        cpu_variants: instruction sets of the CPU kernel.
        cuda_architectures: architectures of the CUDA kernel, empty where it was left out.
        cuda_reason: why the CUDA kernel was left out; None where it was built.
        sources: digest of the sources.
    """

    torch: str
    compiler: str
    cpu_variants: tuple[str, ...]
    cuda_architectures: tuple[str, ...]
    cuda_reason: str | None
    sources: str


def read_record(library: Path) -> BuildRecord:
    """The record beside a library. Raises OSError or ValueError where there is no usable one."""
    fields: dict[str, Any] = json.loads(record_file(library).read_text("utf-8"))
    if not isinstance(fields, dict) or set(fields) != set(BuildRecord.__dataclass_fields__):
        raise ValueError(f"{record_file(library)} is not the record of a build of this version")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return BuildRecord(**values)


def record_file(library: Path) -> Path:
    """The JSON file that belongs to a library."""
    return library.with_suffix(".json")


def library_files(torch_version: str) -> tuple[Path, Path]:
    """Where the library may lie: in the package, else in the user's cache (one for each torch)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return LAYERS / "_C.so", cache / "vastdet" / f"torch-{torch_version}" / "_C.so"


def default_library(torch: ModuleType) -> Path:
    """The package's library, or the cache's where the package's folder cannot be written."""
    in_package, in_cache = library_files(torch.__version__)
    return in_package if os.access(LAYERS, os.W_OK) else in_cache


def sources_digest() -> str:
    """A digest of all sources: tells whether a library was made from them."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


# ---- What the machine has -----------------------------------------------------------------------


def find_torch() -> ModuleType:
    """The installed torch. Raises BuildError where there is none."""
    if importlib.util.find_spec("torch") is None:
        raise BuildError(
            f"PyTorch is not installed for {sys.executable}, and the kernels are compiled against "
            f"it. Install torch, then run: {COMMAND}"
        )
    import torch

    return torch


def find_compiler() -> str:
    """The C++ compiler. Raises BuildError where there is none."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["g++", "c++", "clang++"]:
        if found := shutil.which(name):
            return found
    tried = f"CXX is '{named}', which is not there" if named else "no g++, c++ or clang++ on PATH"
    raise BuildError(
        f"no C++ compiler: {tried}. Install one (Debian: apt-get install g++; Fedora: dnf install "
        f"gcc-c++; conda: conda install gxx) or name it in CXX, then run: {COMMAND}"
    )


@dataclass(frozen=True)
class CudaToolkit:
    """What compiles and links the CUDA kernel."""

    nvcc: str
    includes: tuple[Path, ...]
    runtime: Path
    architectures: tuple[str, ...]


def find_cuda(torch: ModuleType) -> CudaToolkit | str:
    """The CUDA toolkit, or why the CUDA kernel is left out."""
    if os.environ.get("VASTDET_CUDA") == "0":
        return "VASTDET_CUDA is 0"
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is not a CUDA build"
    if missing := [name for name in CUDA_SOURCES if not (SOURCES / name).exists()]:
        return f"this package has no {' and no '.join(missing)}"
    packages = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu[0-9]*"), reverse=True)
    homes = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    on_path = shutil.which("nvcc")
    compilers = [
        *(str(h / "bin/nvcc") for h in homes),
        on_path,
        *(f"{p}/bin/nvcc" for p in packages),
    ]
    nvcc = next((c for c in compilers if c and os.access(c, os.X_OK)), None)
    if nvcc is None:
        return "there is no nvcc in CUDA_HOME, on PATH or among the nvidia packages of PyPI"
    release = re.search(r"release (\d+)\.(\d+)", output_of([nvcc, "--version"]))
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        found = f"{release[1]}.{release[2]}" if release else "of unknown version"
        return f"{nvcc} is {found}, and PyTorch is built for CUDA {torch.version.cuda}"
    candidates = [toolkit_folder(nvcc), *homes, *packages]
    includes = tuple(
        folder
        for candidate in candidates
        for folder in (
            candidate / "include",
            candidate / f"targets/{platform.machine()}-linux/include",
        )
        if folder.is_dir()
    )
    # PyTorch's own copy of the runtime first: it is loaded anyway.
    runtimes = [
        library
        for candidate in reversed(candidates)
        for folder in (
            candidate / "lib",
            candidate / "lib64",
            candidate / "targets/x86_64-linux/lib",
        )
        for library in sorted(folder.glob(f"libcudart.so.{release[1]}"))
    ]
    if not runtimes:
        return f"there is no libcudart.so.{release[1]} beside PyTorch or {nvcc}"
    return CudaToolkit(nvcc, includes, runtimes[0], cuda_architectures(nvcc))


def toolkit_folder(nvcc: str) -> Path:
    """The folder of the toolkit of an nvcc, which may be a script that calls another."""
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", result.stderr, re.MULTILINE)
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parents[1]


def cuda_architectures(nvcc: str) -> tuple[str, ...]:
    """TORCH_CUDA_ARCH_LIST, or those of CUDA_ARCHITECTURES that this nvcc compiles for."""
    if named := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        listed = tuple(part for part in re.split(r"[;,\s]+", named) if part)
        for part in listed:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", part):
                raise BuildError(
                    f"TORCH_CUDA_ARCH_LIST is '{named}': '{part}' is not an architecture such as "
                    "8.0 or 9.0+PTX"
                )
        return listed
    known = output_of([nvcc, "--list-gpu-arch"])
    return tuple(a for a in CUDA_ARCHITECTURES if f"compute_{architecture_number(a)}\n" in known)


def architecture_number(architecture: str) -> str:
    """`90` of `9.0+PTX`."""
    return architecture.removesuffix("+PTX").replace(".", "")


def output_of(command: list[str]) -> str:
    """Standard output of a command, empty where it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout


# ---- Commands -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One compiler run: what it makes and how."""

    title: str
    target: Path
    command: tuple[str, ...]


def cpu_variants() -> tuple[str, ...]:
    """The instruction sets to compile for on this machine's architecture."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return ("baseline", *X86_VARIANTS) if is_x86 else ("baseline",)


def compile_jobs(
    torch: ModuleType, compiler: str, cuda: CudaToolkit | None, folder: Path
) -> list[Job]:
    """All compiler runs, the longest first."""
    include_paths = cpp_extension().include_paths()
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    torch_flags = ["-std=c++20", "-O2", "-fopenmp", abi]
    torch_flags += [part for path in include_paths for part in ("-isystem", path)]
    variants = cpu_variants()
    x86 = ["-DVASTDET_CPU_X86"] if len(variants) > 1 else []
    jobs = []

    def add(title: str, name: str, flags: list[str], source: str, program: str = compiler) -> None:
        target = folder / f"{name}.o"
        own = extra if program == compiler else []
        command = [program, *flags, *own, "-c", str(SOURCES / source), "-o", str(target)]
        jobs.append(Job(title, target, tuple(command)))

    if cuda is not None:
        add("CUDA kernel", "cuda_kernel", nvcc_flags(cuda, compiler), CUDA_SOURCES[0], cuda.nvcc)
        flags = [part for path in cuda.includes for part in ("-isystem", str(path))]
        add("CUDA operators", "ops_cuda", [*COMMON_FLAGS, *torch_flags, *flags], CUDA_SOURCES[1])
    add("CPU operators", "ops", [*COMMON_FLAGS, *torch_flags, *x86], "ops.cpp")
    for variant in reversed(variants):
        flags = [*COMMON_FLAGS, *KERNEL_FLAGS, *x86, f"-DVASTDET_CPU_VARIANT={variant}"]
        flags += X86_VARIANTS.get(variant, [])
        add(f"CPU kernel ({variant})", f"cpu_{variant}", flags, "cpu_kernel.cpp")
    return jobs


def cpp_extension() -> ModuleType:
    """The module of torch that knows its folders, without its remark that there is no GPU."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import torch.utils.cpp_extension

    return torch.utils.cpp_extension


def nvcc_flags(cuda: CudaToolkit, compiler: str) -> list[str]:
    """Flags of nvcc: the architectures, and what the C++ compiler is told."""
    flags = ["-std=c++17", "-O3", "-ccbin", compiler, "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    for architecture in cuda.architectures:
        number = architecture_number(architecture)
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if architecture.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def link_command(
    compiler: str, objects: list[Path], cuda: CudaToolkit | None, library: Path
) -> list[str]:
    """Link against torch's libraries. OpenMP is not named: the one that torch loads is used."""
    library_paths = cpp_extension().library_paths()
    command = [compiler, "-shared", *map(str, objects), "-o", str(library)]
    command += [f"-L{path}" for path in library_paths]
    command += ["-ltorch", "-ltorch_cpu", "-lc10"]
    if sys.platform == "darwin":
        command += ["-undefined", "dynamic_lookup"]
    if cuda is not None:
        command += ["-ltorch_cuda", "-lc10_cuda", str(cuda.runtime)]
    return command


# ---- Running ------------------------------------------------------------------------------------


def run(title: str, command: list[str] | tuple[str, ...]) -> None:
    """Run a compiler. Raises BuildError with the end of its output where it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        errors = [line for line in lines if re.search(r"\berror\b|fatal", line)] or lines[-5:]
        raise BuildError(
            f"compiling failed ({title}, {command[0]}):\n  " + "\n  ".join(errors[:10]) + "\n"
            "Make sure that the compiler is GCC 10 or Clang 12 or newer and has the headers of the "
            f"C++ library, then run: {COMMAND}\nThe command was: {shlex.join(command)}"
        )


def run_all(jobs: list[Job], report: Callable[[str], None]) -> Iterator[Path]:
    """Run the jobs, two at a time, and yield their object files."""
    start = time.monotonic()
    with ThreadPoolExecutor(JOBS) as pool:
        pending = {pool.submit(run, job.title, job.command): job for job in jobs}
        try:
            for done, future in enumerate(as_completed(pending), start=1):
                future.result()
                job = pending[future]
                report(f"[{done}/{len(jobs)}] {job.title}, {time.monotonic() - start:.0f} s")
                yield job.target
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def build(output: Path | None = None, report: Callable[[str], None] = print) -> Path:
    """Compile all kernels into one library.

    Args:
        output: the library file; by default in the package, or in the user's cache where the
            package's folder cannot be written.
        report: takes a line for each finished step.

    Returns:
        The library; its record lies beside it.

    Raises:
        BuildError: no torch, no compiler, or the compiler fails.
    """
    torch = find_torch()
    compiler = find_compiler()
    cuda = find_cuda(torch)
    toolkit = cuda if isinstance(cuda, CudaToolkit) else None
    output = output or default_library(torch)
    output.parent.mkdir(parents=True, exist_ok=True)
    record = BuildRecord(
        torch=torch.__version__,
        compiler=output_of([compiler, "--version"]).partition("\n")[0],
        cpu_variants=cpu_variants(),
        cuda_architectures=toolkit.architectures if toolkit else (),
        cuda_reason=cuda if isinstance(cuda, str) else None,
        sources=sources_digest(),
    )
    with tempfile.TemporaryDirectory(prefix="vastdet-build-") as folder:
        jobs = compile_jobs(torch, compiler, toolkit, Path(folder))
        objects = list(run_all(jobs, report))
        # Linked beside its place and then renamed: a process that has the old one loaded keeps it.
        unfinished = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            run("linking", link_command(compiler, objects, toolkit, unfinished))
            os.replace(unfinished, output)
        finally:
            unfinished.unlink(missing_ok=True)
    record_file(output).write_text(json.dumps(asdict(record), indent=1) + "\n", "utf-8")
    return output


def up_to_date(library: Path, torch: ModuleType) -> bool:
    """Whether a library was made from these sources for this torch, with what is asked for now."""
    try:
        record = read_record(library)
    except (OSError, ValueError):
        return False
    if not library.exists() or record.torch != torch.__version__:
        return False
    cuda = find_cuda(torch)
    architectures = () if isinstance(cuda, str) else cuda.architectures
    return record.sources == sources_digest() and record.cuda_architectures == architectures


def summary(library: Path) -> str:
    """One line on what was built."""
    record = read_record(library)
    cuda = (
        f"CUDA {' '.join(record.cuda_architectures)}"
        if record.cuda_architectures
        else f"without CUDA ({record.cuda_reason})"
    )
    return f"{library}: CPU {', '.join(record.cpu_variants)}; {cuda}; torch {record.torch}"


def show_progress(line: str) -> None:
    """Show a step: on a terminal over the one before."""
    end = "" if sys.stdout.isatty() else "\n"
    start = "\r\033[K" if sys.stdout.isatty() else ""
    print(f"{start}{line}", end=end, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Build from the command line; 1 where that failed."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Compile vastdet's native kernels.")
    parser.add_argument("--output", type=Path, help="the library file (default: in the package)")
    parser.add_argument("--force", action="store_true", help="compile even what is up to date")
    options = parser.parse_args(arguments)
    line_end = "\n" if sys.stdout.isatty() else ""
    try:
        torch = find_torch()
        library = options.output or default_library(torch)
        if options.force or not up_to_date(library, torch):
            show_progress("compiling the kernels (a minute or two)")
            build(library, show_progress)
    except BuildError as error:
        print(f"{line_end}{error}", file=sys.stderr)
        return 1
    show_progress(summary(library))
    print(end=line_end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
