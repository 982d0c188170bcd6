# SPDX-License-Identifier: Apache-2.0
"""Weights that are shipped with the configs: found first, small, documented, complete."""

from pathlib import Path

import pytest
from detectron2.modeling import build_model

import vastdet
from vastdet import model_zoo
from vastdet.engine import VastdetCheckpointer, load_config
from vastdet.engine.export_weights import export_weights
from vastdet.model_zoo.config_files import config_root
from vastdet.model_zoo.weights import OWN_WEIGHTS, find_weights, own_weights_file

SHIPPED = sorted(config_root().rglob("weights/*"))
MAX_BYTES = 10_000_000


def name_of(path: Path) -> str:
    """The config whose weights a file holds."""
    return (path.parents[1] / path.stem).relative_to(config_root()).as_posix()


def test_every_file_is_documented_and_every_entry_has_a_file() -> None:
    assert [path for path in SHIPPED if path.suffix != ".safetensors"] == []
    assert sorted(OWN_WEIGHTS) == sorted(map(name_of, SHIPPED))
    for name, own in OWN_WEIGHTS.items():
        assert name in model_zoo.list_configs()
        assert f"configs/{name}.yaml" in own.commands[-1]
        assert own.hours > 0
        assert own.box_ap is None or 0 < own.box_ap < 100


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_a_file_is_small_and_fits_its_config(path: Path) -> None:
    assert path.stat().st_size <= MAX_BYTES
    cfg = model_zoo.get_config(name_of(path), trained=True)
    assert str(path) == cfg.MODEL.WEIGHTS
    model = build_model(cfg)
    VastdetCheckpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[], complete=True)


def test_weights_beside_the_config_come_before_those_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, users = tmp_path / "site-packages" / "vastdet", tmp_path / "users"
    folder = package / "configs" / "quick"
    folder.mkdir(parents=True)
    for name in ("small", "other"):
        (folder / f"{name}.yaml").write_text("VERSION: 2\n")
    (users / "quick").mkdir(parents=True)
    (users / "quick" / "small.safetensors").touch()
    monkeypatch.setattr(vastdet, "__file__", str(package / "__init__.py"))
    monkeypatch.setenv("VASTDET_WEIGHTS", str(users))
    assert find_weights("quick/small") == str(users / "quick" / "small.safetensors")
    shipped = folder / "weights" / "small.safetensors"
    assert own_weights_file("quick/small") == shipped
    shipped.parent.mkdir()
    shipped.touch()
    for name in ("quick/small", "quick/small.yaml"):
        assert str(shipped) == model_zoo.get_config(name, trained=True).MODEL.WEIGHTS
        assert model_zoo.get_config(name).MODEL.WEIGHTS == ""
    assert model_zoo.list_configs() == ["quick/other", "quick/small"]
    monkeypatch.delenv("VASTDET_WEIGHTS")
    assert find_weights("quick/small") == str(shipped)
    with pytest.raises(ValueError, match="VASTDET_WEIGHTS is not set"):
        find_weights("quick/other")


def test_an_exported_training_is_taken_up_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file = model_zoo.get_config_file("quick/box_classifier_kinds")
    model = build_model(load_config(config_file))
    VastdetCheckpointer(model, str(tmp_path)).save("model")
    # The configs of a checkout: no file is added to this one.
    package = tmp_path / "vastdet"
    folder = package / "configs" / "quick"
    folder.mkdir(parents=True)
    for path in Path(config_file).parent.glob("*.yaml"):
        (folder / path.name).write_text(path.read_text("utf-8"))
    monkeypatch.setattr(vastdet, "__file__", str(package / "__init__.py"))
    output = own_weights_file("quick/box_classifier_kinds")
    export_weights(tmp_path / "model.pth", output, half=True)
    cfg = model_zoo.get_config("quick/box_classifier_kinds", trained=True)
    other = build_model(cfg)
    VastdetCheckpointer(other).load(cfg.MODEL.WEIGHTS, checkpointables=[], complete=True)
    name = "classifiers.res4.weight"
    halved = model.state_dict()[name].half().float()
    assert other.state_dict()[name].equal(halved)
