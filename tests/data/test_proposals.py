# SPDX-License-Identifier: Apache-2.0
"""Proposals: storage, loading into records, methods, the resumable computation, recall."""

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from vastdet.data import DetectionMapper, build_test_loader, build_train_loader
from vastdet.data import compute_proposals as computation
from vastdet.data.compute_proposals import ProposalSettings, compute_proposals
from vastdet.data.proposal_methods import (
    METHODS,
    check_method,
    selective_search,
    shuffled,
    sliding_windows,
)
from vastdet.data.proposals import (
    ImageProposals,
    export_detectron2,
    load_proposals,
    proposal_recall,
    read_proposals,
    records_with_proposals,
    save_proposals,
)


def some_proposals() -> list[ImageProposals]:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 20, 30], [1, 2, 3, 4]], np.float32)
    return [
        ImageProposals("7", boxes, np.array([0.1, 0.9, 0.5], np.float32)),
        ImageProposals("nothing here", np.zeros((0, 4), np.float32), np.zeros(0, np.float32)),
        ImageProposals("8", boxes[:1] + 1, np.array([-2.0], np.float32)),
    ]


def same(one: list[ImageProposals], other: list[ImageProposals]) -> bool:
    return len(one) == len(other) and all(
        a.image_id == b.image_id
        and np.array_equal(a.boxes, b.boxes)
        and np.array_equal(a.objectness_logits, b.objectness_logits)
        for a, b in zip(one, other, strict=True)
    )


def test_save_and_read_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "proposals.npz"
    save_proposals(path, some_proposals())
    assert same(read_proposals(path), some_proposals())
    assert list(path.parent.iterdir()) == [path]


def test_no_images_at_all(tmp_path: Path) -> None:
    save_proposals(tmp_path / "none.npz", [])
    assert read_proposals(tmp_path / "none.npz") == []


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stored as \.npz"):
        save_proposals(tmp_path / "proposals.pkl", [])
    with pytest.raises(ValueError, match=r"stored as \.npz"):
        compute_proposals([{"image_id": 0}], tmp_path / "p.pkl", ProposalSettings("windows"))
    with pytest.raises(FileNotFoundError, match=r"compute_proposals\.py writes one"):
        read_proposals(tmp_path / "absent.npz")


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "d2.pkl"
    export_detectron2(path, some_proposals())
    with pytest.raises(ValueError, match="pickles, which can run code"):
        read_proposals(path)
    hidden = tmp_path / "hidden.npz"
    np.savez(hidden, image_ids=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read as proposals"):
        read_proposals(hidden)


def test_damaged_and_inconsistent_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "proposals.npz"
    save_proposals(path, some_proposals())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as proposals"):
        read_proposals(path)
    zeros = np.zeros(3)
    np.savez(path, image_ids=zeros, counts=np.array([2]), boxes=zeros, objectness_logits=zeros)
    with pytest.raises(ValueError, match="is inconsistent: 3 image ids"):
        read_proposals(path)


def test_records_get_proposals_as_detectron2_gives_them(tmp_path: Path) -> None:
    save_proposals(tmp_path / "p.npz", some_proposals())
    export_detectron2(tmp_path / "p.pkl", some_proposals())
    ids: list[Any] = [8, 7, "nothing here"]
    ours = load_proposals([{"image_id": i} for i in ids], tmp_path / "p.npz")
    theirs = load_proposals_into_dataset([{"image_id": i} for i in ids], str(tmp_path / "p.pkl"))
    for record, expected in zip(ours, theirs, strict=True):
        assert record.keys() == expected.keys()
        assert record["proposal_bbox_mode"] == expected["proposal_bbox_mode"] == BoxMode.XYXY_ABS
        for key in ("proposal_boxes", "proposal_objectness_logits"):
            assert np.array_equal(record[key], expected[key])


def test_exported_pickle_holds_plain_data(tmp_path: Path) -> None:
    export_detectron2(tmp_path / "p.pkl", some_proposals())
    content = pickle.loads((tmp_path / "p.pkl").read_bytes())
    assert type(content["bbox_mode"]) is int
    assert [len(b) for b in content["boxes"]] == [3, 0, 1]


def test_a_record_without_proposals_is_an_error(tmp_path: Path) -> None:
    save_proposals(tmp_path / "p.npz", some_proposals())
    with pytest.raises(ValueError, match=r"no proposals for 1 of 2 images.*image_id 9"):
        load_proposals([{"image_id": 7}, {"image_id": 9}], tmp_path / "p.npz")
    with pytest.raises(ValueError, match=r"1 datasets .* but 0 proposal files"):
        records_with_proposals(["generated_24_val"], [])


def scene(seed: int = 0, height: int = 60, width: int = 90) -> np.ndarray:
    """A noisy background with two plain rectangles: BGR."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (height, width, 3)).astype(np.uint8)
    image[10:40, 15:45] = (20, 20, 200)
    image[25:55, 55:85] = (200, 160, 20)
    return image


@pytest.mark.parametrize("method", list(METHODS))
def test_methods_find_plain_objects(method: str) -> None:
    boxes = METHODS[method](scene())
    assert boxes.dtype == np.float32
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert (boxes[:, 2] <= 90).all()
    assert (boxes[:, 3] <= 60).all()
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS} for box in ([15, 10, 45, 40], [55, 25, 85, 55])
    ]
    found = [ImageProposals("0", boxes, np.zeros(len(boxes), np.float32))]
    assert proposal_recall([{"image_id": 0, "annotations": annotations}], found) == (1.0, 2)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 300), (9, 8), (5, 2000), (600, 9)])
@pytest.mark.parametrize("method", list(METHODS))
def test_methods_stay_inside_odd_images(method: str, height: int, width: int) -> None:
    boxes = METHODS[method](np.full((height, width, 3), 128, np.uint8))
    assert len(boxes) >= 1
    assert boxes.min() >= 0
    assert (boxes[:, 2] <= width + 1e-3).all()
    assert (boxes[:, 3] <= height + 1e-3).all()


def test_wide_images_are_searched_at_a_fixed_width() -> None:
    large = cv2.resize(scene(), None, fx=10, fy=10, interpolation=cv2.INTER_NEAREST)
    boxes = selective_search(large, width=90)
    overlap = proposal_recall(
        [{"image_id": 0, "annotations": [{"bbox": [150, 100, 450, 400], "bbox_mode": 0}]}],
        [ImageProposals("0", boxes, np.zeros(len(boxes), np.float32))],
        iou_threshold=0.9,
    )
    assert overlap == (1.0, 1)


def test_windows_cover_every_square() -> None:
    windows = sliding_windows(np.zeros((160, 160, 3), np.uint8))
    rng = np.random.default_rng(0)
    sides = rng.uniform(16, 120, 200)
    corners = rng.uniform(0, 1, (200, 2)) * (160 - sides[:, None])
    squares = np.concatenate([corners, corners + sides[:, None]], axis=1)
    annotations = [{"bbox": s.tolist(), "bbox_mode": BoxMode.XYXY_ABS} for s in squares]
    found = [ImageProposals("0", windows, np.zeros(len(windows), np.float32))]
    recall, num_boxes = proposal_recall([{"image_id": 0, "annotations": annotations}], found)
    assert num_boxes == 200
    assert recall > 0.95


def test_order_depends_on_boxes_and_id_alone() -> None:
    boxes = np.arange(40, dtype=np.float32).reshape(10, 4)
    assert np.array_equal(shuffled(boxes, "a", 4), shuffled(boxes, "a", 10)[:4])
    assert not np.array_equal(shuffled(boxes, "a", 10), shuffled(boxes, "b", 10))
    assert {tuple(b) for b in shuffled(boxes, "a", 99)} == {tuple(b) for b in boxes}


def test_unknown_method_and_opencv_without_contrib(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no proposal method is called 'edges'"):
        check_method("edges")
    monkeypatch.delattr(cv2, "ximgproc")
    check_method("windows")
    with pytest.raises(ValueError, match="install that one"):
        check_method("selective-search-fast")


def test_recall_counts_by_hand() -> None:
    record = {
        "image_id": 1,
        "annotations": [
            {"bbox": [0, 0, 10, 10], "bbox_mode": BoxMode.XYWH_ABS},
            {"bbox": [40, 40, 10, 10], "bbox_mode": BoxMode.XYWH_ABS},
            {"bbox": [0, 0, 90, 90], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1},
        ],
    }
    # IoU of the first with [0, 0, 10, 5]: 50 / 100.
    proposals = [ImageProposals("1", np.array([[0, 0, 10, 5]], np.float32), np.zeros(1))]
    assert proposal_recall([record], proposals, 0.5) == (0.5, 2)
    assert proposal_recall([record], proposals, 0.51) == (0.0, 2)
    recall, num_boxes = proposal_recall([{"image_id": 1}], proposals)
    assert np.isnan(recall)
    assert num_boxes == 0


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Five image files, two a chunk."""
    monkeypatch.setattr(computation, "CHUNK_SIZE", 2)
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), scene(seed=i))
    return [{"file_name": str(tmp_path / f"{i}.png"), "image_id": i} for i in range(5)]


@pytest.mark.parametrize("num_processes", [0, 2])
def test_computation_is_the_same_in_any_number_of_processes(
    records: list[dict[str, Any]], tmp_path: Path, num_processes: int
) -> None:
    settings = ProposalSettings(max_proposals=9)
    expected = [computation.propose(record, settings) for record in records]
    output = tmp_path / "out.npz"
    proposals = compute_proposals(records, output, settings, num_processes)
    assert same(proposals, expected)
    assert same(read_proposals(output), expected)
    assert not Path(f"{output}.parts").exists()
    assert all(len(p.boxes) <= 9 for p in proposals)
    assert all((np.diff(p.objectness_logits) < 0).all() for p in proposals)


def test_threads_of_opencv_do_not_block_forked_workers(
    records: list[dict[str, Any]], tmp_path: Path
) -> None:
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 0)  # starts the threads
        settings = ProposalSettings("windows", max_proposals=9)
        assert len(compute_proposals(records, tmp_path / "out.npz", settings, 2)) == 5
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(num_threads)


def test_a_stopped_computation_goes_on(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, settings = tmp_path / "out.npz", ProposalSettings("windows")
    seen: list[int] = []
    propose = computation.propose

    def stop_at_four(record: dict[str, Any], settings: ProposalSettings) -> ImageProposals:
        if record["image_id"] == 4 and seen.count(4) == 0:
            seen.append(4)
            raise KeyboardInterrupt
        seen.append(record["image_id"])
        return propose(record, settings)

    monkeypatch.setattr(computation, "propose", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        compute_proposals(records, output, settings, 0)
    assert not output.exists()
    with pytest.raises(ValueError, match="other settings or images"):
        compute_proposals(records, output, ProposalSettings("selective-search-fast"), 0)
    compute_proposals(records, output, settings, 0)
    assert seen == [0, 1, 2, 3, 4, 4]
    assert [p.image_id for p in read_proposals(output)] == ["0", "1", "2", "3", "4"]


def test_loaders_and_mapper_read_the_files(tmp_path: Path, cfg) -> None:
    name = "proposal_test_set"
    records = DatasetCatalog.get("generated_24_val")[:3]
    DatasetCatalog.register(name, lambda: [dict(record) for record in records])
    try:
        file = tmp_path / "p.npz"
        compute_proposals(records, file, ProposalSettings("windows", 50), 0)
        cfg.MODEL.LOAD_PROPOSALS = True
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
        cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = (str(file),)
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
        cfg.SOLVER.IMS_PER_BATCH = 2
        for batch in (
            next(iter(build_train_loader(cfg, seed=0))),
            next(iter(build_test_loader(cfg, name))),
        ):
            for sample in batch:
                proposals = sample["proposals"]
                assert 40 <= len(proposals) <= 50
                assert proposals.image_size == tuple(sample["image"].shape[1:])
        mapped = DetectionMapper(cfg, False)(load_proposals([dict(records[0])], file)[0])
        scale = mapped["image"].shape[2] / records[0]["width"]
        widest = mapped["proposals"].proposal_boxes.tensor[:, 2].max()
        assert widest == pytest.approx(records[0]["width"] * scale, rel=0.05)
    finally:
        DatasetCatalog.remove(name)
