# SPDX-License-Identifier: Apache-2.0
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vastdet.engine import benchmarking
from vastdet.engine.benchmarking import Spread, compare, measure_memory
from vastdet.engine.model_inputs import random_inputs


def wait(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def test_ratios_are_against_the_first() -> None:
    result = compare({"one": wait(0.006), "three": wait(0.018)}, rounds=5, warmup=1)
    one, three = result.timings
    assert one.ratio == Spread(1, 1, 1, 1, 1)
    assert 1.5 < three.ratio.median < 4
    assert three.ratio.low <= three.ratio.lower <= three.ratio.median <= three.ratio.high
    assert len(three.seconds) == 5


def test_rounds_interleave_and_rotate() -> None:
    calls: list[str] = []
    functions = {name: (lambda n=name: (calls.append(n), time.sleep(0.006))) for name in "abc"}
    compare(functions, rounds=3, warmup=0)
    assert "".join(calls[:9]) == "abcbcacab"
    assert "".join(calls[9:]) == "abc"  # for memory


def test_short_calls_are_repeated() -> None:
    count = [0]

    def tick() -> None:
        count[0] += 1

    compare({"tick": tick}, rounds=2, warmup=2)
    assert count[0] > 100


def test_ratios_are_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that slows down threefold: each callable by itself, but not their ratio.
    elapsed = iter([1.0, 2.0, 4.0, 2.0, 3.0, 6.0])
    monkeypatch.setattr(benchmarking, "time_once", lambda *_: next(elapsed))
    monkeypatch.setattr(benchmarking, "measure_memory", lambda *_: (None, None))
    result = compare({"a": wait(0), "b": wait(0)}, rounds=3, warmup=0)
    assert result.timings[0].seconds == (1.0, 2.0, 3.0)
    assert result.timings[1].ratio == Spread(2, 2, 2, 2, 2)
    assert "unknown" in result.as_markdown()


def test_quartiles() -> None:
    assert Spread.of([5, 1, 4, 2, 3]) == Spread(1, 2, 3, 4, 5)
    assert Spread.of([7.0]) == Spread(7, 7, 7, 7, 7)


def test_memory_growth_is_seen() -> None:
    _, growth = measure_memory(lambda: np.ones(30_000_000).sum(), "cpu")
    if growth is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 230e6 < growth < 300e6


def test_garbage_collection_is_on_again_after_an_error() -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        compare({"fail": fail})
    assert gc.isenabled()


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, -1)])
def test_wrong_numbers_are_refused(rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        compare({"a": wait(0)}, rounds, warmup)
    with pytest.raises(ValueError, match="nothing to time"):
        compare({})


def test_random_inputs_are_valid(cfg: Any) -> None:
    cfg.MODEL.LOAD_PROPOSALS = True
    (record, _) = random_inputs(cfg, batch_size=2, image_size=(50, 80))
    assert record["image"].shape == (3, 50, 80)
    for boxes in (record["instances"].gt_boxes, record["proposals"].proposal_boxes):
        assert boxes.nonempty().all()
        assert boxes.inside_box((50, 80)).all()
    with pytest.raises(ValueError, match="need a positive batch"):
        random_inputs(cfg, batch_size=0, image_size=(50, 80))


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("benchmark")


@pytest.mark.parametrize("task", ["inference", "train", "data"])
def test_the_tool_compares_models(
    tool: ModuleType, tiny_detector: Any, tmp_path: Path, task: str, capsys: pytest.CaptureFixture
) -> None:
    config, weights = str(tiny_detector.config_file), str(tiny_detector.weights)
    arguments = ["--config-file", config, config, "--weights", weights, "-", "--task", task]
    arguments += ["--rounds", "2", "--warmup", "1", "--batch-size", "2", "--image-size", "64", "64"]
    assert tool.main([*arguments, "--json", str(tmp_path / "b.json"), "SEED", "1"]) == 0
    assert "time ratio" in capsys.readouterr().out
    content = json.loads((tmp_path / "b.json").read_text())
    assert [r["name"] for r in content["results"]] == ["config", "config-2"]
    assert content["results"][0]["ratio_to_first"]["median"] == 1
    assert all(r["items_per_second"] > 0 for r in content["results"])
    assert str(tmp_path) not in content["setting"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "a", "b"], "2 weights for 1 config files"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--rounds", "1", "MODEL.X", "1"], "Unknown config key MODEL.X"),
    ],
)
def test_wrong_arguments_are_one_line(
    tool: ModuleType,
    tiny_detector: Any,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
) -> None:
    base = ["--config-file", str(tiny_detector.config_file), "--image-size", "64", "64"]
    assert tool.main([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
