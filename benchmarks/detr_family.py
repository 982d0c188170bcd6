# SPDX-License-Identifier: Apache-2.0
"""Members of the DETR family beside transformers: same weights, images and process.

Each MODEL is a name of `tools/convert_checkpoint.py --list` that ends in _transformers. Its random
weights go from our network into theirs; at inference the largest differences of the outputs are
printed, in training the numbers of parameters. Calls take turns. With other work on the machine,
take one thread and --processor-time.

bf16 is the fused network under autocast, as with TEST.AMP: weights and coordinates stay fp32.
Scores of random weights lie close together, so that rounding decides which tokens become queries
and in what order; outputs are therefore compared with the same tokens chosen.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from vastdet.engine.benchmarking import Spread, measure_memory, megabytes
from vastdet.engine.model_inputs import random_inputs
from vastdet.engine.optimizer import build_optimizer
from vastdet.layers.boxes import xyxy_to_cxcywh
from vastdet.layers.fusion import fused
from vastdet.model_zoo import get_config
from vastdet.model_zoo.probe import build_probe_model, largest_difference, outputs_of
from vastdet.model_zoo.registry import find_converter
from vastdet.model_zoo.twins import TransformersNetwork

Calls = dict[str, Callable[[], object]]

BATCH_NORM_EPS = 1e-5
START_STD = 0.02
# Operators of each kind, by a part of their names.
KINDS = {
    "convolutions": ("convolution", "conv2d"),
    "matrix products": ("mm", "linear", "dot_product_attention", "einsum"),
    "sampling": ("ms_deform_attn", "grid_sampl"),
}


def networks(model: str) -> tuple[CfgNode, nn.Module, TransformersNetwork]:
    """The config, our network with random weights and that of transformers with the same."""
    converter = find_converter(model)
    if converter.twin is None:
        raise ValueError(f"{model} has no network of transformers; choose a name with that ending")
    cfg = get_config(converter.config)
    ours = with_small_weights(build_probe_model(cfg, None))
    theirs = converter.twin(cfg, converter.from_detectron2(ours.state_dict()), BATCH_NORM_EPS)
    if not isinstance(theirs, TransformersNetwork):
        raise ValueError(f"{model} is not of transformers; choose a name with that ending")
    return cfg, ours, theirs


class SameChoice(TorchFunctionMode):
    """Lets every network choose the tokens that the first one chose.

    The choice is the only `topk` of a network. Afterwards `moved` is the number of places of the
    ranking at which the network would have had another token, `missing` how many chosen tokens it
    would not have had anywhere.
    """

    def __init__(self) -> None:
        """Nothing is chosen yet."""
        super().__init__()
        self.chosen: Tensor | None = None
        self.moved = self.missing = 0

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Call `func`, but give `topk` the indices of the first one."""
        result = func(*args, **(kwargs or {}))
        if func not in (torch.topk, Tensor.topk):
            return result
        if self.chosen is None:
            self.chosen = result.indices
        self.moved = int((self.chosen != result.indices).sum())
        self.missing = int((~torch.isin(self.chosen, result.indices)).sum())
        return torch.return_types.topk((args[0].gather(1, self.chosen), self.chosen))


def with_small_weights(model: nn.Module) -> nn.Module:
    """Small random weights for layers that start at zero: boxes then depend on the image."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=START_STD)
    return model


def inference_calls(model: str, size: tuple[int, int]) -> Calls:
    """Name -> a function that predicts one image; prints how far the outputs differ."""
    _, ours, theirs = networks(model)
    one = fused(ours)
    image = torch.randn(3, *size)
    calls = {
        name: torch.inference_mode()(call)
        for name, call in {
            "transformers": lambda: theirs(image),
            "vastdet": lambda: outputs_of(ours, image),
            "vastdet, fused": lambda: outputs_of(one, image),
            "vastdet, fused, bf16": torch.autocast("cpu", torch.bfloat16)(
                lambda: outputs_of(one, image)
            ),
        }.items()
    }
    print(f"\n{model}\n")
    print_differences(calls)
    return calls


def print_differences(calls: Calls) -> None:
    """How far the outputs of each network are from those of the first, and of bf16 from fp32."""
    print("| network | beside | logits, spread | logits differ by | boxes differ by | tokens |")
    print("|---|---|---|---|---|---|")
    names = list(calls)
    pairs = [(names[0], names[1]), (names[1], names[2]), (names[2], names[3])]
    for reference, name in pairs:
        choice = SameChoice()
        with choice:
            expected, got = calls[reference](), calls[name]()
        tokens = (
            ""
            if choice.chosen is None
            else (f"{choice.missing} others, {choice.moved} places of {choice.chosen.numel()}")
        )
        gaps = [f"{largest_difference(got[key].float(), expected[key]):.1e}" for key in expected]
        spread = float(expected["logits"].std())
        print(f"| {name} | {reference} | {spread:.2f} | {' | '.join(gaps)} | {tokens} |")
    print()


def training_calls(model: str, size: tuple[int, int]) -> Calls:
    """Name -> a function that takes a training step on an image, with losses of every layer."""
    cfg, ours, theirs = networks(model)
    cfg.defrost()
    cfg.SOLVER.BASE_LR = 0.0
    records = random_inputs(cfg, batch_size=1, image_size=size)
    labels = [
        {
            "class_labels": record["instances"].gt_classes,
            "boxes": relative(record["instances"].gt_boxes.tensor, size),
        }
        for record in records
    ]
    pixels = torch.stack([record["image"].float() for record in records])
    mask = torch.ones(len(pixels), *size, dtype=torch.long)
    theirs.model.config.auxiliary_loss = True
    trained = trained_alike(ours.train(), theirs.model.train())
    print(f"\n{model}: a step trains {trained[0]:,} parameters here, {trained[1]:,} there\n")
    our_optimizer = build_optimizer(cfg, ours)
    their_optimizer = torch.optim.AdamW(
        [p for p in theirs.model.parameters() if p.requires_grad], lr=0.0
    )

    def our_step() -> float:
        with EventStorage():
            loss = sum(ours([dict(record) for record in records]).values())
        return update(our_optimizer, loss)

    def their_step() -> float:
        return update(
            their_optimizer, theirs.model(pixel_values=pixels, pixel_mask=mask, labels=labels).loss
        )

    return {"transformers": their_step, "vastdet": our_step}


def relative(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """XYXY pixels as CXCYWH shares of an image of `size` (height, width)."""
    height, width = size
    return xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height]))


def trained_alike(ours: nn.Module, theirs: nn.Module) -> tuple[int, int]:
    """Freeze there what is frozen here, the first stages of the backbone; numbers of parameters.

    transformers freezes the whole of a backbone that is not timm's. Norms of the backbone are in
    both as at inference.
    """
    frozen = any(not p.requires_grad for p in ours.backbone.parameters())
    for name, parameter in theirs.named_parameters():
        is_first = "backbone" in name and (".embedder." in name or ".stages.0." in name)
        parameter.requires_grad_(not ((frozen and is_first) or "normalization" in name))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    ours_trained, theirs_trained = (
        sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)
    )
    return ours_trained, theirs_trained


def update(optimizer: torch.optim.Optimizer, loss: Any) -> float:
    """Backward pass and update; the loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


TASKS = {"inference": inference_calls, "train": training_calls}


def measure(
    calls: Calls, repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each call, round by round, and what memory one more takes; a first warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if round_number:
                seconds[name].append(clock() - start)
    return seconds, {
        name: megabytes(measure_memory(call, "cpu")[1]) for name, call in calls.items()
    }


def print_shares(calls: Calls) -> None:
    """Of each call, what share of the time operators of each kind take themselves."""
    print("| network | " + " | ".join(KINDS) + " | rest |\n|---|" + "---|" * (len(KINDS) + 1))
    for name, call in calls.items():
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            call()
        times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
        total = sum(times.values())
        shares = dict.fromkeys([*KINDS, "rest"], 0.0)
        for key, value in times.items():
            kind = next((k for k, parts in KINDS.items() if any(p in key for p in parts)), "rest")
            shares[kind] += value / total
        print(f"| {name} | " + " | ".join(f"{share:.0%}" for share in shares.values()) + " |")


def print_times(seconds: dict[str, list[float]], memory: dict[str, str]) -> None:
    """A row for each network; ratios are those of the rounds."""
    print("| network | seconds | times as fast | than the row above | memory, MB |")
    print("|---|---|---|---|---|")
    before = next(iter(seconds.values()))
    first = before
    for name, values in seconds.items():
        took = Spread.of(values)
        ratios = [
            Spread.of([a / b for a, b in zip(others, values, strict=True)])
            for others in (first, before)
        ]
        cells = [f"{x.median:.2f} ({x.lower:.2f} to {x.upper:.2f})" for x in (took, *ratios)]
        print(f"| {name} | {' | '.join(cells)} | {memory[name]} |", flush=True)
        before = values


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--task", choices=TASKS, default="inference")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--processor-time", action="store_true", help="of all threads together")
    parser.add_argument("--shares", action="store_true", help="only say where the time goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    for model in options.models:
        torch.manual_seed(0)
        calls = TASKS[options.task](model, tuple(options.size))
        if options.shares:
            print_shares(calls)
            continue
        seconds, memory = measure(calls, options.repeats, clock)
        print_times(seconds, memory)


if __name__ == "__main__":
    main()
