# SPDX-License-Identifier: Apache-2.0
"""CQ-DINO as a whole: ranks, warm-up, outputs, the two stages of its training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tests.models.architectures import NUM_CLASSES, cq_dino
from tests.models.test_architectures import sample
from torch import Tensor

from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import class_count_key
from vastdet.models.cq_dino import (
    CQDINO,
    AsymmetricLoss,
    CQDINOSelector,
    SelectedCategories,
    preset,
)
from vastdet.models.cq_dino.category_queries import (
    CategorySelfAttention,
    ReleasedSelfAttention,
    initial_embedding,
)
from vastdet.models.cq_dino.category_side import category_recall, ranks_of
from vastdet.text import random_embeddings, save_category_embeddings
from vastdet.vocabulary import CategorySpace


def small(cfg: CfgNode, *, architecture: str = "CQDINO", **options: Any) -> Any:
    cq_dino(cfg)
    cfg.MODEL.META_ARCHITECTURE = architecture
    for key, value in options.items():
        cfg.MODEL.CQ_DINO.SELECTION[key] = value
    torch.manual_seed(0)
    return build_model(cfg)


def test_ranks_by_hand() -> None:
    labels = torch.tensor([[5, 2, 9], [0, 0, 1]])
    indices = torch.tensor([[9, 5], [1, 7]])
    assert ranks_of(labels, indices).tolist() == [[1, -1, 0], [-1, -1, 0]]


def test_recall_counts_categories_not_boxes() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    best = logits.topk(2)
    selected = SelectedCategories(best.indices, torch.zeros(2, 2, 1), best.values, logits)
    present = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]]).bool()
    # Half of the first image's two, all of the second's one.
    assert category_recall(selected, present) == pytest.approx(3 / 4)
    present[0] = False
    assert category_recall(selected, present) == 1
    assert category_recall(selected, torch.zeros_like(present)) is None


@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_the_authors_add_up_what_the_paper_averages(num_images: int) -> None:
    torch.manual_seed(0)
    logits, present = torch.randn(num_images, 6), torch.rand(num_images, 6) < 0.4
    selected = SelectedCategories(
        torch.zeros(num_images, 1, dtype=torch.int64),
        torch.zeros(num_images, 1, 1),
        logits[:, :1],
        logits,
    )
    total = float(AsymmetricLoss()(logits, present))
    for name, expected in (("paper", 0.6 * total / num_images), ("official", 0.3 * total)):
        parts = preset(name)
        criterion = parts.selection_criterion(parts.loss(), mask=None, weight=0.6)
        found = criterion(selected, present)["loss_selection"]
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_classes_are_categories_and_the_selected_ones_are_told(cfg: CfgNode) -> None:
    model = small(cfg).eval()
    with torch.no_grad():
        output = model([sample()])[0]
    chosen, scores = output["selected_categories"], output["selection_scores"]
    assert chosen.shape == scores.shape == (2,)
    assert scores[0] >= scores[1]
    assert set(output["instances"].pred_classes.tolist()) <= set(chosen.tolist())
    assert len(output["instances"]) > 0


def test_a_category_that_was_not_selected_is_in_no_class_loss(cfg: CfgNode) -> None:
    model = small(cfg, NUM_SELECTED=1).train()
    batch = [sample()]
    targets = model.targets(batch)
    torch.manual_seed(0)
    predictions = model.predict_padded([model.normalize(batch[0]["image"])], targets)
    with EventStorage() as storage:
        losses = model.losses(predictions, targets)
        recall = storage.latest()["category_recall"][0]
    assert recall == pytest.approx(1 / 3)
    # With no label at all the class loss is less: that of the one box whose category was selected.
    nobody = predictions.selected.indices + 100
    without = model.criterion(predictions, targets_with_ranks(targets, nobody))
    assert without["loss_class"] < losses["loss_class"]
    assert all(torch.isfinite(loss) for loss in (*losses.values(), *without.values()))


def targets_with_ranks(targets: Any, indices: Tensor) -> Any:
    from dataclasses import replace

    return replace(targets, labels=ranks_of(targets.labels, indices))


def test_warm_up_selects_the_categories_of_the_image(cfg: CfgNode) -> None:
    model = small(cfg, NUM_SELECTED=1, WARMUP_ITERS=5).train()
    boxes = torch.tensor([[4.0, 6.0, 24.0, 30.0]])
    for label in range(NUM_CLASSES):
        record = sample(boxes)
        record["instances"].gt_classes[:] = label
        targets = model.targets([record])
        image = [model.normalize(record["image"])]
        with EventStorage(4):
            chosen = model.predict_padded(image, targets).selected
        assert chosen.indices.tolist() == [[label]]
        with EventStorage(5):
            later = model.predict_padded(image, targets).selected
        assert later.indices.item() == later.all_logits.argmax()


def test_second_stage_takes_up_the_first_by_name(cfg: CfgNode, tmp_path: Path) -> None:
    first = small(cfg.clone(), architecture="CQDINOSelector")
    VastdetCheckpointer(first, str(tmp_path)).save("stage1")
    second = small(cfg.clone())
    changed = {n: p.clone() for n, p in second.named_parameters()}
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1)
    VastdetCheckpointer(second).load(str(tmp_path / "stage1.pth"), checkpointables=[])
    state = second.state_dict()
    loaded = [n for n, value in first.state_dict().items() if torch.equal(state[n], value)]
    assert loaded == list(first.state_dict())
    others = [n for n in changed if n not in first.state_dict()]
    assert all(n.startswith(("neck.", "transformer.", "prompt_proj.")) for n in others)
    assert all(torch.equal(state[n], changed[n] + 1) for n in others)


def test_prompt_of_seen_and_own_queries_by_hand(cfg: CfgNode) -> None:
    cq_dino(cfg)
    cfg.MODEL.CQ_DINO.CATEGORY.PROMPT = "seen_and_own"
    torch.manual_seed(0)
    model = build_model(cfg)
    pixels = model.padded_batch([model.normalize(sample()["image"])])
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            features = model.backbone(pixels[0])[model.selection_feature]
            categories = model.select(features, pixels[1], None)
            tokens = model.prompt_proj(categories)[0]
            proj, own = model.prompt_proj, model.categories.queries()
            for token, seen, index in zip(
                tokens,
                categories.selected.queries[0],
                categories.selected.indices[0],
                strict=True,
            ):
                by_hand = proj.weight @ seen + proj.bias + proj.own_proj.weight @ own[index]
                assert (token - by_hand).abs().max() < 1e-5


def test_first_stage_learns_from_image_labels_alone(cfg: CfgNode) -> None:
    model: CQDINOSelector = small(cfg, architecture="CQDINOSelector", NUM_SELECTED=1).train()
    boxes = torch.tensor([[4.0, 6.0, 60.0, 70.0]])
    batch = [sample(boxes, seed=k) for k in range(NUM_CLASSES)]
    for k, record in enumerate(batch):
        record["instances"].gt_classes[:] = k
        record["image"][k, 6:70, 4:60] = 255
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    with EventStorage() as storage:
        for _ in range(60):
            losses = model(batch)
            assert list(losses) == ["loss_selection"]
            optimizer.zero_grad()
            losses["loss_selection"].backward()
            optimizer.step()
        assert storage.latest()["category_recall"][0] == 1.0
    model.eval()
    with torch.no_grad():
        outputs = model(batch)
    assert [x["selected_categories"].tolist() for x in outputs] == [[0], [1], [2]]
    assert [len(x["instances"]) for x in outputs] == [0, 0, 0]
    assert outputs[0]["instances"].image_size == (96, 96)


def test_first_stage_has_the_class_count_of_the_detector(cfg: CfgNode) -> None:
    for architecture in ("CQDINO", "CQDINOSelector"):
        cfg.MODEL.META_ARCHITECTURE = architecture
        assert class_count_key(cfg) == "MODEL.CQ_DINO.NUM_CLASSES"


def test_released_self_attention_is_two_linear_layers() -> None:
    torch.manual_seed(0)
    released, own = ReleasedSelfAttention(16), CategorySelfAttention(16)
    queries = torch.randn(5, 16)
    value = torch.nn.functional.linear(
        queries,
        released.self_attn.in_proj_weight[32:],
        released.self_attn.in_proj_bias[32:],
    )
    expected = released.norm(queries + released.self_attn.out_proj(value))
    assert (released(queries) - expected).abs().max() < 1e-6
    own.load_state_dict(released.state_dict())
    others = queries.clone()
    others[1:] += 1
    assert torch.equal(released(queries)[0], released(others)[0])
    assert not torch.allclose(own(queries)[0], own(others)[0], atol=1e-3)


def test_embeddings_are_found_by_id_and_name(tmp_path: Path) -> None:
    space = CategorySpace.from_names(["a", "b", "c"])
    rows = random_embeddings(space, 8, seed=0)
    backwards = CategorySpace(names=("c", "b", "a"), dataset_ids=(3, 2, 1), synonyms=((),) * 3)
    path = str(tmp_path / "names.safetensors")
    save_category_embeddings(path, rows.restricted_to(backwards))
    assert torch.equal(initial_embedding(path, space, 8, key="DIM"), rows.rows)
    assert torch.equal(initial_embedding("random", space, 8, key="DIM"), rows.rows)
    with pytest.raises(ValueError, match=r"8 numbers, but MODEL.X is 7; set it to 8"):
        initial_embedding(path, space, 7, key="MODEL.X")
    with pytest.raises(ValueError, match="compute_category_embeddings"):
        initial_embedding("", space, 8, key="DIM")
    with pytest.raises(FileNotFoundError, match=r"no file .*none.* tools/compute_category_emb"):
        initial_embedding(str(tmp_path / "none.safetensors"), space, 8, key="DIM")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"VOCABULARY": ""}, "VOCABULARY to a registered dataset"),
        ({"VOCABULARY": "generated_24_trian"}, r"no dataset .*; did you mean generated_24_train"),
        ({"VOCABULARY": "§"}, r"VOCABULARY: there is no dataset '§', nor a .json; register it"),
        ({"NUM_CLASSES": 4}, "NUM_CLASSES is 4, but vastdet_small_tree has 3 categories"),
        ({"PRESET": "mine"}, "no preset 'mine'"),
        ({"CATEGORY.CORRELATION": "graph"}, "expected 'tree', 'self_attention' or 'none'"),
        ({"CATEGORY.PROMPT": "own"}, "PROMPT is 'own'; expected one of seen, seen_and_own"),
        ({"CATEGORY.TREE_WEIGHT": "half"}, "expected 'adaptive' or 'fixed'"),
        ({"SELECTION.NUM_SELECTED": 0}, "num_selected must be 1 or more"),
        (
            {"SELECTION.NUM_SELECTED": 4},
            "CQ_DINO.SELECTION.NUM_SELECTED is 4, but there are only 3 categories; "
            "set it to 3 or less",
        ),
    ],
)
def test_bad_settings_are_explained(cfg: CfgNode, change: dict[str, Any], message: str) -> None:
    cq_dino(cfg)
    cfg.merge_from_list([x for k, v in change.items() for x in (f"MODEL.CQ_DINO.{k}", v)])
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_a_tree_needs_a_hierarchy(cfg: CfgNode, tmp_path: Path) -> None:
    cq_dino(cfg)
    path = str(tmp_path / "space.json")
    CategorySpace.from_names(["a", "b", "c"]).save(path)
    cfg.MODEL.CQ_DINO.VOCABULARY = path
    with pytest.raises(ValueError, match="have no hierarchy"):
        build_model(cfg)
    cfg.MODEL.CQ_DINO.CATEGORY.CORRELATION = "none"
    assert isinstance(build_model(cfg), CQDINO)
