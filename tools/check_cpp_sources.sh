#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Read the C++ sources with the compiler's usual warnings as errors; the build itself stays silent on
# compilers that nobody here has. `ops_cuda.cpp` is read where CUDA's headers are.
set -euo pipefail
cd "$(dirname "$0")/.."

compiler=${CXX:-g++}
python=python3
[ -x "${VENV:-.venv}/bin/python" ] && python=${VENV:-.venv}/bin/python
torch=$("$python" -c 'from importlib.util import find_spec
print(find_spec("torch").submodule_search_locations[0])')
nvcc=${CUDA_HOME:+$CUDA_HOME/bin/nvcc}
[ -x "${nvcc:-}" ] || nvcc=$(command -v nvcc || true)
# nvcc may be a script that calls another; it knows where its toolkit is.
cuda=$([ -z "$nvcc" ] || "$nvcc" --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')

read_source() {  # a file and the flags that the build gives it
    local file=$1
    shift
    "$compiler" -fsyntax-only -Wall -Wextra -Werror -DNDEBUG "$@" \
        "projects/vastdet/layers/csrc/ms_deform_attn/$file"
}

start=$SECONDS
headers=(-std=c++20 -fopenmp -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include")
variants=()
x86=()
if [ "$(uname -m)" = x86_64 ]; then
    variants=("avx2 -mavx2 -mfma -mf16c" "avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c")
    x86=(-DVASTDET_CPU_X86)
fi
jobs=()
(
    for variant in baseline "${variants[@]}"; do
        read -ra words <<<"$variant"
        read_source cpu_kernel.cpp -std=c++17 "${x86[@]}" "-DVASTDET_CPU_VARIANT=${words[0]}" "${words[@]:1}"
    done
    read_source ops.cpp "${headers[@]}" "${x86[@]}"
) &
jobs+=($!)
if [ -n "$cuda" ] && [ -e "$cuda/include/cuda_runtime_api.h" ]; then
    read_source ops_cuda.cpp "${headers[@]}" -isystem "$cuda/include" &
    jobs+=($!)
else
    echo "ops_cuda.cpp not read: CUDA's headers are not beside an nvcc in CUDA_HOME or on PATH"
fi
for job in "${jobs[@]}"; do wait "$job"; done
echo "C++ sources: no warning, $((SECONDS - start)) s"
