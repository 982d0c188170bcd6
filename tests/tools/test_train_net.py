# SPDX-License-Identifier: Apache-2.0
"""The script itself; what it does is tested in tests/engine."""

import re
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
    assert "FutureWarning" not in done.stderr


def test_commands_in_help_name_configs_that_exist(repository: Path) -> None:
    files = [*(repository / "tools").glob("*.py")]
    files += [repository / "projects/vastdet/engine/command_line.py"]
    named = {
        name for file in files for name in re.findall(r"configs/[\w/]+\.yaml", file.read_text())
    }
    assert named
    assert not [name for name in sorted(named) if not (repository / name).is_file()]
