# SPDX-License-Identifier: Apache-2.0
"""Swin's converters: outputs beside timm and transformers, names of MMDetection, files, windows."""

import dataclasses
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from torch import Tensor, nn

from vastdet.backbones.swin import SIZES, SwinBackbone, SwinSize
from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import load_config
from vastdet.model_zoo.convert_file import convert_to_ours, expected_tensors
from vastdet.model_zoo.key_map import Converter, StateDict
from vastdet.model_zoo.registry import find_converter
from vastdet.model_zoo.swin_models import (
    MICROSOFT,
    MMDET,
    TIMM,
    TRANSFORMERS,
    SwinNames,
    resize_bias_tables,
    swin_pairs,
    unfolded_merging,
)

ALL = ["res2", "res3", "res4", "res5"]
# Small in width; windows of 3, so that small images have several.
SMALL = SwinSize(16, (2, 2, 2, 2), (1, 2, 4, 8))
WINDOW = 3
WHOLE, ODD = (192, 288), (141, 173)
# The last map is one window.
ONE = (96, 96)


def random_weights(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # At their start branches add next to nothing. Norms keep what tells tokens apart.
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(noise + 1 if is_scale else noise)
    return model.eval()


def small_converter(names: SwinNames, *, output_norms: tuple[int, ...] = ()) -> Converter:
    return Converter(
        "small",
        "",
        tuple(swin_pairs(names, SMALL.depths, output_norms=output_norms)),
        unused=tuple(f"{module}.{t}" for module in names.unused for t in ("weight", "bias")),
    )


def small_backbone() -> SwinBackbone:
    return SwinBackbone(SMALL, window_size=WINDOW, out_features=ALL).eval()


def largest_difference(found: dict[str, Tensor], expected: tuple[Tensor, ...]) -> float:
    """As a share of the largest value of a map."""
    return max(
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(found.values(), expected, strict=True)
    )


def transformers_backbone() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        embed_dim=SMALL.embed_dim,
        depths=list(SMALL.depths),
        num_heads=list(SMALL.num_heads),
        window_size=WINDOW,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return random_weights(transformers.SwinBackbone(config))


@pytest.mark.parametrize("size", [WHOLE, ODD, ONE], ids=["whole windows", "odd", "one window"])
@torch.no_grad()
def test_equals_transformers(size: tuple[int, int]) -> None:
    theirs = transformers_backbone()
    converter = small_converter(TRANSFORMERS, output_norms=(0, 1, 2, 3))
    ours = small_backbone()
    ours.load_state_dict(converter.to_detectron2(theirs.state_dict()), strict=True)
    images = torch.randn(2, 3, *size)
    gap = largest_difference(ours(images), theirs(images).feature_maps)
    print(f"transformers {size}: {gap:.1e}")  # shown by pytest -s
    # Measured: 1.8e-6.
    assert gap < 1e-5


@torch.no_grad()
def maps_of_timm(size: tuple[int, int], images: Tensor) -> tuple[SwinBackbone, tuple[Tensor, ...]]:
    """Ours with the weights of timm's for images of a size, and its maps with our norms."""
    timm = pytest.importorskip("timm")
    options = {
        "embed_dim": SMALL.embed_dim,
        "depths": SMALL.depths,
        "num_heads": SMALL.num_heads,
        "window_size": WINDOW,
        "img_size": size,
    }
    theirs = random_weights(timm.create_model("swin_tiny_patch4_window7_224", **options))
    ours = small_backbone()
    weights = small_converter(TIMM).to_detectron2(theirs.state_dict())
    absent, surplus = ours.load_state_dict(weights, strict=False)
    assert not surplus
    # timm has no norms of maps; ours are ones and zeros here.
    assert {name.split(".")[0] for name in absent} == {"norm0", "norm1", "norm2", "norm3"}
    maps = theirs.forward_intermediates(images, intermediates_only=True)
    normed = [
        nn.functional.layer_norm(m.permute(0, 2, 3, 1), m.shape[1:2]).permute(0, 3, 1, 2)
        for m in maps
    ]
    return ours, tuple(normed)


@torch.no_grad()
def test_equals_timm_where_windows_are_whole() -> None:
    images = torch.randn(2, 3, *WHOLE)
    ours, expected = maps_of_timm(WHOLE, images)
    gap = largest_difference(ours(images), expected)
    print(f"timm: {gap:.1e}")
    # Measured: 0.
    assert gap < 1e-5


@pytest.mark.parametrize(
    ("size", "first"), [((140, 172), 0), (ONE, 3)], ids=["not whole windows", "one window"]
)
@torch.no_grad()
def test_differs_from_timm_where_microsoft_s_detectors_do(
    size: tuple[int, int], first: int
) -> None:
    # timm rolls a map before it pads it, and shifts no windows where one covers the map; its
    # Swins, `build_timm_backbone` too, compute something else there.
    images = torch.randn(1, 3, *size)
    ours, expected = maps_of_timm(size, images)
    gaps = [
        largest_difference({name: found}, (other,))
        for (name, found), other in zip(ours(images).items(), expected, strict=True)
    ]
    print(f"timm {size}: {gaps}")
    assert all(gap < 1e-5 for gap in gaps[:first])
    # Measured: 0.6 and 0.1.
    assert all(gap > 0.01 for gap in gaps[first:])


def test_older_names_of_transformers() -> None:
    converter = small_converter(TRANSFORMERS)
    newest = {n: t for n, t in transformers_backbone().state_dict().items() if "norms." not in n}
    newest = {n: t for n, t in newest.items() if not n.startswith("swin.layernorm")}
    renamed = {
        "attention.q_proj": "attention.self.query",
        "attention.k_proj": "attention.self.key",
        "attention.v_proj": "attention.self.value",
        "attention.o_proj": "attention.output.dense",
        "attention.relative_position_bias.": "attention.self.",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    older = {}
    for name, tensor in newest.items():
        for new, old in renamed.items():
            name = name.replace(new, old)
        older[name] = tensor
    assert len(older.keys() - newest.keys()) == 13 * 8
    found, expected = converter.to_detectron2(older), converter.to_detectron2(newest)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def classifier_of(name: str) -> StateDict:
    """The state dict of a whole classifier of a released size, with random weights."""
    size, window, *code = name.split("_")[1:]
    side = 224 if window == "window7" else 384
    depths, heads = SIZES[size].depths, SIZES[size].num_heads
    if code == ["transformers"]:
        transformers = pytest.importorskip("transformers")
        config = transformers.SwinConfig(
            image_size=side,
            embed_dim=SIZES[size].embed_dim,
            depths=list(depths),
            num_heads=list(heads),
            window_size=int(window.removeprefix("window")),
            num_labels=1000,
        )
        with torch.device("meta"):
            return transformers.SwinForImageClassification(config).state_dict()
    timm = pytest.importorskip("timm")
    words = {"T": "tiny", "S": "small", "B": "base", "L": "large"}
    with torch.device("meta"):
        return timm.create_model(f"swin_{words[size]}_patch4_{window}_{side}").state_dict()


@pytest.mark.parametrize(
    "size", ["T_window7", "S_window7", "B_window12", "L_window7", "L_window12"]
)
@pytest.mark.parametrize("code", ["timm", "transformers"])
def test_whole_classifiers_have_every_tensor_and_no_other(size: str, code: str) -> None:
    converter = find_converter(f"swin_{size}_{code}")
    converter.check(classifier_of(f"swin_{size}_{code}"), expected_tensors(converter, None))


def microsoft_classifier(depths: tuple[int, ...], weights: StateDict) -> StateDict:
    """A file of Microsoft's classifier: our names, buffers, a last norm and a head."""
    buffers = {}
    for i, depth in enumerate(depths):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            buffers[f"{block}.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
            if j % 2:
                buffers[f"{block}.attn_mask"] = torch.zeros(4, 49, 49)
    rest = {"norm.weight": torch.ones(768), "norm.bias": torch.ones(768)}
    rest |= {"head.weight": torch.ones(9, 768), "head.bias": torch.ones(9)}
    trunk = {n: t for n, t in weights.items() if not n.startswith("norm")}
    return {**trunk, **buffers, **rest}


@pytest.fixture(scope="module")
def tiny() -> StateDict:
    """Weights of a Swin-T, in our names."""
    return random_weights(
        SwinBackbone(SIZES["T"], window_size=7, out_features=["res5"])
    ).state_dict()


def test_microsoft_s_names(tiny: StateDict) -> None:
    converter = find_converter("swin_T_window7")
    theirs = microsoft_classifier(SIZES["T"].depths, tiny)
    converter.check(theirs, expected_tensors(converter, None))
    found = converter.to_detectron2(theirs)
    assert found.keys() == tiny.keys()
    assert all(torch.equal(t, tiny[n]) for n, t in found.items() if not n.startswith("norm3"))
    assert bool((found["norm3.weight"] == 1).all() and (found["norm3.bias"] == 0).all())
    assert [p.source for p in converter.pairs] == [p.detectron2 for p in converter.pairs]
    with pytest.raises(ValueError, match=r"left over: 1\n    layers.4.blocks.0.norm1.weight"):
        converter.to_detectron2({**theirs, "layers.4.blocks.0.norm1.weight": torch.ones(1)})


def test_merging_of_mmdetection_is_an_unfolding() -> None:
    torch.manual_seed(0)
    layer = small_backbone().layers[0].downsample
    random_weights(layer)
    layout = unfolded_merging()
    norm_weight, norm_bias, reduction = (
        layout.from_detectron2(t)
        for t in (layer.norm.weight, layer.norm.bias, layer.reduction.weight)
    )
    x = torch.randn(2, 6 * 8, SMALL.embed_dim)
    grid = x.transpose(1, 2).unflatten(2, (6, 8))
    patches = nn.functional.unfold(grid, kernel_size=2, stride=2).transpose(1, 2)
    patches = nn.functional.layer_norm(patches, norm_weight.shape, norm_weight, norm_bias)
    expected = patches @ reduction.T
    torch.testing.assert_close(layer(x, 6, 8), expected, rtol=1e-5, atol=1e-5)
    for tensor in (layer.norm.weight, layer.reduction.weight):
        assert torch.equal(layout.to_detectron2(layout.from_detectron2(tensor)), tensor)
        assert not torch.equal(layout.from_detectron2(tensor), tensor)


@pytest.mark.parametrize(
    ("release", "names", "prefix", "size", "window", "norms"),
    [
        ("cqdino_tree_swinb1k_v3det", MMDET, "backbone.", "B", 7, (1, 2, 3)),
        ("cqdino_tree_swinb22k_v3det", MMDET, "backbone.", "B", 12, (1, 2, 3)),
        ("cqdino_sa_swinl_coco", MMDET, "backbone.", "L", 12, (0, 1, 2, 3)),
        ("grounding_dino_swint_ogc", MICROSOFT, "backbone.0.", "T", 7, (1, 2, 3)),
        ("grounding_dino_swinb_cogcoor", MICROSOFT, "backbone.0.", "B", 12, (1, 2, 3)),
    ],
)
def test_names_and_shapes_of_released_detectors(
    shared_data: Path,
    release: str,
    names: SwinNames,
    prefix: str,
    size: str,
    window: int,
    norms: tuple[int, ...],
) -> None:
    facts = shared_data.parent / "facts" / "state_dicts" / f"{release}.txt"
    if not facts.is_file():
        pytest.skip(f"no list of names at {facts}")
    rows = (line.split("\t") for line in facts.read_text("utf-8").splitlines())
    listed = {
        row[0]: row[1]
        for row in rows
        if row[0].startswith(prefix) and not row[0].endswith("relative_position_index")
    }
    pairs = swin_pairs(names, SIZES[size].depths, prefix, output_norms=norms)
    with torch.device("meta"):
        features = [f"res{i + 2}" for i in norms]
        model = SwinBackbone(SIZES[size], window_size=window, out_features=features).state_dict()
    assert {p.detectron2 for p in pairs} == model.keys()
    assert {p.source: str(tuple(model[p.detectron2].shape)) for p in pairs} == listed


DETECTORS = {
    "quick/faster_rcnn_generated": ("build_swin_fpn_backbone", "backbone.bottom_up."),
    "quick/dino_generated": ("build_swin_backbone", "backbone."),
}


@pytest.mark.parametrize("config", list(DETECTORS))
@pytest.mark.parametrize("is_converted", [True, False], ids=["converted", "as published"])
def test_a_detector_loads_all_of_a_classifier_but_its_head(
    config: str, is_converted: bool, tiny: StateDict, tmp_path: Path
) -> None:
    builder, prefix = DETECTORS[config]
    path = tmp_path / "swin.pth"
    torch.save({"model": microsoft_classifier(SIZES["T"].depths, tiny)}, path)
    weights = f"{path}?matching_heuristics=True"
    if is_converted:
        weights = str(tmp_path / "converted.pth")
        convert_to_ours(path, weights, find_converter("swin_T_window7"))
    cfg = load_config(
        f"configs/{config}.yaml",
        ["MODEL.BACKBONE.NAME", builder, "MODEL.SWIN.SIZE", "T", "MODEL.DEVICE", "cpu"],
    )
    cfg.MODEL.FPN.IN_FEATURES = ALL
    cfg.MODEL.SWIN.OUT_FEATURES = ALL if "fpn" in builder else ALL[1:]
    torch.manual_seed(0)
    model = build_model(cfg)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    VastdetCheckpointer(model).load(weights)
    loaded = set()
    for name, tensor in model.state_dict().items():
        trunk = name.removeprefix(prefix)
        if name.startswith(prefix) and trunk in tiny and not trunk.startswith("norm"):
            assert torch.equal(tensor, tiny[trunk]), name
            loaded.add(trunk)
        else:
            assert torch.equal(tensor, before[name]), name
    assert loaded == {n for n in tiny if not n.startswith("norm")}


def test_tables_of_another_window_are_interpolated(tiny: StateDict, tmp_path: Path) -> None:
    path, output = tmp_path / "swin.pth", tmp_path / "converted.pth"
    torch.save({"model": microsoft_classifier(SIZES["T"].depths, tiny)}, path)
    converter = find_converter("swin_T_window7")
    found = convert_to_ours(
        path, output, converter, overrides=["MODEL.SWIN.WINDOW_SIZE", "12"]
    ).ours
    name = "layers.2.blocks.5.attn.relative_position_bias_table"
    table = tiny[name].T.reshape(1, 12, 13, 13)
    resized = nn.functional.interpolate(table, size=(23, 23), mode="bicubic")
    assert torch.equal(found[name], resized.reshape(12, 529).T)
    others = [n for n in tiny if "table" not in n and not n.startswith("norm")]
    assert all(torch.equal(found[n], tiny[n]) for n in others)
    written = torch.load(output, weights_only=True)["model"]
    assert written.keys() == {n for n in tiny if not n.startswith("norm")}
    backbone = build_backbone(
        load_config(
            None,
            [
                "MODEL.BACKBONE.NAME",
                "build_swin_backbone",
                "MODEL.SWIN.WINDOW_SIZE",
                12,
                "MODEL.BACKBONE.FREEZE_AT",
                0,
            ],
        )
    )
    assert not backbone.load_state_dict(written, strict=False).unexpected_keys
    # Smooth tables come back nearly the same.
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 13)] * 2, indexing="ij")
    smooth = {name: torch.stack([y * x, (-x * x - y * y).exp()], -1).reshape(169, 2)}
    large = resize_bias_tables(smooth, {name: torch.empty(529, 2)})
    back = resize_bias_tables(large, {name: smooth[name]})
    assert large[name].shape == (529, 2)
    assert float((back[name] - smooth[name]).abs().max()) < 0.03


def test_overrides_that_ask_for_another_network(tiny: StateDict, tmp_path: Path) -> None:
    path, output = tmp_path / "swin.pth", tmp_path / "converted.pth"
    torch.save({"model": microsoft_classifier(SIZES["T"].depths, tiny)}, path)
    converter = find_converter("swin_T_window7")
    for key, value in (("MODEL.SWIN.SIZE", "S"), ("MODEL.SWIN.OUT_FEATURES", "['res4']")):
        with pytest.raises(ValueError, match="ask for another network than Swin-T, window 7"):
            convert_to_ours(path, output, converter, overrides=[key, value])
    with pytest.raises(ValueError, match="leave them out"):
        convert_to_ours(
            path,
            output,
            dataclasses.replace(converter, fit=None),
            overrides=["MODEL.SWIN.WINDOW_SIZE", "12"],
        )
    assert not output.exists()
