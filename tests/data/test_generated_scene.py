# SPDX-License-Identifier: Apache-2.0
"""Scenes: boxes against the instance map, visibility, sizes, determinism, odd configurations."""

import dataclasses
import time

import cv2
import numpy as np
import pytest

from vastdet.data.generated import GeneratedSplit, SceneConfig, generated_categories, render_scene
from vastdet.data.generated.render import scene_layout
from vastdet.data.generated.scene import OCCLUDER_ID
from vastdet.data.generated.shapes import SHAPES

CROWDED = SceneConfig(min_objects=10, max_objects=20, occluders=3)


@pytest.mark.parametrize("config", [SceneConfig(), CROWDED, SceneConfig(height=97, width=211)])
def test_boxes_are_those_of_the_instance_map(config: SceneConfig) -> None:
    categories = generated_categories(24)
    for index in range(25):
        scene = render_scene(config, categories, (5, index))
        ids = scene.instance_ids
        assert scene.image.shape == (config.height, config.width, 3)
        assert scene.image.dtype == np.uint8
        values = set(np.unique(ids).tolist()) - {0, OCCLUDER_ID}
        assert values == set(range(1, len(scene.objects) + 1))
        for number, item in enumerate(scene.objects, start=1):
            rows, columns = np.nonzero(ids == number)
            expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert item.box == expected
            assert item.area == len(rows)


def test_visible_fraction_by_brute_force() -> None:
    categories = generated_categories(100)
    hidden = 0
    for index in range(20):
        layout = scene_layout(CROWDED, categories, (6, index))
        for item in layout.objects:
            shape = categories.compositions[item.category].shape
            contours = next(s for s in SHAPES if s.name == shape).contours
            # The whole object at eight times the resolution, on a canvas that it fits.
            points = [np.c_[c, np.ones(len(c))] @ item.transform.T for c in contours]
            low = points[0].min(axis=0)
            canvas = np.zeros((1600, 1600), np.uint8)
            cv2.fillPoly(canvas, [np.round((p - low) * 8).astype(np.int32) for p in points], 1)
            whole = cv2.countNonZero(canvas) / 64
            assert CROWDED.min_visible <= item.visible_fraction <= 1
            # Drawn outlines take in the pixels that they touch: half a pixel around.
            perimeter = sum(cv2.arcLength(p.astype(np.float32), True) for p in points)
            estimate = item.area / (whole + perimeter / 2)
            assert item.visible_fraction == pytest.approx(estimate, rel=0.25, abs=0.02)
            hidden += item.visible_fraction < 0.9
    assert hidden > 20


def test_sizes_span_the_documented_range() -> None:
    config = SceneConfig()
    split = GeneratedSplit(24, "val", config, 400)
    longer, shorter = [], []
    for _, layout in split.layouts():
        for x0, y0, x1, y1 in (item.box for item in layout.objects):
            assert 0 <= x0 < x1 <= config.width
            assert 0 <= y0 < y1 <= config.height
            longer.append(max(x1 - x0, y1 - y0))
            shorter.append(min(x1 - x0, y1 - y0))
    assert min(longer) == 12
    assert min(shorter) >= 3
    # Half the image, and what turning a square by up to 25 degrees adds to its extent.
    assert 80 <= max(longer) <= 80 * 1.34


def test_scene_depends_on_its_seed_only() -> None:
    categories = generated_categories(50)
    first = render_scene(SceneConfig(), categories, (1, 2, 3))
    render_scene(SceneConfig(), categories, (9, 9))
    again = render_scene(SceneConfig(), categories, (1, 2, 3))
    np.testing.assert_array_equal(first.image, again.image)
    other = render_scene(SceneConfig(), categories, (1, 2, 4))
    assert (first.image != other.image).mean() > 0.5


def test_layout_alone_equals_the_rendered_one() -> None:
    split = GeneratedSplit.default(1000, "open_val")
    for index in range(10):
        scene, layout = split.render(index), split.layout(index)
        np.testing.assert_array_equal(scene.instance_ids, layout.instance_ids)
        assert [o.box for o in scene.objects] == [o.box for o in layout.objects]


def test_objects_are_painted_in_their_colours() -> None:
    config = SceneConfig(noise=0, blur=0, lighting=0, occluders=0, clutter=0)
    categories = generated_categories(24)
    red = [i for i, c in enumerate(categories.compositions) if c[1:3] == ("red", "plain")]
    found = 0
    for index in range(60):
        scene = render_scene(config, categories, (3, index))
        for number, item in enumerate(scene.objects, start=1):
            if item.category in red:
                pixels = scene.image[scene.instance_ids == number]
                found += 1
                np.testing.assert_allclose(np.median(pixels, axis=0), (222, 35, 38), atol=11)
    assert found > 3


def test_open_train_leaves_held_out_compositions_out() -> None:
    novel = generated_categories(24).novel_mask
    drawn = {
        split: np.array(
            [
                item.category
                for _, layout in dataclasses.replace(
                    GeneratedSplit.default(24, split), num_images=300
                ).layouts()
                for item in layout.objects
            ]
        )
        for split in ("train", "open_train", "open_val")
    }
    assert not novel[drawn["open_train"]].any()
    assert set(drawn["open_train"]) == set(np.flatnonzero(~novel))
    assert set(drawn["open_val"]) == set(drawn["train"]) == set(range(24))


def test_splits_share_no_scene() -> None:
    boxes = {}
    for split in ("train", "val", "open_train", "open_val"):
        for index in range(50):
            layout = GeneratedSplit.default(24, split).layout(index)
            key = tuple(item.box for item in layout.objects)
            assert key not in boxes
            boxes[key] = split


def test_a_scene_may_be_empty() -> None:
    config = SceneConfig(min_objects=0, max_objects=1, clutter=0)
    counts = {len(render_scene(config, generated_categories(10), (i,)).objects) for i in range(20)}
    assert counts == {0, 1}


@pytest.mark.parametrize(
    "change",
    [
        {"height": 31}, {"width": 5000}, {"min_objects": 9, "max_objects": 8}, {"max_objects": 0},
        {"min_objects": -1}, {"max_objects": 201}, {"min_size": 3}, {"min_size": 81},
        {"max_size": 0.05}, {"max_size": 1.1}, {"min_visible": 0}, {"min_visible": 1.5},
        {"repeat": -0.1}, {"max_rotation": 200}, {"long_tail": -1}, {"clutter": -1},
        {"occluders": 101}, {"noise": float("nan")}, {"blur": -1}, {"lighting": 1.0},
    ],
)  # fmt: skip
def test_degenerate_config_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=r"SceneConfig\..*expected"):
        SceneConfig(**change)


@pytest.mark.parametrize(
    "config",
    [
        SceneConfig(height=32, width=32, min_size=4),
        SceneConfig(height=700, width=64),
        SceneConfig(height=600, width=900, noise=0, blur=0, lighting=0),
        SceneConfig(min_objects=200, max_objects=200),
        SceneConfig(max_size=1.0, max_rotation=180, min_visible=1.0),
        SceneConfig(min_size=80),
    ],
)
def test_extreme_configs_render(config: SceneConfig) -> None:
    scene = render_scene(config, generated_categories(1000), (0,))
    assert scene.image.shape == (config.height, config.width, 3)
    assert all(item.visible_fraction >= config.min_visible for item in scene.objects)


def test_annotations_are_cheap() -> None:
    # 4,000 images in 5 s at most on a quiet core; a loaded machine gets five times as long.
    split = dataclasses.replace(GeneratedSplit.default(24, "train"), num_images=400)
    started = time.process_time()
    split.records()
    assert time.process_time() - started < 2.5
