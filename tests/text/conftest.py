# SPDX-License-Identifier: Apache-2.0
"""Text encoders of a few thousand random weights, saved as the real ones are."""

import json
from pathlib import Path

import pytest
import torch

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,()'-"


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of transformers with both halves; every character is a token."""
    import transformers

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for character in CHARACTERS:
        vocabulary[character] = len(vocabulary)
        vocabulary[f"{character}</w>"] = len(vocabulary)
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=48)
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={**size, "vocab_size": len(vocabulary), "max_position_embeddings": 48}
        | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**size, "image_size": 8, "patch_size": 4},
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    # The initial weights are so small that all texts would look alike.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentence_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without a pooler in a folder of sentence-transformers."""
    import transformers

    folder = tmp_path_factory.mktemp("sentence")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    tokenizer = transformers.BertTokenizer(
        vocab={piece: k for k, piece in enumerate(pieces)}, model_max_length=40
    )
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(1)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    steps = ("Transformer", "Pooling", "Normalize")
    modules = [{"type": f"sentence_transformers.models.{step}"} for step in steps]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of open_clip with its own tokenizer, in a folder with its config."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip")
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    vision = {"image_size": 8, "patch_size": 4, "width": 16, "head_width": 8, "layers": 1}
    size = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(2)
    model = open_clip.CLIP(**size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": size}))
    return folder
