# SPDX-License-Identifier: Apache-2.0
"""tools/convert_checkpoint.py: files in and out, both ways, and its errors."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from safetensors.torch import load_file, save_file

from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.model_zoo import get_config
from vastdet.model_zoo.convert_file import coco_category_ids

Tool = Callable[[list[str]], int]


@pytest.fixture
def tool(repository: Path) -> Tool:
    return runpy.run_path(str(repository / "tools" / "convert_checkpoint.py"))["main"]


def arguments(source: str, architecture: str, first: Path, second: Path) -> list[str]:
    return [
        *("--from", source, "--architecture", architecture),
        *("--input", str(first), "--output", str(second)),
    ]


def test_published_form_of_retinanet_goes_there_and_back(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91
    ).eval()
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    original, ours, back = (tmp_path / n for n in ("tv.pth", "sub/d2.safetensors", "back.pth"))
    torch.save(theirs.state_dict(), original)
    command = arguments("torchvision", "retinanet_resnet50_fpn", original, ours)
    assert tool([*command, "--batch-norm-eps", "0", "--coco-categories"]) == 0
    printed = capsys.readouterr().out
    assert "backbone.body.layer1" in printed
    assert "configs/torchvision/retinanet_R_50_FPN.yaml" in printed.replace("\n", "")
    assert not list(tmp_path.rglob("*.tmp"))

    cfg = get_config("torchvision/retinanet_R_50_FPN")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    VastdetCheckpointer(model).load(str(ours), complete=True)
    bias = theirs.head.classification_head.cls_logits.bias.reshape(9, 91)
    assert len(coco_category_ids()) == 80
    # Anchors are all initialised alike, so their order does not show here.
    assert torch.equal(model.head.cls_score.bias.reshape(9, 80), bias[:, coco_category_ids()])

    command = arguments("detectron2", "retinanet_resnet50_fpn", ours, back)
    assert tool([*command, "--batch-norm-eps", "0"]) == 0
    returned = torch.load(back, weights_only=True)
    few = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=80
    )
    few.load_state_dict(returned, strict=True)
    for name, tensor in theirs.state_dict().items():
        if "cls_logits" not in name and not name.endswith("batches_tracked"):
            torch.testing.assert_close(returned[name], tensor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("config", ["Base-RCNN-C4", "RetinaNet/retinanet_R_50_FPN_1x"])
def test_a_backbone_finds_its_place_in_any_model(tool: Tool, tmp_path: Path, config: str) -> None:
    theirs = torchvision.models.resnet50(weights=None)
    original, ours = tmp_path / "resnet50.pth", tmp_path / "r50.pth"
    torch.save({"model": theirs.state_dict()}, original)
    assert tool(arguments("torchvision", "resnet50", original, ours)) == 0
    cfg = get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    VastdetCheckpointer(model).load(str(ours))
    state = model.state_dict()
    for ending, expected in (
        ("stem.conv1.weight", theirs.conv1.weight),
        ("res4.5.conv3.weight", theirs.layer3[5].conv3.weight),
        ("res5.2.conv1.norm.bias", theirs.layer4[2].bn1.bias),
    ):
        (name,) = [n for n in state if n.endswith(ending)]
        assert torch.equal(state[name], expected), name


def error_of(tool: Tool, command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert tool(command) == 2
    return capsys.readouterr().err


def test_errors_of_the_user(tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    state["layer1.0.conv1.weights"] = state.pop("layer1.0.conv1.weight")
    wrong, output = tmp_path / "wrong.safetensors", tmp_path / "out.pth"
    save_file(state, wrong)

    message = error_of(tool, arguments("torchvision", "resnet18", wrong, output), capsys)
    assert "layer1.0.conv1.weight (perhaps layer1.0.conv1.weights)" in message
    assert not output.exists()

    command = arguments("torchvision", "resnet_18", wrong, output)
    assert "did you mean resnet18" in error_of(tool, command, capsys)
    command = arguments("torchvision", "resnet18", tmp_path / "absent.pth", output)
    assert "there is no weight file" in error_of(tool, command, capsys)
    command = arguments("torchvision", "resnet18", wrong, tmp_path / "out.bin")
    assert "must end in .safetensors or .pth" in error_of(tool, command, capsys)
    command = arguments("torchvision", "resnet18", wrong, tmp_path / "out.safetensors")
    assert "only a .pth file can ask for" in error_of(tool, command, capsys)


class Payload:
    """Runs something when unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("unpickled"),))


def test_a_pickle_with_code_is_not_run(
    tool: Tool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Payload()}, "evil.pth")
    command = arguments("torchvision", "resnet18", Path("evil.pth"), Path("out.pth"))
    assert "was not loaded" in error_of(tool, command, capsys)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--from", "detectron2", "--coco-categories"], "torchvision's weights only"),
        (["--from", "torchvision", "--batch-norm-eps", "-1"], "must not be negative"),
    ],
)
def test_options_that_make_no_sense(
    tool: Tool, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        tool(["--architecture", "resnet18", "--input", "a", "--output", "b", *extra])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_plain_safetensors_output_holds_the_tensors_alone(tool: Tool, tmp_path: Path) -> None:
    theirs = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    original, ours = tmp_path / "tv.safetensors", tmp_path / "d2.safetensors"
    save_file(theirs.state_dict(), original)
    assert tool(arguments("torchvision", "fcos_resnet50_fpn", original, ours)) == 0
    weights = load_file(ours)
    assert weights["head.cls_score.weight"].shape[0] == 3
    assert torch.equal(weights["head.scales"], torch.ones(5))
