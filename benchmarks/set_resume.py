"""What it costs to go on in an epoch of a tar set, near its end beside near its beginning.

    python benchmarks/set_resume.py SET --student adapter --out benchmarks/results/set_resume.json

A run of cusa-train on the set is stopped after its first step, and another one after 90 % of its
first epoch. Each is resumed again and again, in turns and in new interpreters, up to the first step
that it computes: CPU time of the process and time on the clock, from when the libraries are loaded.
The same of an order of 400 million pairs in 40,000 tars for 64 processes alone.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from set_order import RANKS, step_cost

from cusa.cli.train import main as train
from cusa.data.tars.tar_set import TarSet

from timing import machine

SMOKE = ("{set} --set student.hidden_dim=8 --batch-size 2 --rounds 1 --cost-tars 40",)
SHARES = {"at 0 %": 0.0, "at 90 %": 0.9}
WINDOW = 8

# In a new interpreter: the first step ends it, so that the run stays as it is.
FIRST_STEP = """
import os, sys, time
from cusa.cli.train import main
from cusa.train.trainer import Trainer

def report(*_):
    print("cost", time.process_time() - cpu, time.perf_counter() - clock, flush=True)
    os._exit(0)

Trainer._train_on = report
cpu, clock = time.process_time(), time.perf_counter()
main(sys.argv[1:])
"""


def first_step(run_dir: Path, n_steps: int) -> tuple[float, float]:
    """CPU seconds and seconds from the start of a resumed run to its first step."""
    options = ["--resume", "--run-dir", str(run_dir), "--steps", str(n_steps + 1)]
    command = [sys.executable, "-c", FIRST_STEP, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("cost")]
    if not lines:
        raise click.ClickException(done.stderr)
    cpu_s, clock_s = map(float, lines[0].split()[1:])
    return cpu_s, clock_s


def ratio(costs: dict[str, list[float]]) -> float:
    """Median over rounds of the cost near the end over that near the beginning."""
    early, late = (costs[name] for name in SHARES)
    return statistics.median(b / a for a, b in zip(early, late, strict=True))


def cost_of_order(n_tars: int, rounds: int) -> dict[str, Any]:
    """CPU ms of making an order and its next step."""
    generator = random.Random(0)
    cpu_ms: dict[str, list[float]] = {name: [] for name in SHARES}
    for _ in range(rounds):
        rank = generator.randrange(RANKS)
        for name, share in SHARES.items():
            cpu_ms[name].append(step_cost(n_tars, share, rank, 1, WINDOW)[0])
    medians = {f"CPU ms {name}": statistics.median(costs) for name, costs in cpu_ms.items()}
    return {"rounds": rounds, **medians, "CPU ratio": ratio(cpu_ms)}


def cost_of_run(arguments: list[str], epoch_steps: int, rounds: int) -> dict[str, Any]:
    """CPU time and time of a resumed run to its first step."""
    cpu: dict[str, list[float]] = {name: [] for name in SHARES}
    clock: dict[str, list[float]] = {name: [] for name in SHARES}
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: max(1, int(share * epoch_steps)) for name, share in SHARES.items()}
        for name, n_steps in steps.items():
            run_dir = str(Path(folder) / name)
            train(
                [*arguments, "--steps", str(n_steps), "--run-dir", run_dir], standalone_mode=False
            )
        for _ in range(rounds):
            for name, n_steps in steps.items():
                cpu_s, clock_s = first_step(Path(folder) / name, n_steps)
                cpu[name].append(cpu_s)
                clock[name].append(clock_s)
    figures: dict[str, Any] = {"rounds": rounds, "steps of an epoch": epoch_steps}
    for name in SHARES:
        figures[f"CPU s {name}"] = statistics.median(cpu[name])
        figures[f"s {name}"] = statistics.median(clock[name])
    return {**figures, "CPU ratio": ratio(cpu), "time ratio": ratio(clock)}


@click.command()
@click.argument("tar_set", metavar="SET", type=click.Path(path_type=Path, exists=True))
@click.option("--student", default="adapter", help="As of cusa-train.")
@click.option("--batch-size", default=32)
@click.option("--cost-tars", default=40_000, help="Tars of the made-up order.")
@click.option("--rounds", default=7)
@click.option(
    "--set", "more", multiple=True, metavar="NAME=VALUE", help="Another setting, as of cusa-train."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    tar_set: Path,
    student: str,
    batch_size: int,
    cost_tars: int,
    rounds: int,
    more: tuple[str, ...],
    out: Path | None,
) -> None:
    """Measure and print."""
    manifest = TarSet(tar_set).manifest
    epoch_steps = int(manifest.n_trainable(manifest.teachers).sum()) // batch_size
    arguments = ["--embeddings", str(tar_set), "--student", student, "--workers", "0"]
    arguments += ["--batch-size", str(batch_size), "--device", "cpu"]
    # A preset's warm-up of an epoch is longer than the run that stops after a step.
    for setting in ("optim.warmup_epochs=0", *more):
        arguments += ["--set", setting]
    figures = {
        "machine": machine(),
        "student": Path(student).name,
        "run": cost_of_run(arguments, epoch_steps, rounds),
        "order": cost_of_order(cost_tars, rounds),
    }
    text = json.dumps(figures, indent=1)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
