#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Time models side by side in one process, in interleaved rounds, as ratios to the first."""

import argparse
import logging
import os
import platform
import sys
from pathlib import Path

import torch

import vastdet
from vastdet.engine.model_benchmark import TASKS, Workload, benchmark, load_configs
from vastdet.engine.tools import exit_status
from vastdet.files import write_json

EPILOG = """
Pixels, boxes and, without --weights, weights are random; the time of an inference depends on how
much a model detects, so compare trained weights where that matters. "growth" is memory above
what was in use before a call.
Repeat a config to see how far two equal things differ on this machine. KEY VALUE overrides come
last, after another option than --config-file or --weights.

Example:
    $ benchmark.py --config-file configs/quick/fcos_generated.yaml \\
        configs/quick/retinanet_generated.yaml --task train --batch-size 8 \\
        --image-size 160 160 --json output/benchmark.json
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", nargs="+", required=True, metavar="YAML", help="models; the first is 1.0"
    )
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="FILE", help="one for each config, - for random"
    )
    parser.add_argument("--task", choices=sorted(TASKS), default="inference", help="what to time")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N")
    parser.add_argument(
        "--image-size", type=int, nargs=2, default=(320, 320), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="(default: 20)")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--threads", type=int, metavar="N", help="torch threads (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides for all, KEY VALUE ...")
    return parser.parse_args(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {arguments.device}: no CUDA device is visible here")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    configs = load_configs(
        arguments.config_file, arguments.weights, arguments.opts, arguments.device
    )
    workload = Workload(arguments.batch_size, tuple(arguments.image_size), arguments.device)
    result = benchmark(
        configs,
        arguments.task,
        workload,
        rounds=arguments.rounds,
        warmup=arguments.warmup,
        progress=True,
    )
    height, width = workload.image_size
    size = "" if arguments.task == "data" else f" of {height}x{width} pixels"
    setting = (
        f"{arguments.task}, {workload.batch_size} images{size} a call, {arguments.rounds} rounds, "
        f"{describe_device(arguments.device)}"
    )
    print(f"{setting}\n\n{result.as_markdown('images')}")
    if arguments.json:
        write_json(arguments.json, {"setting": setting, **result.as_dict()}, indent=1)


def describe_device(device: str) -> str:
    """The device, threads and versions that a reader needs beside the figures."""
    versions = f"torch {torch.__version__}, vastdet {vastdet.__version__}"
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, {versions}"
    cores = f"{torch.get_num_threads()} threads on {os.cpu_count()} {platform.machine()} cores"
    return f"{cores}, {versions}"


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    logging.basicConfig(level=logging.ERROR)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
