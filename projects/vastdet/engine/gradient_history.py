# SPDX-License-Identifier: Apache-2.0
"""What became of the gradients of class logits during a training, in memory and as a file.

T measured steps, P parts, D definitions, S sums, G frequency groups, C categories; see
`vastdet.engine.gradient_sums`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vastdet.data.record_table import Record, training_image_counts
from vastdet.engine.gradient_sums import CATEGORY_SUMS, DEFINITIONS, SUMS
from vastdet.files import read_json, write_json
from vastdet.layers.observed_logits import PARTS, PREDICTIONS
from vastdet.vocabulary import CategorySpace
from vastdet.vocabulary.frequency import COMMON, FREQUENT, RARE, frequency_groups

FILE_NAME = "gradients.json"
FILE_FORMAT = "vastdet.gradients"
FILE_VERSION = 1
GROUPS = (RARE, COMMON, FREQUENT)


@dataclass(frozen=True)
class Subject:
    """What was trained, on what.

    Attributes:
        architecture: the config's META_ARCHITECTURE.
        datasets: the training sets.
        hard_negatives: a key of `HARD_RULES` and its value.
        names: C names.
        image_counts: C numbers of training images.
        frequency: C of "r", "c", "f", or None.
    """

    architecture: str
    datasets: tuple[str, ...]
    hard_negatives: tuple[str, float]
    names: tuple[str, ...]
    image_counts: tuple[int, ...]
    frequency: tuple[str | None, ...]


@dataclass
class GradientHistory:
    """Sums of every measured step, and of every category over all steps.

    Attributes:
        subject: what was trained.
        iterations: T numbers of the steps, from 0.
        parts: T tensors (P, D, S).
        groups: T tensors (G, D, 3).
        categories: (D, 3, C).
        num_positives: (C,).
    """

    subject: Subject
    iterations: list[int] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)
    groups: list[Tensor] = field(default_factory=list)
    categories: Tensor = field(init=False)
    num_positives: Tensor = field(init=False)

    def __post_init__(self) -> None:
        size, kind = len(self.subject.names), torch.float64
        self.categories = torch.zeros(len(DEFINITIONS), len(CATEGORY_SUMS), size, dtype=kind)
        self.num_positives = torch.zeros(size, dtype=kind)
        places = [GROUPS.index(g) if g else len(GROUPS) for g in self.subject.frequency]
        self._group_of_category = torch.tensor(places)

    def append(
        self, iteration: int, parts: Tensor, categories: Tensor, num_positives: Tensor
    ) -> None:
        """Add one step; see `StepGradients` for the tensors."""
        by_group = categories.new_zeros(*categories.shape[:2], len(GROUPS) + 1)
        by_group.index_add_(2, self._group_of_category, categories)
        self.iterations.append(iteration)
        self.parts.append(parts)
        self.groups.append(by_group[..., :-1].permute(2, 0, 1).contiguous())
        self.categories += categories
        self.num_positives += num_positives

    # Results -------------------------------------------------------------------------------------

    def sums(self, name: str, *, definition: str = "loss", part: str = PREDICTIONS) -> np.ndarray:
        """(T,) one of `SUMS` in each step."""
        place = PARTS.index(part), DEFINITIONS.index(definition), SUMS.index(name)
        return self._stacked(self.parts)[:, *place]

    def group_sums(self, group: str, name: str, *, definition: str = "loss") -> np.ndarray:
        """(T,) one of `CATEGORY_SUMS` of a frequency group's categories in each step."""
        place = GROUPS.index(group), DEFINITIONS.index(definition), CATEGORY_SUMS.index(name)
        return self._stacked(self.groups)[:, *place]

    def category_sums(self, name: str, *, definition: str = "loss") -> np.ndarray:
        """(C,) one of `CATEGORY_SUMS` of each category over all steps."""
        place = DEFINITIONS.index(definition), CATEGORY_SUMS.index(name)
        return self.categories[place].numpy()

    @staticmethod
    def _stacked(tensors: list[Tensor]) -> np.ndarray:
        return torch.stack(tensors).numpy() if tensors else np.zeros((0, 9, 9, 9))

    # Checkpoints ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors; empty when nothing was measured."""
        if not self.iterations:
            return {}
        return {
            "iterations": list(self.iterations),
            "parts": torch.stack(self.parts),
            "groups": torch.stack(self.groups),
            "categories": self.categories.clone(),
            "num_positives": self.num_positives.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: it is of another number of categories.
        """
        if state["categories"].shape != self.categories.shape:
            raise ValueError(
                f"the checkpoint's gradients are of {state['categories'].shape[-1]} categories, "
                f"the training data has {self.categories.shape[-1]}; resume with the data that "
                "the run began with"
            )
        self.iterations = list(state["iterations"])
        self.parts = list(state["parts"])
        self.groups = list(state["groups"])
        self.categories = state["categories"].clone()
        self.num_positives = state["num_positives"].clone()

    # Files ---------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, by names; parts that nothing was measured of are left out."""
        subject = self.subject
        parts = [p for p in PARTS if any(self.sums(s, part=p).any() for s in SUMS)]
        content = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "architecture": subject.architecture,
            "datasets": subject.datasets,
            "hard_negatives": subject.hard_negatives,
            "iterations": self.iterations,
            "parts": {
                p: by_name(SUMS, lambda d, s, p=p: self.sums(s, definition=d, part=p))
                for p in parts
            },
            "groups": {
                g: by_name(CATEGORY_SUMS, lambda d, s, g=g: self.group_sums(g, s, definition=d))
                for g in GROUPS
            },
            "categories": {
                "names": subject.names,
                "image_counts": subject.image_counts,
                "frequency": subject.frequency,
                "num_positives": self.num_positives.long().tolist(),
                **by_name(CATEGORY_SUMS, lambda d, s: self.category_sums(s, definition=d)),
            },
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: str | Path) -> "GradientHistory":
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another format, another version, or damaged content.
        """
        content = read_json(path, advice="train again with ANALYSIS.GRADIENTS.ENABLED True")
        if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
            raise ValueError(f"{path} holds no gradients of a training ({FILE_FORMAT!r})")
        if content.get("version") != FILE_VERSION:
            raise ValueError(
                f"{path} has version {content.get('version')!r}, this vastdet reads "
                f"{FILE_VERSION}; update vastdet, or train again"
            )
        try:
            return cls._from_content(content)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}; train again") from error

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> "GradientHistory":
        categories = content["categories"]
        history = cls(
            Subject(
                architecture=content["architecture"],
                datasets=tuple(content["datasets"]),
                hard_negatives=(content["hard_negatives"][0], content["hard_negatives"][1]),
                names=tuple(categories["names"]),
                image_counts=tuple(categories["image_counts"]),
                frequency=tuple(categories["frequency"]),
            )
        )
        count = len(content["iterations"])
        parts = torch.zeros(count, len(PARTS), len(DEFINITIONS), len(SUMS), dtype=torch.float64)
        for name, sums in content["parts"].items():
            parts[:, PARTS.index(name)] = from_names(SUMS, sums).permute(2, 0, 1)
        groups = torch.stack([from_names(CATEGORY_SUMS, content["groups"][g]) for g in GROUPS])
        history.iterations = list(content["iterations"])
        history.parts = list(parts)
        history.groups = list(groups.permute(3, 0, 1, 2))
        # Into the tensors that are there: others would be another size.
        history.categories.copy_(from_names(CATEGORY_SUMS, categories))
        history.num_positives.copy_(torch.tensor(categories["num_positives"]))
        return history


def by_name(sums: Sequence[str], values: Any) -> dict[str, dict[str, list[float]]]:
    """`values(definition, sum)`, an array, as nested dicts."""
    return {d: {s: values(d, s).tolist() for s in sums} for d in DEFINITIONS}


def from_names(sums: Sequence[str], content: dict[str, Any]) -> Tensor:
    """The way back from `by_name`: (D, S, length)."""
    rows = [[content[d][s] for s in sums] for d in DEFINITIONS]
    return torch.tensor(rows, dtype=torch.float64)


def subject_of(
    space: CategorySpace,
    records: Iterable[Record],
    *,
    architecture: str,
    datasets: Sequence[str],
    hard_negatives: tuple[str, float],
) -> Subject:
    """A subject with counts and groups that the category space states, else by the records."""
    counts = space.image_counts
    if counts is None:
        counts = tuple(training_image_counts(records, len(space)).tolist())
    frequency = space.frequency if any(space.frequency) else frequency_groups(counts)
    return Subject(architecture, tuple(datasets), hard_negatives, space.names, counts, frequency)
