# SPDX-License-Identifier: Apache-2.0
"""Any timm model as an encoder of whole images, for embeddings.

N images, D numbers an embedding, H x W pixels of the model's input.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

RANDOM_WEIGHTS = "random"


class ImageEncoder(Protocol):
    """What embeds images: deterministic, without gradients.

    Attributes:
        name: class, model and weights, `TimmImage:vit_small_patch14_dinov2.lvd142m`.
    """

    name: str

    def encode(self, images: Sequence[np.ndarray]) -> Tensor:
        """Embeddings (N, D) of N images (height, width, 3) uint8 RGB: float32, on the CPU.

        Each has length 1. Images may have different sizes.
        """
        ...


class TimmImage:
    """A timm model without its classifier: the features that it pools, of length 1.

    Images are stretched to the input size of the model, as a box is by RoIAlign.
    """

    def __init__(self, model: str, *, device: str = "cpu", seed: int = 0) -> None:
        """Build the model.

        Args:
            model: a name of `timm.list_models()`, with a tag where it has several weights, which
                timm fetches; or such a name, a colon, and a file of its weights, or "random".
            device: where it runs.
            seed: of random weights.

        Raises:
            ValueError: timm does not know the model, or the file does not fit it.
            FileNotFoundError: there is no such file.
        """
        architecture, _, weights = model.partition(":")
        if not timm.is_model(architecture):
            raise ValueError(
                f"timm has no model {architecture!r}; see timm.list_models(), and write "
                "'TimmImage:NAME', 'TimmImage:NAME:FILE' or 'TimmImage:NAME:random'"
            )
        self.name = f"TimmImage:{model}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = timm.create_model(architecture, pretrained=not weights, num_classes=0)
        if weights == RANDOM_WEIGHTS:
            self.name += f", seed {seed}"
        elif weights:
            _load(network, weights)
        self._network = network.eval().to(device)
        self._device = device
        self._data = timm.data.resolve_model_data_config(network)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        _, height, width = self._data["input_size"]
        return height, width

    def encode(self, images: Sequence[np.ndarray]) -> Tensor:
        """As `ImageEncoder.encode`."""
        height, width = self.input_size
        filter = timm.data.transforms.str_to_pil_interp(self._data["interpolation"])
        resized = [Image.fromarray(x).resize((width, height), filter) for x in images]
        pixels = torch.from_numpy(np.stack([np.asarray(x) for x in resized])).permute(0, 3, 1, 2)
        mean, std = (
            torch.tensor(self._data[key]).view(3, 1, 1).to(self._device) for key in ("mean", "std")
        )
        with torch.inference_mode():
            features = self._network((pixels.to(self._device) / 255 - mean) / std)
            return F.normalize(features.float(), dim=-1).cpu()


def build_image_encoder(spec: str, *, device: str = "cpu", seed: int = 0) -> ImageEncoder:
    """The encoder that `spec` names, `TimmImage:MODEL`; see `TimmImage`.

    Raises:
        ValueError: it names something else.
    """
    kind, _, model = spec.partition(":")
    if kind != "TimmImage" or not model:
        raise ValueError(f"no image encoder {spec!r}; expected 'TimmImage:MODEL'")
    return TimmImage(model, device=device, seed=seed)


def _load(network: torch.nn.Module, path: str) -> None:
    """Load a file of weights, of which a classifier may be left over."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file of weights {path}")
    # Reads safetensors, and others with weights_only.
    weights = timm.models.load_state_dict(path, weights_only=True)
    found = network.load_state_dict(weights, strict=False)
    if found.missing_keys:
        raise ValueError(
            f"{path} lacks {len(found.missing_keys)} of the weights of the model, such as "
            f"{found.missing_keys[0]}"
        )
