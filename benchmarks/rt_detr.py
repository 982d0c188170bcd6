# SPDX-License-Identifier: Apache-2.0
"""RT-DETR R50 at inference beside transformers: seconds of the processor, and the ratios.

Random weights. The processor's time, not the clock's, so that other work disturbs little; with
several threads it counts all of them.
"""

import argparse
import time
from collections.abc import Callable

import torch
import transformers
from detectron2.modeling import build_model

from vastdet.engine.benchmarking import Spread
from vastdet.engine.config_files import without_pretrained
from vastdet.layers.fusion import fused
from vastdet.model_zoo import get_config


def networks(height: int, width: int) -> dict[str, Callable[[], object]]:
    """Name -> a function that finds the objects of one image."""
    cfg = get_config("RTDETR/rt_detr_R_50_72ep")
    without_pretrained(cfg)
    cfg.MODEL.DEVICE = "cpu"
    ours = build_model(cfg).eval()
    theirs = transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(num_labels=80)).eval()
    one = fused(ours)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    records = [{"image": image, "height": height, "width": width}]
    pixels = image[None] / 255
    return {
        "transformers": lambda: theirs(pixels),
        "vastdet": lambda: ours(records),
        "vastdet, fused": lambda: one(records),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    calls = networks(*options.size)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for round_number in range(options.repeats + 1):
            for name, call in calls.items():
                start = time.process_time()
                call()
                if round_number:  # The first is for warming up.
                    seconds[name].append(time.process_time() - start)
    yardstick = seconds["transformers"]
    print("| network | seconds | times as fast |\n|---|---|---|")
    for name, values in seconds.items():
        took = Spread.of(values)
        ratio = Spread.of([a / b for a, b in zip(yardstick, values, strict=True)])
        print(
            f"| {name} | {took.median:.2f} ({took.lower:.2f} to {took.upper:.2f}) "
            f"| {ratio.median:.2f} ({ratio.lower:.2f} to {ratio.upper:.2f}) |"
        )


if __name__ == "__main__":
    main()
