# SPDX-License-Identifier: Apache-2.0
"""The script itself; what it does is tested in tests/engine."""

import subprocess
import sys
from pathlib import Path


def test_missing_config_file_is_one_line(repository: Path) -> None:
    script = str(repository / "tools" / "train_net.py")
    command = [sys.executable, script, "--config-file", "configs/none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: There is no config file")
    assert "Traceback" not in done.stderr
