# SPDX-License-Identifier: Apache-2.0
"""Configs and weights by name, from a checkout and from an installed package."""

from pathlib import Path

import pytest

import vastdet
from vastdet import model_zoo
from vastdet.model_zoo import config_files
from vastdet.model_zoo.torchvision_models import torchvision_converters
from vastdet.model_zoo.weights import PUBLISHED_WEIGHTS


def test_lists_every_yaml_of_the_checkout(repository: Path) -> None:
    files = (repository / "configs").rglob("*.yaml")
    expected = {str(f.relative_to(repository / "configs").with_suffix("")) for f in files}
    assert set(model_zoo.list_configs()) == expected
    assert len(expected) > 20


@pytest.mark.parametrize("name", ["quick/retinanet_generated", "quick/retinanet_generated.yaml"])
def test_a_name_with_or_without_suffix(name: str) -> None:
    assert Path(model_zoo.get_config_file(name)).name == "retinanet_generated.yaml"
    cfg = model_zoo.get_config(name)
    assert cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 24


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("retinanet_R_50_FPN_1x", r"did you mean RetinaNet/retinanet_R_50_FPN_1x\?"),
        ("quick/retinanet_generate", "did you mean quick/retinanet_generated"),
        ("zzz", r"see model_zoo\.list_configs"),
        ("../setup", "no config is called"),
    ],
)
def test_unknown_names_suggest_known_ones(name: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=suggestion):
        model_zoo.get_config_file(name)


def test_a_wheel_keeps_the_configs_inside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "vastdet"
    (package / "configs" / "quick").mkdir(parents=True)
    (package / "configs" / "quick" / "small.yaml").write_text("VERSION: 2\n")
    monkeypatch.setattr(vastdet, "__file__", str(package / "__init__.py"))
    assert model_zoo.list_configs() == ["quick/small"]
    (package / "configs" / "quick" / "small.yaml").unlink()
    (package / "configs" / "quick").rmdir()
    (package / "configs").rmdir()
    with pytest.raises(FileNotFoundError, match="reinstall the package"):
        config_files.config_root()


def test_published_weights_name_configs_and_converters() -> None:
    converters = torchvision_converters()
    for name, published in PUBLISHED_WEIGHTS.items():
        assert converters[published.converter].config == name
        assert name in model_zoo.list_configs()
        comment = Path(model_zoo.get_config_file(name)).read_text("utf-8")
        assert published.url.rsplit("/", 1)[1] in comment
        assert f"{published.box_ap} (torchvision" in comment


def test_published_weights_agree_with_torchvision() -> None:
    from torchvision.models import get_model_weights

    for published in PUBLISHED_WEIGHTS.values():
        theirs = get_model_weights(published.converter)["COCO_V1"]
        assert theirs.url == published.url
        assert theirs.meta["_metrics"]["COCO-val2017"]["box_map"] == published.box_ap


def test_trained_weights_are_found_where_the_user_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "torchvision/fcos_R_50_FPN"
    monkeypatch.delenv("VASTDET_WEIGHTS", raising=False)
    assert model_zoo.get_config(name).MODEL.WEIGHTS == ""
    with pytest.raises(ValueError, match="VASTDET_WEIGHTS is not set"):
        model_zoo.get_config(name, trained=True)
    monkeypatch.setenv("VASTDET_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"convert_checkpoint\.py.*fcos_resnet50_fpn"):
        model_zoo.get_config(name, trained=True)
    with pytest.raises(FileNotFoundError, match="no weights are published for it"):
        model_zoo.get_config("quick/retinanet_generated", trained=True)
    (tmp_path / "torchvision").mkdir()
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / "torchvision" / f"fcos_R_50_FPN{suffix}"
        path.touch()
        assert str(path) == model_zoo.get_config(name + ".yaml", trained=True).MODEL.WEIGHTS
    monkeypatch.setenv("VASTDET_WEIGHTS", "https://example.org/weights/")
    weights = model_zoo.get_config(name, trained=True).MODEL.WEIGHTS
    assert weights == f"https://example.org/weights/{name}.safetensors"
