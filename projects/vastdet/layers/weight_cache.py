# SPDX-License-Identifier: Apache-2.0
"""What follows from weights alone, kept until one of them changes."""

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class WeightCache(Generic[T]):
    """Keeps a value that was computed from weights, and computes it again when they are others.

    A weight counts as changed when it is another tensor, lies elsewhere in memory, or was written
    to by an operation that autograd sees: optimizers, `load_state_dict` and `Module.to` all are.
    Writing to `weight.data` is not seen; call `drop` after it. Copies and pickles start empty.
    """

    def __init__(self) -> None:
        """Empty."""
        self._marks: list[tuple[Tensor, int, int]] = []
        self._value: T | None = None

    def get(self, weights: Iterable[Tensor], compute: Callable[[], T]) -> T:
        """The value that `compute` made when these weights were as they are now."""
        marks = [(weight, weight.data_ptr(), weight._version) for weight in weights]
        if self._value is None or not _equal(marks, self._marks):
            # The old value goes first: two may not fit.
            self.drop()
            self._value = compute()
            self._marks = marks
        return self._value

    def drop(self) -> None:
        """Forget the value."""
        self._value = None
        self._marks = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightCache[T]":
        """An empty one: the copy's weights are others."""
        return type(self)()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """An empty one."""
        return type(self), ()


def _equal(marks: list[tuple[Tensor, int, int]], others: list[tuple[Tensor, int, int]]) -> bool:
    return len(marks) == len(others) and all(
        a is b and where == before and version == old
        for (a, where, version), (b, before, old) in zip(marks, others, strict=True)
    )
