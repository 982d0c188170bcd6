#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a detector; `--help` shows how."""

import sys

from vastdet.engine.command_line import main

if __name__ == "__main__":
    sys.exit(main())
