# SPDX-License-Identifier: Apache-2.0
"""Lets somebody watch the class logits of a sigmoid classifier and their gradient, from outside.

A loss passes its logits through `observed`. Without an observer that returns them as they are; with
one it returns a view, whose gradient, summed over everything that the loss does with the logits, is
shown to the observer in the backward pass and goes on unchanged. A loss whose value nobody uses is
never shown.

... leading axes, B images, Q queries, anchors or locations, K classes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import singledispatch

from torch import Tensor, nn

PREDICTIONS = "predictions"
PROPOSALS = "proposals"
DENOISING = "denoising"
ONE_TO_MANY = "one_to_many"
# What a class loss may be about: the detections themselves (of all decoder layers), the proposal
# stage, denoising queries, a one-to-many branch that inference lacks.
PARTS = (PREDICTIONS, PROPOSALS, DENOISING, ONE_TO_MANY)


@dataclass(frozen=True)
class LogitSource:
    """Where logits come from.

    Attributes:
        part: one of `PARTS`.
        class_agnostic: whether the loss tells objects from background by the logit of class 0.
        categories: (B, K) int64, the category of each logit of each image, -1 for padding; None
            where logit k is that of category k.
    """

    part: str = PREDICTIONS
    class_agnostic: bool = False
    categories: Tensor | None = None


@dataclass(frozen=True)
class ObservedLogits:
    """The logits of one class loss, in the backward pass.

    Attributes:
        source: where they come from.
        logits: (..., B, Q, K), without gradient.
        labels: (..., B, Q) int64, the class of the box that a query answers for as an index of K,
            -1 for background.
        counted: bool, broadcasts to (..., B, Q): the queries that enter the loss; None for all.
        gradient: like the logits, of the sum of the training losses.
    """

    source: LogitSource
    logits: Tensor
    labels: Tensor
    counted: Tensor | None
    gradient: Tensor


Observer = Callable[[ObservedLogits], None]
_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)
_source: ContextVar[LogitSource | None] = ContextVar("source", default=None)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Show the logits of every class loss that is computed within to `observer`, backwards."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextmanager
def logits_from(
    part: str | None = None,
    *,
    class_agnostic: bool | None = None,
    categories: Tensor | None = None,
) -> Iterator[None]:
    """Say where the logits of the class losses within come from; None keeps what is said around.

    See `LogitSource` for the arguments.
    """
    around = _source.get() or LogitSource()
    token = _source.set(
        LogitSource(
            part=around.part if part is None else part,
            class_agnostic=around.class_agnostic if class_agnostic is None else class_agnostic,
            categories=around.categories if categories is None else categories,
        )
    )
    try:
        yield
    finally:
        _source.reset(token)


def observed(logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """The logits (..., B, Q, K) for a loss to go on with; see `ObservedLogits` for the arguments.

    To call once for each class loss with sigmoids, before anything is computed from the logits.
    """
    observer = _observer.get()
    if observer is None or not logits.requires_grad:
        return logits
    source, view = _source.get() or LogitSource(), logits.view_as(logits)
    values = view.detach()
    view.register_hook(
        lambda gradient: observer(ObservedLogits(source, values, labels, counted, gradient))
    )
    return view


@singledispatch
def observable(module: nn.Module) -> AbstractContextManager[None]:
    """Within, the class loss of a module that knows nothing of observers calls `observed`.

    Modules of other packages are taught by `observable.register`; others are left as they are.
    """
    return nullcontext()
