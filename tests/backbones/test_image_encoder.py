# SPDX-License-Identifier: Apache-2.0
"""timm models as image encoders, with random weights and with weights of a file."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from vastdet.backbones.image_encoder import TimmImage, build_image_encoder

MODEL = "test_resnet"  # 0.5 M parameters


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(40, 70), (1, 1), (200, 90)]
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


def test_embeddings_equal_timm_s_features(images: list[np.ndarray]) -> None:
    encoder = TimmImage(f"{MODEL}:random", seed=3)
    found = encoder.encode(images)
    torch.manual_seed(3)
    network = timm.create_model(MODEL, num_classes=0).eval()
    settings = timm.data.resolve_model_data_config(network)
    interpolation = InterpolationMode(settings["interpolation"])
    for image, embedding in zip(images, found, strict=True):
        pixels = functional.to_pil_image(image)
        pixels = functional.resize(pixels, list(settings["input_size"][1:]), interpolation)
        pixels = functional.normalize(
            functional.to_tensor(pixels), settings["mean"], settings["std"]
        )
        with torch.no_grad():
            features = network(pixels[None])[0]
        torch.testing.assert_close(embedding, features / features.norm(), rtol=0, atol=1e-6)
    assert encoder.name == "TimmImage:test_resnet:random, seed 3"


def test_random_weights_follow_the_seed_and_disturb_nothing(images: list[np.ndarray]) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = build_image_encoder(f"TimmImage:{MODEL}:random", seed=1).encode(images)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(
        one, build_image_encoder(f"TimmImage:{MODEL}:random", seed=1).encode(images)
    )
    other = build_image_encoder(f"TimmImage:{MODEL}:random", seed=2).encode(images)
    assert (one - other).abs().max() > 1e-3
    torch.testing.assert_close(one.norm(dim=1), torch.ones(3))


def test_weights_of_a_file(images: list[np.ndarray], tmp_path: Path) -> None:
    torch.manual_seed(5)
    weights = timm.create_model(MODEL, num_classes=7).state_dict()
    save_file(weights, tmp_path / "whole.safetensors")
    encoder = TimmImage(f"{MODEL}:{tmp_path}/whole.safetensors")
    network = timm.create_model(MODEL, num_classes=0)
    network.load_state_dict(weights, strict=False)
    assert encoder.name.endswith("whole.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(value, encoder._network.state_dict()[name])
    del weights["conv1.0.weight"]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of the weights .* conv1\.0\.weight"):
        TimmImage(f"{MODEL}:{tmp_path}/part.safetensors")


def test_what_cannot_be_built_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image encoder 'CLIPImage:x'; expected 'TimmImage:"):
        build_image_encoder("CLIPImage:x")
    with pytest.raises(ValueError, match="timm has no model 'resnet_9000'"):
        build_image_encoder("TimmImage:resnet_9000:random")
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        TimmImage(f"{MODEL}:{tmp_path}/none.safetensors")
