# SPDX-License-Identifier: Apache-2.0
"""Members of the DETR family at inference beside transformers: same weights, image and process.

Each MODEL is a name of `tools/convert_checkpoint.py --list` that ends in _transformers. Its random
weights go from our network into theirs; the largest difference of the outputs is printed. Calls
take turns. With other work on the machine, take one thread and --processor-time.
"""

import argparse
import time
from collections.abc import Callable

import torch

from vastdet.engine.benchmarking import Spread
from vastdet.layers.fusion import fused
from vastdet.model_zoo import get_config
from vastdet.model_zoo.probe import build_probe_model, largest_difference, outputs_of
from vastdet.model_zoo.registry import find_converter

BATCH_NORM_EPS = 1e-5


def networks(model: str, height: int, width: int) -> tuple[dict[str, Callable[[], object]], float]:
    """Name -> a function that predicts one image, and the largest difference of outputs."""
    converter = find_converter(model)
    if converter.twin is None:
        raise ValueError(f"{model} has no network of transformers; choose a name with that ending")
    cfg = get_config(converter.config)
    ours = build_probe_model(cfg, None)
    theirs = converter.twin(cfg, converter.from_detectron2(ours.state_dict()), BATCH_NORM_EPS)
    one = fused(ours)
    image = torch.randn(3, height, width)
    got, expected = outputs_of(ours, image), theirs(image)
    difference = max(largest_difference(got[key], expected[key]) for key in expected)
    calls: dict[str, Callable[[], object]] = {
        "transformers": lambda: theirs(image),
        "vastdet": lambda: outputs_of(ours, image),
        "vastdet, fused": lambda: outputs_of(one, image),
    }
    return calls, difference


def measure(
    calls: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each call, round by round; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if round_number:
                seconds[name].append(clock() - start)
    return seconds


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--processor-time", action="store_true", help="of all threads together")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    for model in options.models:
        torch.manual_seed(0)
        with torch.inference_mode():
            calls, difference = networks(model, *options.size)
            seconds = measure(calls, options.repeats, clock)
        print(f"\n{model}: logits and boxes differ by at most {difference:.1e}\n")
        print("| network | seconds | times as fast |\n|---|---|---|")
        for name, values in seconds.items():
            took = Spread.of(values)
            ratio = Spread.of([a / b for a, b in zip(seconds["transformers"], values, strict=True)])
            print(
                f"| {name} | {took.median:.2f} ({took.lower:.2f} to {took.upper:.2f}) "
                f"| {ratio.median:.2f} ({ratio.lower:.2f} to {ratio.upper:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
