# SPDX-License-Identifier: Apache-2.0
"""How well a trained CQ-DINO tells its categories apart, beside the class weights of its DINO twin.

Of the queries, of what they become when they have seen an image, of the tokens of the prompt and of
the twin's classifier: the effective rank (the exponential of the entropy of the squared singular
values) of the rows less their mean, and the mean cosine of pairs of categories that share their
last words (a shape), the two before (a colour and a pattern: a fill), or neither.

    python benchmarks/category_separation.py
"""

import argparse
from itertools import combinations

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor
from torch.nn import functional as F

from vastdet import model_zoo
from vastdet.data.loader import build_test_loader
from vastdet.engine.config_files import choose_device, merge_opts
from vastdet.engine.model_benchmark import load_model

CQ, DINO = "quick/cq_dino_kinds.yaml", "quick/dino_kinds.yaml"
CLASSIFIER = "transformer.decoder.class_heads.0.weight"
NUM_PAIRED = 400


def effective_rank(rows: Tensor) -> float:
    """Between 1 and the number of channels: over how many directions rows (C, D) spread."""
    power = torch.linalg.svdvals(rows - rows.mean(dim=0)).square()
    share = power / power.sum()
    return float(torch.special.entr(share).sum().exp())


def pairs_by_kind(names: list[str]) -> dict[str, Tensor]:
    """Kind -> pairs (P, 2) of categories of a fill and a shape, evenly drawn."""
    several = [i for i, name in enumerate(names) if len(name.split()) > 2]
    drawn = several[:: max(1, len(several) // NUM_PAIRED)]
    kinds: dict[str, list[tuple[int, int]]] = {"shape": [], "fill": [], "neither": []}
    for a, b in combinations(drawn, 2):
        fill, shape = names[a].split()[:2], names[a].split()[2:]
        other_fill, other_shape = names[b].split()[:2], names[b].split()[2:]
        kind = "shape" if shape == other_shape else "fill" if fill == other_fill else "neither"
        kinds[kind].append((a, b))
    return {kind: torch.tensor(pairs) for kind, pairs in kinds.items()}


@torch.no_grad()
def category_rows(num_images: int) -> dict[str, list[Tensor]]:
    """What -> matrices (C, D); one for each image of what depends on it."""
    cfg = choose_device(model_zoo.get_config(CQ, trained=True))
    num_classes = cfg.MODEL.CQ_DINO.NUM_CLASSES
    # All are selected, so that every category has a row.
    merge_opts(cfg, ["MODEL.CQ_DINO.SELECTION.NUM_SELECTED", num_classes])
    model = load_model(cfg).eval()
    rows: dict[str, list[Tensor]] = {
        "queries": [model.categories.queries()],
        "having seen the image": [],
        "tokens of the prompt": [],
    }
    loader = build_test_loader(cfg, cfg.DATASETS.TEST[0])
    for record, _ in zip((batch[0] for batch in loader), range(num_images), strict=False):
        pixels, mask = model.padded_batch([model.normalize(record["image"])])
        features = model.backbone(pixels)[model.selection_feature]
        categories = model.select(features, mask, None)
        order = categories.selected.indices[0].argsort()
        rows["having seen the image"].append(categories.selected.queries[0, order])
        rows["tokens of the prompt"].append(model.prompt_proj(categories)[0, order])
    twin = load_model(choose_device(model_zoo.get_config(DINO, trained=True)))
    rows["class weights of DINO"] = [twin.state_dict()[CLASSIFIER]]
    return rows


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10)
    options = parser.parse_args()
    cfg = model_zoo.get_config(CQ)
    names = list(MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes)
    pairs = pairs_by_kind(names)
    print(f"| rows | effective rank | {' | '.join(f'cosine, {kind}' for kind in pairs)} |")
    print("|---" * (2 + len(pairs)) + "|")
    for what, matrices in category_rows(options.images).items():
        ranks = [effective_rank(matrix) for matrix in matrices]
        cells = [f"{sum(ranks) / len(ranks):.1f}"]
        for pair in pairs.values():
            cosines = [F.cosine_similarity(*matrix[pair.T], dim=-1).mean() for matrix in matrices]
            cells.append(f"{sum(map(float, cosines)) / len(cosines):.2f}")
        print(f"| {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
