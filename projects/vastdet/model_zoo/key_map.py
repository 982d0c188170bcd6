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
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

StateDict = dict[str, Tensor]
# From a normalised image (3, H, W) to what can be compared, by name; see `vastdet.model_zoo.probe`.
Network = Callable[[Tensor], dict[str, Tensor]]
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


class ClassRows(NamedTuple):
    """Where the classes are on an axis: outer x (before + K + after) x inner rows.

    Attributes:
        outer: blocks that each hold all classes, such as anchors.
        inner: rows of one class, such as its four box coordinates.
        before: rows of a block ahead of the classes, such as background.
        after: rows of a block behind the classes, such as "no object".
        axis: the axis, the first but where each row of a table holds all classes.
    """

    outer: int = 1
    inner: int = 1
    before: int = 0
    after: int = 0
    axis: int = 0

    def selected(self, num_rows: int, category_ids: Sequence[int]) -> list[int]:
        """Rows of a block of `num_rows` that remain when only some categories are kept."""
        last = num_rows - self.after
        return [*range(self.before), *category_ids, *range(last, num_rows)]


class ObjectnessRows(ClassRows):
    """Class rows of which only the first is read, as "is an object" (Zhu et al. 2021, A.4)."""

    def selected(self, num_rows: int, category_ids: Sequence[int]) -> list[int]:
        """The first rows, as many as categories are kept."""
        return list(range(len(category_ids)))


@dataclass(frozen=True)
class Pair:
    """One tensor under its two names.

    Attributes:
        source: name in the other code base.
        detectron2: name in a Detectron2 model.
        layout: difference in shape or order.
        aliases: names that older releases of the other code base used.
        classes: `ClassRows` or the start of one if an axis has a row a class, else None.
        copies: further names of the same tensor in the other code base, where layers share it.
        parts: names of equal parts that the other code base keeps apart; joined along the first
            axis they are `source`, which then is a name that no file has.
        older_parts: the parts under the names of older releases.
        stand_in: the `source` whose tensor this one equals where a file has it only once.
    """

    source: str
    detectron2: str
    layout: Layout = SAME
    aliases: tuple[str, ...] = ()
    classes: tuple[int, ...] | None = None
    copies: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    older_parts: tuple[str, ...] = ()
    stand_in: str = ""

    @property
    def class_rows(self) -> ClassRows | None:
        """`classes`, whole."""
        if self.classes is None or isinstance(self.classes, ClassRows):
            return self.classes
        return ClassRows(*self.classes)


@dataclass(frozen=True)
class Converter:
    """A table of pairs for one architecture.

    Attributes:
        name: the other code base's name of the architecture.
        config: our config (model_zoo name) with the same behaviour, "" for a bare backbone.
        pairs: every tensor of the model.
        constants: tensors that only the Detectron2 model has, with the value they are fixed at.
        ignored: endings of names that carry nothing a detector needs.
        unused: whole names of the other code base that carry nothing a detector needs.
        backbone: KEY VALUE ... by which a bare backbone is built, where `config` is "".
        fit: gives tensors of ours the shapes of a model that overrides have changed; None where no
            override is possible. Of bare backbones.
        twin: builds the other code base's network from our config, its own weights and the epsilon
            of its batch norms; raises ImportError where that code base is not installed. None
            where it is no package.
        without_data: changes our config in place so that a model of the same tensors is built
            without files of a dataset; None where it needs none.
    """

    name: str
    config: str
    pairs: tuple[Pair, ...]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    ignored: tuple[str, ...] = ("num_batches_tracked",)
    unused: tuple[str, ...] = ()
    backbone: tuple[Any, ...] = ()
    fit: Callable[[StateDict, Mapping[str, Tensor]], StateDict] | None = None
    twin: Callable[[CfgNode, StateDict, float], Network] | None = None
    without_data: Callable[[CfgNode], None] | None = None

    @cached_property
    def _by_source(self) -> dict[str, Pair]:
        return {pair.source: pair for pair in self.pairs}

    def canonical(self, state_dict: Mapping[str, Tensor]) -> StateDict:
        """The tensors under their newest names, each once, parts joined; other names stay.

        Raises:
            ValueError: a tensor is given under two names, or differs from its copy.
        """
        found = {
            n: t
            for n, t in state_dict.items()
            if not n.endswith(self.ignored) and n not in self.unused
        }
        for pair in self.pairs:
            for alias in pair.aliases:
                if alias in found:
                    if pair.source in found:
                        raise ValueError(f"{pair.source} is given twice: once under an older name")
                    found[pair.source] = found.pop(alias)
            for copy in pair.copies:
                if copy in found:
                    tensor = found.pop(copy)
                    self._check_copy(pair, copy, found.setdefault(pair.source, tensor), tensor)
            for names in (pair.parts, pair.older_parts):
                if names and all(part in found for part in names):
                    parts = [found.pop(part) for part in names]
                    if len({part.shape for part in parts}) != 1 or not parts[0].dim():
                        shapes = [tuple(part.shape) for part in parts]
                        raise ValueError(f"{names} have the shapes {shapes}; expected equal ones")
                    found[pair.source] = torch.cat(parts)
            if pair.source not in found and pair.stand_in in found:
                found[pair.source] = found[pair.stand_in]
        return found

    def check(self, state_dict: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
        """Hold every tensor of the other code base against a model of ours.

        Args:
            state_dict: as `to_detectron2` takes it.
            model: the state dict of the Detectron2 model, of any device, the meta device too.

        Raises:
            ValueError: a tensor is missing, left over or has another shape; all are listed. Or the
                model has other tensors than the table.
        """
        found = self.canonical(state_dict)
        targets = {pair.detectron2 for pair in self.pairs} | self.constants.keys()
        if targets != model.keys():
            odd = sorted(targets ^ model.keys())
            raise ValueError(
                f"the names of {self.name} were written for another model than this config builds: "
                f"{len(odd)} tensors are in one of them only, such as {odd[0]}; use the config "
                f"{self.config} without changes of its layers"
            )
        wrong = []
        for pair in self.pairs:
            expected = pair.layout.from_detectron2(model[pair.detectron2]).shape
            if pair.source in found and found[pair.source].shape != expected:
                shape = tuple(found[pair.source].shape)
                wrong.append(f"{pair.source}: {shape}, expected {tuple(expected)}")
        self._raise_if_incomplete(*self._differences(found), wrong)

    def num_classes(self, state_dict: Mapping[str, Tensor]) -> int | None:
        """K of weights under the other code base's names; None if none of them tells."""
        found = self.canonical(state_dict)
        for pair in self.pairs:
            rows = pair.class_rows
            if rows is None or pair.source not in found:
                continue
            if found[pair.source].dim() > rows.axis:
                num_rows = found[pair.source].shape[rows.axis] // (rows.outer * rows.inner)
                return num_rows - rows.before - rows.after
        return None

    def to_detectron2(self, state_dict: Mapping[str, Tensor]) -> StateDict:
        """Detectron2's state dict of the same network.

        Raises:
            ValueError: a tensor is missing, left over, given under two names, or differs from its
                copy.
        """
        found = self.canonical(state_dict)
        self._raise_if_incomplete(*self._differences(found))
        converted = {
            pair.detectron2: pair.layout.to_detectron2(found[pair.source]).contiguous()
            for pair in self.pairs
        }
        converted.update({name: value.clone() for name, value in self.constants.items()})
        return converted

    def from_detectron2(self, state_dict: Mapping[str, Tensor]) -> StateDict:
        """The other code base's state dict, under its newest names, of a Detectron2 model.

        Raises:
            ValueError: a tensor is missing or left over, or one that the other code base fixes at
                a constant has learnt another value.
        """
        relevant = {n: t for n, t in state_dict.items() if not n.endswith(self.ignored)}
        for name, value in self.constants.items():
            learnt = relevant.pop(name, value)
            if learnt.shape != value.shape or not bool((learnt == value).all()):
                raise ValueError(
                    f"{name} is {_shortened(learnt)}, but {self.name} has no such parameter: it "
                    f"behaves as {_shortened(value)}; this model cannot be written as one"
                )
        by_target = {pair.detectron2: pair for pair in self.pairs}
        missing = [target for target in by_target if target not in relevant]
        self._raise_if_incomplete(missing, [name for name in relevant if name not in by_target])
        written: StateDict = {}
        for pair in self.pairs:
            tensor = pair.layout.from_detectron2(relevant[pair.detectron2]).contiguous()
            if pair.parts:
                chunks = tensor.chunk(len(pair.parts))
                written.update(zip(pair.parts, (c.contiguous() for c in chunks), strict=True))
            else:
                written.update(dict.fromkeys((pair.source, *pair.copies), tensor))
        return written

    def select_categories(
        self, state_dict: Mapping[str, Tensor], category_ids: Sequence[int]
    ) -> StateDict:
        """The other code base's state dict with only some categories, in the order given.

        Published COCO weights have a row for each COCO id from 0 to 90, ten of them unused; the 80
        ids of the dataset make the contiguous rows that Detectron2 models have. Rows ahead of and
        behind the classes stay. Sigmoid scores stay as they are; softmax scores grow by the share
        of the dropped rows.

        Args:
            state_dict: as `to_detectron2` takes it.
            category_ids: ids to keep. An id is a row number, counted with the rows ahead of it, so
                that torchvision's row 0, background, is no category.

        Raises:
            ValueError: an id is outside the tensors.
        """
        selected = self.canonical(state_dict)
        for name, pair in self._by_source.items():
            tensor = selected.get(name)
            rows = pair.class_rows
            if tensor is None or rows is None or tensor.dim() <= rows.axis:
                continue
            tensor = tensor.movedim(rows.axis, 0)
            num_rows, rest = divmod(len(tensor), rows.outer * rows.inner)
            if rest:
                continue  # Of another shape than the model's, which `check` says better.
            if min(category_ids) < rows.before or max(category_ids) >= num_rows - rows.after:
                raise ValueError(
                    f"{name} has {num_rows} class rows, but category ids up to {max(category_ids)} "
                    "were asked for; the weights are not of that dataset"
                )
            grid = tensor.reshape(rows.outer, num_rows, rows.inner, *tensor.shape[1:])
            kept = rows.selected(num_rows, category_ids)
            selected[name] = grid[:, kept].reshape(-1, *tensor.shape[1:]).movedim(0, rows.axis)
        return selected

    def _check_copy(self, pair: Pair, copy: str, first: Tensor, second: Tensor) -> None:
        if first.shape != second.shape or not torch.equal(first, second):
            raise ValueError(
                f"{pair.source} and {copy} differ, but {self.name} shares them: these weights "
                "are of another variant"
            )

    def _differences(self, found: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
        """What is missing and what is left over in a canonical state dict."""
        missing = []
        partial: set[str] = set()
        for pair in self.pairs:
            if pair.source not in found:
                missing += [part for part in pair.parts or (pair.source,) if part not in found]
                partial.update(pair.parts)
        left_over = [n for n in found if n not in self._by_source and n not in partial]
        return missing, left_over

    def _raise_if_incomplete(
        self, missing: Sequence[str], left_over: Sequence[str], wrong: Sequence[str] = ()
    ) -> None:
        lines = []
        for title, names, others in (
            ("missing", missing, left_over),
            ("left over", left_over, missing),
            ("of another shape", wrong, ()),
        ):
            if names:
                lines.append(f"  {title}: {len(names)}")
                lines += [f"    {name}{_suggestion(name, others)}" for name in names[:MAX_LISTED]]
                lines += [f"    and {len(names) - MAX_LISTED} more"][: len(names) > MAX_LISTED]
        if lines:
            raise ValueError("\n".join([f"this is not the state dict of {self.name}:", *lines]))


def _shortened(tensor: Tensor) -> str:
    """The values of a small tensor, the shape and the range of a large one."""
    if tensor.numel() <= MAX_LISTED:
        return str(tensor.tolist())
    return f"{tuple(tensor.shape)} from {tensor.min():g} to {tensor.max():g}"


def _suggestion(name: str, candidates: Sequence[str]) -> str:
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
