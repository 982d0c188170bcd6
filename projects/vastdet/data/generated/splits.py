# SPDX-License-Identifier: Apache-2.0
"""A generated dataset as a list of numbered images: its path form, its records, its pixels.

The path of an image says all that its pixels depend on, so that any process can render it:
`generated://<K>/<split>/[<field=value,...>/]<index>.ppm`, and `annotations.json` in the same place
is the COCO annotation file. The optional part names the fields that differ from the defaults.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from vastdet.data.generated.categories import (
    GeneratedCategories,
    check_num_categories,
    generated_categories,
)
from vastdet.data.generated.render import Scene, render_scene, scene_layout, scene_rngs
from vastdet.data.generated.scene import Layout, SceneConfig
from vastdet.vocabulary import CategorySpace, frequency_groups

logger = logging.getLogger(__name__)

PREFIX = "generated://"
ANNOTATION_FILE = "annotations.json"
# Each split has a seed of its own, so no scene of one is in another. The open splits are the
# open-vocabulary ones: held-out compositions are absent from open_train and present in open_val.
SPLITS = {"train": 0, "val": 1, "open_train": 2, "open_val": 3}
# Vocabulary size up to which (train images, val images, long-tail exponent of train) hold.
_DEFAULTS = (
    (24, 4_000, 200, 0.3),
    (50, 5_000, 250, 0.5),
    (100, 6_000, 300, 0.5),
    (500, 8_000, 500, 0.7),
    (1_000, 10_000, 800, 0.7),
    (5_000, 15_000, 1_500, 0.7),
    (20_000, 20_000, 2_000, 0.7),
)
_INDEX = re.compile(r"(\d{6,})\.ppm")


def default_config(num_categories: int, split: str) -> SceneConfig:
    """The scenes of a registered set; val splits draw categories uniformly, as AP weighs them."""
    exponent = next(row[3] for row in _DEFAULTS if num_categories <= row[0])
    return SceneConfig(long_tail=exponent if split.endswith("train") else 0.0)


def default_num_images(num_categories: int, split: str) -> int:
    """How many images a registered set has."""
    row = next(row for row in _DEFAULTS if num_categories <= row[0])
    return row[1] if split.endswith("train") else row[2]


@dataclass(frozen=True)
class GeneratedSplit:
    """One generated dataset, by everything that it depends on.

    Attributes:
        num_categories: K, 10 to 20,000.
        split: a key of `SPLITS`.
        config: what scenes look like.
        num_images: at least 1; images are numbered from 0, image ids from 1.
        seed: non-negative; another seed gives other scenes.
    """

    num_categories: int
    split: str
    config: SceneConfig
    num_images: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(
                f"got the split {self.split!r} of a generated dataset; "
                f"expected one of {', '.join(SPLITS)}"
            )
        if self.num_images < 1 or self.seed < 0:
            raise ValueError(
                f"got {self.num_images} images and the seed {self.seed} for a generated dataset; "
                "expected at least 1 image and a seed of at least 0"
            )
        check_num_categories(self.num_categories)

    @classmethod
    def default(cls, num_categories: int, split: str) -> GeneratedSplit:
        """The set that is registered as `generated_<K>_<split>`."""
        check_num_categories(num_categories)
        config = default_config(num_categories, split)
        return cls(num_categories, split, config, default_num_images(num_categories, split))

    @property
    def categories(self) -> GeneratedCategories:
        """The vocabulary."""
        return generated_categories(self.num_categories)

    @property
    def is_open(self) -> bool:
        """Whether some categories are held out of training."""
        return self.split.startswith("open")

    @property
    def folder(self) -> str:
        """The path that all file names of this set begin with, without a slash at the end."""
        base = GeneratedSplit.default(self.num_categories, self.split)
        changes: dict[str, int | float] = {
            field.name: getattr(self.config, field.name)
            for field in dataclasses.fields(SceneConfig)
            if getattr(self.config, field.name) != getattr(base.config, field.name)
        }
        for name in ("num_images", "seed"):
            if getattr(self, name) != getattr(base, name):
                changes[name] = getattr(self, name)
        path = f"{PREFIX}{self.num_categories}/{self.split}"
        settings = ",".join(f"{name}={value!r}" for name, value in changes.items())
        return f"{path}/{settings}" if settings else path

    def file_name(self, index: int) -> str:
        """The path of image `index`."""
        return f"{self.folder}/{index:06d}.ppm"

    def _scene_seed(self, index: int) -> tuple[int, ...]:
        return (self.seed, SPLITS[self.split], index)

    def labelling_rngs(self, index: int) -> tuple[np.random.Generator, np.random.Generator]:
        """Generators for the texts of image `index` and for its federated labelling."""
        _, _, texts, labelling = scene_rngs(self._scene_seed(index))
        return texts, labelling

    def layout(self, index: int) -> Layout:
        """Boxes and classes of image `index`, without its pixels."""
        base_only = self.split == "open_train"
        seed = self._scene_seed(index)
        return scene_layout(self.config, self.categories, seed, base_only=base_only)

    def render(self, index: int) -> Scene:
        """Pixels, boxes and classes of image `index`."""
        base_only = self.split == "open_train"
        seed = self._scene_seed(index)
        return render_scene(self.config, self.categories, seed, base_only=base_only)

    def records(self) -> list[dict[str, Any]]:
        """Detectron2's dataset dicts; boxes are XYWH_ABS of the visible extent, pixels."""
        started = time.perf_counter()
        records = []
        folder = self.folder
        for index, layout in self.layouts():
            annotations = [
                {
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": item.category,
                    "iscrowd": 0,
                    "area": item.area,
                }
                for item in layout.objects
                for x0, y0, x1, y1 in (item.box,)
            ]
            records.append(
                {
                    "file_name": f"{folder}/{index:06d}.ppm",
                    "image_id": index + 1,
                    "height": self.config.height,
                    "width": self.config.width,
                    "annotations": annotations,
                }
            )
        elapsed = time.perf_counter() - started
        logger.info("Laid out %d scenes of %s in %.1f s", self.num_images, folder, elapsed)
        return records

    def layouts(self) -> Iterator[tuple[int, Layout]]:
        """Index and layout of every image."""
        for index in range(self.num_images):
            yield index, self.layout(index)

    def frequency_groups(self) -> tuple[str | None, ...]:
        """LVIS's group of each category, 'r', 'c' or 'f', by its expected training images.

        The expectation is over the registered training set of the same vocabulary, so that its
        splits agree and none has to be laid out. A held-out category has no group: None.
        """
        train = GeneratedSplit.default(
            self.num_categories, "open_train" if self.is_open else "train"
        )
        chances = self.categories.probabilities(train.config.long_tail, base_only=self.is_open)
        draws = (train.config.min_objects + train.config.max_objects) / 2
        return frequency_groups(train.num_images * (1 - (1 - chances) ** draws))

    def category_space(self) -> CategorySpace:
        """The vocabulary with synonyms, descriptions, frequency, novel flags and category tree."""
        tree = self.categories.tree()
        return CategorySpace.from_v3det(self.category_dicts(), category_tree=tree)

    def category_dicts(self) -> list[dict[str, Any]]:
        """The categories as annotation files list them; "novel" only where some are held out."""
        groups = self.frequency_groups()
        return [
            {**entry, "frequency": group, "novel": self.is_open and entry["novel"]}
            for entry, group in zip(self.categories.dicts(), groups, strict=True)
        ]


def parse_path(path: str) -> tuple[GeneratedSplit, int | None]:
    """The set that a `generated://` path belongs to, and its image index (None: annotations).

    Raises:
        ValueError: the path has another form, or a field in it a value out of range.
        FileNotFoundError: the set has no image of that number.
    """
    parts = path.removeprefix(PREFIX).split("/")
    if not path.startswith(PREFIX) or len(parts) not in (3, 4) or not parts[0].isdigit():
        raise ValueError(_form(path))
    split = GeneratedSplit.default(int(parts[0]), parts[1])
    if len(parts) == 4:
        split = with_settings(split, parts[2], path)
    if parts[-1] == ANNOTATION_FILE:
        return split, None
    match = _INDEX.fullmatch(parts[-1])
    if match is None:
        raise ValueError(_form(path))
    index = int(match[1])
    if index >= split.num_images:
        raise FileNotFoundError(
            f"{path}: got image number {index}; expected 0 to {split.num_images - 1}, "
            "the images of this set"
        )
    return split, index


def _form(path: str) -> str:
    return (
        f"got the path {path!r}; expected {PREFIX}<categories>/<{'|'.join(SPLITS)}>/"
        f"[<field=value,...>/]<number>.ppm (or {ANNOTATION_FILE})"
    )


def with_settings(split: GeneratedSplit, settings: str, source: str) -> GeneratedSplit:
    """Change fields of a set: `settings` is "field=value,...", as in a path.

    Args:
        split: the set to start from.
        settings: fields of `SceneConfig`, `num_images` and `seed`, with their values.
        source: where the settings come from, for the message.

    Raises:
        ValueError: an unknown field, or a value that is no number or out of range.
    """
    types = {name: type(value) for name, value in dataclasses.asdict(split.config).items()}
    own: dict[str, Any] = {}
    scene: dict[str, Any] = {}
    for setting in settings.split(","):
        name, _, value = setting.partition("=")
        try:
            if name in ("num_images", "seed"):
                own[name] = int(value)
            else:
                scene[name] = types[name](value)
        except (KeyError, ValueError) as error:
            fields = ", ".join([*types, "num_images", "seed"])
            raise ValueError(
                f"{source}: got the setting {setting!r}; expected field=value with a number, "
                f"the field one of {fields}"
            ) from error
    config = dataclasses.replace(split.config, **scene)
    return dataclasses.replace(split, config=config, **own)
