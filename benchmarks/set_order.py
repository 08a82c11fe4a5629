"""What the training order of a tar set costs, and what it does to what is learned.

    python benchmarks/set_order.py flickr8k.h5 --out benchmarks/results/set_order.json

The costs: 400 million pairs in 40,000 tars and 64 processes; CPU time and peak memory, each in a
new interpreter, of making an order and of any one step of any process. Then, on a store's split
train cut into tars of consecutive pairs, the adapter is trained in such orders and measured on
split test after its last epoch: RSUM by window, by streams, and in the stored order unshuffled.
`crawl` tars hold similar pictures, as those of one site: images are sorted by their nearest of a
few of them before they are cut into tars.
"""

from __future__ import annotations

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

from cusa.data.store.reader import EmbeddingStore
from cusa.data.tars.order import SetOrder
from cusa.eval.metrics.validation import validation_scores
from cusa.train.assemble import student_sources
from cusa.train.config_building import build_config, merge, parse_settings
from cusa.train.encode_split import encode_split
from cusa.train.loader import EpochOrder
from cusa.train.loss.config import TERMS
from cusa.train.preset_files import load_preset
from cusa.train.processes import Processes
from cusa.train.trainer import Trainer

from timing import machine, mean_and_deviation

SMOKE = (
    "{store} --image-encoder vision --text-encoder words --tars 4 --seeds 1 --steps 1 "
    "--cost-tars 40 --set train.epochs=1 --set train.batch_size=4",
)
SITES = 20
# Window, streams, whether batches are mixed.
ORDERS = {
    "window 1": (1, 1, True),
    "window 4": (4, 1, True),
    "window 8": (8, 1, True),
    "window 16": (16, 1, True),
    "4 streams of window 1, mixed": (1, 4, True),
    "4 streams of window 4, mixed": (4, 4, True),
    "4 streams of window 4, in turn": (4, 4, False),
    "all": (1_000_000, 1, True),
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


class Consecutive(EpochOrder):
    """Every epoch in the stored order."""

    def __iter__(self) -> Iterator[np.ndarray]:
        n_used = len(self) * self.batch_size
        yield from np.arange(n_used).reshape(-1, self.batch_size)[self.first :]


def step_costs(n_tars: int, n_steps: int, streams: int, window: int) -> dict[str, float]:
    """The largest CPU ms and MiB of a step, over random steps of random processes."""
    generator = np.random.default_rng(0)
    costs = []
    for _ in range(n_steps):
        arguments = [n_tars, generator.random(), generator.integers(64), streams, window]
        command = [sys.executable, "-c", ONE_STEP, *map(str, arguments)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        costs.append(tuple(map(float, output.split())))
    cpu_ms, peak_mib = zip(*costs, strict=True)
    return {
        "steps": n_steps,
        "median CPU ms": float(np.median(cpu_ms)),
        "most CPU ms": max(cpu_ms),
        "most MiB": max(peak_mib),
    }


def by_site(store: EmbeddingStore, image_encoder: str) -> np.ndarray:
    """Caption rows of train, sorted by the site of their image, in the stored order within it."""
    images = np.asarray(store[image_encoder, "train"][:], np.float32)
    chosen = np.random.default_rng(0).permutation(len(images))[:SITES]
    sites = (images @ images[chosen].T).argmax(axis=1)
    return np.argsort(sites[store.split("train").caption_image], kind="stable")


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


def rsum(store_file: Path, settings: dict[str, Any], make_order: Any, run_dir: Path) -> float:
    """RSUM on test of the student of the last epoch."""
    config = build_config(merge(load_preset("adapter"), settings))
    trainer = Trainer(config, Processes("cpu"), 0, run_dir, False, validation_scores)
    data = trainer.setup.data
    data.order = make_order(len(data.pairs), data.pairs_per_step, config.train.seed)
    trainer.fit()
    store = EmbeddingStore(store_file)
    encoders = settings["student"]["image_encoder"], settings["student"]["text_encoder"]
    sources = student_sources(store, "test", config, encoders, processors=None)
    return validation_scores(encode_split(trainer.setup.step.student, sources, "cpu"))["rsum"]


def order_makers(n_tars: int, numbers: np.ndarray) -> dict[str, Any]:
    """Functions of the pairs, batch size and seed by the name of the order that they make."""

    def cut(window: int, streams: int, mix_streams: bool) -> Any:
        def make(n_pairs: int, batch_size: int, seed: int) -> Renumbered:
            tar_pairs = np.diff(np.arange(n_tars + 1) * n_pairs // n_tars)
            order = SetOrder(tar_pairs, batch_size, seed, window, streams, mix_streams)
            return Renumbered(order, numbers)

        return make

    makers: dict[str, Any] = {
        "consecutive": lambda *sizes: Renumbered(Consecutive(*sizes), numbers)
    }
    for name, values in ORDERS.items():
        makers[name] = cut(*values)
    makers["EpochOrder"] = EpochOrder
    return makers


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
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
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
    figures: dict[str, Any] = {"machine": machine()}
    for streams, window in ((1, 8), (4, 4)):
        name = f"a step of {streams} streams of {window} tars"
        figures[name] = step_costs(cost_tars, steps, streams, window)
    rows = by_site(EmbeddingStore(store), image_encoder)
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
    tables = {"as stored": np.arange(len(rows)), "crawl": rows}
    grid = [(tars, order) for tars in tables for order in order_makers(n_tars, rows)]
    results: dict[str, dict[str, list[float]]] = {tars: {} for tars in tables}
    with tempfile.TemporaryDirectory() as folder:
        for tars, order in track(grid, console=Console(stderr=True)):
            values = results[tars].setdefault(order, [])
            for seed in range(seeds):
                run_settings = merge(settings, {"train": {"seed": seed}})
                make_order = order_makers(n_tars, tables[tars])[order]
                run_dir = Path(folder) / f"{tars}-{order}-{seed}"
                values.append(rsum(store, run_settings, make_order, run_dir))
    figures["RSUM"] = results
    table = Table("order", *results, title=f"RSUM on test, {seeds} seeds")
    for order in results["crawl"]:
        table.add_row(order, *[mean_and_deviation(values[order]) for values in results.values()])
    Console().print(table)
    text = json.dumps(figures, indent=1)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
