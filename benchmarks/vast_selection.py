# SPDX-License-Identifier: Apache-2.0
"""Time, memory and recall of CQ-DINO's selection against the number of categories, 10^2 to 10^6.

`time` measures a selection with random weights beside DINO's classification head, `step` a training
step, `chunks` the choice of the chunk size, and `recall` a trained model, with the weights of
tools/fit_shortlist.py, whose vocabulary is filled up with made-up ones. `picture`
draws what they wrote. Times are of the processor, on one thread; calls take turns with the exact
selection among 1,000 categories, and ratios are those within a round.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

import vastdet  # noqa: F401  (registers models and datasets)
from vastdet.data.loader import build_train_loader
from vastdet.detr.heads import class_head
from vastdet.detr.tokens import resize_mask
from vastdet.engine.benchmarking import measure_memory
from vastdet.engine.checkpoint import VastdetCheckpointer
from vastdet.engine.config_files import load_config, with_all_weights
from vastdet.evaluation.plots import BLUE, GREY, ORANGE, VERMILION, new_figure, save, tidy
from vastdet.models.cq_dino import (
    HALF_PRECISION,
    AsymmetricLoss,
    CategorySelection,
    ImageTokens,
    PreparedCategories,
    Scoring,
    Shortlist,
    build_selection,
    category_to_image_layers,
    made_up_embeddings,
)

BASE = 1000
KINDS = 1000
# Logits of DINO's head that are more than this are not measured.
MAX_BYTES = 2_500_000_000
# Sizes of shortlists, and keys scanned for them, whose recall is measured.
SHORTLISTS = ((500, 32768), (700, 16384), (700, 32768), (700, 65536), (1000, 32768))
EXACT, HALF, SHORT, HEAD = "exact", "exact, bfloat16", "shortlist", "DINO's head"
COLOURS = {EXACT: BLUE, HALF: GREY, SHORT: VERMILION, HEAD: ORANGE}


@dataclass(frozen=True)
class Width:
    """Sizes of a selection, and of DINO's head beside it.

    Attributes:
        tokens: of the selection's map, the mean among them.
        cells: of all levels, which DINO's head scores to select queries.
    """

    embed_dim: int
    image_dim: int
    feedforward_dim: int
    tokens: int
    head_dim: int
    cells: int
    queries: int


WIDTHS = {
    # configs/quick/cq_dino_kinds.yaml: images of 160 pixels, the map of stride 16.
    "quick": Width(128, 128, 256, 101, 128, 525, 100),
    # An image of 800 x 1066 and its map of stride 32.
    "paper": Width(768, 512, 3072, 851, 256, 17821, 900),
}


def random_queries(width: Width, num_categories: int) -> Tensor:
    """Normalised queries (C, D) around a thousand kinds, made in pieces."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(KINDS, width.embed_dim, generator=generator)
    queries = torch.empty(num_categories, width.embed_dim)
    for piece in queries.split(16384):
        noise = torch.randn(piece.shape, generator=generator)
        kind = kinds[torch.randint(KINDS, (len(piece),), generator=generator)]
        piece.copy_(F.layer_norm(kind + 0.7 * noise, piece.shape[1:]))
    return queries


def random_selection(
    width: Width, name: str, scoring: str, num_selected: int = 100
) -> CategorySelection:
    """A selection for inference."""
    torch.manual_seed(0)
    layers = category_to_image_layers(
        embed_dim=width.embed_dim,
        context_dim=width.image_dim,
        feedforward_dim=width.feedforward_dim,
    )
    return build_selection(
        name,
        layers,
        embed_dim=width.embed_dim,
        context_dim=width.image_dim,
        num_selected=num_selected,
        scoring=scoring,
        chunk_size=1024,
    ).eval()


def random_tokens(width: Width) -> ImageTokens:
    """Those of an image without padding."""
    values = torch.randn(1, width.tokens, width.image_dim)
    return ImageTokens(values, torch.zeros(1, width.tokens, dtype=torch.bool))


def held_bytes(categories: PreparedCategories) -> int:
    """What is kept of the categories."""
    tensors = [categories.queries, categories.states, categories.projected]
    tensors.append(getattr(categories, "keys", None))
    index = getattr(categories, "index", None)
    own = {x.data_ptr(): x.nbytes for x in tensors if x is not None}
    return sum(own.values()) + (index.num_bytes if index is not None else 0)


@dataclass(frozen=True)
class Calls:
    """By the name of a kind.

    Attributes:
        select: functions that select for an image.
        held: bytes that are kept for the categories.
        prepare: seconds of the processor to prepare them.
    """

    select: dict[str, Callable[[], object]]
    held: dict[str, int]
    prepare: dict[str, float]


def calls_of(width: Width, num_categories: int, kinds: list[str]) -> Calls:
    """The exact selection among 1,000 categories, and each kind among `num_categories`."""
    tokens = random_tokens(width)
    calls = Calls({}, {}, {})
    settings = {EXACT: ("exact", "full"), HALF: ("exact", "bfloat16"), SHORT: ("shortlist", "full")}
    queries = {size: random_queries(width, size) for size in {BASE, num_categories}}
    for name, size in [("base", BASE), *((x, num_categories) for x in kinds if x != HEAD)]:
        selection = random_selection(width, *settings[EXACT if name == "base" else name])
        start = time.process_time()
        prepared = selection.prepare(queries[size])
        calls.prepare[name] = time.process_time() - start
        calls.select[name] = lambda s=selection, p=prepared: s(p, tokens)
        calls.held[name] = held_bytes(prepared)
    if HEAD in kinds and width.cells * num_categories * 4 <= MAX_BYTES:
        calls.select[HEAD], calls.held[HEAD] = head_call(width, num_categories)
    return calls


def head_call(width: Width, num_categories: int) -> tuple[Callable[[], object], int]:
    """DINO's head at inference: on all cells, to select queries, and on these in the last layer."""
    first, last = (class_head(width.head_dim, num_categories) for _ in range(2))
    cells, queries = (torch.randn(n, width.head_dim) for n in (width.cells, width.queries))

    def call() -> object:
        selected = first(cells).amax(1).topk(width.queries)
        return selected, last(queries).flatten().topk(min(300, width.queries * num_categories))

    return call, 2 * (width.head_dim + 1) * num_categories * 4


def seconds_of(call: Callable[[], object], min_seconds: float = 0.05) -> float:
    """Mean processor time of as many calls as take `min_seconds`."""
    start, count = time.process_time(), 0
    while True:
        call()
        count += 1
        elapsed = time.process_time() - start
        if elapsed >= min_seconds:
            return elapsed / count


@torch.inference_mode()
def time_command(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and memory of each kind of selection and number of categories."""
    rows = []
    for size in arguments.categories:
        calls = calls_of(WIDTHS[arguments.width], size, arguments.kinds)
        rounds = []
        for call in calls.select.values():
            call()
        for _ in range(arguments.repeats):
            rounds.append({name: seconds_of(call) for name, call in calls.select.items()})
        for name, call in calls.select.items():
            if name == "base":
                continue
            seconds = sorted(x[name] for x in rounds)
            ratios = sorted(x[name] / x["base"] for x in rounds)
            row = {
                "width": arguments.width,
                "kind": name,
                "categories": size,
                "milliseconds": median(seconds) * 1e3,
                "ratio": median(ratios),
                "ratios": [ratios[0], ratios[-1]],
                "prepare_s": calls.prepare.get(name, 0.0),
                "held_mb": calls.held[name] / 1e6,
                "growth_mb": (measure_memory(call, "cpu")[1] or 0) / 1e6,
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


@torch.inference_mode()
def chunks_command(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time per 1,000 categories for each chunk size and precision."""
    width, rows = WIDTHS[arguments.width], []
    queries, tokens = random_queries(width, 4096), random_tokens(width)
    calls = {}
    for dtype in (None, torch.bfloat16):
        for chunk in (64, 128, 256, 512, 1024, 2048, 4096):
            selection = random_selection(width, "exact", "full")
            selection.scoring = Scoring(dtype, chunk_size=chunk)
            prepared = selection.prepare(queries)
            calls[str(dtype), chunk] = lambda s=selection, p=prepared: s(p, tokens)
    rounds = [{k: seconds_of(call) for k, call in calls.items()} for _ in range(arguments.repeats)]
    for key in calls:
        each = median(x[key] for x in rounds) / 4.096
        rows.append({"width": arguments.width, "dtype": key[0], "chunk": key[1], "ms": each * 1e3})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def step_command(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and memory of the forward and backward pass of the selection and its loss."""
    width, rows = WIDTHS[arguments.width], []
    selection = random_selection(width, "exact", "full").train()
    loss = AsymmetricLoss()
    for size in arguments.categories:
        queries = random_queries(width, size).requires_grad_()
        tokens, present = random_tokens(width), torch.zeros(1, size, dtype=torch.bool)
        present[0, :5] = True

        def step(
            queries: Tensor = queries, tokens: ImageTokens = tokens, present: Tensor = present
        ) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bfloat16):
                selected = selection(queries, tokens)
            total = loss(selected.all_logits, present) + selected.queries.float().square().mean()
            total.backward()

        start = time.process_time()
        peak, growth = measure_memory(step, "cpu")
        row = {
            "width": arguments.width,
            "categories": size,
            "bfloat16": arguments.bfloat16,
            "seconds": time.process_time() - start,
            "growth_mb": (growth or 0) / 1e6,
            "peak_mb": (peak or 0) / 1e6,
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Samples:
    """Tokens of some images, and the distinct categories (n,) labelled in each."""

    tokens: ImageTokens
    labels: list[Tensor]

    def first(self, count: int) -> "Samples":
        """Those of the first images."""
        tokens = ImageTokens(self.tokens.values[:count], self.tokens.padding_mask[:count])
        return Samples(tokens, self.labels[:count])


@torch.no_grad()
def samples_of(model: Any, cfg: Any, dataset: str, count: int) -> Samples:
    """Tokens and labels of images of a dataset, augmented as in training."""
    cfg.DATASETS.TRAIN = (dataset,)
    loader = iter(build_train_loader(cfg, seed=1))
    values: list[Tensor] = []
    labels: list[Tensor] = []
    while len(values) < count:
        for record in next(loader):
            pixels, mask = model.padded_batch([model.normalize(record["image"])])
            features = model.backbone(pixels)[model.selection_feature]
            mask = resize_mask(mask, tuple(features.shape[-2:]))
            tokens = model.categories.image_tokens(features, mask)
            values.append(tokens.values[0, ~tokens.padding_mask[0]])
            labels.append(record["instances"].gt_classes.unique())
    padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    lengths = torch.tensor([len(x) for x in values])
    padding = torch.arange(padded.shape[1]) >= lengths[:, None]
    return Samples(ImageTokens(padded, padding), labels)


@torch.no_grad()
def filled_up(queries: Any, num_categories: int, fill: str) -> Tensor:
    """Trained queries, then those of made-up embeddings, as leaves of the tree."""
    pieces = [queries()]
    generator = torch.Generator().manual_seed(1)
    for start in range(len(pieces[0]), num_categories, 16384):
        count = min(16384, num_categories - start)
        made_up = made_up_embeddings(queries.embedding, count, fill, generator)
        pieces.append(queries.of_leaves(made_up))
    return torch.cat(pieces)


def recall_of_images(indices: Tensor, labels: list[Tensor]) -> Tensor:
    """The share of an image's labels that are selected, in percent, of images that have a label."""
    found = [
        torch.isin(x, i).float().mean() for x, i in zip(labels, indices, strict=True) if len(x)
    ]
    return torch.stack(found) * 100


def recall_command(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """AR^C of a trained model, by exact selection and by shortlists."""
    opts = ["MODEL.CQ_DINO.SELECTION.NAME", "shortlist", "DATALOADER.NUM_WORKERS", 0]
    cfg = with_all_weights(load_config(arguments.config_file, opts), arguments.weights)
    model = build_model(cfg).eval()
    VastdetCheckpointer(model).load(arguments.weights, checkpointables=[], complete=True)
    dataset = cfg.DATASETS.TRAIN[0].replace("_train", "_val")
    samples = samples_of(model, cfg, dataset, max(arguments.images))
    rows = []
    for size, count in zip(arguments.categories, arguments.images, strict=True):
        rows += recalls(
            model, samples.first(count), size, arguments.fill, bfloat16=arguments.bfloat16
        )
    return rows


@torch.inference_mode()
def recalls(
    model: Any, samples: Samples, num_categories: int, fill: str, bfloat16: bool
) -> list[dict[str, Any]]:
    """Rows of one number of categories."""
    queries = filled_up(model.categories.queries, num_categories, fill)
    short = model.categories.selection
    exact = CategorySelection(
        short.layers,
        embed_dim=queries.shape[1],
        num_selected=short.num_selected,
        scoring=HALF_PRECISION if bfloat16 else Scoring(),
    ).eval()
    exact.score = short.score
    rows, expected, recall_of_exact = [], torch.empty(0), torch.empty(0)
    for size, scanned in ((None, None), *SHORTLISTS):
        if size is not None:
            short.limits = Shortlist(size, scanned)
        selection = exact if size is None else short
        prepared = selection.prepare(queries)
        start = time.process_time()
        got = selection(prepared, samples.tokens).indices
        seconds = time.process_time() - start
        recall = recall_of_images(got, samples.labels)
        if size is None:
            expected, recall_of_exact = got, recall
        lost = recall_of_exact - recall
        same = (got[:, :, None] == expected[:, None]).any(-1).float().mean()
        row = {
            "kind": EXACT if size is None else SHORT,
            "fill": fill,
            "categories": num_categories,
            "images": len(samples.labels),
            "size": size,
            "scanned": scanned,
            "recall": float(recall.mean()),
            "lost": float(lost.mean()),
            # Of the mean, from how images differ.
            "lost_standard_error": float(lost.std() / len(lost) ** 0.5),
            "same": float(same) * 100,
            "milliseconds": seconds * 1e3 / len(samples.labels),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def picture_command(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time, memory and recall against the number of categories."""
    rows = newest(row for path in arguments.files for row in json.loads(Path(path).read_text()))
    widths = [x for x in WIDTHS if any(row.get("width") == x for row in rows)]
    figure = new_figure(4.6 * (len(widths) + 1), 7)
    panels = figure.subplots(2, len(widths) + 1, squeeze=False)
    for column, width in enumerate(widths):
        own = [row for row in rows if row.get("width") == width and "kind" in row]
        time_panel, memory_panel = panels[:, column]
        draw(time_panel, own, lambda row: row["milliseconds"])
        tidy(time_panel, title=f"Time, {width} width", x="categories", y="ms an image")
        draw(memory_panel, own, lambda row: row["held_mb"] + row["growth_mb"])
        tidy(memory_panel, title=f"Memory, {width} width", x="categories", y="MB")
        time_panel.legend(frameon=False, fontsize=8)
    recall_rows = [
        row
        for row in rows
        if "recall" in row and row["scanned"] in (None, 32768) and row["size"] in (None, 700)
    ]
    panel, shared = panels[:, -1]
    draw(panel, recall_rows, lambda row: row["recall"], log=False)
    panel.set_ylim(0, 100)
    tidy(panel, title="Recall of a trained model", x="categories", y="AR^C_100, %")
    draw(shared, [x for x in recall_rows if x["kind"] == SHORT], lambda x: x["same"], log=False)
    shared.set_ylim(0, 100)
    tidy(shared, title="Selected by both, of 100", x="categories", y="share, %")
    save(figure, Path(arguments.output))
    return rows


def newest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last of the rows of the same kind, width, vocabulary and shortlist."""
    keys = ("kind", "width", "categories", "fill", "size", "scanned")
    return list({tuple(row.get(key) for key in keys): row for row in rows}.values())


def draw(
    axes: Any,
    rows: list[dict[str, Any]],
    value: Callable[[Mapping[str, Any]], float],
    log: bool = True,
) -> None:
    """A line for each kind of selection."""
    for kind, colour in COLOURS.items():
        own = sorted((row["categories"], value(row)) for row in rows if row["kind"] == kind)
        if own:
            axes.plot(*zip(*own, strict=True), "o-", color=colour, markersize=4, label=kind)
    axes.set_xscale("log")
    axes.set_xlim(70, 1.4e6)
    if log:
        axes.set_yscale("log")


COMMANDS = {
    "time": time_command,
    "chunks": chunks_command,
    "step": step_command,
    "recall": recall_command,
    "picture": picture_command,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("command", choices=COMMANDS)
    result.add_argument(
        "files", nargs="*", help="what `picture` draws; a later row replaces an earlier one"
    )
    result.add_argument("--output", required=True, help="a .json, or the .png of `picture`")
    result.add_argument("--width", choices=WIDTHS, default="quick")
    result.add_argument("--categories", type=int, nargs="+", default=[100, 1000, 10_000])
    result.add_argument("--kinds", nargs="+", choices=COLOURS, default=list(COLOURS))
    result.add_argument("--repeats", type=int, default=3)
    result.add_argument("--threads", type=int, default=1)
    result.add_argument(
        "--bfloat16",
        action="store_true",
        help="of `step`: under autocast; of `recall`: the exact selection",
    )
    result.add_argument("--config-file", help="of `recall`: the config.yaml of the run")
    result.add_argument("--weights", help="of `recall`: those that tools/fit_shortlist.py wrote")
    result.add_argument("--fill", choices=("mixtures", "normal"), default="mixtures")
    result.add_argument("--images", type=int, nargs="+", help="of `recall`: for each size")
    return result


def main() -> None:
    """Run a command, print its rows as a table, and keep them."""
    command_line = parser()
    arguments = command_line.parse_args()
    needed = (arguments.config_file, arguments.weights, arguments.images)
    if arguments.command == "recall" and not all(needed):
        command_line.error("recall needs --config-file, --weights and --images")
    torch.set_num_threads(arguments.threads)
    rows = COMMANDS[arguments.command](arguments)
    if arguments.command != "picture":
        Path(arguments.output).write_text(json.dumps(rows, indent=1))
        print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g"))


if __name__ == "__main__":
    main()
