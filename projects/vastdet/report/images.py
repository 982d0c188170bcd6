# SPDX-License-Identifier: Apache-2.0
"""Pictures as data URIs, made smaller where a page needs it."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

JPEG_QUALITY = 80
MAX_PICTURE_SIDE = 640
MAX_PLOT_WIDTH = 1400
MAX_PLOT_BYTES = 250_000


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of an image file as a data URI; `kind` is "jpeg" or "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def jpeg_data_uri(pixels: np.ndarray, max_side: int = MAX_PICTURE_SIDE) -> str:
    """A picture (HxWx3 uint8 RGB) as a JPEG data URI, at most `max_side` pixels on a side."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return data_uri(buffer.getvalue(), "jpeg")


def image_data_uri(file: Path) -> str:
    """A plot's file as a data URI; over 250 kB it is cut in width and to 256 colours."""
    data = file.read_bytes()
    kind = "png" if file.suffix.lower() == ".png" else "jpeg"
    if len(data) <= MAX_PLOT_BYTES:
        return data_uri(data, kind)
    with Image.open(io.BytesIO(data)) as picture:
        plain = picture.convert("RGB")
    plain.thumbnail((MAX_PLOT_WIDTH, 4 * MAX_PLOT_WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    plain.quantize(256).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "png")
