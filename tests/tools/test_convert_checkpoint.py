# SPDX-License-Identifier: Apache-2.0
"""tools/convert_checkpoint.py: files in and out, both ways, and its errors."""

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.model_zoo.test_deformable_models import released
from torch import Tensor, nn

from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.command_line import argument_parser
from vastdet.engine.config_files import load_config
from vastdet.model_zoo import get_config
from vastdet.model_zoo.convert_file import coco_category_ids
from vastdet.model_zoo.registry import find_converter, known_names

Tool = Callable[[list[str]], int]


@pytest.fixture
def tool(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.chdir(repository)
    return runpy.run_path("tools/convert_checkpoint.py")["main"]


def command_line(name: str, first: Path, second: Path, *options: str) -> list[str]:
    return [str(first), "--model", name, "--out", str(second), *options]


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
    options = ("--batch-norm-eps", "0", "--coco-categories")
    assert tool(command_line("retinanet_resnet50_fpn", original, ours, *options)) == 0
    printed = capsys.readouterr().out
    assert "backbone.body.layer1" in printed
    assert "--config-file configs/torchvision/retinanet_R_50_FPN.yaml" in printed
    # Boxes in pixels; another epsilon, taken up by the weights, moves them by 7e-4.
    assert max(differences_in(printed)) < 5e-3
    assert not list(tmp_path.rglob("*.tmp"))

    cfg = get_config("torchvision/retinanet_R_50_FPN")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    VastdetCheckpointer(model).load(str(ours), complete=True)
    bias = theirs.head.classification_head.cls_logits.bias.reshape(9, 91)
    assert len(coco_category_ids()) == 80
    # Anchors are all initialised alike, so their order does not show here.
    assert torch.equal(model.head.cls_score.bias.reshape(9, 80), bias[:, coco_category_ids()])

    options = ("--batch-norm-eps", "0", "--reverse")
    assert tool(command_line("retinanet_resnet50_fpn", ours, back, *options)) == 0
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
    assert tool(command_line("resnet50", original, ours)) == 0
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
    state["layer2.0.bn1.bias"] = torch.zeros(7)
    wrong, output = tmp_path / "wrong.safetensors", tmp_path / "out.pth"
    save_file(state, wrong)

    message = error_of(tool, command_line("resnet18", wrong, output), capsys)
    assert "missing: 1\n    layer1.0.conv1.weight (perhaps layer1.0.conv1.weights)" in message
    assert "left over: 1\n    layer1.0.conv1.weights" in message
    assert "of another shape: 1\n    layer2.0.bn1.bias: (7,), expected (128,)" in message
    assert not output.exists()

    message = error_of(tool, command_line("resnet_18", wrong, output), capsys)
    assert "did you mean resnet18" in message
    message = error_of(tool, command_line("swin", wrong, output), capsys)
    assert "'dino_R_50_4scale_detrex'" in message
    message = error_of(tool, command_line("resnet18", tmp_path / "absent.pth", output), capsys)
    assert "there is no weight file" in message
    message = error_of(tool, command_line("resnet18", wrong, tmp_path / "out.bin"), capsys)
    assert "must end in .safetensors or .pth" in message
    message = error_of(tool, command_line("resnet18", wrong, tmp_path / "o.safetensors"), capsys)
    assert "only a .pth file can ask for" in message


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
    command = command_line("resnet18", Path("evil.pth"), Path("out.pth"))
    assert "was not loaded" in error_of(tool, command, capsys)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--out", "b"], "--list prints the names"),
        (["a", "--model", "resnet18"], "--out FILE"),
        (["a", "--model", "resnet18", "--out", "b", "--reverse", "--ema"], "not on ours"),
        (["a", "--model", "resnet18", "--out", "b", "--batch-norm-eps", "-1"], "not be negative"),
    ],
)
def test_options_that_make_no_sense(
    tool: Tool, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        tool(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_plain_safetensors_output_holds_the_tensors_alone(tool: Tool, tmp_path: Path) -> None:
    theirs = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    original, ours = tmp_path / "tv.safetensors", tmp_path / "d2.safetensors"
    save_file(theirs.state_dict(), original)
    assert tool(command_line("fcos_resnet50_fpn", original, ours)) == 0
    weights = load_file(ours)
    assert weights["head.cls_score.weight"].shape[0] == 3
    assert torch.equal(weights["head.scales"], torch.ones(5))


def test_names_and_configs_are_printed(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool(["--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == known_names()
    assert tool(["--model", "dino_R_50_4scale_detrex", "--print-config"]) == 0
    path = capsys.readouterr().out.strip()
    assert path == "configs/DINO/dino_R_50_4scale_12ep_detrex.yaml"
    assert tool(["--model", "resnet50", "--print-config"]) == 0
    assert "any config" in capsys.readouterr().out


def differences_in(printed: str) -> list[float]:
    """The differences that the tool printed."""
    (line,) = re.findall(r"on a random image: (.*)", printed)
    return [float(part.split()[-1]) for part in line.split(", ")]


PUBLISHED = {
    "dino_R_50_4scale": "dino_4scale_r50",
    "dino_R_50_4scale_detrex": "dino_detrex_r50",
    "deformable_detr_R_50_two_stage": "ddetr_r50",
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_file_with_the_names_of_a_release_loads_whole(
    tool: Tool,
    tmp_path: Path,
    shared_data: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    converter = find_converter(name)
    state_dict = released(shared_data, PUBLISHED[name], converter)
    is_coco_ids = len(state_dict["class_embed.0.bias"]) == 91
    original, ours = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save({"model": state_dict, "epoch": 11}, original)
    options = ["--coco-categories"] * is_coco_ids
    assert tool(command_line(name, original, ours, *options)) == 0
    printed = capsys.readouterr().out
    assert "not compared: the code behind" in printed
    assert "NUM_CLASSES" not in printed

    cfg = get_config(converter.config)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    VastdetCheckpointer(model).load(str(ours), complete=True)
    rows = coco_category_ids() if is_coco_ids else range(80)
    head = model.transformer.decoder.class_head(0)
    assert torch.equal(head.weight, state_dict["class_embed.0.weight"][rows])
    if "label_enc.weight" in state_dict:
        embedding = model.transformer.denoising.label_embedding.weight
        assert torch.equal(embedding[:80], state_dict["label_enc.weight"][rows])
    else:
        # Only the first row of the proposals' class head is read.
        head = model.transformer.query_source.selection.class_head
        assert torch.equal(head.weight, state_dict["class_embed.6.weight"][:80])


def small(node: str) -> list[str]:
    """KEY VALUE ... of a detector with small layers, whose keys are below MODEL.`node`."""
    resnet = {"STEM_OUT_CHANNELS": 16, "RES2_OUT_CHANNELS": 32, "WIDTH_PER_GROUP": 8}
    detector = {"EMBED_DIM": 64, "FEEDFORWARD_DIM": 64, "NUM_QUERIES": 20}
    items = [(f"MODEL.RESNETS.{key}", value) for key, value in resnet.items()]
    items += [(f"MODEL.{node}.{key}", value) for key, value in detector.items()]
    return [str(part) for item in items for part in item]


SMALL = small("DEFORMABLE_DETR")


def small_resnet(stages: list[str]) -> dict[str, Any]:
    """What gives a configuration of transformers the ResNet of `small`."""
    from transformers import ResNetConfig

    return {
        "backbone_config": ResNetConfig(
            embedding_size=16,
            hidden_sizes=[32, 64, 128, 256],
            depths=[3, 4, 6, 3],
            out_features=stages,
        ),
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_queries": 20,
    }


def randomise(model: nn.Module) -> None:
    """Make all parameters and the statistics of the norms of a model random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def small_transformers_model(variant: str, num_labels: int) -> nn.Module:
    """A Deformable DETR of transformers with small layers and random weights."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    config = DeformableDetrConfig(
        **small_resnet(["stage2", "stage3", "stage4"]),
        d_model=64,
        two_stage_num_proposals=20,
        num_labels=num_labels,
        with_box_refine=variant != "plain",
        two_stage=variant == "two_stage",
    )
    model = DeformableDetrForObjectDetection(config).eval()
    randomise(model)
    return model


@torch.no_grad()
def transformers_outputs(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (Q, K) and boxes (Q, 4) of a normalised image."""
    mask = torch.ones(1, *image.shape[1:], dtype=torch.long)
    outputs = model(pixel_values=image[None], pixel_mask=mask)
    return outputs.logits[0], outputs.pred_boxes[0]


def assert_same_outputs(
    theirs: nn.Module, file: Path, config: str, overrides: list[str], rows: list[int]
) -> None:
    """Hold our model with the weights of a file against theirs, whose class `rows` it has."""
    cfg = load_config(f"configs/{config}", overrides)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    VastdetCheckpointer(model).load(str(file), complete=True)
    image = torch.randn(3, 128, 160)
    with torch.no_grad():
        last = model.predict_padded([image]).decoder
    logits, boxes = transformers_outputs(theirs, image)
    difference = (last.logits[-1, 0] - logits[:, rows]).abs().max()
    assert difference < 1e-5, f"logits differ by {difference}"
    difference = (last.boxes[-1, 0] - boxes).abs().max()
    assert difference < 1e-5, f"boxes differ by {difference}"


@pytest.mark.parametrize("variant", ["plain", "refined", "two_stage"])
def test_deformable_detr_of_transformers_gives_the_same(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str], variant: str
) -> None:
    theirs = small_transformers_model(variant, num_labels=91)
    theirs.save_pretrained(tmp_path)
    original, ours = tmp_path / "model.safetensors", tmp_path / "ours.safetensors"
    name = f"deformable_detr_R_50_{variant}_transformers"
    assert tool(command_line(name, original, ours, "--coco-categories", *SMALL)) == 0
    # Met: logits 8e-7, boxes 2e-7.
    assert max(differences_in(capsys.readouterr().out)) < 1e-5
    config = f"DeformableDETR/deformable_detr_R_50_{variant}_50ep.yaml"
    assert_same_outputs(theirs, ours, config, SMALL, coco_category_ids())


# Our name -> theirs, the node of our config, theirs of the width, and rows behind the classes.
DENSE = {
    "conditional_detr_R_50": ("ConditionalDetr", "CONDITIONAL_DETR", "d_model", []),
    "dab_detr_R_50": ("DabDetr", "DAB_DETR", "hidden_size", []),
    "detr_R_50": ("Detr", "DETR", "d_model", [91]),
}


@pytest.mark.parametrize("name", list(DENSE))
def test_dense_detectors_of_transformers_give_the_same(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs_name, node, width, extra_rows = DENSE[name]
    config = getattr(transformers, f"{theirs_name}Config")(
        **small_resnet(["stage4"]), **{width: 64}, num_labels=91
    )
    theirs = getattr(transformers, f"{theirs_name}ForObjectDetection")(config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    original, ours = tmp_path / "model.safetensors", tmp_path / "ours.safetensors"
    options = ["--coco-categories", *small(node)]
    assert tool(command_line(f"{name}_transformers", original, ours, *options)) == 0
    # Met: logits 5e-7, boxes 2e-7.
    assert max(differences_in(capsys.readouterr().out)) < 1e-5
    config = find_converter(f"{name}_transformers").config
    rows = coco_category_ids() + extra_rows
    assert_same_outputs(theirs, ours, config, small(node), rows)
    # The names of the modules, where some have others in files.
    torch.save(theirs.state_dict(), tmp_path / "modules.pth")
    again = tmp_path / "again.safetensors"
    command = command_line(f"{name}_transformers", tmp_path / "modules.pth", again, *options)
    assert tool(command) == 0
    first, second = load_file(ours), load_file(again)
    assert all(torch.equal(first[key], value) for key, value in second.items())


def test_names_of_the_modules_a_parallel_wrapper_and_the_next_command(
    tool: Tool,
    tmp_path: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = small_transformers_model("plain", num_labels=3)
    original, ours = tmp_path / "model.pth", tmp_path / "ours dir" / "ours.safetensors"
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": wrapped}, original)
    overrides = [*SMALL, "INPUT.MIN_SIZE_TEST", "64"]
    name = "deformable_detr_R_50_plain_transformers"
    assert tool(command_line(name, original, ours, *overrides)) == 0
    printed = capsys.readouterr().out
    (command,) = re.findall(r"tools/demo\.py (.*)", printed)
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "picture.png")
    command = command.replace("IMAGES", shlex.quote(str(tmp_path / "picture.png")))
    command = command.replace("output/detections", shlex.quote(str(tmp_path / "found")))
    demo = runpy.run_path(str(repository / "tools" / "demo.py"))["main"]
    assert demo(shlex.split(command)) == 0
    assert list((tmp_path / "found").iterdir())

    (command,) = re.findall(r"tools/train_net\.py (.*)", printed)
    assert command.endswith("MODEL.DEFORMABLE_DETR.NUM_CLASSES 3")
    options = argument_parser().parse_args(shlex.split(command))
    assert options.eval_only
    cfg = load_config(options.config_file, options.opts)
    assert str(ours) == cfg.MODEL.WEIGHTS
    assert cfg.MODEL.DEFORMABLE_DETR.NUM_CLASSES == 3


def test_another_code_base_that_is_not_installed(
    tool: Tool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = small_transformers_model("plain", num_labels=91)
    original = tmp_path / "model.pth"
    torch.save(theirs.state_dict(), original)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    name = "deformable_detr_R_50_plain_transformers"
    assert tool(command_line(name, original, tmp_path / "o.safetensors", *SMALL)) == 0
    printed = capsys.readouterr().out
    assert "not compared: the code behind" in printed
    assert "is not installed" in printed
    assert "91 classes, which look like COCO ids" in printed
