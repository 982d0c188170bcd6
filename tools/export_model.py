#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Export a set-prediction detector for one size of image, as a PyTorch program or as ONNX."""

import argparse
import logging
import sys
from pathlib import Path

import torch

import vastdet  # noqa: F401  (registers the models)
from vastdet.detr.export import (
    OUTPUT_NAMES,
    example_images,
    export_onnx,
    export_program,
    largest_differences,
    require,
    run_onnx,
)
from vastdet.detr.set_detector import SetDetector
from vastdet.engine.config_files import load_config
from vastdet.engine.predictor import Predictor
from vastdet.engine.tools import exit_status

SUFFIXES = {"pt2": ".pt2", "onnx": ".onnx"}
EPILOG = """
The exported network maps pixels (B, 3, H, W) in [0, 255], channels in the order of INPUT.FORMAT, to
boxes (B, N, 4) XYXY in pixels, scores (B, N), best first, and classes (B, N). Resize images to
H x W before, and scale boxes back. A .pt2 file needs `import vastdet.layers.ms_deform_attn` before
torch.export.load; an ONNX file has the standard operators only.

Example:
    $ export_model.py --config-file configs/DINO/dino_R_50_4scale_12ep.yaml \\
        --weights output/dino.safetensors --format onnx --output output/dino.onnx
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML", help="the model's config")
    parser.add_argument("--weights", metavar="FILE", help="(default: MODEL.WEIGHTS)")
    parser.add_argument("--format", required=True, choices=SUFFIXES)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=(800, 1280),
        metavar=("HEIGHT", "WIDTH"),
        help="of the images that the network takes (default: 800 1280)",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides as KEY VALUE ...")
    return parser.parse_args(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Build, export, run what was exported beside the model."""
    suffix = SUFFIXES[arguments.format]
    if arguments.output.suffix != suffix:
        raise ValueError(
            f"--output is {arguments.output}, but a file of the format {arguments.format} must end "
            f"in {suffix}"
        )
    if arguments.format == "onnx":
        try:
            require("onnx", "onnxscript", "onnxruntime")
        except ImportError as error:
            raise ValueError(f"--format onnx: {error}") from error
    model = Predictor(load_config(arguments.config_file, arguments.opts), arguments.weights).model
    if not isinstance(model, SetDetector):
        raise ValueError(
            f"the config builds a {type(model).__name__}; only set-prediction detectors (DETR and "
            "its descendants) can be exported"
        )
    size = tuple(arguments.image_size)
    images = example_images(model, size, arguments.batch_size)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.format == "onnx":
        export_onnx(model, arguments.output, size, batch_size=arguments.batch_size)
        outputs = run_onnx(arguments.output, images)
    else:
        program = export_program(model, size, batch_size=arguments.batch_size)
        torch.export.save(program, arguments.output)
        with torch.no_grad():
            outputs = torch.export.load(arguments.output).module()(images)
    print(f"wrote {arguments.output}")
    found = largest_differences(model, images, outputs)
    listed = ", ".join(f"{name} {found[name]:.1e}" for name in OUTPUT_NAMES)
    print(f"largest differences to the model on a random image: {listed}")


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    logging.basicConfig(level=logging.ERROR)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
