# SPDX-License-Identifier: Apache-2.0
"""tools/evaluate.py as a user runs it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from vastdet.evaluation.ground_truth import from_json
from vastdet.evaluation.results_file import from_results
from vastdet.evaluation.results_store import write_store

BOX = {"image_id": 3, "category_id": 7, "bbox": [10, 10, 50, 50]}
TRUTH = {
    "images": [{"id": 3, "height": 100, "width": 100}],
    "categories": [{"id": 7, "name": "owl"}, {"id": 9, "name": "yak"}],
    "annotations": [{**BOX, "id": 1, "area": 2500, "iscrowd": 0}],
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {"truth": tmp_path / "truth.json", "results": tmp_path / "results.json"}
    paths["truth"].write_text(json.dumps(TRUTH))
    paths["results"].write_text(json.dumps([{**BOX, "score": 0.9}]))
    return {**paths, "output": tmp_path / "out"}


@pytest.fixture
def arguments(files: dict[str, Path]) -> list[str]:
    names = {"--annotations": "truth", "--results": "results", "--output": "output"}
    return [part for key, name in names.items() for part in (key, str(files[name]))]


def test_scores_and_tables(load_tool, arguments, files, capsys) -> None:
    assert load_tool("evaluate").main([*arguments, "--max-dets", "1", "50"]) == 0
    shown = capsys.readouterr().out
    for text in ("truth: 1 images", "COCO box AP", "owl", "AP75", "AR50", "100.0"):
        assert text in shown
    assert "yak" not in shown
    metrics = json.loads((files["output"] / "metrics.json").read_text())
    assert metrics["bbox"]["AP"] == pytest.approx(100)
    assert (files["output"] / "confusion_matrix.png").is_file()


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_published_result(load_tool, shared_data: Path, tmp_path: Path, engine: str) -> None:
    folder = shared_data / "eval_fixtures/coco_val2014_100"
    status = load_tool("evaluate").main(
        [
            *("--annotations", str(folder / "instances_val2014_100.json")),
            *("--results", str(folder / "instances_val2014_fakesegm100_results.json")),
            *("--output", str(tmp_path)),
            *("--iou-type", "segm", "--engine", engine, "--no-plots"),
        ]
    )
    assert status == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    expected = json.loads((folder / "expected_pycocotools_2.0.11.json").read_text())
    for name, value in zip(expected["order"], expected["segm"], strict=True):
        assert metrics["segm"][name] / 100 == pytest.approx(value, abs=1e-9)
    assert not list(tmp_path.glob("*.png"))


def test_lvis_metrics_side_by_side(load_tool, shared_data: Path, tmp_path: Path, capsys) -> None:
    folder = shared_data / "eval_fixtures/lvis_val_100"
    status = load_tool("evaluate").main(
        [
            *("--annotations", str(folder / "lvis_val_100.json"), "--protocol", "lvis"),
            *("--results", str(folder / "seeded_results.json")),
            *("--output", str(tmp_path), "--no-plots"),
        ]
    )
    assert status == 0
    shown = capsys.readouterr().out
    for text in ("LVIS box AP", "LVIS box Fixed-AP", "rare", "54.6", "54.9"):
        assert text in shown
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["bbox"]["AP"] == pytest.approx(54.63091259842457, abs=1e-9)
    assert metrics["bbox_fixed"]["AP"] > metrics["bbox"]["AP"]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{**BOX, "score": 1, "category_id": 8}], "1 of 1 detections have a category_id"),
        ([{**BOX, "score": 1, "image_id": 4}], "another dataset"),
        ([{**BOX, "score": float("nan")}], "no finite number"),
        ([BOX], "lack one of"),
    ],
)
def test_wrong_results_exit_2(load_tool, arguments, files, capsys, results, message: str) -> None:
    files["results"].write_text(json.dumps(results))
    assert load_tool("evaluate").main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert not files["output"].exists()


def test_wrong_files_exit_2(load_tool, arguments, files, capsys) -> None:
    evaluate = load_tool("evaluate")
    files["results"].unlink()
    assert evaluate.main(arguments) == 2
    assert f"{files['results']} does not exist" in capsys.readouterr().err
    files["truth"].unlink()
    assert evaluate.main(arguments) == 2
    assert f"{files['truth']} does not exist" in capsys.readouterr().err
    unknown = ["--dataset", "generated_24_vall", *arguments[2:]]
    assert evaluate.main(unknown) == 2
    assert "did you mean generated_24_val" in capsys.readouterr().err


def test_set_without_annotations_exits_2(load_tool, arguments, files, capsys) -> None:
    unlabelled = {key: value for key, value in TRUTH.items() if key != "annotations"}
    files["truth"].write_text(json.dumps(unlabelled))
    assert load_tool("evaluate").main(arguments) == 2
    assert "lists no annotations" in capsys.readouterr().err


def test_registered_dataset(load_tool, files, tmp_path: Path, capsys) -> None:
    files["results"].write_text("[]")
    results = ["--results", str(files["results"]), "--output", str(tmp_path), "--no-plots"]
    assert load_tool("evaluate").main(["--dataset", "generated_24_val", *results]) == 0
    assert "generated_24_val" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["bbox"]["AP"] == 0


def write_case(folder: Path, rules: str) -> list[str]:
    """Annotations with what a protocol needs, and results in two formats; the tool's arguments."""
    image = {"height": 100, "width": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    truth = {
        "images": [{"id": i, **image} for i in (3, 4)],
        "categories": [
            {"id": 7, "name": "owl", "frequency": "r", "novel": True},
            {"id": 9, "name": "yak", "frequency": "f", "novel": False},
        ],
        "annotations": [
            {**BOX, "image_id": i, "category_id": 7 + 2 * i % 4, "id": i, "area": 2500}
            for i in (3, 4)
        ],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "a.json").write_text(json.dumps([{**BOX, "category_id": 9, "score": 0.9}]))
    rows = [{**BOX, "image_id": 4, "score": 0.8}]
    ground_truth = from_json(folder / "truth.json")
    write_store(folder / "b.npz", from_results(rows, ground_truth), ground_truth, dataset="x")
    names = {"--annotations": "truth.json", "--output": "out"}
    arguments = [part for key, name in names.items() for part in (key, str(folder / name))]
    return [*arguments, "--protocol", rules, "--no-plots"]


@pytest.mark.parametrize(
    ("rules", "keys", "shown"),
    [
        ("coco", ["bbox"], "COCO box AP"),
        ("lvis", ["bbox", "bbox_fixed"], "LVIS box Fixed-AP"),
        ("v3det", ["bbox"], "V3Det plain box AP"),
    ],
)
def test_json_and_npz_by_every_protocol(
    load_tool, tmp_path: Path, capsys, rules: str, keys: list[str], shown: str
) -> None:
    arguments = write_case(tmp_path, rules)
    results = ["--results", str(tmp_path / "a.json"), str(tmp_path / "b.npz")]
    assert load_tool("evaluate").main([*arguments, *results]) == 0
    assert shown in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [key for key in metrics if key.startswith("bbox")] == keys
    assert metrics["num_detections"] == 2
    assert all(metrics[key]["AP"] == pytest.approx(100) for key in keys)


def test_training_counts_are_reported(load_tool, arguments, files, capsys) -> None:
    training = ["--training", str(files["truth"]), "--no-plots"]
    assert load_tool("evaluate").main([*arguments, *training]) == 0
    assert "rare" in capsys.readouterr().out
    header, owl, yak = (files["output"] / "per_category.csv").read_text().splitlines()
    assert header.startswith("category_id,name,frequency,training_images,training_boxes,ap")
    assert owl.startswith("7,owl,r,1,1,")
    assert yak.startswith("9,yak,,0,0,")


def test_results_files_that_do_not_fit_exit_2(load_tool, tmp_path: Path, capsys) -> None:
    arguments = write_case(tmp_path, "coco")
    twice = ["--results", *[str(tmp_path / "b.npz")] * 2]
    assert load_tool("evaluate").main([*arguments, *twice]) == 2
    assert "must not overlap" in capsys.readouterr().err
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    assert load_tool("evaluate").main([*arguments, "--results", str(tmp_path / "b.npz")]) == 2
    assert "holds results of x (2 images, 2 categories), not of" in capsys.readouterr().err


def test_ctrl_c_leaves_whole_files(repository: Path, arguments, files) -> None:
    """A real SIGINT as soon as the first file of the report is there: pictures take seconds."""
    command = [sys.executable, str(repository / "tools" / "evaluate.py"), *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell started in its background inherit that the signal is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = files["output"] / "per_category.csv"
    deadline = time.monotonic() + 120
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.endswith("interrupted\n")
    assert len(first.read_text().splitlines()) == 3
    for path in files["output"].iterdir():
        assert not path.name.startswith(".")
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
    # The numbers come last: a report without them is not complete.
    assert not (files["output"] / "metrics.json").exists()


def test_interrupt_leaves_no_part_of_a_file(load_tool, arguments, files, capsys, monkeypatch):
    from vastdet import files as writing

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.os, "fsync", interrupt)
    assert load_tool("evaluate").main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(files["output"].iterdir()) == []


def test_command_line(load_tool, capsys) -> None:
    evaluate = load_tool("evaluate")
    with pytest.raises(SystemExit, match="0"):
        evaluate.main(["--help"])
    assert "--annotations JSON" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["--dataset", "x"])
    assert "--results" in capsys.readouterr().err
