# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from vastdet.engine.demo import find_images, unique_names


@pytest.fixture(scope="module")
def demo(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("demo")


@pytest.fixture
def run(demo: ModuleType, tiny_detector: Any, tmp_path: Path) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        base = ["--config-file", tiny_detector.config_file, "--weights", tiny_detector.weights]
        base += ["--output", tmp_path / "out", *arguments]
        return demo.main([str(a) for a in base])

    return call


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def save_good_images(folder: Path) -> int:
    """Images of unusual but valid kinds."""
    folder.mkdir()
    plain = Image.fromarray(noise(40, 60))
    plain.save(folder / "plain.png")
    Image.fromarray(noise(1, 1)).save(folder / "one_pixel.png")
    Image.fromarray(noise(30, 30)[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.png")
    plain.convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    plain.save(folder / "turned.jpg", exif=exif)
    plain.save(folder / "moving.gif", save_all=True, append_images=[plain.rotate(90)])
    Image.fromarray(noise(200, 30_000)).save(folder / "long.jpg")
    return 7


def test_unusual_images_pass_and_broken_ones_are_listed(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "in"
    num_good = save_good_images(folder)
    (folder / "empty.jpg").touch()
    (folder / "cut.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:600])
    Image.fromarray(noise(1, 30_000)).save(folder / "thread.png")
    code = run("--input", folder, tmp_path / "none.jpg", "--confidence-threshold", 0)
    captured = capsys.readouterr()
    assert code == 1
    assert "4 inputs could not be read" in captured.err
    for part in ("empty.jpg: the file is empty", "cut.jpg: ", "none.jpg: no such file"):
        assert part in captured.err
    assert "has no pixel left across when resized" in captured.err
    assert len(list((tmp_path / "out").glob("*.jpg"))) == num_good
    records = json.loads((tmp_path / "out/detections.json").read_text())
    assert len({r["file_name"] for r in records}) == num_good
    with Image.open(tmp_path / "out/turned.jpg") as turned:
        assert turned.size == (320, 480)  # 60 x 40 pixels, upright and drawn larger


def test_records_have_the_documented_form(run: Callable[..., int], tmp_path: Path) -> None:
    Image.fromarray(noise(50, 70)).save(tmp_path / "a.png")
    assert run("--input", tmp_path / "a.png", "--confidence-threshold", 0) == 0
    records = json.loads((tmp_path / "out/detections.json").read_text())
    assert len(records) == 5
    for record in records:
        x, y, w, h = record["bbox"]
        assert 0 <= x <= x + w <= 70.01
        assert 0 <= y <= y + h <= 50.01
        assert record["image_id"] == 1
        assert 1 <= record["category_id"] <= 24
        assert record["category_name"]


def test_batches_change_nothing(run: Callable[..., int], tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(noise(40, 50 + i)).save(tmp_path / f"{i}.png")
    records = []
    for size in (1, 2):
        code = run("--input", tmp_path / "*.png", "--confidence-threshold", 0, "--batch-size", size)
        assert code == 0
        records.append(json.loads((tmp_path / "out/detections.json").read_text()))
    assert [r["file_name"] for r in records[0]] == [r["file_name"] for r in records[1]]
    boxes = [np.array([r["bbox"] for r in part]) for part in records]
    np.testing.assert_allclose(boxes[0], boxes[1], atol=0.05)


def test_the_threshold_holds(run: Callable[..., int], tmp_path: Path) -> None:
    Image.fromarray(noise(50, 70)).save(tmp_path / "a.png")
    assert run("--input", tmp_path / "a.png", "--confidence-threshold", 1) == 0
    assert json.loads((tmp_path / "out/detections.json").read_text()) == []
    assert (tmp_path / "out/a.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nothing-here-*.jpg"], "nothing-here-*.jpg: no such file"),
        (["--video-input", "none.mp4"], "there is no video none.mp4"),
        (["--webcam", "7"], "no camera 7 can be opened"),
        (["--input", "README.md"], "README.md: the file is not an image"),
    ],
)
def test_nothing_to_read_is_exit_code_2(
    run: Callable[..., int],
    arguments: list[str],
    message: str,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    repository: Path,
) -> None:
    monkeypatch.chdir(repository)
    assert run(*arguments) == 2
    assert message in capfd.readouterr().err


def test_class_names_from_a_file(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(noise(50, 70)).save(tmp_path / "a.png")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {i}" for i in range(24)) + "\n\n")
    assert run("--input", tmp_path / "a.png", "--confidence-threshold", 0, "--classes", names) == 0
    records = json.loads((tmp_path / "out/detections.json").read_text())
    assert all(r["category_name"] == f"thing {r['category_id']}" for r in records)
    assert "names.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL.WEIGHT", "x"], "Unknown config key MODEL.WEIGHT"),
        (["--weights", "none.pth"], "There are no weights at none.pth"),
        (["--classes", "none.txt"], "none.txt"),
    ],
)
def test_wrong_arguments_are_one_line(
    run: Callable[..., int],
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
) -> None:
    Image.fromarray(noise(50, 70)).save(tmp_path / "a.png")
    assert run("--input", tmp_path / "a.png", "--batch-size", 1, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of four frames."""
    source = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for i in range(4):
        writer.write(np.roll(noise(48, 64), i, axis=1))
    writer.release()
    return source


def test_a_video_becomes_a_video(run: Callable[..., int], clip: Path, tmp_path: Path) -> None:
    code = run("--video-input", clip, "--confidence-threshold", 0, "--max-frames", 3)
    assert code == 0
    capture = cv2.VideoCapture(str(tmp_path / "out/clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    records = json.loads((tmp_path / "out/detections.json").read_text())
    assert {r["image_id"] for r in records} == {1, 2, 3}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["clip.mp4", "detections.json"]


def test_a_broken_video_is_an_error(
    run: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    assert run("--video-input", tmp_path / "bad.mp4") == 2
    assert "bad.mp4 is not a video that OpenCV can decode" in capfd.readouterr().err


class NoCodec:
    """A writer of an OpenCV that was built without the codec."""

    def __init__(self, *_: object) -> None: ...

    def release(self) -> None: ...

    def isOpened(self) -> bool:  # noqa: N802  (OpenCV's name)
        return False

    @staticmethod
    def fourcc(*_: str) -> int:
        return 0


@pytest.mark.parametrize(
    ("part", "stand_in", "message"),
    [
        ("read_frames", lambda _: iter(()), "no frame of"),
        ("cv2.VideoWriter", NoCodec, "lacks the codec mp4v"),
    ],
)
def test_a_video_that_cannot_be_read_or_written(
    run: Callable[..., int],
    clip: Path,
    part: str,
    stand_in: Callable,
    message: str,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"vastdet.engine.demo.{part}", stand_in)
    assert run("--video-input", clip, "--max-frames", 1) == 2
    assert message in capfd.readouterr().err
    assert list((clip.parent / "out").iterdir()) == []


def test_inputs_are_found_once_each(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c.txt", "sub/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "void").mkdir()
    files, failures = find_images(
        [str(tmp_path), str(tmp_path / "a.jpg"), str(tmp_path / "void"), "generated://x/1.png"]
    )
    assert [Path(f).name for f in files] == ["a.jpg", "b.PNG", "a.jpg", "1.png"]
    assert failures == [(str(tmp_path / "void"), "no images in this folder")]
    names = unique_names(files)
    assert sorted(names.values()) == ["1.jpg", "a-2.jpg", "a.jpg", "b.jpg"]
