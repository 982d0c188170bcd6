# SPDX-License-Identifier: Apache-2.0
"""A shortlist: the same as all where it holds all, and almost the same where it is short."""

from functools import partial

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tests.models.test_architectures import sample
from tests.models.test_cq_dino import small as small_detector
from tests.models.test_cq_dino_scoring import LargestTensor, Queries, assert_same
from tests.models.test_cq_dino_selection import random_tokens
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.models.cq_dino import (
    AsymmetricLoss,
    CategorySelection,
    ClusteredKeys,
    ImageTokens,
    Shortlist,
    ShortlistSelection,
    TokenMatch,
    build_selection,
    category_to_image_layers,
    fit_match,
    match_loss,
)

WIDTH = 48


def small(num_selected: int = 12, shortlist: Shortlist | None = None) -> ShortlistSelection:
    torch.manual_seed(0)
    layers = category_to_image_layers(
        embed_dim=WIDTH, context_dim=40, num_heads=4, feedforward_dim=96, dropout=0.0
    )
    return ShortlistSelection(
        layers,
        TokenMatch(WIDTH, 40, key_dim=16),
        embed_dim=WIDTH,
        num_selected=num_selected,
        shortlist=shortlist,
    ).eval()


@pytest.mark.parametrize("size", [300, 299, 1000])
def test_a_shortlist_of_all_equals_the_whole(size: int) -> None:
    selection = small(shortlist=Shortlist(size, 1000))
    queries, tokens = torch.randn(300, WIDTH), random_tokens(3)
    with torch.no_grad():
        expected = selection(queries, tokens)
    got = selection(selection.prepare(queries), tokens)
    # One category of 300 is left out where the shortlist holds 299: not one of the best 12 here.
    assert_same(got, expected)
    assert got.losses == {}
    assert got.all_logits is None


def test_those_that_match_best_are_scored() -> None:
    selection = small(shortlist=Shortlist(20, 300))
    queries, tokens = torch.randn(300, WIDTH), random_tokens(2)
    with torch.no_grad():
        scores = selection.match(queries, tokens)
        logits = selection(queries, tokens).all_logits
    got = selection(selection.prepare(queries), tokens)
    for i in range(2):
        shortlisted = sorted(range(300), key=lambda k: -scores[i, k].item())[:20]
        expected = sorted(shortlisted, key=lambda k: -logits[i, k].item())[:12]
        assert got.indices[i].tolist() == expected


def test_the_match_of_the_best_token() -> None:
    match = TokenMatch(8, 6, key_dim=4)
    queries, tokens = torch.randn(5, 8), torch.randn(2, 3, 6)
    padding = torch.tensor([[False] * 3, [False, True, True]])
    scores = match(queries, ImageTokens(tokens, padding))
    keys = match.key_proj(queries)
    keys = keys / keys.norm(dim=1, keepdim=True)
    for i, seen in enumerate([[0, 1, 2], [0]]):
        vectors = match.token_proj(match.token_norm(tokens[i, seen]))
        for k in range(5):
            best = max((vector @ keys[k]).item() for vector in vectors)
            assert scores[i, k].item() == pytest.approx(best, abs=1e-5)


def test_padding_changes_nothing() -> None:
    selection = small(shortlist=Shortlist(20, 100))
    prepared = selection.prepare(torch.randn(300, WIDTH))
    tokens = random_tokens(2)
    alone = ImageTokens(tokens.values[1:, :6], tokens.padding_mask[1:, :6])
    together = selection(prepared, tokens)
    assert torch.equal(together.indices[1:], selection(prepared, alone).indices)


def test_clusters_hold_every_key_once() -> None:
    keys = F.normalize(torch.randn(500, 16), dim=1)
    clusters = ClusteredKeys.of(keys, 20)
    assert clusters.ids.sort().values.tolist() == list(range(500))
    assert torch.equal(clusters.keys, keys[clusters.ids])
    assert clusters.starts[0] == 0
    assert clusters.starts[-1] == 500
    again = ClusteredKeys.of(keys, 20)
    assert torch.equal(again.ids, clusters.ids)
    for cluster, center in enumerate(clusters.centers):
        own = clusters.keys[clusters.starts[cluster] : clusters.starts[cluster + 1]]
        assert ((own @ clusters.centers.T).amax(1) <= own @ center + 1e-6).all()


@pytest.mark.parametrize("num_vectors", [3, 40])
def test_few_scanned_keys_hold_almost_all_of_the_best(num_vectors: int) -> None:
    torch.manual_seed(0)
    # Directions around 100 centres, as names around their kinds.
    kinds = F.normalize(torch.randn(100, 16), dim=1)
    keys = F.normalize(kinds.repeat_interleave(50, 0) + 0.1 * torch.randn(5000, 16), dim=1)
    clusters = ClusteredKeys.of(keys, 70)
    vectors = torch.randn(num_vectors, 16)
    best = set((vectors @ keys.T).amax(0).topk(50).indices.tolist())
    one = ClusteredKeys.of(keys, 1).best(vectors, num_best=50, num_scanned=50)
    assert set(one.tolist()) == best
    # 40 vectors are more than are compared with each cluster.
    found = [
        len(set(clusters.best(vectors, num_best=50, num_scanned=n).tolist()) & best)
        for n in (5000, 500)
    ]
    assert found[0] >= 49
    assert found[1] >= 45


def test_equal_keys_and_empty_clusters() -> None:
    keys = F.normalize(torch.ones(30, 4), dim=1)
    clusters = ClusteredKeys.of(keys, 10)
    assert sorted(clusters.best(keys[:1], num_best=30, num_scanned=30).tolist()) == list(range(30))
    with pytest.raises(ValueError, match="30 keys cannot be in 31 clusters; give 1 to 30"):
        ClusteredKeys.of(keys, 31)


def test_time_and_memory_are_those_of_the_shortlist() -> None:
    selection = small(shortlist=Shortlist(64, 256))
    largest = []
    for num_categories in (5000, 20000):
        prepared = selection.prepare(torch.randn(num_categories, WIDTH))
        with LargestTensor() as counted:
            selection(prepared, random_tokens())
        largest.append(counted.num_elements)
    # 64 categories of 96 channels; the products of 9 tokens with a cluster are fewer.
    assert largest == [64 * 96] * 2


def test_only_the_match_learns_from_its_loss() -> None:
    selection = small().train()
    tokens = random_tokens()
    queries = torch.randn(25, WIDTH, requires_grad=True)
    values = tokens.values.requires_grad_()
    selected = selection(queries, ImageTokens(values, tokens.padding_mask))
    assert list(selected.losses) == ["loss_shortlist"]
    selected.losses["loss_shortlist"].backward()
    with_gradient = {n for n, p in selection.named_parameters() if p.grad is not None}
    assert with_gradient == {f"match.{n}" for n, _ in selection.match.named_parameters()}
    assert queries.grad is None
    assert values.grad is None
    with torch.no_grad():
        whole = CategorySelection.forward(selection, queries, tokens)
    assert torch.equal(whole.all_logits, selected.all_logits)


def test_the_loss_is_the_divergence() -> None:
    scores, logits = torch.randn(2, 7), torch.randn(2, 7)
    p, q = logits.double().softmax(-1), scores.double().softmax(-1)
    expected = (p * (p.log() - q.log())).sum() / 2
    assert match_loss(scores, logits).item() == pytest.approx(expected.item(), rel=1e-5)
    assert match_loss(logits + 3, logits).item() == pytest.approx(0, abs=1e-6)


def test_prepared_follow_the_match() -> None:
    selection, queries = small(shortlist=Shortlist(20, 20)), Queries(300)
    first = selection.prepared(queries)
    assert selection.prepared(queries) is first
    with torch.no_grad():
        selection.match.key_proj.weight.neg_()
    assert selection.prepared(queries) is not first


def separable(queries: Tensor, num_images: int, generator: torch.Generator) -> tuple:
    """Images of 4 categories; three tokens show the query of each, with as much noise, and five
    show noise alone."""
    num_categories, width = queries.shape
    shown = torch.randint(num_categories, (num_images, 4), generator=generator)
    present = torch.zeros(num_images, num_categories, dtype=torch.bool).scatter(1, shown, True)
    values = torch.randn(num_images, 17, width, generator=generator)
    values[:, :12] += queries[shown.repeat_interleave(3, dim=1)]
    return ImageTokens(values, torch.zeros(num_images, 17, dtype=torch.bool)), present


def recall(indices: Tensor, present: Tensor) -> float:
    return float((present.gather(1, indices).sum(1) / present.sum(1)).mean()) * 100


def test_recall_of_a_trained_match() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    # 60 kinds of categories, of which 300 are known in training and 5,700 come after it.
    kinds = torch.randn(60, 32)[torch.randint(60, (6000,))]
    queries = F.layer_norm(kinds + 0.7 * torch.randn(6000, 32), (32,))
    known = queries[:300]
    layers = category_to_image_layers(
        embed_dim=32, context_dim=32, num_heads=2, feedforward_dim=64, dropout=0.0
    )
    for layer in layers:
        # Learning what to look at takes a thousand steps; here it is where it looks at the start.
        nn.init.eye_(layer.cross_attn.query_proj.weight)
        nn.init.eye_(layer.cross_attn.key_proj.weight)
    selection = ShortlistSelection(
        layers, TokenMatch(32, 32, key_dim=32), embed_dim=32, num_selected=20
    )
    optimizer = torch.optim.AdamW(selection.parameters(), 5e-3)
    loss = AsymmetricLoss()
    make = partial(separable, known, 8, generator)
    for _ in range(80):
        tokens, present = make()
        optimizer.zero_grad()
        loss(selection(known, tokens).all_logits, present).backward()
        nn.utils.clip_grad_norm_(selection.parameters(), 1.0)
        optimizer.step()
    selection.eval()
    with torch.no_grad():
        batches = [(x, selection(known, x).all_logits) for x, _ in (make() for _ in range(40))]
    fit_match(selection.match, known, batches, num_steps=200)
    tokens, present = separable(known, 40, torch.Generator().manual_seed(1))
    for all_queries, limits in ((known, Shortlist(60, 300)), (queries, Shortlist(400, 2000))):
        with torch.no_grad():
            whole = selection(all_queries, tokens)
        selection.limits = limits
        short = selection(selection.prepare(all_queries), tokens)
        labels = F.pad(present, (0, len(all_queries) - 300))
        expected, got = recall(whole.indices, labels), recall(short.indices, labels)
        # By chance: 6.7 and 0.3. A shortlist may find more than all, where what matches badly would
        # have scored well.
        assert expected > 15
        assert got >= expected - 1


def test_in_the_detector(cfg: CfgNode) -> None:
    exact = small_detector(cfg.clone()).eval()
    model = small_detector(cfg, NAME="shortlist", SCORING="bfloat16")
    with EventStorage():
        losses = model.train()([sample()])
    assert losses["loss_shortlist"] > 0
    with torch.no_grad():
        model.load_state_dict(exact.state_dict(), strict=False)
        (expected,), (got,) = exact([sample()]), model.eval()([sample()])
    assert isinstance(model.categories.selection, ShortlistSelection)
    assert torch.equal(got["selected_categories"], expected["selected_categories"])
    # Products of other sizes may round otherwise.
    largest = (got["instances"].scores - expected["instances"].scores).abs().max().item()
    print(f"largest difference of a score {largest:.1e}")
    assert largest < 1e-6


def test_selections_by_name() -> None:
    layers = partial(category_to_image_layers, embed_dim=WIDTH, context_dim=40, feedforward_dim=96)
    build = partial(build_selection, embed_dim=WIDTH, context_dim=40)
    exact = build("exact", layers(), num_selected=7, chunk_size=5)
    assert type(exact) is CategorySelection
    assert (exact.num_selected, exact.chunk_size, exact.scoring.dtype) == (7, 5, None)
    short = build("shortlist", layers(), scoring="bfloat16", key_dim=12)
    assert isinstance(short, ShortlistSelection)
    assert short.scoring.dtype is torch.bfloat16
    assert short.match.key_proj.out_features == 12
    for name, scoring in (("beam", "full"), ("exact", "int8")):
        with pytest.raises(ValueError, match=f"selection '{name}' with scoring '{scoring}'"):
            build(name, layers(), scoring=scoring)


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="size 10 from 9 scanned keys"):
        Shortlist(10, 9)
    with pytest.raises(ValueError, match="shortlist of 11 for 12 selected categories and a margin"):
        small(shortlist=Shortlist(11, 100))
    selection = small()
    with pytest.raises(ValueError, match="12 categories are to be selected of 11"):
        selection.prepare(torch.randn(11, WIDTH))
    prepared = CategorySelection.prepare(selection, torch.randn(2000, WIDTH))
    with pytest.raises(ValueError, match="prepared by another selection"):
        selection(prepared, random_tokens())
    required = torch.zeros(2, 25, dtype=torch.bool)
    with pytest.raises(ValueError, match="no prepared category can be required"):
        selection(selection.prepare(torch.randn(25, WIDTH)), random_tokens(), required)
