# SPDX-License-Identifier: Apache-2.0
"""Mixed precision, as SOLVER.AMP asks for it in training and TEST.AMP at inference."""

import torch
from detectron2.config import CfgNode


def amp_dtype(cfg: CfgNode, section: str = "SOLVER") -> torch.dtype | None:
    """The data type of mixed precision for `cfg.MODEL.DEVICE`, or None when AMP is off.

    `section` is "SOLVER" or "TEST". Raises ValueError for an unknown type, and for float16 on a
    CPU, which has no fast float16.
    """
    amp = cfg[section].AMP
    if not amp.ENABLED:
        return None
    on_cuda = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    name = amp.DTYPE
    if name == "auto":
        name = "bfloat16" if not on_cuda or torch.cuda.is_bf16_supported() else "float16"
    if name not in ("bfloat16", "float16") or (name == "float16" and not on_cuda):
        raise ValueError(
            f"{section}.AMP.DTYPE is {amp.DTYPE!r} on {cfg.MODEL.DEVICE}; expected 'auto', "
            "'bfloat16', or, on CUDA only, 'float16'."
        )
    return getattr(torch, name)


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """The context in which `cfg.TEST.AMP` lets a model predict; it changes nothing when off.

    Raises ValueError as `amp_dtype` does.
    """
    return _autocast(cfg, "TEST")


def training_autocast(cfg: CfgNode) -> torch.autocast:
    """The context in which `cfg.SOLVER.AMP` lets a model compute its losses; as the above."""
    return _autocast(cfg, "SOLVER")


def _autocast(cfg: CfgNode, section: str) -> torch.autocast:
    dtype = amp_dtype(cfg, section)
    device = torch.device(cfg.MODEL.DEVICE).type
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)
