# SPDX-License-Identifier: Apache-2.0
"""Packages that only some parts of vastdet need."""

import importlib.util


def require_packages(*packages: str, purpose: str, install: str) -> None:
    """Check that packages are installed, without importing them.

    Args:
        packages: names as `import` takes them.
        purpose: what needs them, the subject of the error: "ONNX files".
        install: what pip should install, for the error: "vastdet[export]".

    Raises:
        ImportError: the first of them that is not installed, with the way out.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"{purpose} need the package {package}, which is not installed: "
                f"pip install '{install}'"
            )
