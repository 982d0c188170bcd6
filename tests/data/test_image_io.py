# SPDX-License-Identifier: Apache-2.0
"""Every kind of image file that users bring: read rightly, or refused by name and reason."""

import io
import pickle
import random
import re
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image

from vastdet.data import BrokenRecordError, read_image
from vastdet.data.errors import MissingImageError
from vastdet.data.image_io import read_image_size

GRADIENT = np.stack(
    np.broadcast_arrays(np.arange(48)[None, :] * 5, np.arange(36)[:, None] * 7, 90), axis=-1
).astype(np.uint8)


def png_of(width: int, height: int) -> bytes:
    """A small PNG file that claims to be as large as asked."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(bytes(1000))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("format", ["BGR", "RGB", "L", "YUV-BT.601"])
def test_equals_detectron2_on_plain_images(tmp_path: Path, format: str) -> None:
    path = tmp_path / "plain.png"
    Image.fromarray(GRADIENT).save(path)
    np.testing.assert_array_equal(
        read_image(path, format), detection_utils.read_image(str(path), format)
    )


def test_default_is_bgr(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png"), GRADIENT[:, :, ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_follows_detectron2(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "rotated.png"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(GRADIENT).save(path, exif=exif)
    image = read_image(path, "RGB")
    np.testing.assert_array_equal(image, detection_utils.read_image(str(path), "RGB"))
    swapped = orientation >= 5
    assert image.shape == ((48, 36, 3) if swapped else (36, 48, 3))
    upright, stored = read_image_size(path)
    assert upright == image.shape[1::-1]
    assert stored == (48, 36)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 256, 5000, 30000, 65535]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), values)
    image = read_image(tmp_path / f"deep{suffix}", "RGB")
    assert image.dtype == np.uint8
    assert np.abs(image[..., 0] - values / 257).max() <= 1
    assert (image[..., 0] == image[..., 2]).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_colour(tmp_path: Path, suffix: str) -> None:
    deep = GRADIENT[:, :, ::-1].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), deep)
    np.testing.assert_array_equal(read_image(tmp_path / f"deep{suffix}", "RGB"), GRADIENT)


def test_16_bit_portable_greymap(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 65535]], dtype=">u2")
    (tmp_path / "deep.pgm").write_bytes(b"P5\n3 1\n65535\n" + values.tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "deep.pgm", "L")[0, :, 0], [0, 3, 255])


def test_32_bit_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(BrokenRecordError, match=r"float\.tiff.*32 bits per channel"):
        read_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("mode", ["CMYK", "L", "LA", "1", "P", "RGBA", "YCbCr"])
def test_other_colour_spaces_become_colour(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("other.jpg" if mode in ("CMYK", "YCbCr") else "other.png")
    # A colour of the palette that Pillow converts to, so that nothing is dithered.
    Image.new("RGB", (40, 30), (204, 204, 204)).convert(mode).save(path)
    image = read_image(path, "RGB")
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.uint8
    if mode != "1":
        assert np.abs(image.astype(int) - 204).max() <= 3


def test_palette_with_transparency(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    picture = Image.new("P", (4, 2))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "sticker.png", transparency=bytes([0, 128]))
    image = read_image(tmp_path / "sticker.png", "RGB")
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[0, 1].tolist() == [200, 100, 50]
    assert not [w for w in recwarn if "ransparency" in str(w.message)]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (32, 16), color) for color in ("red", "lime", "blue")]
    path = tmp_path / f"moving{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    image = read_image(path, "RGB").astype(int)
    assert image.shape == (16, 32, 3)
    assert np.abs(image - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize("size", [(1, 1), (30_000, 1), (1, 30_000)])
def test_extreme_shapes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "thin.png")
    assert read_image(tmp_path / "thin.png").shape == (size[1], size[0], 3)


def test_30000_pixels_a_side_is_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(png_of(30_000, 30_000))
    with pytest.raises(
        BrokenRecordError, match=r"huge\.png.*900000000 pixels.*attack\. Cut the image"
    ):
        read_image(tmp_path / "huge.png")


def test_the_limit_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "plain.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 36 // 2 - 1)
    with pytest.raises(BrokenRecordError, match="MAX_IMAGE_PIXELS"):
        read_image(tmp_path / "plain.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 36)
    assert read_image(tmp_path / "plain.png").shape == (36, 48, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".tiff", ".webp", ".bmp"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(BrokenRecordError, match=f"cut{re.escape(suffix)}"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"<html>404</html>", "is not an image"), (bytes(100), "is not an image")],
)
def test_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "page.jpg").write_bytes(content)
    with pytest.raises(BrokenRecordError, match=rf"page\.jpg.*{reason}"):
        read_image(tmp_path / "page.jpg")


def test_missing_file_is_both_kinds_of_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: there is no such"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(BrokenRecordError, match=r"gone\.jpg: there is no such"):
        read_image(tmp_path / "gone.jpg")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(BrokenRecordError, match="cannot be decoded"):
        read_image(tmp_path)


def test_unknown_format_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"CMYK.*BGR"):
        read_image(tmp_path / "any.png", "CMYK")


@pytest.mark.parametrize("kind", [BrokenRecordError, MissingImageError])
def test_errors_survive_a_worker_process(kind: type[BrokenRecordError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a.jpg: reason")))
    assert type(error) is kind
    assert str(error) == "a.jpg: reason"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA"])
def test_damage_raises_nothing_else(tmp_path: Path, format: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(GRADIENT).save(buffer, format)
    generator = random.Random(0)
    refused = 0
    for trial in range(150):
        blob = bytearray(buffer.getvalue())
        reach = len(blob) if trial % 2 else min(200, len(blob))
        for _ in range(generator.choice([1, 3, 20])):
            blob[generator.randrange(reach)] = generator.randrange(256)
        (tmp_path / "damaged").write_bytes(blob)
        try:
            read_image(tmp_path / "damaged")
        except BrokenRecordError:
            refused += 1
    assert refused > 0
