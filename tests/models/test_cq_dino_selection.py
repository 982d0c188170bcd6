# SPDX-License-Identifier: Apache-2.0
"""Selection of categories against the authors' outputs, in pieces, and with padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.cq_dino_reference import hierarchy_of, read
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.models.cq_dino import (
    CategorySelection,
    ImageTokens,
    MeanAndCells,
    UnmaskedMeanAndCells,
    category_to_image_layers,
    preset,
)

# Ours: the authors', within a layer of their head.
LAYER_NAMES = {
    "cross_attn.query_proj": "crossattention.self.query",
    "cross_attn.key_proj": "crossattention.self.key",
    "cross_attn.value_proj": "crossattention.self.value",
    "cross_attn.out_proj": "crossattention.output.dense",
    "cross_attn_norm": "crossattention.output.LayerNorm",
    "ffn.linear1": "intermediate.dense",
    "ffn.linear2": "output.dense",
    "ffn_norm": "output.LayerNorm",
}


def small_selection(
    *, num_selected: int = 12, chunk_size: int | None = None, dropout: float = 0.0
) -> CategorySelection:
    layers = category_to_image_layers(
        embed_dim=48, context_dim=40, num_heads=4, feedforward_dim=96, dropout=dropout
    )
    return CategorySelection(layers, embed_dim=48, num_selected=num_selected, chunk_size=chunk_size)


def load_authors(selection: CategorySelection, tokens: MeanAndCells, state: dict) -> None:
    renamed = {"score.weight": state["fc.weight"], "score.bias": state["fc.bias"]}
    for i in range(len(selection.layers)):
        for ours, theirs in LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                source = state[f"tagging_head.encoder.layer.{i}.{theirs}.{kind}"]
                renamed[f"layers.{i}.{ours}.{kind}"] = source
    selection.load_state_dict(renamed)
    kinds = ("weight", "bias")
    tokens.proj.load_state_dict({kind: state[f"image_proj.{kind}"] for kind in kinds})


def authors_queries(reference: dict[str, Any]) -> Tensor:
    """Projected embeddings, mixed by the tree and normalised, as their selection takes them."""
    state = reference["state_dict"]
    projected = F.linear(
        state["label_embed"], state["wordvec_proj.weight"], state["wordvec_proj.bias"]
    )
    mixed = preset("official").tree(hierarchy_of(reference["tree_rows"]))(projected.relu())
    return F.layer_norm(mixed, (48,), state["label_norm.weight"], state["label_norm.bias"])


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_authors(shared_data: Path, chunk_size: int | None, dtype: torch.dtype) -> None:
    reference = read(shared_data, "selection")
    state = {name: value.to(dtype) for name, value in reference["state_dict"].items()}
    selection = small_selection(chunk_size=chunk_size).eval().to(dtype)
    make_tokens = preset("official").image_tokens(256, 40).to(dtype)
    load_authors(selection, make_tokens, state)
    features = reference["image_feat"].to(dtype)
    no_padding = torch.zeros(3, *features.shape[-2:], dtype=torch.bool)
    with torch.no_grad():
        tokens = make_tokens(features, no_padding)
        queries = authors_queries({**reference, "state_dict": state})
        selected = selection(queries, tokens)
        seen = selection.see(queries[None], selection.context(tokens))
    expected = reference["tagging_embed_per_image"]
    # Their float32 is off by up to 6.1e-6 from the result in double precision, and ours by 5.9e-6,
    # of 4.4: both norms of a layer divide by deviations much below one. The root mean square of the
    # difference is 9.1e-7, in the scores 1.3e-6.
    for ours, theirs in ((seen, expected), (selected.all_logits, reference["logits_per_image"])):
        difference = (ours - theirs).abs()
        assert difference.max() <= 1e-5
        assert difference.square().mean().sqrt() <= 1.5e-6
    # The scores of two neighbours in rank differ by 9e-4 or more.
    assert torch.equal(selected.indices, reference["indices_per_image"])
    chosen = torch.stack([x[i] for x, i in zip(expected, selected.indices, strict=True)])
    torch.testing.assert_close(selected.queries, chosen.to(dtype), rtol=0, atol=1e-5)


def test_layers_equal_torch() -> None:
    torch.manual_seed(0)
    (layer,) = category_to_image_layers(
        1, embed_dim=32, context_dim=20, num_heads=4, feedforward_dim=64
    )
    theirs = nn.MultiheadAttention(32, 4, kdim=20, vdim=20, batch_first=True)
    layer.eval(), theirs.eval()
    attention = layer.cross_attn
    theirs.load_state_dict(
        {
            "q_proj_weight": attention.query_proj.weight,
            "k_proj_weight": attention.key_proj.weight,
            "v_proj_weight": attention.value_proj.weight,
            "in_proj_bias": torch.zeros(96),
            "out_proj.weight": attention.out_proj.weight,
            "out_proj.bias": attention.out_proj.bias,
        }
    )
    queries, tokens = torch.randn(2, 6, 32), torch.randn(2, 9, 20)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 5:] = True
    x = F.layer_norm(
        queries + theirs(queries, tokens, tokens, key_padding_mask=padding)[0], (32,), eps=1e-12
    )
    hidden = F.gelu(x @ layer.ffn.linear1.weight.T)
    expected = F.layer_norm(x + hidden @ layer.ffn.linear2.weight.T, (32,), eps=1e-12)
    got = layer(queries, *attention.keys_and_values(tokens), padding[:, None, None])
    # Measured: 4.8e-7.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)


def random_tokens(num_images: int = 2) -> ImageTokens:
    padding = torch.zeros(num_images, 9, dtype=torch.bool)
    padding[-1, 6:] = True
    return ImageTokens(torch.randn(num_images, 9, 40), padding)


@pytest.mark.parametrize("shared", [True, False], ids=["shared queries", "queries of each image"])
@pytest.mark.parametrize("chunk_size", [1, 4, 25, 30])
def test_pieces_equal_the_whole(shared: bool, chunk_size: int) -> None:
    torch.manual_seed(0)
    whole = small_selection()
    pieces = small_selection(chunk_size=chunk_size)
    pieces.load_state_dict(whole.state_dict())
    tokens = random_tokens()
    queries = torch.randn(25, 48) if shared else torch.randn(2, 25, 48)
    weight = torch.randn(2, 12, 48)
    results = []
    for selection in (whole, pieces):
        own = queries.clone().requires_grad_()
        values = tokens.values.clone().requires_grad_()
        selected = selection(own, ImageTokens(values, tokens.padding_mask))
        loss = selected.all_logits.square().sum() + (selected.queries * weight).sum()
        gradients = torch.autograd.grad(loss, [own, values, *selection.parameters()])
        results.append((selected, gradients))
    (expected, their_gradients), (selected, gradients) = results
    assert torch.equal(selected.indices, expected.indices)
    # Measured: 1.2e-6 in queries and scores, 2.7e-5 in gradients, the largest of which is 74.
    torch.testing.assert_close(selected.queries, expected.queries, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(selected.all_logits, expected.all_logits, rtol=1e-5, atol=5e-6)
    for ours, theirs in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_best_are_chosen_best_first() -> None:
    torch.manual_seed(0)
    selected = small_selection(num_selected=5)(torch.randn(25, 48), random_tokens())
    for logits, indices, best in zip(
        selected.all_logits, selected.indices, selected.logits, strict=True
    ):
        order = sorted(range(25), key=lambda k: -logits[k].item())
        assert indices.tolist() == order[:5]
        assert torch.equal(best, logits[indices])


@pytest.mark.parametrize("chunk_size", [None, 10])
def test_required_categories_come_first(chunk_size: int | None) -> None:
    torch.manual_seed(0)
    selection = small_selection(num_selected=5, chunk_size=chunk_size)
    queries, tokens = torch.randn(25, 48), random_tokens()
    free = selection(queries, tokens)
    required = torch.zeros(2, 25, dtype=torch.bool)
    worst = free.all_logits[1].argmin()
    required[1, worst] = True
    selected = selection(queries, tokens, required)
    assert torch.equal(selected.indices[0], free.indices[0])
    assert selected.indices[1].tolist() == [worst, *free.indices[1, :4].tolist()]
    # Scores stay what they are.
    assert torch.equal(selected.logits, selected.all_logits.gather(1, selected.indices))


def test_all_categories_may_be_selected() -> None:
    selected = small_selection(num_selected=25)(torch.randn(25, 48), random_tokens())
    assert selected.indices.sort(dim=1).values.tolist() == [list(range(25))] * 2


@pytest.mark.parametrize("chunk_size", [None, 10])
def test_padding_changes_nothing(chunk_size: int | None) -> None:
    torch.manual_seed(0)
    make_tokens = MeanAndCells(16, 40)
    selection = small_selection(chunk_size=chunk_size).eval()
    queries = torch.randn(25, 48)
    features = torch.randn(1, 16, 3, 4)
    alone = selection(queries, make_tokens(features, torch.zeros(1, 3, 4, dtype=torch.bool)))
    padded = F.pad(features, (0, 2, 0, 1), value=50.0)
    mask = F.pad(torch.zeros(1, 3, 4, dtype=torch.bool), (0, 2, 0, 1), value=True)
    got = selection(queries, make_tokens(padded, mask))
    assert torch.equal(got.indices, alone.indices)
    # Measured: 7e-7 in the queries, 1e-6 in the scores.
    torch.testing.assert_close(got.queries, alone.queries, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(got.all_logits, alone.all_logits, rtol=1e-5, atol=5e-6)
    released = UnmaskedMeanAndCells(16, 40)
    released.load_state_dict(make_tokens.state_dict())
    leaking = selection(queries, released(padded, mask))
    assert (leaking.all_logits - alone.all_logits).abs().max() > 0.1


def test_tokens_of_a_map() -> None:
    make_tokens = MeanAndCells(6, 6)
    nn.init.eye_(make_tokens.proj.weight)
    features = torch.randn(2, 6, 2, 3)
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[1, :, 2] = True
    tokens = make_tokens(features, mask)
    torch.testing.assert_close(tokens.values[1, 0], features[1, :, :, :2].mean(dim=(1, 2)))
    torch.testing.assert_close(tokens.values[0, 0], features[0].mean(dim=(1, 2)))
    # Cells row by row after the mean.
    torch.testing.assert_close(tokens.values[0, 1 + 1 * 3 + 2], features[0, :, 1, 2])
    assert tokens.padding_mask[1].tolist() == [False, False, False, True, False, False, True]


def test_the_mean_of_a_large_half_precision_map() -> None:
    make_tokens = MeanAndCells(2, 2).half()
    nn.init.eye_(make_tokens.proj.weight)
    features = torch.full((1, 2, 40, 50), 100.0, dtype=torch.float16)
    tokens = make_tokens(features, torch.zeros(1, 40, 50, dtype=torch.bool))
    assert tokens.values[0, 0].tolist() == [100.0, 100.0]


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    make_tokens = MeanAndCells(16, 40)
    selection = small_selection(dropout=0.1, chunk_size=10)
    queries = torch.randn(25, 48, requires_grad=True)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    selected = selection(queries, make_tokens(torch.randn(2, 16, 3, 4), mask))
    (selected.all_logits.sum() + selected.queries.square().mean(dim=1).sum()).backward()
    without = [n for n, p in selection.named_parameters() if p.grad is None]
    assert without == []
    assert make_tokens.proj.weight.grad.abs().sum() > 0
    assert queries.grad.abs().sum(dim=1).min() > 0


def test_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="num_selected must be 1 or more, got 0"):
        small_selection(num_selected=0)
    with pytest.raises(ValueError, match="chunk_size must be 1 or more, got 0"):
        small_selection(chunk_size=0)
    with pytest.raises(ValueError, match="12 categories are to be selected of 11"):
        small_selection()(torch.randn(11, 48), random_tokens())
