"""What the training order of a tar set costs, and what it does to what is learned.

    python benchmarks/set_order.py flickr8k.h5 --set train.epochs=6 --out set_order.json

The costs: 400 million pairs in 40,000 tars and 64 processes; CPU time and peak memory, each in a
new interpreter, of making an order and of any one step of any process. Then, on a store's split
train cut into tars of consecutive pairs, the adapter is trained in such orders and measured on
split val after its last epoch: RSUM by window and by streams, beside a permutation of all pairs.
The tars are cut from the images as they are stored, and sorted by topic: by the nearest of
some means (k-means) of the text encoder's rows, so that a tar holds similar pictures, as a site
that was crawled. Figures are written after each run; the same command goes on after a kill.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.cluster import KMeans

from cusa.data.store.reader import EmbeddingStore
from cusa.data.tars.order import SetOrder
from cusa.eval.metrics.validation import validation_scores
from cusa.train.config_building import build_config, merge, parse_settings
from cusa.train.encode_split import encode_split
from cusa.train.loader import EpochOrder
from cusa.train.loss.config import TERMS
from cusa.train.preset_files import load_preset
from cusa.train.processes import Processes
from cusa.train.sources import student_sources
from cusa.train.trainer import Trainer

from timing import machine, mean_and_deviation

SMOKE = (
    "{store} --image-encoder vision --text-encoder words --tars 4 --seeds 1 --steps 1 "
    "--cost-tars 40 --set train.epochs=1 --set train.batch_size=4",
)
TOPICS = 20
RANKS = 64
ALL_PAIRS = "permutation of all pairs"
AS_STORED = "as stored"
# Window, streams, whether batches are mixed.
ORDERS = {
    "window 1": (1, 1, True),
    "window 4": (4, 1, True),
    "window 8": (8, 1, True),
    "window 16": (16, 1, True),
    "4 streams of window 1, in turn": (1, 4, False),
    "4 streams of window 1, mixed": (1, 4, True),
    "4 streams of window 4, mixed": (4, 4, True),
}

# In a new interpreter. Its rusage would begin with the peak memory of its parent, VmHWM does not.
ONE_STEP = """
import re, sys, time
from pathlib import Path
import numpy as np
from cusa.data.tars.order import SetOrder

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

n_tars, share, rank, streams, window = map(float, sys.argv[1:])
tar_pairs = np.random.default_rng(0).integers(9_000, 11_001, int(n_tars))
np.random.default_rng(0).permutation(9)
before = peak_kib()
began = time.process_time()
order = SetOrder(tar_pairs, 1024, 0, int(window), int(streams), True, int(rank), 64)
order.first = int(share * (len(order) - 1))
next(iter(order))
print(1000 * (time.process_time() - began), (peak_kib() - before) / 1024)
"""


def step_cost(
    n_tars: int, share: float, rank: int, streams: int, window: int
) -> tuple[float, float]:
    """CPU ms and MiB of the step after a share of the epoch, in a new interpreter."""
    arguments = map(str, (n_tars, share, rank, streams, window))
    command = [sys.executable, "-c", ONE_STEP, *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    cpu_ms, peak_mib = map(float, output.split())
    return cpu_ms, peak_mib


def step_costs(n_tars: int, n_steps: int, streams: int, window: int) -> dict[str, float]:
    """The largest CPU ms and MiB of a step, over random steps of random processes."""
    generator = np.random.default_rng(0)
    costs = []
    for _ in range(n_steps):
        share, rank = generator.random(), int(generator.integers(RANKS))
        costs.append(step_cost(n_tars, share, rank, streams, window))
    cpu_ms, peak_mib = zip(*costs, strict=True)
    return {
        "steps": n_steps,
        "median CPU ms": float(np.median(cpu_ms)),
        "most CPU ms": max(cpu_ms),
        "most MiB": max(peak_mib),
    }


def by_topic(store: EmbeddingStore, text_encoder: str) -> np.ndarray:
    """Caption rows of train, sorted by the topic of their image, in the stored order within it."""
    caption_image = store.split("train").caption_image
    captions = np.asarray(store[text_encoder, "train"][:], np.float32)
    first_captions = np.flatnonzero(np.diff(caption_image, prepend=-1))
    means = np.add.reduceat(captions, first_captions) / np.bincount(caption_image)[:, None]
    n_topics = min(TOPICS, len(means))
    topics = KMeans(n_topics, random_state=0, n_init=1).fit_predict(means)
    return np.argsort(topics[caption_image], kind="stable")


class Renumbered:
    """An order over pairs that are stored in another order."""

    def __init__(self, order: Any, numbers: np.ndarray) -> None:
        self._order = order
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._order)

    def __setattr__(self, name: str, value: Any) -> None:
        """The trainer sets the epoch and the first step."""
        if name in ("epoch", "first"):
            setattr(self._order, name, value)
        else:
            super().__setattr__(name, value)

    def __iter__(self) -> Iterator[np.ndarray]:
        for pairs in self._order:
            yield self._numbers[pairs]


def rsum(settings: dict[str, Any], make_order: Any, run_dir: Path) -> float:
    """RSUM on val of the student of the last epoch."""
    config = build_config(merge(load_preset("adapter-published"), settings))
    trainer = Trainer(config, Processes("cpu"), 0, run_dir, False, validation_scores)
    data = trainer.setup.data
    data.order = make_order(len(data.pairs), data.pairs_per_step, config.train.seed)
    trainer.fit()
    store = EmbeddingStore(settings["data"]["embeddings"])
    student = settings["student"]
    encoders = {"image": student["image_encoder"], "text": student["text_encoder"]}
    sources = student_sources(store, "val", config, encoders)
    return validation_scores(encode_split(trainer.setup.step.student, sources, "cpu"))["rsum"]


def order_makers(n_tars: int, numbers: np.ndarray) -> dict[str, Any]:
    """Functions of the pairs, batch size and seed by the name of the order that they make."""

    def cut(window: int, streams: int, mix_streams: bool) -> Any:
        def make(n_pairs: int, batch_size: int, seed: int) -> Renumbered:
            tar_pairs = np.diff(np.arange(n_tars + 1) * n_pairs // n_tars)
            order = SetOrder(tar_pairs, batch_size, seed, window, streams, mix_streams)
            return Renumbered(order, numbers)

        return make

    makers: dict[str, Any] = {ALL_PAIRS: EpochOrder}
    for name, values in ORDERS.items():
        makers[name] = cut(*values)
    return makers


def train_in_orders(
    settings: dict[str, Any], n_tars: int, seeds: int, results: dict[str, Any], save: Any
) -> None:
    """Add the RSUM of each run that is not in the results yet, by tars, order and seed."""
    store = EmbeddingStore(settings["data"]["embeddings"])
    rows = by_topic(store, settings["student"]["text_encoder"])
    tables = {AS_STORED: np.arange(len(rows)), "by topic": rows}
    runs = list(itertools.product(range(seeds), tables, [ALL_PAIRS, *ORDERS]))
    for seed, tars, order in track(runs, console=Console(stderr=True)):
        by_seed = results.setdefault(tars, {}).setdefault(order, {})
        # How the tars are cut means nothing to a permutation of all pairs.
        if str(seed) in by_seed or (order, tars) == (ALL_PAIRS, "by topic"):
            continue
        run_settings = merge(settings, {"train": {"seed": seed}})
        make_order = order_makers(n_tars, tables[tars])[order]
        with tempfile.TemporaryDirectory() as folder:
            by_seed[str(seed)] = rsum(run_settings, make_order, Path(folder) / "run")
        save()


def rsum_table(results: dict[str, Any]) -> Table:
    """Means and deviations over the seeds, by order and tars."""
    table = Table("order", *results, title="RSUM on val")
    for order in [ALL_PAIRS, *ORDERS]:
        cells = []
        for by_order in results.values():
            values = list(by_order.get(order, {}).values())
            cells.append(mean_and_deviation(values) if values else "")
        table.add_row(order, *cells)
    return table


@click.command()
@click.argument("store", type=click.Path(path_type=Path, exists=True))
@click.option("--image-encoder", default="efficientnet-lite0", help="Image encoder and teacher.")
@click.option("--text-encoder", default="minilm", help="Text encoder and teacher.")
@click.option("--tars", "n_tars", default=100, help="Tars that train is cut into.")
@click.option("--cost-tars", default=40_000, help="Tars of the order whose costs are measured.")
@click.option("--steps", default=64, help="Steps whose costs are measured.")
@click.option("--seeds", default=3)
@click.option(
    "--set", "more", multiple=True, metavar="NAME=VALUE", help="Another setting, as of cusa-train."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="File of the figures, kept up to date."
)
def main(
    store: Path,
    image_encoder: str,
    text_encoder: str,
    n_tars: int,
    cost_tars: int,
    steps: int,
    seeds: int,
    more: tuple[str, ...],
    out: Path | None,
) -> None:
    """Measure what orders cost, and train on STORE in each."""
    settings = {
        "student": {"image_encoder": image_encoder, "text_encoder": text_encoder},
        "data": {
            "embeddings": str(store),
            "image_teacher": image_encoder,
            "text_teacher": text_encoder,
            "val_split": None,
        },
        "loss": {"terms": TERMS["cusa"]},
    }
    settings = merge(settings, parse_settings(more))
    figures: dict[str, Any] = {"machine": machine(), "settings": [*more, f"tars={n_tars}"]}
    if out is not None and out.exists():
        written = json.loads(out.read_text(encoding="utf-8"))
        if written["settings"] != figures["settings"]:
            raise click.UsageError(f"{out} was written with settings {written['settings']}")
        figures = written

    def save() -> None:
        if out is not None:
            new = out.with_suffix(".new")
            new.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            new.replace(out)

    for streams, window in ((1, 8), (4, 4)):
        name = f"a step of {streams} streams of {window} tars"
        if name not in figures:
            figures[name] = step_costs(cost_tars, steps, streams, window)
            save()
    results = figures.setdefault("RSUM", {})
    train_in_orders(settings, n_tars, seeds, results, save)
    Console().print(rsum_table(results))
    click.echo(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
