# SPDX-License-Identifier: Apache-2.0
"""Mixed precision of training and of inference: types, errors, and where TEST.AMP reaches."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from vastdet.engine import model_benchmark
from vastdet.engine.model_benchmark import Workload, make_training_step
from vastdet.engine.precision import amp_dtype, inference_autocast
from vastdet.engine.trainer import Trainer


@pytest.mark.parametrize("section", ["SOLVER", "TEST"])
def test_amp_dtype(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, section: str) -> None:
    assert amp_dtype(cfg, section) is None
    amp = cfg[section].AMP
    amp.ENABLED = True
    assert amp_dtype(cfg, section) is torch.bfloat16
    amp.DTYPE = "float16"
    with pytest.raises(ValueError, match=f"{section}.AMP.DTYPE.*on CUDA only"):
        amp_dtype(cfg, section)
    cfg.MODEL.DEVICE = "cuda"
    assert amp_dtype(cfg, section) is torch.float16
    amp.DTYPE = "auto"
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda value=supported: value)
        assert amp_dtype(cfg, section) is expected
    amp.DTYPE = "half"
    with pytest.raises(ValueError, match="'auto'"):
        amp_dtype(cfg, section)


@pytest.mark.parametrize("enabled", [True, False])
def test_training_and_inference_are_apart(cfg: CfgNode, enabled: bool) -> None:
    cfg.SOLVER.AMP.ENABLED, cfg.TEST.AMP.ENABLED = not enabled, enabled
    with inference_autocast(cfg):
        assert torch.is_autocast_enabled("cpu") is enabled
        assert torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype == (
            torch.bfloat16 if enabled else torch.float32
        )
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("enabled", [True, False])
def test_evaluation(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, enabled: bool) -> None:
    def state(cls: type, *arguments: Any) -> dict[str, Any]:
        return {"autocast": torch.is_autocast_enabled("cpu"), "arguments": arguments}

    monkeypatch.setattr(DefaultTrainer, "test", classmethod(state))
    cfg.TEST.AMP.ENABLED = enabled
    model = torch.nn.Identity()
    assert Trainer.test(cfg, model) == {"autocast": enabled, "arguments": (cfg, model, None)}


@pytest.mark.parametrize("enabled", [True, False])
def test_training_steps_are_timed_in_the_precision_of_training(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    in_autocast = []

    class Model(torch.nn.Linear):
        def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            in_autocast.append(torch.is_autocast_enabled("cpu"))
            return {"loss": self.weight.sum()}

    monkeypatch.setattr(model_benchmark, "build_model", lambda cfg: Model(2, 2))
    cfg.MODEL.WEIGHTS, cfg.SOLVER.AMP.ENABLED = "", enabled
    make_training_step(cfg, Workload(1, (32, 32)))()
    assert in_autocast == [enabled]
