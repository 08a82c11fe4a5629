"""Two processes against one: the same losses, and samples/s.

    python benchmarks/ranks.py --out benchmarks/results/ranks.json

torchrun with two processes of batch B and --gather against one process of batch 2B: the same pairs,
one loss over all of them, no dropout, so every logged loss must be equal but for rounding. The two
take turns; on CPUs (gloo) each of two processes has one thread and a single one has two. The figure
is the median over rounds of the two rates beside each other, a run's rate being the median over its
steps but the first few. The adapter on a made-up store, and a tiny CLIP (or that of --clip) from
image files.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from loading import machine
from rich.console import Console
from rich.table import Table

SMOKE = ("--student adapter --images 80 --batch-size 8 --epochs 1 --rounds 1",)
PROCESSES = 2
WARM_UP = 5  # steps whose rate is left out
LOSSES = ("loss", "contrastive", "csa", "usa")
STUDENTS = ("adapter", "clip")


def train(
    args: Sequence[str], processes: int, batch_size: int, device: str, run_dir: Path
) -> list[dict[str, Any]]:
    """Run cusa-train to its end; the lines of its log."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += [
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            "-m",
        ]
    command = [
        *launcher,
        "cusa.train",
        *args,
        "--gather",
        "--device",
        device,
        "--set",
        "train.log_every=1",
    ]
    command += ["--batch-size", str(batch_size), "--run-dir", str(run_dir)]
    threads = {"OMP_NUM_THREADS": str(PROCESSES // processes)}
    done = subprocess.run(
        command, env={**os.environ, **threads}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n"
            f"{done.stdout[-1000:]}{done.stderr[-2000:]}"
        )
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps_of(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of training steps."""
    return [line for line in lines if line["kind"] == "train"]


def compare(
    args: Sequence[str], batch_size: int, device: str, rounds: int, folder: Path
) -> dict[str, Any]:
    """Losses and rates of one and of two processes."""
    rates: dict[int, list[float]] = {1: [], PROCESSES: []}
    logs: dict[int, list[dict[str, Any]]] = {}
    for number in range(rounds):
        for processes in list(rates)[:: -1 if number % 2 else 1]:
            run_dir = folder / f"{number}-{processes}"
            logs[processes] = train(
                args, processes, batch_size * PROCESSES // processes, device, run_dir
            )
            rates[processes].append(
                statistics.median(x["samples_per_s"] for x in steps_of(logs[processes])[WARM_UP:])
            )
    one, two = (steps_of(logs[p]) for p in (1, PROCESSES))
    if [x["step"] for x in one] != [x["step"] for x in two]:
        raise SystemExit(f"one process logged {len(one)} steps, {PROCESSES} logged {len(two)}")
    rsum = [[x["rsum"] for x in logs[p] if x["kind"] == "val"] for p in (1, PROCESSES)]
    return {
        "batch_size_per_process": batch_size,
        "steps": len(one),
        "first_and_last_loss": [one[0]["loss"], one[-1]["loss"]],
        "losses_apart": {
            k: max(abs(a[k] - b[k]) / abs(a[k]) for a, b in zip(one, two, strict=True))
            for k in LOSSES
        },
        "val_rsum_apart": max(abs(a - b) for a, b in zip(*rsum, strict=True)),
        "samples_per_s": {str(p): statistics.median(found) for p, found in rates.items()},
        "rate_of_two_over_one": statistics.median(
            b / a for a, b in zip(rates[1], rates[PROCESSES], strict=True)
        ),
        "rounds": {str(p): found for p, found in rates.items()},
    }


def make_args(folder: Path, clip: Path | None, epochs: int, n_images: int) -> dict[str, list[str]]:
    """Stores, a tiny CLIP, and cusa-train's arguments by student."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.helpers import make_pairs, make_store, make_tiny_clip, make_tiny_sentence, run_ok

    stored = make_store(folder / "stored", {"train": n_images, "val": 100}, dim=512)
    manifest = make_pairs(folder / "data", n=168, n_val=8)
    tiny, words = make_tiny_clip(folder / "clip"), make_tiny_sentence(folder / "words")
    filed = folder / "filed.h5"
    teachers = ("--teacher", f"vit={tiny}", "--teacher", f"words={words}")
    run_ok("precompute", "--dataset", manifest, *teachers, "--workers", "0", "--out", filed)
    common = ["--loss", "cusa", "--epochs", str(epochs), "--checkpoint-minutes", "60"]
    adapter = [
        "--embeddings",
        str(stored),
        "--student",
        "adapter",
        "--set",
        "student.dropout=0",
        "--workers",
        "0",
    ]
    files = ["--embeddings", str(filed), "--student", str(clip or tiny), "--workers", "1"]
    return {"adapter": [*adapter, *common], "clip": [*files, *common, "--set", "optim.lr=1e-4"]}


@click.command()
@click.option(
    "--device", default="cpu", type=click.Choice(["cpu", "cuda"]), help="cuda takes two GPUs."
)
@click.option("--batch-size", default=64, help="Of the adapter, per process.")
@click.option("--clip-batch-size", default=16, help="Of the CLIP, per process.")
@click.option("--epochs", default=3)
@click.option("--rounds", default=5)
@click.option("--images", default=3000, help="Of the adapter's training split.")
@click.option(
    "--student",
    "students",
    multiple=True,
    type=click.Choice(["adapter", "clip"]),
    default=["adapter", "clip"],
)
@click.option(
    "--clip", type=click.Path(exists=True, path_type=Path), help="Folder of another CLIP."
)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    device: str,
    batch_size: int,
    clip_batch_size: int,
    epochs: int,
    rounds: int,
    images: int,
    students: tuple[str, ...],
    clip: Path | None,
    out: Path | None,
) -> None:
    """Measure, print a table, write the figures to --out."""
    results = machine(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args_of = make_args(folder, clip, epochs, images)
        for student in students:
            size = batch_size if student == "adapter" else clip_batch_size
            results[student] = compare(args_of[student], size, device, rounds, folder / student)
    table = Table(
        "student", "steps", "losses apart, at most", "val RSUM apart", "samples/s, 1", "2", "2 / 1"
    )
    for student in students:
        found = results[student]
        rates = found["samples_per_s"]
        table.add_row(
            student,
            str(found["steps"]),
            f"{max(found['losses_apart'].values()):.1e}",
            f"{found['val_rsum_apart']:.3f}",
            f"{rates['1']:,.0f}",
            f"{rates[str(PROCESSES)]:,.0f}",
            f"{found['rate_of_two_over_one']:.3f}",
        )
    Console(width=110).print(table)
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
