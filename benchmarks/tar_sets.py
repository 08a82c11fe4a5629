"""What stage one costs for each tar of a set, beside a few tars' costs.

    python benchmarks/tar_sets.py --tars 1000 --out benchmarks/results/tar_sets.json

Tars of 20 pairs, and teachers that compute nothing: what is left is reading tars, decoding small
pictures, and writing and sealing the files of the set. CPU time of a process and its peak memory,
for all tars and for a tenth of them; the difference of the CPU times is what the other tars cost.
The baseline, in turns with it: tarfile and Pillow alone read the tars and decode their pictures.
Then what it costs to open the manifests of made-up sets of 40,000 and 140,000 tars.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from no_work import NoWork, Silent
from PIL import Image

from cusa.data.tars.manifest import COUNTS, MANIFEST, Manifest, TarRows, write_manifest
from cusa.data.tars.paths import common_folder
from cusa.precompute.pipeline import PipelineOptions
from cusa.precompute.processes import connect
from cusa.precompute.run_options import RunOptions
from cusa.precompute.tars.maker import TarPolicy
from cusa.precompute.tars.run import TarRun
from cusa.precompute.tars.workplace import open_workplace

SMOKE = ("--tars 10 --rounds 1 --manifests 20",)
PAIRS = 20


def make_tars(folder: Path, n_tars: int, n_pairs: int = PAIRS) -> list[Path]:
    """Tars as img2dataset writes them: a picture, its caption, and a JSON file."""
    paths = []
    generator = np.random.default_rng(0)
    for number in range(n_tars):
        path = folder / f"{number:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for pair in range(number * n_pairs, (number + 1) * n_pairs):
                pixels = generator.integers(0, 255, (64, 64, 3), np.uint8)
                picture = io.BytesIO()
                Image.fromarray(pixels).save(picture, "JPEG")
                files = {
                    "jpg": picture.getvalue(),
                    "txt": f"Number {pair}.".encode(),
                    "json": b"{}",
                }
                for extension, content in files.items():
                    header = tarfile.TarInfo(f"{pair:09d}.{extension}")
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))
        paths.append(path)
    return paths


def make_rows(tars: Sequence[Path], location: Path) -> None:
    """Stage one over tars with teachers that compute nothing, into a folder or a URL."""
    pipeline = PipelineOptions("cpu", "fp32", workers=0, encoders=1, skip_errors=False)
    requests: Any = [NoWork("eyes", "image"), NoWork("words", "text")]
    policy = TarPolicy("txt", "fail", is_share=False, image_root=common_folder(tars))
    with open_workplace(location) as workplace:
        # As the command does, to know with which settings a set was made.
        workplace.fetch_samples()
        out = workplace.folder / "set.h5"
        options = RunOptions(out, pipeline, None, None, None, "float16", "albef")
        run = TarRun(tars, requests, options, policy, workplace, connect(), Silent(), lambda: None)
        run.go()


def run(tars: Sequence[Path], folder: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of stage one in a process of its own."""

    def work() -> None:
        began = time.process_time()
        make_rows(tars, folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sender.send((time.process_time() - began, peak))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    sender.close()
    process.join()
    shutil.rmtree(folder)
    return receiver.recv()


def bare_ms(tars: Sequence[Path]) -> float:
    """CPU ms of a tar that is read and whose pictures are decoded, and nothing else."""
    began = time.process_time()
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member).read()
                if member.name.endswith("jpg"):
                    Image.open(io.BytesIO(content)).load()
    return 1000 * (time.process_time() - began) / len(tars)


def make_manifest(folder: Path, n_tars: int) -> None:
    """A manifest of made-up tars, with two teachers."""
    generator = np.random.default_rng(0)
    seals = generator.integers(0, 255, (n_tars, 32), np.uint8)
    teachers = {}
    for modality in ("image", "text"):
        settings = NoWork(modality, modality).load().settings("fp32", "float16", "albef")
        offsets = np.full(n_tars, 2048)
        none_skipped = np.zeros(n_tars, np.int64)
        none_left_out = np.zeros(n_tars + 1, np.int64)
        no_rows = np.zeros(0, np.int64)
        teachers[modality] = TarRows(
            settings, seals, offsets, none_skipped, no_rows, none_left_out, modality
        )
    names = [f"{number:06d}" for number in range(n_tars)]
    counts = {name: np.full(n_tars, 10_000) for name in COUNTS}
    is_complete = np.ones(n_tars, bool)
    write_manifest(folder, Manifest(names, counts, is_complete, "txt", seals, teachers))


# In a new interpreter. Its rusage would begin with the peak memory of its parent, VmHWM does not.
OPENING = """
import re, sys, time
from pathlib import Path
from cusa.data.tars.tar_set import TarSet

def peak_mib():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024

before = peak_mib()
began = time.process_time()
TarSet(sys.argv[1])
seconds = time.process_time() - began
print(1000 * seconds, peak_mib() - before)
"""


def open_manifest(n_tars: int, rounds: int) -> dict[str, float]:
    """CPU ms and MiB that opening a set takes, medians; bytes of a tar's entry."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_manifest(folder, n_tars)
        n_bytes = (folder / MANIFEST).stat().st_size
        costs = []
        for _ in range(rounds):
            command = [sys.executable, "-c", OPENING, name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            costs.append(tuple(map(float, output.split())))
    cpu_ms, peak_mib = map(statistics.median, zip(*costs, strict=True))
    return {"CPU ms": cpu_ms, "MiB": peak_mib, "bytes a tar": n_bytes / n_tars}


@click.command()
@click.option("--tars", "n_tars", default=1000, type=click.IntRange(10))
@click.option("--manifests", default="40000,140000", help="Numbers of tars, with commas.")
@click.option("--rounds", default=3)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(n_tars: int, manifests: str, rounds: int, out: Path | None) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tars = make_tars(folder, n_tars)
        few = tars[: n_tars // 10]
        measured: dict[str, list[tuple[float, float]]] = {"few": [], "all": []}
        bare = []
        for _ in range(rounds):
            bare.append(bare_ms(few))
            measured["few"].append(run(few, folder / "few"))
            measured["all"].append(run(tars, folder / "all"))
    few_s, few_mib = map(statistics.median, zip(*measured["few"], strict=True))
    all_s, all_mib = map(statistics.median, zip(*measured["all"], strict=True))
    cpu_ms = 1000 * (all_s - few_s) / (n_tars - len(few))
    figures = {
        "machine": platform.processor() or platform.machine(),
        "tars": n_tars,
        "pairs a tar": PAIRS,
        "CPU ms a tar": cpu_ms,
        "over tarfile and Pillow alone": cpu_ms / statistics.median(bare),
        "peak MiB": all_mib,
        "peak over that of a tenth of the tars": all_mib / few_mib,
    }
    for n_named in map(int, manifests.split(",")):
        figures[f"manifest of {n_named:,} tars"] = open_manifest(n_named, rounds)
    text = json.dumps(figures, indent=2)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
