# SPDX-License-Identifier: Apache-2.0
"""Configs by name: the YAML files of `configs/`, from a checkout or from an installed wheel."""

import difflib
from pathlib import Path

import vastdet

SUFFIX = ".yaml"


def config_root() -> Path:
    """The folder of the YAML files: `<package>/configs` of a wheel, else `configs/` of a checkout.

    Raises:
        FileNotFoundError: neither folder exists, so the installation is incomplete.
    """
    package = Path(vastdet.__file__).resolve().parent
    candidates = [package / "configs", package.parents[1] / "configs"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"the configs of vastdet are in none of {[str(c) for c in candidates]}; "
        "reinstall the package (pip install .) or run from a complete checkout"
    )


def list_configs() -> list[str]:
    """Names of all configs, sorted, such as `FasterRCNN/faster_rcnn_R_50_FPN_1x`."""
    root = config_root()
    paths = root.rglob(f"*{SUFFIX}")
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in paths)


def get_config_file(name: str) -> str:
    """The path of a config's YAML file.

    Args:
        name: path below `configs/`, with or without `.yaml`; see `list_configs`.

    Raises:
        ValueError: no config has this name; the message lists the closest names.
    """
    stem = name.removesuffix(SUFFIX)
    known = list_configs()
    if stem in known:
        return str(config_root() / f"{stem}{SUFFIX}")
    by_last_part = [other for other in known if Path(other).name == Path(stem).name]
    close = by_last_part or difflib.get_close_matches(stem, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else "see model_zoo.list_configs()"
    raise ValueError(f"no config is called {name!r}; {hint}")
