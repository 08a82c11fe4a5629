"""What the pairs of a JSON Lines file take while stage one plans and writes its index.

    python benchmarks/records.py --baseline TREE --out benchmarks/results/records.json

A made-up file of image ids, paths and captions, and teachers that compute nothing. Each measurement
is a process of its own: reading and planning as `cusa-precompute --plan` does, with an image and a
text teacher; a run over the first shard alone, which writes a part's index; a run over all
captions. Peak of the anonymous memory (RssAnon, asked for every few ms), what of it the libraries
and the teachers take (the same with 1,000 pairs), and CPU seconds. In turns with another tree of
this repository, such as a checkout of an earlier commit.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from no_work import NoWork, Silent
from PIL import Image

from cusa.data.datasets import load_dataset
from cusa.precompute.pipeline import PipelineOptions
from cusa.precompute.processes import connect
from cusa.precompute.run import Run
from cusa.precompute.run_options import RunOptions
from cusa.precompute.selection import Selection, select

SMOKE = ("--pairs 2000 --tasks part --rounds 1",)
TASKS = ("plan", "part", "run")
FILES = 1000
FEW_PAIRS = 1000
POLL_S = 0.005


def write_pairs(folder: Path, n_pairs: int) -> Path:
    """A JSON Lines file whose captions have 8 to 13 words; a thousand pictures, under many ids."""
    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in generator.integers(0, 1_000_000, 4000).tolist()]
    captions = []
    for length in generator.integers(8, 14, 4001).tolist():
        captions.append(" ".join(generator.choice(words, length).tolist()))
    path = folder / f"{n_pairs}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(n_pairs):
            image_id = f"{number // 10_000:05d}/{number:09d}"
            image = f"pictures/{number % FILES:09d}.jpg"
            caption = f"{captions[number % len(captions)]} {number}"
            file.write(
                f'{{"image_id": "{image_id}", "image": "{image}", "caption": "{caption}"}}\n'
            )
    return path


def write_pictures(folder: Path) -> None:
    """The pictures that the file names."""
    (folder / "pictures").mkdir()
    for number in range(FILES):
        colour = (number % 256, number // 256 * 50, 0)
        Image.new("RGB", (8, 8), colour).save(folder / f"pictures/{number:09d}.jpg")


def work(task: str, pairs: Path, out: Path) -> None:
    """Do what is measured."""
    torch.set_num_threads(1)
    dataset = select(load_dataset(pairs), Selection(None, None, None), None)
    pipeline = PipelineOptions("cpu", "fp32", workers=0, encoders=1, skip_errors=False)
    shard_range = (0, 1) if task == "part" else None
    options = RunOptions(out, pipeline, shard_range=shard_range)
    requests: Any = [NoWork("words", "text")]
    if task == "plan":
        requests.append(NoWork("eyes", "image"))
    run = Run(dataset, requests, options, connect(), Silent(), lambda: None)
    if task == "plan":
        run.estimate(0.01)
    else:
        run.go()


def measured(task: str, pairs: Path, tree: Path | None) -> tuple[float, float]:
    """Peak MiB of anonymous memory, and CPU seconds, of a process."""
    environment = dict(os.environ)
    if tree is not None:
        environment["PYTHONPATH"] = str(tree)
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, "--task", task, "--work-on", str(pairs)]
        command += ["--out", f"{name}/s.h5"]
        process = subprocess.Popen(command, env=environment)
        peak_kib = max(anonymous_kib(process))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{task} failed")
        return peak_kib / 1024, usage.ru_utime + usage.ru_stime


def anonymous_kib(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Yield the anonymous memory of a process again and again, until it ends."""
    status = Path(f"/proc/{process.pid}/status")
    yield 0
    while True:
        _, _, after_name = status.read_text().partition("RssAnon:")
        # A process that has ended has no memory.
        if not after_name:
            return
        yield int(after_name.split()[0])
        time.sleep(POLL_S)


def link_tree(tree: Path) -> Path:
    """Make the rooms of another tree importable as they are here; return what goes on the path."""
    for room in ("data", "precompute", "train", "eval"):
        link = tree / "cusa" / room
        if not link.exists():
            link.symlink_to(tree / room)
    return tree


@click.command()
@click.option("--pairs", default=1_000_000, type=click.IntRange(1))
@click.option("--tasks", default=",".join(TASKS), help="What to measure, with commas.")
@click.option("--rounds", default=3)
@click.option("--baseline", type=click.Path(exists=True, path_type=Path), help="Another tree.")
@click.option("--task", type=click.Choice(TASKS), hidden=True)
@click.option("--work-on", type=click.Path(path_type=Path), hidden=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    pairs: int,
    tasks: str,
    rounds: int,
    baseline: Path | None,
    task: str | None,
    work_on: Path | None,
    out: Path | None,
) -> None:
    """Measure and print."""
    if task is not None:
        assert work_on is not None
        assert out is not None
        work(task, work_on, out)
        return
    trees: dict[str, Path | None] = {"": None}
    if baseline is not None:
        trees[" of the baseline"] = link_tree(baseline.resolve())
    figures: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "pairs": pairs,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder)
        files = {pairs: write_pairs(folder, pairs), FEW_PAIRS: write_pairs(folder, FEW_PAIRS)}
        figures["MB of the file"] = files[pairs].stat().st_size / 1e6
        for each_task in tasks.split(","):
            results: dict[tuple[str, int], list[tuple[float, float]]] = {}
            for _ in range(rounds):
                for label, tree in trees.items():
                    for n_pairs, path in files.items():
                        result = measured(each_task, path, tree)
                        results.setdefault((label, n_pairs), []).append(result)
            for label in trees:
                all_mib, all_s = map(statistics.median, zip(*results[label, pairs], strict=True))
                few_mib, few_s = map(
                    statistics.median, zip(*results[label, FEW_PAIRS], strict=True)
                )
                figures[each_task + label] = {
                    "peak MiB": all_mib,
                    "of it with 1,000 pairs": few_mib,
                    "bytes a pair beyond those": (all_mib - few_mib) * (1 << 20) / pairs,
                    "CPU us a pair beyond those": 1e6 * (all_s - few_s) / pairs,
                }
    text = json.dumps(figures, indent=2)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
