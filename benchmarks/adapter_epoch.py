"""One epoch of the adapter on a store of COCO's size: what streaming costs, and what all that is
not arithmetic does.

    python benchmarks/adapter_epoch.py --out benchmarks/results/adapter_epoch.json

113,287 made-up image rows of 512, 566,435 caption rows of 768, float16; 5,000 and 25,000 to
validate; preset `adapter-published`, batch 128, the store's two teachers for input and soft labels.
The Trainer runs one epoch, its steps and its validation (best student and checkpoint included)
timed apart. Then steps take turns, some hundred at a time, medians over rounds: the Trainer's; the
Trainer's on one batch kept in memory (streaming is the difference); and, as the floor, the
student's forward and backward pass and AdamW on that batch, without loss, clipping, checks or log.
The floor of validation is its two products of all images and all captions, nothing ranked.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from loading import SIZES, coco_size_store, folder_of, machine, paired
from rich.console import Console
from rich.table import Table
from torch.utils.data import Dataset
from train_step import Paced

from cusa.cli.console import quiet_libraries
from cusa.eval.metrics.validation import validation_scores
from cusa.train.config_building import build_config, merge
from cusa.train.encode_split import encode_split
from cusa.train.loader import Batch
from cusa.train.loss.config import TERMS
from cusa.train.preset_files import load_preset
from cusa.train.processes import Processes
from cusa.train.step import make_optimizer
from cusa.train.trainer import Trainer

from timing import in_turns, seconds

SMOKE = ("--images 40 --batch-size 8 --rounds 1 --steps 4",)
CHUNK = 1000  # rows of similarities at a time


class OneBatch(Dataset[Batch]):
    """Pairs that are always the same, read once."""

    def __init__(self, trainer: Trainer) -> None:
        self._length = len(trainer.setup.data.pairs)
        numbers = np.random.default_rng(0).permutation(self._length)[
            : trainer.setup.config.train.batch_size
        ]
        self.batch = trainer.setup.data.pairs[numbers]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, _pairs: np.ndarray) -> Batch:
        return self.batch


class Clock:
    """Notes when a trainer has begun, taken its last step and validated; called as the trainer's
    ``check_stop``.
    """

    def __init__(self) -> None:
        self._calls: list[float] = []
        self._ended = 0.0

    def __call__(self) -> None:
        """Before each step, and after each batch of validation."""
        self._calls.append(time.perf_counter())

    def started(self, trainer: Trainer) -> None:
        """Nothing to note."""

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Nothing to note."""

    def validated(self, metrics: dict[str, Any]) -> None:
        """Validation and what is saved after it are over."""
        self._ended = time.perf_counter()

    def warned(self, text: str) -> None:
        """Nothing may go wrong here."""
        raise SystemExit(text)

    def ended(self, outcome: str) -> None:
        """Nothing to note."""

    def parts(self, steps: int) -> dict[str, float]:
        """Seconds of the steps, and of validation."""
        return {
            "steps_s": self._calls[steps] - self._calls[0],
            "validation_s": self._ended - self._calls[steps],
        }


def make_trainer(store: Path, run_dir: Path, device: str, batch_size: int) -> Trainer:
    """An adapter's trainer, for one epoch."""
    settings = {
        "data": {"embeddings": str(store)},
        "loss": {"terms": TERMS["cusa"]},
        "train": {
            "epochs": 1,
            "batch_size": batch_size,
            "device": device,
            "checkpoint_minutes": None,
        },
    }
    config = build_config(merge(load_preset("adapter-published"), settings))
    return Trainer(
        config, Processes(device), 0, run_dir, resume=False, validation_scores=validation_scores
    )


def floor(trainer: Trainer, batch: Batch) -> Callable[[int], None]:
    """Forward, backward and AdamW of a trainer's student, so many times."""
    batch = batch.to(trainer.setup.processes.device)
    optimizer, _ = make_optimizer(trainer.setup.step, trainer.setup.config)
    shapes = [x.shape for pair in trainer.setup.step.encode(batch) for x in pair]
    gradients = [
        torch.randn(shape, device=trainer.setup.processes.device) / shape[1] for shape in shapes
    ]

    def run(steps: int) -> None:
        for _ in range(steps):
            features = [x for pair in trainer.setup.step.encode(batch) for x in pair]
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(features, gradients)
            optimizer.step()

    return run


def products(images: np.ndarray, texts: np.ndarray) -> None:
    """All similarities both ways, a chunk of rows at a time."""
    for rows, columns in ((images, texts), (texts, images)):
        for start in range(0, len(rows), CHUNK):
            torch.from_numpy(rows[start : start + CHUNK]) @ torch.from_numpy(columns).T


@click.command()
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]))
@click.option("--batch-size", default=128)
@click.option("--rounds", default=11)
@click.option("--steps", default=100, help="A turn's.")
@click.option("--images", default=SIZES["train"], help="Of the training split; five captions each.")
@click.option("--store", type=click.Path(path_type=Path), help="Folder to keep the store in.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    device: str,
    batch_size: int,
    rounds: int,
    steps: int,
    images: int,
    store: Path | None,
    out: Path | None,
) -> None:
    """Measure, print a table, write the figures to --out."""
    quiet_libraries()
    with folder_of(store) as folder, tempfile.TemporaryDirectory() as name:
        index = coco_size_store(folder, n_images=images)
        runs, clock = Path(name), Clock()
        whole = make_trainer(index, runs / "epoch", device, batch_size)
        n_pairs = whole.setup.data.steps_per_epoch * batch_size
        assert (rounds + 1) * steps < whole.setup.data.steps_per_epoch, (
            "the turns are steps of one epoch"
        )
        whole.fit([clock], clock)
        parts = clock.parts(whole.setup.data.steps_per_epoch)

        embeddings = encode_split(whole.setup.step.student, whole.setup.data.val_sources, device)
        both = embeddings.image["cross"], embeddings.text["cross"]
        scoring = seconds(lambda: validation_scores(embeddings))
        bare_scoring = seconds(lambda: products(*both))

        streaming, kept, bare = (
            make_trainer(index, runs / way, device, batch_size)
            for way in ("streaming", "kept", "floor")
        )
        one = OneBatch(kept)
        kept.setup.data.pairs = one  # type: ignore[assignment]
        paced = {"streaming": Paced(streaming), "one batch": Paced(kept)}
        bare_steps = floor(bare, one.batch)
        ways: dict[str, Callable[[], object]] = {
            w: lambda p=p: p.run(steps) for w, p in paced.items()
        }  # type: ignore[misc]
        found = in_turns({**ways, "floor": lambda: bare_steps(steps)}, rounds)
        for trainer in paced.values():
            trainer.end()
    medians = {way: statistics.median(times) / steps for way, times in found.items()}
    results = machine(device) | {
        "batch_size": batch_size,
        "pairs": n_pairs,
        "epoch": parts,
        "pairs_per_s": n_pairs / parts["steps_s"],
        "step_s": medians,
        "streaming_over_one_batch": paired(found, "streaming", "one batch"),
        "streaming_over_floor": paired(found, "streaming", "floor"),
        "validation_scores_s": scoring,
        "validation_scores_over_products": scoring / bare_scoring,
        "rounds_s": found,
    }
    table = Table("", "", title=f"adapter, {n_pairs:,} pairs, batch {batch_size}")
    table.add_row(
        "steps of an epoch", f"{parts['steps_s']:.1f} s, {results['pairs_per_s']:,.0f} pairs/s"
    )
    table.add_row(f"validation of {len(both[0]):,} images", f"{parts['validation_s']:.1f} s")
    for way, taken in medians.items():
        table.add_row(f"a step, {way}", f"{1000 * taken:.2f} ms")
    table.add_row("streaming / one batch", f"{results['streaming_over_one_batch']:.3f}")
    table.add_row("streaming / floor", f"{results['streaming_over_floor']:.3f}")
    table.add_row(
        "validation scores / bare products", f"{results['validation_scores_over_products']:.2f}"
    )
    Console(width=110).print(table)
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
