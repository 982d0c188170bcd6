# SPDX-License-Identifier: Apache-2.0
"""Prova's class head against loops, and where its prototypes come from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from vastdet.detr.federated_loss import FederatedLoss
from vastdet.detr.heads import class_head
from vastdet.detr.losses import FocalLoss
from vastdet.models.prova.prototypes import (
    AlignmentHead,
    PrototypeClassifier,
    PrototypeLabels,
    Prototypes,
)
from vastdet.models.prova.prova import build_criterion, federated_weights, load_prototypes
from vastdet.text import CategoryEmbeddings, random_embeddings, save_category_embeddings
from vastdet.vocabulary import CategorySpace

SCALE = 7.0
SPACE = CategorySpace(names=("bolt", "nut", "nut", "gear"), dataset_ids=(3, 9, 4, 70))


def classifier(*, learned: bool = False) -> PrototypeClassifier:
    """C = 5, K = 4, prototypes of 6 and of 3 numbers; weights of the size of 1."""
    torch.manual_seed(0)
    sources = [Prototypes(torch.randn(4, dim), learned=learned) for dim in (6, 3)]
    alignments = [AlignmentHead(5, prototypes, scale=SCALE) for prototypes in sources]
    return PrototypeClassifier(class_head(5, 4), alignments).double()


def cosine(one: Tensor, other: Tensor) -> float:
    dot = sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))
    lengths = [sum(a * a for a in v.tolist()) ** 0.5 for v in (one, other)]
    return dot / (lengths[0] * lengths[1])


@torch.no_grad()
def test_logits_are_the_mean_of_a_linear_layer_and_two_cosines() -> None:
    head = classifier()
    features = torch.randn(2, 3, 5, dtype=torch.float64)
    logits = head(features)
    assert logits.shape == (2, 3, 4)
    largest = 0.0
    for b in range(2):
        for q in range(3):
            x = features[b, q]
            for k in range(4):
                total = float(head.linear.weight[k] @ x + head.linear.bias[k])
                for alignment in head.alignments:
                    row = alignment.prototypes.rows[k]
                    total += SCALE * cosine(alignment.projection.weight @ x, row)
                largest = max(largest, abs(total / 3 - logits[b, q, k].item()))
    print(f"largest difference {largest:.1e}")
    assert largest < 1e-12  # Measured: 1.3e-15.


@torch.no_grad()
def test_cosines_stay_within_the_scale_and_reach_it() -> None:
    alignment = classifier().alignments[0]
    rows, projection = alignment.prototypes.rows, alignment.projection.weight
    logits = alignment(1000 * torch.randn(50, 5, dtype=torch.float64))
    assert logits.abs().max() <= SCALE * (1 + 1e-12)
    # A feature that is projected onto a prototype has its cosine at 1.
    alignment.prototypes.rows.copy_((projection @ torch.ones(5, dtype=torch.float64)).expand(4, 6))
    assert rows is alignment.prototypes.rows
    torch.testing.assert_close(
        alignment(torch.ones(5, dtype=torch.float64)), torch.full((4,), SCALE, dtype=torch.float64)
    )


def test_gradients_reach_features_and_every_parameter() -> None:
    head = classifier(learned=True)
    features = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    parameters = dict(head.named_parameters())
    assert len(parameters) == 6

    def logits(features: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(head, named, (features,))

    assert torch.autograd.gradcheck(logits, (features, *parameters.values()))


def test_fixed_prototypes_are_kept_but_not_learned() -> None:
    fixed, learned = classifier(), classifier(learned=True)
    assert len(list(fixed.parameters())) == 4
    assert fixed.state_dict().keys() == learned.state_dict().keys()
    features = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(fixed(features), learned(features), rtol=0, atol=1e-14)
    with torch.no_grad():
        learned.alignments[1].prototypes.rows.mul_(-2)
    assert not torch.allclose(fixed(features), learned(features))
    fixed.load_state_dict(learned.state_dict())
    torch.testing.assert_close(fixed(features), learned(features), rtol=0, atol=1e-14)


def test_labels_become_projections_of_their_prototypes() -> None:
    torch.manual_seed(0)
    prototypes = Prototypes(torch.randn(40, 30), learned=False)
    labels = PrototypeLabels(prototypes, 16)
    wanted = torch.tensor([[7, 7, 0], [39, 2, 1]])
    contents = labels(wanted)
    assert contents.shape == (2, 3, 16)
    for place in ((0, 0), (0, 2), (1, 1)):
        row = prototypes.rows[wanted[place]]
        expected = torch.stack([row @ weight for weight in labels.projection.weight])
        torch.testing.assert_close(contents[place], expected)
    # As large as the rows of a table that is learned.
    assert 0.8 < labels(torch.arange(40)).std().item() < 1.2


@pytest.fixture
def prova(cfg: CfgNode) -> CfgNode:
    """The config of a model whose training set has the categories `SPACE`."""
    name = "prova_test"
    if name not in MetadataCatalog:
        MetadataCatalog.get(name).category_space = SPACE
    cfg.DATASETS.TRAIN = (name,)
    cfg.MODEL.PROVA.NUM_CLASSES = len(SPACE)
    return cfg


@pytest.fixture
def write(prova: CfgNode, tmp_path: Path) -> Callable[[CategoryEmbeddings], str]:
    """Saves embeddings and names their file in the config."""

    def save(embeddings: CategoryEmbeddings) -> str:
        path = str(tmp_path / "prototypes.safetensors")
        save_category_embeddings(path, embeddings)
        prova.MODEL.PROVA.VISUAL_PROTOTYPES = path
        return path

    return save


def reordered(embeddings: CategoryEmbeddings, order: list[int]) -> CategoryEmbeddings:
    return replace(
        embeddings,
        rows=embeddings.rows[order],
        names=tuple(embeddings.names[i] for i in order),
        dataset_ids=tuple(embeddings.dataset_ids[i] for i in order),
    )


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 0, 1], [1, 3, 2, 0]])
def test_rows_are_found_whatever_their_order(
    prova: CfgNode, write: Callable[[CategoryEmbeddings], str], order: list[int]
) -> None:
    embeddings = random_embeddings(SPACE, 6, seed=0)
    write(reordered(embeddings, order))
    rows = load_prototypes(prova, "VISUAL_PROTOTYPES").rows
    torch.testing.assert_close(rows, embeddings.rows, rtol=0, atol=1e-7)


def test_a_category_that_is_missing_or_named_otherwise_is_an_error(
    prova: CfgNode, write: Callable[[CategoryEmbeddings], str]
) -> None:
    embeddings = random_embeddings(SPACE, 6, seed=0)
    write(reordered(embeddings, [0, 1, 3]))
    with pytest.raises(ValueError, match=r"1 of the 4 categories have no .* id 4 'nut'"):
        load_prototypes(prova, "VISUAL_PROTOTYPES")
    write(replace(embeddings, names=("bolt", "nut", "nut", "cog")))
    with pytest.raises(ValueError, match="id 70, 'gear' here and 'cog' there"):
        load_prototypes(prova, "VISUAL_PROTOTYPES")


def test_random_prototypes_have_to_be_asked_for(prova: CfgNode) -> None:
    node = prova.MODEL.PROVA
    with pytest.raises(ValueError, match=r"MODEL\.PROVA\.TEXTUAL_PROTOTYPES is empty; name a"):
        load_prototypes(prova, "TEXTUAL_PROTOTYPES")
    for wrong in ("random:", "random:0", "random:many"):
        node.TEXTUAL_PROTOTYPES = wrong
        with pytest.raises(ValueError, match="expected a number"):
            load_prototypes(prova, "TEXTUAL_PROTOTYPES")
    node.TEXTUAL_PROTOTYPES = "random:9"
    rows = load_prototypes(prova, "TEXTUAL_PROTOTYPES").rows
    assert rows.shape == (4, 9)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))


def test_files_that_do_not_fit_are_errors(
    prova: CfgNode, write: Callable[[CategoryEmbeddings], str]
) -> None:
    node = prova.MODEL.PROVA
    node.VISUAL_PROTOTYPES = "no/such.safetensors"
    with pytest.raises(FileNotFoundError, match=r"VISUAL_PROTOTYPES: there is no file no/such"):
        load_prototypes(prova, "VISUAL_PROTOTYPES")
    write(random_embeddings(SPACE, 6, seed=0))
    node.NUM_CLASSES = 5
    with pytest.raises(ValueError, match=r"the 4 categories of 'prova_test', .* is 5; make it 4"):
        load_prototypes(prova, "VISUAL_PROTOTYPES")
    prova.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN, which is empty"):
        load_prototypes(prova, "VISUAL_PROTOTYPES")


def test_the_federated_loss_of_the_swin_recipe(prova: CfgNode) -> None:
    loss = prova.MODEL.PROVA.LOSS
    assert isinstance(build_criterion(prova).class_loss, FocalLoss)
    loss.FED_LOSS_NUM_CLASSES = 3
    prova.DATASETS.TRAIN = ("prova_counted_test",)
    counted = replace(SPACE, image_counts=(1, 4, 9, 16))
    MetadataCatalog.get("prova_counted_test").category_space = counted
    criterion = build_criterion(prova)
    assert isinstance(criterion.class_loss, FederatedLoss)
    assert isinstance(criterion.proposal_class_loss, FocalLoss)
    drawn = criterion.class_loss.draw(torch.tensor([2]), 4).tolist()
    assert len(drawn) == 3
    assert 2 in drawn
    assert federated_weights(prova.DATASETS.TRAIN, 0.5).tolist() == [1.0, 2.0, 3.0, 4.0]
    MetadataCatalog.remove("prova_counted_test")


def test_a_federated_loss_needs_numbers_of_images(prova: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"'prova_test' does not state how many of its images"):
        federated_weights(prova.DATASETS.TRAIN, 0.5)
    with pytest.raises(ValueError, match=r"FED_LOSS_NUM_CLASSES needs .* DATASETS\.TRAIN"):
        federated_weights((), 0.5)
