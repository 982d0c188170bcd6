#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Read the kernels' C++ sources with the compiler's usual warnings as errors.

The flags are those of the build, which itself stays silent on compilers that nobody here has.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vastdet.layers import build

WARNINGS = ("-fsyntax-only", "-Wall", "-Wextra", "-Werror")


def warnings_of(job: build.Job) -> str:
    """What the compiler says of the source of a build's job, empty where that is nothing."""
    flags = job.command[: job.command.index("-c")]
    source = job.command[len(flags) + 1]
    command = [*flags, *WARNINGS, source]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stderr if result.returncode else ""


def main() -> int:
    """Read every source, print what is wrong, and return the exit status."""
    start = time.monotonic()
    torch, compiler = build.find_torch(), build.find_compiler()
    cuda = build.find_cuda(torch)
    toolkit = None if isinstance(cuda, str) else cuda
    jobs = build.compile_jobs(torch, compiler, toolkit, Path())
    # nvcc has a check of its own: tools/check_cuda_sources.sh.
    jobs = [job for job in jobs if job.command[0] == compiler]
    if isinstance(cuda, str):
        print(f"ops_cuda.cpp not read: {cuda}")
    with ThreadPoolExecutor(build.JOBS) as pool:
        found = [text for text in pool.map(warnings_of, jobs) if text]
    print("\n".join(found) or f"C++ sources: no warning, {time.monotonic() - start:.0f} s")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
