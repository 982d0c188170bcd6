# SPDX-License-Identifier: Apache-2.0
"""What the comparisons with other code have in common."""

from collections.abc import Mapping

from torch import Tensor, nn

from vastdet.detr.structures import LayerPredictions


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    difference = float((ours - theirs).detach().abs().max())
    largest = float(theirs.detach().abs().max())
    print(f"largest difference {difference:.1e} of {largest:.2g}")  # shown by pytest -s
    return difference


def assert_same_predictions(ours: LayerPredictions, logits: Tensor, boxes: Tensor) -> None:
    """Beside theirs (N, B, Q, K) and (N, B, Q, 4) of all layers."""
    assert largest_difference(ours.logits, logits) < 2e-5
    assert largest_difference(ours.boxes, boxes) < 2e-6


def assert_same_gradients(
    parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor]
) -> None:
    """Of every parameter, as a share of the largest of its gradient, or of 0.1."""
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        scale = max(float(gradients[name].abs().max()), 0.1)
        assert largest_difference(parameter.grad, gradients[name]) < 1e-4 * scale, name
