# SPDX-License-Identifier: Apache-2.0
"""A Detectron2 plugin: import it to register the parts, then call `add_vastdet_config`."""

import importlib.util
import sys
import warnings

if importlib.util.find_spec("torch") is None:
    # With this name, `python -m vastdet.layers.build` shows the sentence and no traceback.
    raise ModuleNotFoundError(
        f"PyTorch is not installed for {sys.executable}, and vastdet needs it. Install torch, "
        "then run: python -m vastdet.layers.build",
        name=__name__,
    )

with warnings.catch_warnings():
    # Detectron2 compiles two functions while it is imported; nobody here can change that.
    warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", FutureWarning)
    from vastdet import backbones, data, evaluation, layers, models  # noqa: F401  (registers parts)
    from vastdet.config import add_vastdet_config
from vastdet.version import __version__

__all__ = ["__version__", "add_vastdet_config"]
