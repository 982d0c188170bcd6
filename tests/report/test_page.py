# SPDX-License-Identifier: Apache-2.0
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vastdet.report import Part, write_joint_report, write_report
from vastdet.report.page import MAX_PAGE_BYTES, format_duration
from vastdet.report.run_folder import Run
from vastdet.report.sections import recall_charts

MALICIOUS = "<script>alert('x')</script>\"><img src=http://evil.example/a.png>"
VOID = {"meta", "link", "img", "input", "br", "hr", "line", "rect", "circle", "polyline"}


class Checker(HTMLParser):
    """Checks nesting and collects tags, references, ids and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.images_without_alt = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.references += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset")
        ]
        if "id" in values:
            self.ids.append(values["id"] or "")
        self.images_without_alt += tag == "img" and not values.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


def check(page: Path) -> Checker:
    checker = Checker()
    checker.feed(page.read_text("utf-8"))
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_well_formed_and_stands_alone(make_run: Callable[..., Path]) -> None:
    page = write_report(make_run())
    assert page.name == "index.html"
    found = check(page)
    assert all(r.startswith(("data:", "#")) for r in found.references)
    assert not re.search(r"@import|url\((?!#)|https?://", page.read_text("utf-8"))
    assert found.images_without_alt == 0
    assert len(found.ids) == len(set(found.ids))
    anchors = {r[1:] for r in found.references if r.startswith("#")}
    assert anchors <= set(found.ids)
    assert page.stat().st_size < MAX_PAGE_BYTES


def test_the_page_shows_every_part(make_run: Callable[..., Path]) -> None:
    page = write_report(make_run(num_images=4), title="A first run")
    found = check(page)
    assert found.tags.count("h1") == 1
    for text in ("A first run", "47.3", "71.9", "red disc", "of objects found", "1000 iterations"):
        assert text in found.text
    assert found.tags.count("article") == 4
    assert found.tags.count("img") == 2 * 4 + 2
    assert 'class="missing"' not in page.read_text("utf-8")


def test_selected_categories_show_only_where_there_are_some(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(num_images=2, selects=True)
    found = check(write_report(run))
    assert "Selected categories, the 4 best" in found.text
    assert "Selection of categories" in found.text
    assert "not selected" in found.text
    (selection,) = run.glob("inference/*/selected_categories.npz")
    selection.unlink()
    plain = write_report(run)
    assert "elected" not in check(plain).text


def test_two_runs_share_a_page(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(num_images=2, selects=True)
    parts = [
        Part(run, "first", "The first <run>", "What it is.", ("detections", "selection", "scores")),
        Part(run, "second", "The second run"),
    ]
    page = write_joint_report(parts, tmp_path / "both.html", title="Two runs", lead="A lead.")
    found = check(page)
    assert len(found.ids) == len(set(found.ids))
    assert {r[1:] for r in found.references if r.startswith("#")} <= set(found.ids)
    assert "first-curves" not in found.ids
    assert found.ids.index("first-selection") < found.ids.index("second-curves")
    assert found.tags.count("article") == 4
    for text in ("Two runs", "A lead.", "The first <run>", "What it is.", "The second run"):
        assert text in found.text


def test_a_joint_page_needs_every_run(make_run: Callable[..., Path], tmp_path: Path) -> None:
    parts = [Part(make_run(num_images=1), "a", "A"), Part(tmp_path / "nowhere", "b", "B")]
    with pytest.raises(FileNotFoundError, match="OUTPUT_DIR of a training run"):
        write_joint_report(parts, tmp_path / "both.html", title="", lead="")
    with pytest.raises(ValueError, match="num_pictures must be 0 or more"):
        write_joint_report(parts[:1], tmp_path / "a.html", title="", lead="", num_pictures=-1)


def test_recall_of_a_selection_is_in_headline_and_curves(make_run: Callable[..., Path]) -> None:
    run = make_run(num_images=1)
    (file,) = run.glob("inference/*/metrics.json")
    content = json.loads(file.read_text()) | {"selection": {"ARC4": 81.25, "ARC4r": 60.0}}
    file.write_text(json.dumps(content))
    with (run / "metrics.json").open("a") as stream:
        stream.write(
            json.dumps({"iteration": 1019, "category_recall": 0.5, "selection/ARC4": 81.25}) + "\n"
        )
    text = check(write_report(run)).text
    assert "AR^C, % of a picture's categories among the 4 selected of 6" in text
    assert "labelled rare categories that are among the 4 selected for an image" in text
    assert "Category recall of the selection" in text


def test_recalls_of_two_datasets_are_told_apart() -> None:
    names = ["a_val/selection/ARC4", "b_val/selection/ARC4"]
    run = Run(Path(), [{"iteration": 9, **dict.fromkeys(names, 50.0)}], {}, "", [])
    (text,) = recall_charts(run, names)
    for label in ("a_val/ARC4, evaluation", "b_val/ARC4, evaluation"):
        assert f"{label} ends at 50" in text
    run = Run(Path(), [{"iteration": 9, "selection/ARC4": 50.0}], {}, "", [])
    assert ": ARC4, evaluation ends at 50" in recall_charts(run, ["selection/ARC4"])[0]


def test_names_are_escaped(make_run: Callable[..., Path]) -> None:
    page = write_report(make_run(categories=[MALICIOUS] * 6), title=MALICIOUS)
    found = check(page)
    assert found.tags.count("script") == 1
    assert "<script>alert" not in page.read_text("utf-8")
    assert all(r.startswith(("data:", "#")) for r in found.references)


def test_no_host_and_no_absolute_path(make_run: Callable[..., Path], tmp_path: Path) -> None:
    text = write_report(make_run()).read_text("utf-8")
    assert str(tmp_path) not in text
    assert "secret" not in text
    assert "model.pth" in text


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("metrics.json", "No metrics.json yet"),
        ("inference", "Not evaluated yet"),
        ("config.yaml", "No config.yaml"),
    ],
)
def test_a_missing_part_is_named(make_run: Callable[..., Path], part: str, message: str) -> None:
    run = make_run(num_images=1)
    target = run / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert message in check(write_report(run)).text


def test_an_unregistered_dataset_costs_only_the_pictures(make_run: Callable[..., Path]) -> None:
    run = make_run(num_images=1)
    inference = run / "inference"
    (inference / "report_fixture_val").rename(inference / "somewhere_else")
    content = json.loads((inference / "somewhere_else/metrics.json").read_text())
    (inference / "somewhere_else/metrics.json").write_text(
        json.dumps(content | {"dataset": "somewhere_else"})
    )
    found = check(write_report(run))
    assert "No pictures of somewhere_else" in found.text
    assert "47.3" in found.text


def test_pictures_are_left_out_until_the_page_is_small(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(num_images=4)
    whole = write_report(run).stat().st_size
    monkeypatch.setattr("vastdet.report.page.MAX_PAGE_BYTES", whole - 1)
    page = write_report(run, num_pictures=4)
    assert check(page).tags.count("article") == 2
    assert page.stat().st_size < whole


def test_wrong_arguments_are_explained(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="OUTPUT_DIR of a training run"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no metrics\.json"):
        write_report(tmp_path / "empty")
    run = make_run(num_images=1)
    with pytest.raises(ValueError, match="score_threshold must lie in"):
        write_report(run, score_threshold=1.5)
    with pytest.raises(ValueError, match="num_pictures must be 0 or more"):
        write_report(run, num_pictures=-1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 1}]', "is not a COCO results file"),
        ("[{", "is not valid JSON.*evaluate again"),
        ("[" + " " * 100 + "]", "has over 0 MB of detections"),
    ],
)
def test_wrong_detections_are_explained(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    run = make_run(num_images=1)
    (file,) = run.glob("inference/*/coco_instances_results.json")
    file.write_text(content)
    monkeypatch.setattr("vastdet.report.gallery.MAX_DETECTIONS_BYTES", 50)
    with pytest.raises(ValueError, match=message):
        write_report(run)


def test_a_given_threshold_is_kept(make_run: Callable[..., Path]) -> None:
    page = write_report(make_run(num_images=2), score_threshold=0.9)
    assert 'value="0.90"' in page.read_text("utf-8")


def test_a_failed_write_leaves_the_old_page(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(num_images=1)
    before = write_report(run).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("vastdet.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(run, title="new")
    assert (run / "index.html").read_bytes() == before
    assert sorted(p.name for p in run.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(47, "47 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (912, "15 min"), (3725, "1 h 2 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
