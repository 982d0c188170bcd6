#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes (or completes) the virtual environment that every target of the Makefile uses.
#
#   VENV               where it lives (default .venv); an existing environment is completed, not replaced
#   PYTHON             the interpreter that makes it (default python3; 3.10 or newer, tested with 3.11)
#   DETECTRON2_SOURCE  see tools/install_detectron2.py
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}

fail() {
    printf '\nset-up failed: %s\n' "$1" >&2
    exit 1
}

step() {
    printf '\n== %s\n' "$1"
}

if [ ! -x "$VENV/bin/python" ]; then
    command -v "$PYTHON" >/dev/null ||
        fail "no '$PYTHON' on this machine. Install Python 3.11 (Debian: apt-get install python3 python3-venv) or name one: make setup PYTHON=/path/to/python3.11"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "'$PYTHON' is $("$PYTHON" --version 2>&1); Python 3.10 or newer is needed (tested with 3.11). Name one: make setup PYTHON=/path/to/python3.11"
    step "creating $VENV"
    "$PYTHON" -m venv "$VENV" ||
        fail "python could not make a virtual environment. On Debian: apt-get install python3-venv"
fi

free_gb=$(df -Pk "$VENV" | awk 'NR == 2 { print int($4 / 1048576) }')
if [ "$free_gb" -lt 10 ] && [ ! -d "$VENV"/lib/python3*/site-packages/torch ]; then
    fail "only ${free_gb} GB free for $VENV; PyTorch and its libraries need about 10 GB while they are installed. Free some room, or set VENV to a larger disk"
fi

pip_install() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@"
}

network_hint="pip could not install it (its message is above). Check that this machine reaches a Python package index (pip config list; a proxy goes in HTTPS_PROXY), then run the command again: it goes on where it stopped"

step "build tools"
pip_install setuptools wheel || fail "$network_hint"
step "vastdet and what it needs, at the versions of constraints.txt (PyTorch is several GB: 1-3 minutes)"
pip_install --no-build-isolation --editable '.[dev]' || fail "$network_hint"
step "Detectron2"
"$VENV/bin/python" tools/install_detectron2.py || fail "Detectron2 is not installed (see above)"
step "compiled kernels"
"$VENV/bin/python" -W ignore -m vastdet.layers.build || fail "the kernels could not be compiled (see above)"
step "checking"
"$VENV/bin/python" -W ignore -c 'import vastdet; print(f"vastdet {vastdet.__version__} is ready")' ||
    fail "the environment $VENV does not import vastdet. Remove it (rm -r $VENV) and run again"
touch "$VENV/.ready"
