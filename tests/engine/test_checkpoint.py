# SPDX-License-Identifier: Apache-2.0
"""What is read, what is refused, and what survives a crash while writing."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import save_file
from torch import nn

from vastdet.engine import VastdetCheckpointer, checkpoint
from vastdet.engine.checkpoint import find_damage
from vastdet.engine.safe_pickle import load_array_pickle


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


def weights() -> dict[str, torch.Tensor]:
    return {k: torch.randn(v.shape).to(v.dtype) for k, v in Toy().state_dict().items()}


def arrays() -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in weights().items()}


def write(path: Path, content: Any) -> None:
    """Write a file the way its ending says."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.pkl"])
def test_formats(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    expected = weights()
    content: Any = {"model": expected}
    if path.suffix == ".safetensors":
        content = expected
    elif path.suffix == ".pkl":
        content = {"model": {k: v.numpy() for k, v in expected.items()}, "__author__": "someone"}
    write(path, content)
    model = Toy()
    VastdetCheckpointer(model).load(str(path), complete=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("prefix", ["", "module."])
def test_bare_and_wrapped_weights(prefix: str, tmp_path: Path) -> None:
    expected = weights()
    torch.save({prefix + k: v for k, v in expected.items()}, tmp_path / "a.pth")
    model = Toy()
    VastdetCheckpointer(model).load(str(tmp_path / "a.pth"), complete=True)
    assert torch.equal(model.head.weight, expected["head.weight"])


class Pyramid(nn.Module):
    """The toy's backbone below another layer, as Detectron2's FPN has it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = Toy().backbone
        self.backbone.lateral = nn.Conv2d(4, 4, 1)


@pytest.mark.parametrize(
    ("source", "target", "below"), [(Toy, Pyramid, "bottom_up."), (Pyramid, Toy, "")]
)
def test_a_backbone_is_taken_up_with_and_without_a_pyramid(
    source: type[nn.Module], target: type[nn.Module], below: str, tmp_path: Path
) -> None:
    first, second = source(), target()
    first.apply(lambda module: [p.data.normal_() for p in module.parameters(recurse=False)])
    VastdetCheckpointer(first, str(tmp_path)).save("a")
    before = {k: value.clone() for k, value in second.state_dict().items()}
    checkpointer = VastdetCheckpointer(second)
    checkpointer.load(str(tmp_path / "a.pth"))
    own = {k.replace("bottom_up.", ""): value for k, value in first.state_dict().items()}
    for name, value in second.state_dict().items():
        taken = name.startswith(f"backbone.{below}") and "lateral" not in name
        assert torch.equal(value, own[name.replace("bottom_up.", "")] if taken else before[name])
        assert (name in checkpointer.missing_keys) is not taken
    with pytest.raises(ValueError, match="lacks 2 of the weights"):
        checkpointer.load(str(tmp_path / "a.pth"), complete=True)


def test_names_that_fit_are_not_moved_into_a_pyramid() -> None:
    names = ["backbone.a", "backbone.bottom_up.a", "backbone.bottom_up.b", "head.a"]
    for file in (names, ["backbone.a"], ["backbone.bottom_up.b"], ["bottom_up.a", "head.c"]):
        weights = dict.fromkeys(file, 0)
        assert checkpoint.fit_pyramid(weights, names) == weights
    assert checkpoint.fit_pyramid({"backbone.b": 1}, names) == {"backbone.bottom_up.b": 1}


def test_caffe2_names_are_matched_as_detectron2_does(tmp_path: Path) -> None:
    path = tmp_path / "c2.pkl"
    weight = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    write(path, {"blobs": {"head.weight": weight, "head.weight_momentum": weight}})
    models = Toy(), Toy()
    VastdetCheckpointer(models[0]).load(str(path))
    DetectionCheckpointer(models[1]).load(str(path))
    assert np.array_equal(models[0].head.weight.detach().numpy(), weight)
    assert torch.equal(models[0].head.weight, models[1].head.weight)


def test_detectron2_reads_what_we_write(tmp_path: Path) -> None:
    model, other = Toy(), Toy()
    VastdetCheckpointer(model, str(tmp_path)).save("model_final")
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    DetectionCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert torch.equal(model.head.weight, other.head.weight)


class Evil:
    """Runs a function when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.pyth"])
def test_code_in_a_file_is_refused_and_not_run(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, {"model": {**arrays(), "x": Evil(tmp_path / "ran")}})
    with pytest.raises(ValueError, match=r"can run any code(.|\n)*safetensors"):
        VastdetCheckpointer(Toy()).load(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_array_pickle_takes_arrays_in_containers(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    content = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": [np.float32(2), "c", (1, None)],
        "d": b"\xff",
    }
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = load_array_pickle(path)
    assert np.array_equal(found["a"], content["a"])
    assert found["b"] == content["b"]
    assert found["d"] == content["d"]


@pytest.mark.parametrize("content", [b"", b"\x80\x02}", b"not a pickle", b"\x80\x02cos\nsystem\n."])
def test_damaged_or_foreign_pickle(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="was not loaded"):
        load_array_pickle(tmp_path / "a.pkl")


def test_codecs_beyond_latin1_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
    with pytest.raises(ValueError, match="rot13"):
        load_array_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_weights(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path, weights())
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="was not loaded"):
        VastdetCheckpointer(Toy()).load(str(path))


def test_missing_weights(tmp_path: Path) -> None:
    checkpointer = VastdetCheckpointer(Toy())
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS"):
        checkpointer.load(str(tmp_path / "none.pth"))
    # The checkpointer is usable after an error.
    torch.save(weights(), tmp_path / "a.pth")
    checkpointer.load(str(tmp_path / "a.pth"))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    other = {f"transformer.{i}.weight": torch.zeros(3) for i in range(20)}
    torch.save({"model": {**other, "head.weight": torch.zeros(7, 7)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"not of this architecture: 0 of the 8 weights"):
        VastdetCheckpointer(Toy()).load(str(tmp_path / "a.pth"))


def test_backbone_and_other_classes_are_accepted_for_training_only(tmp_path: Path) -> None:
    path = str(tmp_path / "a.pth")
    content = {k: v for k, v in weights().items() if k.startswith("backbone")}
    torch.save(content, path)
    model = Toy()
    VastdetCheckpointer(model).load(path)
    assert torch.equal(model.backbone[0].weight, content["backbone.0.weight"])
    with pytest.raises(ValueError, match=r"lacks 2 of the weights of this Toy, such as head\."):
        VastdetCheckpointer(model).load(path, complete=True)
    torch.save({**weights(), "head.weight": torch.zeros(9, 4), "head.bias": torch.zeros(9)}, path)
    VastdetCheckpointer(model).load(path)
    with pytest.raises(ValueError, match="number of classes"):
        VastdetCheckpointer(model).load(path, complete=True)


def test_damage_is_found_by_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(weights(), path)
    assert find_damage(path) is None
    content = path.read_bytes()
    for position in (200, len(content) // 2, len(content) - 10):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        if find_damage(path) is None:
            # Padding between entries carries no data: what is read is the same.
            torch.load(path, weights_only=True)
    path.write_bytes(content[:-30])
    assert find_damage(path) is not None
    path.write_bytes(b"")
    assert find_damage(path) is not None


def test_a_list_is_no_weights(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list; expected a dict of weights"):
        VastdetCheckpointer(Toy()).load(str(tmp_path / "list.pth"))


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(checkpoint.PathManager, "get_local_path", offline)
    with pytest.raises(FileNotFoundError, match=r"could not be fetched \(no route to host"):
        VastdetCheckpointer(Toy()).load("https://example.org/a.pth")
