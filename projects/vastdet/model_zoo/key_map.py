# SPDX-License-Identifier: Apache-2.0
"""State dicts of another code base to Detectron2 names and layouts, and back.

A converter is a table of pairs, one a tensor, so that both directions, the list of what is missing
and the list of what is left over follow from the same lines.

Letters: A anchors a location, S sizes, R aspect ratios (A = S x R), K categories, * further axes.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
MAX_LISTED = 12


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Layout:
    """How one tensor differs between the two code bases; each function undoes the other."""

    to_detectron2: Callable[[Tensor], Tensor] = _unchanged
    from_detectron2: Callable[[Tensor], Tensor] = _unchanged


SAME = Layout()


def background_last() -> Layout:
    """Class scores [K+1, *]: background is row 0 elsewhere and row K in Detectron2."""
    return Layout(lambda t: torch.roll(t, -1, dims=0), lambda t: torch.roll(t, 1, dims=0))


def foreground_only(rows: int) -> Layout:
    """Class-specific boxes: `rows` rows a class, those of background (never read) left out.

    The way back fills them with zeros.
    """

    def add_background(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(rows, *tensor.shape[1:]), tensor])

    return Layout(lambda t: t[rows:], add_background)


def sizes_first(num_sizes: int, num_ratios: int) -> Layout:
    """Anchors of a location: ratio-major (R, S) elsewhere, size-major (S, R) in Detectron2.

    Holds for [A * n, *] with any number n of rows an anchor.
    """

    def swap(tensor: Tensor, first: int, second: int) -> Tensor:
        grid = tensor.reshape(first, second, -1, *tensor.shape[1:])
        return grid.transpose(0, 1).reshape(tensor.shape)

    return Layout(
        lambda t: swap(t, num_ratios, num_sizes), lambda t: swap(t, num_sizes, num_ratios)
    )


@dataclass(frozen=True)
class Pair:
    """One tensor under its two names.

    Attributes:
        source: name in the other code base.
        detectron2: name in a Detectron2 model.
        layout: difference in shape or order.
        aliases: names that older releases of the other code base used.
        classes: (outer, inner) if the first axis is outer x K x inner, else None.
        copies: further names of the same tensor in the other code base, where layers share it.
    """

    source: str
    detectron2: str
    layout: Layout = SAME
    aliases: tuple[str, ...] = ()
    classes: tuple[int, int] | None = None
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converter:
    """A table of pairs for one architecture.

    Attributes:
        name: the other code base's name of the architecture.
        config: our config (model_zoo name) with the same behaviour, "" for a bare backbone.
        pairs: every tensor of the model.
        constants: tensors that only the Detectron2 model has, with the value they are fixed at.
        ignored: endings of names that carry nothing a detector needs.
        has_background: row 0 of the class axis is background, so category ids count from 1.
    """

    name: str
    config: str
    pairs: tuple[Pair, ...]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    ignored: tuple[str, ...] = ("num_batches_tracked",)
    has_background: bool = False

    @cached_property
    def _by_source(self) -> dict[str, Pair]:
        return {name: pair for pair in self.pairs for name in (pair.source, *pair.aliases)}

    @cached_property
    def _source_of_copy(self) -> dict[str, str]:
        return {copy: pair.source for pair in self.pairs for copy in pair.copies}

    def to_detectron2(self, state_dict: Mapping[str, Tensor]) -> StateDict:
        """Detectron2's state dict of the same network.

        Raises:
            ValueError: a tensor is missing, left over, given under two names, or differs from its
                copy.
        """
        converted: StateDict = {}
        relevant = self._without_copies(self._relevant(state_dict))
        for name, tensor in relevant.items():
            pair = self._by_source.get(name)
            if pair is None:
                continue
            if pair.detectron2 in converted:
                raise ValueError(f"{pair.source} is given twice: once under an older name")
            converted[pair.detectron2] = pair.layout.to_detectron2(tensor).contiguous()
        expected = {pair.detectron2: pair.source for pair in self.pairs}
        missing = [source for target, source in expected.items() if target not in converted]
        left_over = [n for n in relevant if n not in self._by_source]
        self._raise_if_incomplete(missing, left_over)
        converted.update({name: value.clone() for name, value in self.constants.items()})
        return converted

    def from_detectron2(self, state_dict: Mapping[str, Tensor]) -> StateDict:
        """The other code base's state dict, under its newest names, of a Detectron2 model.

        Raises:
            ValueError: a tensor is missing or left over, or one that the other code base fixes at
                a constant has learnt another value.
        """
        relevant = self._relevant(state_dict)
        for name, value in self.constants.items():
            learnt = relevant.pop(name, value)
            if learnt.shape != value.shape or not bool((learnt == value).all()):
                raise ValueError(
                    f"{name} is {learnt.tolist()}, but {self.name} has no such parameter: it "
                    f"behaves as {value.tolist()}; this model cannot be written as one"
                )
        by_target = {pair.detectron2: pair for pair in self.pairs}
        missing = [target for target in by_target if target not in relevant]
        self._raise_if_incomplete(missing, [name for name in relevant if name not in by_target])
        return {
            name: pair.layout.from_detectron2(relevant[pair.detectron2]).contiguous()
            for pair in self.pairs
            for name in (pair.source, *pair.copies)
        }

    def select_categories(
        self, state_dict: Mapping[str, Tensor], category_ids: Sequence[int]
    ) -> StateDict:
        """The other code base's state dict with only some categories, in the order given.

        Published COCO weights have a row for each COCO id from 0 to 90, ten of them unused; the 80
        ids of the dataset make the contiguous rows that Detectron2 models have. Sigmoid scores stay
        as they are; softmax scores grow by the share of the dropped rows.

        Args:
            state_dict: as `to_detectron2` takes it.
            category_ids: row numbers to keep, background not among them.

        Raises:
            ValueError: a row number is outside the tensors.
        """
        rows = [0, *category_ids] if self.has_background else list(category_ids)
        selected = dict(state_dict)
        for name, tensor in state_dict.items():
            pair = self._by_source.get(name)
            if pair is None or pair.classes is None:
                continue
            outer, inner = pair.classes
            num_rows = tensor.shape[0] // (outer * inner)
            if min(rows) < 0 or max(rows) >= num_rows:
                raise ValueError(
                    f"{name} has {num_rows} class rows, but category ids up to {max(rows)} were "
                    "asked for; the weights are not of that dataset"
                )
            grid = tensor.reshape(outer, num_rows, inner, *tensor.shape[1:])
            selected[name] = grid[:, rows].reshape(-1, *tensor.shape[1:])
        return selected

    def _relevant(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: t for n, t in state_dict.items() if not n.endswith(self.ignored)}

    def _without_copies(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for copy, source in self._source_of_copy.items():
            if copy in state_dict and source in state_dict:
                first, second = state_dict[source], state_dict[copy]
                if first.shape != second.shape or not torch.equal(first, second):
                    raise ValueError(
                        f"{source} and {copy} differ, but {self.name} shares them: these weights "
                        "are of another variant"
                    )
        return {n: t for n, t in state_dict.items() if n not in self._source_of_copy}

    def _raise_if_incomplete(self, missing: list[str], left_over: list[str]) -> None:
        if not missing and not left_over:
            return
        lines = [f"this is not the state dict of {self.name}:"]
        for title, names, others in (
            ("missing", missing, left_over),
            ("left over", left_over, missing),
        ):
            if names:
                lines.append(f"  {title}: {len(names)}")
                lines += [f"    {name}{_suggestion(name, others)}" for name in names[:MAX_LISTED]]
                lines += [f"    and {len(names) - MAX_LISTED} more"][: len(names) > MAX_LISTED]
        raise ValueError("\n".join(lines))


def _suggestion(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.75)
    return f" (perhaps {close[0]})" if close else ""


def change_batch_norm_eps(
    state_dict: Mapping[str, Tensor], old_eps: float, new_eps: float
) -> StateDict:
    """Scale frozen batch-norm weights so that another epsilon gives the same output.

    A frozen norm computes weight / sqrt(running_var + eps); the weight takes up the difference.
    Detectron2's `FrozenBatchNorm2d` has eps 1e-5; torchvision's published COCO weights of
    Faster R-CNN and RetinaNet were trained with 0.

    Args:
        state_dict: tensors of either code base, with `<norm>.running_var` and `<norm>.weight`.
        old_eps: the epsilon the weights were made for.
        new_eps: the epsilon of the model that will load them.
    """
    changed = dict(state_dict)
    if old_eps == new_eps:
        return changed
    for name, variance in state_dict.items():
        norm, _, last = name.rpartition(".")
        if last == "running_var":
            variance = variance.double()
            ratio = ((variance + new_eps) / (variance + old_eps)).sqrt()
            weight = state_dict[f"{norm}.weight"]
            changed[f"{norm}.weight"] = (weight.double() * ratio).to(weight.dtype)
    return changed
