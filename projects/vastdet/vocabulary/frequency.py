# SPDX-License-Identifier: Apache-2.0
"""Frequency groups of categories: rare, common, frequent."""

from collections.abc import Iterable

RARE, COMMON, FREQUENT = "r", "c", "f"
MAX_RARE_IMAGES = 10
MAX_COMMON_IMAGES = 100


def frequency_groups(image_counts: Iterable[int]) -> tuple[str | None, ...]:
    """The LVIS frequency group of each category, from the number of training images that show it.

    The thresholds are LVIS's (Gupta, Dollar, Girshick, CVPR 2019, arXiv 1908.03195): rare in
    1 to 10 images, common in 11 to 100, frequent in more than 100. The groups that LVIS v1 states
    follow from its counts by them. A category that no training image shows belongs to no group and
    gets None.

    Raises:
        ValueError: a count is negative.
    """
    groups: list[str | None] = []
    for count in image_counts:
        if count < 0:
            raise ValueError(f"an image count is {count}; counts are 0 or more")
        if count == 0:
            groups.append(None)
        elif count <= MAX_RARE_IMAGES:
            groups.append(RARE)
        else:
            groups.append(COMMON if count <= MAX_COMMON_IMAGES else FREQUENT)
    return tuple(groups)
