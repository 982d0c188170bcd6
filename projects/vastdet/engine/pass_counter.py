# SPDX-License-Identifier: Apache-2.0
"""Counts what one pass of a model computes and how much memory its tensors take, while it runs.

The counter sees each operator that torch dispatches, so it sees every tensor that a pass makes, but
not what kernels take for themselves nor what an allocator rounds up to.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

aten = torch.ops.aten


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


# torch has rules for attention on CUDA only.
RULES = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


@dataclass(frozen=True)
class PassCounts:
    """What a pass took.

    Attributes:
        num_flops: of products, convolutions and attention in the last call; a multiply-add counts
            as two.
        bytes_moved: that all operators of the last call read and wrote, views apart.
        peaks: the most bytes of living tensors that the calls made, by where it was: the module and
            the operator. Their maximum is the peak of the pass.
    """

    num_flops: int
    bytes_moved: int
    peaks: dict[tuple[str, str], int]

    @property
    def peak(self) -> int:
        """The most bytes of tensors that the pass made and that lived at once."""
        return max(self.peaks.values(), default=0)


class _Trace(TorchDispatchMode):
    """Counts operators, and follows the storages that they make until these are freed."""

    def __init__(self, place: list[str]) -> None:
        super().__init__()
        self.place = place
        self.num_flops = 0
        self.bytes_moved = 0
        self.living = 0
        self.peaks: dict[tuple[str, str], int] = defaultdict(int)
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for tensor in inputs:
            # What comes into sight as an input was made before the pass, or by hand.
            self._seen.setdefault(tensor.untyped_storage(), 0)
        results = func(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(results) if isinstance(x, Tensor)]
        known = [self._follow(x) for x in outputs]
        if not all(known) or _writes(func):
            self.bytes_moved += sum(x.numel() * x.element_size() for x in (*inputs, *outputs))
        if func._overloadpacket in RULES:
            count = RULES[func._overloadpacket]
            self.num_flops += count(*args, **(kwargs or {}), out_val=results)
        key = (self.place[-1], str(func))
        self.peaks[key] = max(self.peaks[key], self.living)
        return results

    def _follow(self, tensor: Tensor) -> bool:
        """Count a storage that is new; whether it was known."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return True
        size = storage.nbytes()
        self._seen[storage] = size
        self.living += size
        weakref.finalize(storage, self._free, size)
        return False

    def _free(self, size: int) -> None:
        self.living -= size


def _writes(func: Any) -> bool:
    return any(x.alias_info is not None and x.alias_info.is_write for x in func._schema.arguments)


def count_pass(model: nn.Module, run: Callable[[], object], num_calls: int = 2) -> PassCounts:
    """Count calls of `run`, which runs the model.

    The first call also makes what later ones find: what a model keeps at inference, the state of an
    optimizer. So work is that of the last, and memory that of all.

    Under `torch.no_grad`, not in inference mode: there, operators that are made of others are seen
    as one.
    """
    with _places(model) as place:
        trace = _Trace(place)
        for _ in range(num_calls):
            trace.num_flops = trace.bytes_moved = 0
            with trace:
                run()
    return PassCounts(trace.num_flops, trace.bytes_moved, dict(trace.peaks))


@contextmanager
def _places(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are running, the innermost last; "" outside of all."""
    place = [""]

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: place.append(name)

    def leave(*_: Any) -> None:
        place.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield place
    finally:
        for handle in handles:
            handle.remove()
