# SPDX-License-Identifier: Apache-2.0
"""Augmentations: colours against torchvision, boxes against marked pixels, config errors."""

import colorsys

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.utils.env import seed_all_rng
from torchvision.transforms.v2 import functional as tv

from vastdet.data.augmentation import (
    RandomColorJitter,
    RandomZoomOut,
    ResizeToSquare,
    build_augmentations,
    color_matrix,
)


@pytest.fixture
def photograph() -> np.ndarray:
    """Colours far enough from 0 and 255 that nothing is clipped on the way."""
    return np.random.default_rng(0).integers(90, 160, (40, 50, 3), dtype=np.uint8)


def jittered(image: np.ndarray, *factors: float, image_format: str = "RGB") -> np.ndarray:
    matrix = color_matrix(image, *factors, image_format=image_format)
    flat = image.reshape(-1, 3) @ matrix[:, :3].T + matrix[:, 3]
    return flat.reshape(image.shape)


def test_colours_equal_torchvision(photograph: np.ndarray) -> None:
    image = torch.from_numpy(photograph).permute(2, 0, 1)
    expected = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(image, 1.2), 0.8), 1.3)
    ours = jittered(photograph, 1.2, 0.8, 1.3, 0.0)
    # torchvision rounds down to whole numbers after each of the three.
    assert np.abs(ours - expected.permute(1, 2, 0).numpy()).max() < 3


def test_bgr_is_rgb_in_another_order(photograph: np.ndarray) -> None:
    factors = (1.1, 0.9, 1.4, 0.1)
    reverse = jittered(photograph[:, :, ::-1].copy(), *factors, image_format="BGR")
    np.testing.assert_allclose(reverse[:, :, ::-1], jittered(photograph, *factors), atol=1e-6)


def test_hue_turns_and_keeps_the_luma() -> None:
    image = np.array([[[150, 100, 100]]], dtype=np.uint8)
    third = jittered(image, 1, 1, 1, 1 / 3)[0, 0]
    # From red (hue 0) by a third of the circle: to green or blue.
    hue = colorsys.rgb_to_hsv(*(third / 255))[0]
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.06
    luma = np.array([0.299, 0.587, 0.114])
    assert abs(third @ luma - image[0, 0] @ luma) < 0.01
    np.testing.assert_allclose(jittered(image, 1, 1, 1, 1.0), image, atol=1e-6)


def test_jitter_keeps_boxes_type_and_clips() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    inputs = T.AugInput(image, boxes=np.array([[1.0, 2, 3, 4]]))
    RandomColorJitter(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)(inputs)
    assert inputs.image.dtype == np.uint8
    assert inputs.image.shape == image.shape
    assert not np.array_equal(inputs.image, image)
    np.testing.assert_array_equal(inputs.boxes, [[1, 2, 3, 4]])


def test_strong_light_clips_instead_of_wrapping() -> None:
    image = np.full((2, 2, 3), 200, dtype=np.uint8)
    matrix = color_matrix(image, 2.0, 1.0, 1.0, 0.0, image_format="RGB")
    assert (cv2.transform(image, matrix) == 255).all()


@pytest.mark.parametrize("seed", range(5))
def test_zoom_out_moves_the_box_with_its_pixels(seed: int) -> None:
    seed_all_rng(seed)
    image = np.zeros((120, 160, 3), dtype=np.uint8)
    image[30:90, 40:120] = 255
    inputs = T.AugInput(image, boxes=np.array([[40.0, 30, 120, 90]]))
    RandomZoomOut(4.0, fill=7)(inputs)
    assert inputs.image.shape == image.shape
    rows, columns = np.nonzero(inputs.image[..., 0] > 127)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(inputs.boxes[0] - seen).max() <= 1
    assert (inputs.image == 7).any() or np.prod(inputs.boxes[0, 2:]) > 0.9 * 120 * 90


def test_zoom_out_of_one_pixel() -> None:
    inputs = T.AugInput(np.full((1, 1, 3), 9, np.uint8), boxes=np.array([[0.0, 0, 1, 1]]))
    RandomZoomOut(4.0, fill=0)(inputs)
    assert inputs.image.tolist() == [[[9, 9, 9]]]


def kinds(augmentations: list) -> list[str]:
    return [type(getattr(a, "aug", a)).__name__ for a in augmentations]


def test_order_from_config(cfg: CfgNode) -> None:
    assert kinds(build_augmentations(cfg, True)) == ["ResizeShortestEdge", "RandomFlip"]
    cfg.INPUT.ZOOM_IN.PROB = cfg.INPUT.ZOOM_OUT.PROB = 0.5
    cfg.INPUT.COLOR_JITTER.HUE = 0.1
    cfg.INPUT.CROP.ENABLED = True
    assert kinds(build_augmentations(cfg, True)) == [
        "RandomCrop",
        "RandomCrop",
        "ResizeShortestEdge",
        "RandomColorJitter",
        "RandomZoomOut",
        "RandomFlip",
    ]
    assert kinds(build_augmentations(cfg, False)) == ["ResizeShortestEdge"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("COLOR_JITTER.BRIGHTNESS", -0.1),
        ("COLOR_JITTER.CONTRAST", 1.5),
        ("COLOR_JITTER.HUE", 0.6),
        ("ZOOM_OUT.PROB", 1.5),
        ("ZOOM_OUT.MAX_RATIO", 0.5),
        ("ZOOM_IN.PROB", -1.0),
        ("ZOOM_IN.MIN_RATIO", 0.0),
        ("RESIZE_CROP.PROB", 1.5),
    ],
)
def test_values_out_of_range(cfg: CfgNode, key: str, value: float) -> None:
    cfg.INPUT.ZOOM_IN.PROB = cfg.INPUT.ZOOM_OUT.PROB = 0.5
    cfg.merge_from_list([f"INPUT.{key}", value])
    with pytest.raises(ValueError, match=f"INPUT.{key} is {value}; it must lie in"):
        build_augmentations(cfg, True)


def test_jitter_needs_colour(cfg: CfgNode) -> None:
    cfg.INPUT.COLOR_JITTER.CONTRAST = 0.2
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match=r"needs images in BGR or RGB, got INPUT\.FORMAT 'L'"):
        build_augmentations(cfg, True)


def resize_crop_config(cfg: CfgNode, sizes: tuple[int, ...], crop: tuple[int, ...]) -> None:
    cfg.INPUT.RESIZE_CROP.PROB = 1.0
    cfg.INPUT.RESIZE_CROP.MIN_SIZES = sizes
    cfg.INPUT.RESIZE_CROP.CROP_SIZES = crop


def test_resize_crop_comes_before_crop_and_resize(cfg: CfgNode) -> None:
    assert "RandomApply" not in [type(a).__name__ for a in build_augmentations(cfg, True)]
    resize_crop_config(cfg, (40,), (20, 30))
    cfg.INPUT.CROP.ENABLED = True
    expected = ["AugmentationList", "RandomCrop", "ResizeShortestEdge", "RandomFlip"]
    assert kinds(build_augmentations(cfg, True)) == expected
    assert kinds(build_augmentations(cfg, False)) == ["ResizeShortestEdge"]


def test_resize_crop_cuts_sides_within_the_range(cfg: CfgNode, photograph: np.ndarray) -> None:
    resize_crop_config(cfg, (40, 60), (20, 30))
    augmentation = build_augmentations(cfg, True)[0]
    seed_all_rng(0)
    sides = set()
    for _ in range(40):
        inputs = T.AugInput(photograph)
        augmentation(inputs)
        sides |= set(inputs.image.shape[:2])
    assert min(sides) >= 20
    assert max(sides) <= 30
    assert len(sides) > 5


def test_resize_crop_of_an_image_smaller_than_the_crop(cfg: CfgNode) -> None:
    resize_crop_config(cfg, (8,), (20, 30))
    inputs = T.AugInput(np.zeros((16, 32, 3), np.uint8))
    build_augmentations(cfg, True)[0](inputs)
    height, width = inputs.image.shape[:2]
    # After the resize it is 8 x 16: nothing is cut, nothing padded.
    assert (height, width) == (8, 16)


def test_resize_crop_moves_boxes_with_the_pixels(cfg: CfgNode) -> None:
    image = np.zeros((100, 160, 3), np.uint8)
    image[30:70, 50:110] = 200
    resize_crop_config(cfg, (50,), (30, 45))
    augmentation = build_augmentations(cfg, True)[0]
    seed_all_rng(1)
    seen = 0
    for _ in range(20):
        inputs = T.AugInput(image, boxes=np.array([[50.0, 30, 110, 70]]))
        augmentation(inputs)
        rows, columns = np.nonzero(inputs.image[..., 0] > 100)
        if len(rows) == 0:
            continue
        height, width = inputs.image.shape[:2]
        box = np.clip(inputs.boxes[0], 0, [width, height, width, height])
        marked = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(box - marked).max() <= 1
        seen += 1
    assert seen > 10


@pytest.mark.parametrize("crop", [(384,), (600, 384), (0, 10)])
def test_resize_crop_needs_two_ascending_sizes(cfg: CfgNode, crop: tuple[int, ...]) -> None:
    resize_crop_config(cfg, (400,), crop)
    with pytest.raises(ValueError, match=r"INPUT\.RESIZE_CROP\.CROP_SIZES is .*; expected the"):
        build_augmentations(cfg, True)


def test_a_square_whatever_the_shape(cfg: CfgNode) -> None:
    cfg.INPUT.SQUARE = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (20, 30, 40), 50
    assert kinds(build_augmentations(cfg, True)) == ["ResizeToSquare", "RandomFlip"]
    (resize,) = build_augmentations(cfg, False)
    seed_all_rng(0)
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    image[40:60, 20:120] = 255
    inputs = T.AugInput(image, boxes=np.array([[20.0, 40, 120, 60]]))
    resize(inputs)
    assert inputs.image.shape == (50, 50, 3)
    np.testing.assert_allclose(inputs.boxes, [[5, 20, 30, 30]])
    rows, columns = np.nonzero(inputs.image[..., 0] > 127)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [5, 20, 30, 30]
    first = build_augmentations(cfg, True)[0]
    sides = {first.get_transform(image).new_h for _ in range(50)}
    assert sides == {20, 30, 40}


@pytest.mark.parametrize("sizes", [(), (0, 20)])
def test_a_square_needs_sides(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the sides of INPUT\.SQUARE are .*positive numbers"):
        ResizeToSquare(sizes)


@pytest.mark.parametrize(
    ("size", "nearest", "down"),
    [
        # int(640 * 800 / 480) = 1066; a long side of 1333 decides for the third.
        ((480, 640), (800, 1067), (800, 1066)),
        ((640, 426), (1202, 800), (1201, 800)),
        ((640, 360), (1333, 750), (1333, 749)),
        ((500, 500), (800, 800), (800, 800)),
    ],
)
def test_sides_are_rounded_as_asked_for(
    cfg: CfgNode, size: tuple[int, int], nearest: tuple[int, int], down: tuple[int, int]
) -> None:
    image = np.zeros((*size, 3), np.uint8)
    for rounding, expected in (("nearest", nearest), ("down", down)):
        cfg.INPUT.ROUNDING_TEST = rounding
        (resize,) = build_augmentations(cfg, False)
        assert resize.get_transform(image).apply_image(image).shape[:2] == expected
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.ROUNDING_TEST = 0, "down"
    (resize,) = build_augmentations(cfg, False)
    assert resize.get_transform(image).apply_image(image).shape[:2] == size
    cfg.INPUT.ROUNDING_TEST = "up"
    with pytest.raises(ValueError, match=r"INPUT\.ROUNDING_TEST is 'up'; expected 'nearest' or"):
        build_augmentations(cfg, False)
