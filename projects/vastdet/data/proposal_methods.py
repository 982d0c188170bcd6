# SPDX-License-Identifier: Apache-2.0
"""Ways to propose boxes without a network: selective search, and windows on a grid.

Letters: H, W the image's sides in pixels, N proposals. Boxes are XYXY absolute pixels.
"""

import zlib
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

Method = Callable[[np.ndarray], np.ndarray]

# "We resized each image to a fixed width (500 pixels) before running selective search", because
# the segmentation depends on the scale (Girshick et al. 2014, R-CNN, section 4.2).
SEARCH_WIDTH = 500
# About what selective search gave to Fast R-CNN (Girshick 2015, section 4.4).
MAX_PROPOSALS = 2000
# Below this, the graph segmentation has nothing to merge.
MIN_SEARCH_SIDE = 8


def selective_search(
    image: np.ndarray, *, quality: bool = False, width: int = SEARCH_WIDTH
) -> np.ndarray:
    """Boxes of the regions that selective search merges (Uijlings et al. 2013).

    Args:
        image: HxWx3 uint8, BGR.
        quality: the paper's "quality" set of strategies rather than "fast": about twice the boxes
            and three times the time.
        width: wider images are shrunk to this width first.

    Returns:
        [N, 4] float32, without repetitions, sorted.
    """
    height, full_width = image.shape[:2]
    if min(height, full_width) < MIN_SEARCH_SIDE:
        return np.array([[0, 0, full_width, height]], np.float32)
    small = image
    if full_width > width:
        size = (width, max(MIN_SEARCH_SIDE, round(height * width / full_width)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(small))
    if quality:
        search.switchToSelectiveSearchQuality()
    else:
        search.switchToSelectiveSearchFast()
    boxes = np.unique(np.asarray(search.process(), np.float32), axis=0)
    boxes[:, 2:] += boxes[:, :2]
    scale = np.array([full_width / small.shape[1], height / small.shape[0]], np.float32)
    return boxes * np.tile(scale, 2)


def sliding_windows(
    image: np.ndarray,
    *,
    smallest: float = 0.08,
    growth: float = 1.4,
    ratios: tuple[float, ...] = (1.0,),
    step: float = 1 / 3,
) -> np.ndarray:
    """Windows of several sizes and shapes on a grid: no computation, the same for every image.

    Args:
        image: HxWx3; only its size is read.
        smallest: side of the smallest square window, as a share of the image's shorter side.
        growth: factor from one size to the next, up to the shorter side.
        ratios: height / width; the area stays that of the square.
        step: distance between neighbours, as a share of the window's side.

    Returns:
        [N, 4] float32, inside the image.
    """
    height, width = image.shape[:2]
    side = max(1.0, smallest * min(height, width))
    windows = [np.array([[0, 0, width, height]], np.float32)]
    while side <= min(height, width):
        for ratio in ratios:
            w, h = side / ratio**0.5, side * ratio**0.5
            if w > width or h > height:
                continue
            columns = np.linspace(0, width - w, int((width - w) / (step * w)) + 1)
            rows = np.linspace(0, height - h, int((height - h) / (step * h)) + 1)
            x, y = (grid.ravel() for grid in np.meshgrid(columns, rows))
            windows.append(np.stack([x, y, x + w, y + h], axis=1).astype(np.float32))
        side *= growth
    return np.concatenate(windows)


METHODS: dict[str, Method] = {
    "selective-search-fast": selective_search,
    "selective-search-quality": partial(selective_search, quality=True),
    "windows": sliding_windows,
}


def check_method(name: str) -> None:
    """Raise ValueError for an unknown method, or one that this OpenCV was built without."""
    if name not in METHODS:
        raise ValueError(f"no proposal method is called {name!r}; choose one of {list(METHODS)}")
    if name != "windows" and not hasattr(cv2, "ximgproc"):
        raise ValueError(
            f"OpenCV {cv2.__version__} has no ximgproc module, which {name} needs: another OpenCV "
            "package shadows opencv-contrib-python-headless; uninstall it and install that one, "
            "or choose the method 'windows'"
        )


def shuffled(boxes: np.ndarray, image_id: str, limit: int) -> np.ndarray:
    """At most `limit` boxes in an order that depends on nothing but the boxes and the image's id.

    OpenCV orders its boxes with C's random numbers, which depend on the images before.
    """
    seed = zlib.crc32(image_id.encode())
    return boxes[np.random.default_rng(seed).permutation(len(boxes))[:limit]]
