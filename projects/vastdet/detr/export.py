# SPDX-License-Identifier: Apache-2.0
"""Set-prediction detectors as networks of tensors: for torch.compile, torch.export and ONNX.

B images of H x W pixels, N detections kept of each.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vastdet.detr.set_detector import SetDetector
from vastdet.layers.boxes import cxcywh_to_xyxy
from vastdet.layers.ms_deform_attn import decomposed_ms_deform_attn
from vastdet.optional import require_packages

# GridSample of batches of maps came with 16; torch's exporter writes 18 as its lowest.
OPSET = 18
OUTPUT_NAMES = ("boxes", "scores", "classes")


class DetectionNetwork(nn.Module):
    """Detections of images of one size, as tensors.

    What `SetDetector` does between the reading of an image and the frame of the original image: the
    caller resizes images to H x W and brings boxes back. Boxes without area are not dropped, so
    that there are always N.
    """

    def __init__(self, model: SetDetector) -> None:
        """Take the detector, which goes into the mode of inference."""
        super().__init__()
        self.model = model.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (B, 3, H, W) pixels in [0, 255], channels in the order of `INPUT.FORMAT`; of a
                floating type.

        Returns:
            boxes (B, N, 4) XYXY in pixels of the H x W image, clipped to it; scores (B, N) in
            [0, 1], best first; classes (B, N) int64.

        Raises:
            ValueError: the detector keeps another number of detections for each image.
        """
        model = self.model
        height, width = images.shape[-2:]
        predictions = model.predict_padded(list(model.normalize(images))).decoder
        scores, queries, classes = model.select_detections(
            predictions.logits[-1], predictions.boxes[-1], model.max_detections_per_image
        )
        if not (isinstance(scores, Tensor) and isinstance(queries, Tensor)):
            raise ValueError(
                f"{type(model).__name__} drops detections by NMS, so that their number depends on "
                "the image; only detectors that keep a fixed number can be exported"
            )
        assert isinstance(classes, Tensor)
        corners = cxcywh_to_xyxy(predictions.boxes[-1]).clamp(0, 1)
        chosen = corners.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
        return chosen * chosen.new_tensor([width, height, width, height]), scores, classes


def example_images(model: SetDetector, size: tuple[int, int], batch_size: int = 1) -> Tensor:
    """Random pixels (B, 3, H, W) on the detector's device, always the same.

    Raises:
        ValueError: a size is not positive.
    """
    if min(*size, batch_size) < 1:
        raise ValueError(f"expected a positive height, width and batch, got {size}, {batch_size}")
    generator = torch.Generator().manual_seed(0)
    return (255 * torch.rand(batch_size, 3, *size, generator=generator)).to(model.device)


def export_program(
    model: SetDetector, size: tuple[int, int], *, batch_size: int = 1
) -> torch.export.ExportedProgram:
    """A graph of PyTorch's operators and `vastdet::ms_deform_attn`, of one size of image.

    `import vastdet.layers.ms_deform_attn` before `torch.export.load` of a saved program.

    Args:
        model: keeps a fixed number of detections.
        size: height and width of the images, those after resizing.
        batch_size: B.

    Raises:
        ValueError: a size is not positive, or the detector drops detections by NMS.
    """
    images = example_images(model, size, batch_size)
    network = DetectionNetwork(model)
    with torch.no_grad():
        network(images)  # says in a sentence what an export would fail of
        return torch.export.export(network, (images,), strict=False)


def export_onnx(
    model: SetDetector, path: str | Path, size: tuple[int, int], *, batch_size: int = 1
) -> None:
    """Write an ONNX file of the standard operators; input `images`, outputs `OUTPUT_NAMES`.

    Args:
        model: keeps a fixed number of detections.
        path: the file; tensors are within it, up to 2 GB.
        size: height and width of the images, those after resizing.
        batch_size: B.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: a size is not positive, or the detector drops detections by NMS.
    """
    require("onnx", "onnxscript")
    with torch.no_grad():
        levels, _ = model.padded_levels(list(example_images(model, size)))
    sizes = [(x.shape[-2], x.shape[-1]) for x in levels]
    with decomposed_ms_deform_attn(sizes):
        program = export_program(model, size, batch_size=batch_size)
    torch.onnx.export(
        program,
        f=str(path),
        input_names=["images"],
        output_names=list(OUTPUT_NAMES),
        opset_version=OPSET,
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def run_onnx(path: str | Path, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of an ONNX file for images (B, 3, H, W), by onnxruntime on the CPU.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    require("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(list(OUTPUT_NAMES), {"images": images.cpu().numpy()})
    boxes, scores, classes = (torch.from_numpy(x) for x in outputs)
    return boxes, scores, classes


def largest_differences(
    model: SetDetector, images: Tensor, outputs: Sequence[Tensor]
) -> dict[str, float]:
    """How far `outputs` for images (B, 3, H, W) are from the detector's own, by name."""
    with torch.no_grad():
        own = DetectionNetwork(model)(images)
    return {
        name: float((one.cpu().double() - other.cpu().double()).abs().max())
        for name, one, other in zip(OUTPUT_NAMES, own, outputs, strict=True)
    }


def require(*packages: str) -> None:
    """Raise ImportError, with the way out, unless the packages are installed."""
    require_packages(*packages, purpose="ONNX files", install="vastdet[export]")
