# SPDX-License-Identifier: Apache-2.0
"""Read any image that users keep in a dataset into 8 bits, or say which file is broken and why.

What is done with the unusual ones:

* EXIF orientation is applied, as Detectron2 does; recorded sizes and boxes refer to the result.
* 16-bit greyscale keeps its high byte, which is what Pillow does with 16-bit colour. Images of 32
  bits (integer or float) have no agreed range and are refused.
* CMYK, palette and greyscale become colour; transparency is dropped, not blended.
* Of an animation, the first frame is read.
* An image of more pixels than Pillow's guard against decompression bombs lets through (twice
  `PIL.Image.MAX_IMAGE_PIXELS`: 178,956,970 pixels, for example 13,377 x 13,377) is refused before
  any pixel is decoded. It is not decoded at a lower resolution instead, because its recorded size
  and its boxes would no longer fit. Cut such images into tiles, or raise the limit in your script.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image

from vastdet.data.errors import BrokenRecordError, MissingImageError

IMAGE_FORMATS = ("BGR", "RGB", "L", "YUV-BT.601")

# What Pillow's decoders raise on damaged files, found by damaging files of each format.
DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError)


def read_image(path: str | PathLike, format: str = "BGR") -> np.ndarray:
    """Read an image file into an array, upright and in 8 bits per channel.

    Args:
        path: a file, or anything else that Detectron2's `PathManager` opens.
        format: one of `IMAGE_FORMATS`, the values of `cfg.INPUT.FORMAT`.

    Returns:
        HxWx3 uint8 in [0, 255]; HxWx1 for "L"; HxWx3 float in [0, 1] for "YUV-BT.601".

    Raises:
        MissingImageError: there is no such file (also a `FileNotFoundError`).
        BrokenRecordError: the file is empty, truncated, too large or no image.
        ValueError: the format is not one of `IMAGE_FORMATS`.
    """
    if format not in IMAGE_FORMATS:
        raise ValueError(f"image format {format!r} is unknown; choose one of {IMAGE_FORMATS}")
    with _opened(fspath(path)) as image:
        return convert_PIL_to_numpy(_to_8_bits(_apply_exif_orientation(image)), format)


def read_image_size(path: str | PathLike) -> tuple[tuple[int, int], tuple[int, int]]:
    """Decode an image file to prove that it is sound, and return its sizes in pixels.

    Returns:
        (width, height) of the upright image, and (width, height) as stored, before its EXIF
        orientation is applied.

    Raises:
        MissingImageError, BrokenRecordError: as `read_image`.
    """
    with _opened(fspath(path)) as image:
        return _to_8_bits(_apply_exif_orientation(image)).size, image.size


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """Open an image; errors inside the `with` block become errors about this file."""
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            yield image
    except BrokenRecordError:
        raise
    except FileNotFoundError as error:
        raise MissingImageError(f"{path}: there is no such image file") from error
    except Image.DecompressionBombError as error:
        raise BrokenRecordError(
            f"{path}: {str(error).rstrip('.')}. Cut the image into tiles or scale it down (with "
            "its boxes); if you trust the file and have the memory, raise "
            "PIL.Image.MAX_IMAGE_PIXELS in your script"
        ) from error
    except Image.UnidentifiedImageError as error:
        reason = "is empty (0 bytes)" if _is_empty(path) else "is not an image Pillow can identify"
        raise BrokenRecordError(f"{path}: the file {reason}") from error
    except DECODING_ERRORS as error:
        raise BrokenRecordError(f"{path}: the image cannot be decoded: {error}") from error


def _is_empty(path: str) -> bool:
    with PathManager.open(path, "rb") as file:
        return not file.read(1)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """The loaded image in a mode of 8 bits per channel.

    Pillow clips when it converts modes of 16 or 32 bits to 8, which would turn them white.
    """
    image.load()
    mode = image.mode
    # 16-bit files of these two formats open in the 32-bit mode "I", depending on Pillow's version.
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        raise ValueError(
            f"it has 32 bits per channel (mode {mode!r}) and so no known range; store it with 8 or "
            "16 bits per channel"
        )
    if mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image
