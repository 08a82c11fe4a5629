"""Random rows from a store, against the other ways of keeping embeddings on disk; and the memory
that readers hold.

    python benchmarks/random_reads.py --out benchmarks/results/random_reads.json

Batches of 128 and of 1,024 random rows from arrays of COCO's size, in the page cache, from: this
project's store, its shards one by one, numpy's memory map of a .npy (indexed, by take, and by
torch), h5py (a contiguous dataset, and chunks of 1,024 rows), a pickled dictionary, safetensors.
Medians over rounds in which the ways take turns.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

from cusa.data.store.index import Index, read_index, write_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import (
    SHARD_ROWS,
    TeacherSettings,
    shard_folder,
    shard_name,
    shard_ranges,
)
from cusa.data.store.shards import ShardHeader, write_shard
from cusa.data.store.split_table import SplitTable
from cusa.data.store.teacher_entry import TeacherEntry
from cusa.data.texts import Texts

SMOKE = ("--size 2000x8 --rounds 1 --readers 2",)
SIZES = ("566435x768", "113287x512")
BATCHES = (128, 1024)
READ_ROWS = 128


def make_store(index: Path, rows: np.ndarray) -> None:
    """A store of one image teacher over made-up ids."""
    n, dim = rows.shape
    settings = TeacherSettings(
        "image", "made up", "0" * 64, {}, "none", "fp32", dim, rows.dtype.name, True
    )
    shards = []
    for start, stop in shard_ranges(n, SHARD_ROWS):
        file = f"{shard_folder(index).name}/{shard_name('t', 'train', start, stop)}"
        header = ShardHeader("t", "train", "f", start, stop, settings)
        shards.append(write_shard(index.parent, file, header, rows[start:stop], []))
    ids = Texts.from_strings([str(i) for i in range(n)])
    columns = dict.fromkeys(("image_ids", "image_paths", "caption_ids", "captions"), ids)
    table = SplitTable("f", columns, np.arange(n), None)
    entry = TeacherEntry(settings, {"train": tuple(shards)})
    write_index(index, Index("made up", index.parent, {"train": table}, {"t": entry}))


def prepare(folder: Path, n: int, dim: int, dtype: str) -> None:
    """All files, of the same random rows."""
    rng = np.random.default_rng(0)
    rows = np.empty((n, dim), dtype)
    for start in range(0, n, SHARD_ROWS):
        part = rows[start : start + SHARD_ROWS]
        part[...] = rng.standard_normal(part.shape, np.float32)
    make_store(folder / "store.h5", rows)
    np.save(folder / "rows.npy", rows)
    with h5py.File(folder / "rows.h5", "w") as file:
        file.create_dataset("contiguous", data=rows)
        file.create_dataset("chunked", data=rows, chunks=(1024, dim))
    with (folder / "rows.pickle").open("wb") as out:
        pickle.dump({i: row.copy() for i, row in enumerate(rows)}, out, protocol=4)
    from safetensors.numpy import save_file

    save_file({"rows": rows}, folder / "rows.safetensors")


def open_store(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """This project's reader."""
    return EmbeddingStore(folder / "store.h5").embeddings("t", "train").gather


def open_memmap(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Numpy's."""
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    return lambda numbers: rows[numbers]


def open_shards(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The same shards, each a map of numpy's, in a loop over those that a batch touches."""
    info = read_index(folder / "store.h5").teachers["t"]
    shape = info.settings.dim
    maps = [
        np.memmap(
            folder / shard.file,
            info.settings.dtype,
            "r",
            shard.offset,
            (shard.stop - shard.start, shape),
        )
        for shard in info.shards["train"]
    ]

    def gather(numbers: np.ndarray) -> np.ndarray:
        rows = np.empty((len(numbers), shape), info.settings.dtype)
        shards, places = np.divmod(numbers, SHARD_ROWS)
        for shard in np.unique(shards).tolist():
            is_there = shards == shard
            rows[is_there] = maps[shard].take(places[is_there], axis=0)
        return rows

    return gather


def open_take(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Numpy's take from the memory map of one file."""
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    return lambda numbers: np.take(rows, numbers, axis=0)


def open_torch(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Torch's index_select from the memory map of one file."""
    import torch

    torch.set_num_threads(1)
    rows = torch.from_numpy(np.load(folder / "rows.npy", mmap_mode="c"))
    return lambda numbers: rows.index_select(0, torch.from_numpy(numbers)).numpy()


def open_h5py(folder: Path, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """h5py takes ascending numbers without repeats; the order asked for is restored."""
    rows = h5py.File(folder / "rows.h5")[name]

    def gather(numbers: np.ndarray) -> np.ndarray:
        ascending, places = np.unique(numbers, return_inverse=True)
        return rows[ascending][places]

    return gather


def open_pickle(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A dictionary from id to row, as the published code keeps them."""
    rows = pickle.loads((folder / "rows.pickle").read_bytes())
    return lambda numbers: np.stack([rows[i] for i in numbers.tolist()])


def open_safetensors(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Safetensors through torch, its fastest way: a mapped tensor and index_select."""
    import torch
    from safetensors import safe_open

    torch.set_num_threads(1)
    rows = safe_open(folder / "rows.safetensors", "pt").get_tensor("rows")
    return lambda numbers: rows.index_select(0, torch.from_numpy(numbers)).numpy()


# How many batches of 128 rows a turn has.
WAYS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], int]] = {
    "EmbeddingStore.gather": (open_store, (), 64),
    "loop over shards": (open_shards, (), 32),
    "numpy memmap of .npy": (open_memmap, (), 64),
    "memmap of .npy, np.take": (open_take, (), 64),
    "memmap of .npy, torch index_select": (open_torch, (), 64),
    "safetensors, index_select": (open_safetensors, (), 64),
    "pickled dictionary": (open_pickle, (), 32),
    "h5py, contiguous": (open_h5py, ("contiguous",), 2),
    "h5py, 1,024-row chunks": (open_h5py, ("chunked",), 1),
}
SLOW = ("h5py, contiguous", "h5py, 1,024-row chunks")


def rates(folder: Path, n: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median rows per second of every way, by the rows of a batch."""
    rng = np.random.default_rng(1)
    gathers = {
        name: (opening(folder, *more), count) for name, (opening, more, count) in WAYS.items()
    }
    probe = rng.integers(0, n, READ_ROWS)
    want = gathers["numpy memmap of .npy"][0](probe)
    for name, (gather, _) in gathers.items():
        np.testing.assert_array_equal(gather(probe), want)
        if name not in SLOW:  # all pages in the cache and in the page tables; h5py has none
            for start in range(0, n, READ_ROWS):
                gather(np.arange(start, min(start + READ_ROWS, n)))
    medians = {}
    for n_rows in BATCHES:
        measured: dict[str, list[float]] = {name: [] for name in WAYS}
        for number in range(rounds):
            for name, (gather, count) in gathers.items():
                if name in SLOW and number % 10:
                    continue
                batches = rng.integers(0, n, (max(1, count * READ_ROWS // n_rows), n_rows))
                gather(batches[0])
                began = time.perf_counter()
                for batch in batches:
                    gather(batch)
                measured[name].append(batches.size / (time.perf_counter() - began))
        medians[str(n_rows)] = {name: statistics.median(v) for name, v in measured.items()}
    return medians


def _read(
    gather: Callable[[np.ndarray], np.ndarray] | None, n: int, seed: int, ready: Any, end: Any
) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        if gather is not None:
            gather(rng.integers(0, n, READ_ROWS))
    ready.release()
    end.wait()


def _memory(folder: Path, n: int, way: str | None, workers: int, answer: Any) -> None:
    """Anonymous memory of a process and its forked workers, all having read; shared pages are
    counted once.
    """
    context = get_context("fork")
    gather = None
    if way is not None:
        opening, more, _ = WAYS[way]
        gather = opening(folder, *more)
    ready, end = context.Semaphore(0), context.Event()
    processes = [
        context.Process(target=_read, args=(gather, n, seed, ready, end)) for seed in range(workers)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    total = 0
    for pid in [os.getpid(), *(p.pid for p in processes)]:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))
    end.set()
    for process in processes:
        process.join()
    answer.put(total / 1024)


def memory(folder: Path, n: int, way: str | None, workers: int) -> float:
    """MiB, in a fresh process."""
    context = get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_memory, args=(folder, n, way, workers, answer))
    process.start()
    found = answer.get()
    process.join()
    return found


@click.command()
@click.option(
    "--size",
    "sizes",
    multiple=True,
    default=SIZES,
    metavar="ROWSxDIM",
    help="Of an array; repeatable.",
)
@click.option("--dtype", default="float16", type=click.Choice(["float16", "float32"]))
@click.option("--rounds", default=101)
@click.option("--readers", default=8, help="Forked processes whose memory is taken.")
@click.option("--out", type=click.Path(path_type=Path))
def main(sizes: tuple[str, ...], dtype: str, rounds: int, readers: int, out: Path | None) -> None:
    """Measure, print a table, write the figures to --out."""
    results: dict[str, Any] = {
        "machine": platform.platform(),
        "numpy": np.__version__,
        "dtype": dtype,
        "sizes": {},
    }
    for size in sizes:
        n, dim = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder, n, dim, dtype)
            disk = sum(p.stat().st_size for p in folder.glob("store/**/*.h5"))
            speed = rates(folder, n, rounds)
            idle = memory(folder, n, None, readers)
            held = {
                w: memory(folder, n, w, readers) - idle
                for w in ("EmbeddingStore.gather", "pickled dictionary")
            }
        raw = n * dim * np.dtype(dtype).itemsize
        results["sizes"][f"{n}x{dim}"] = {
            "rows_per_s": speed,
            f"anonymous_mib_{readers}_workers": held,
            "shard_bytes_over_raw": disk / raw,
        }
        for n_rows, by_way in speed.items():
            title = f"{n:,} x {dim} {dtype}, {n_rows} random rows at a time"
            table = Table("way", "rows/s", "ours / theirs", title=title)
            ours = by_way["EmbeddingStore.gather"]
            for way, rate in by_way.items():
                table.add_row(way, f"{rate:,.0f}", f"{ours / rate:.2f}")
            Console(width=110).print(table)
        print(
            f"anonymous memory of a reader and {readers} workers, MiB:",
            {k: round(v, 1) for k, v in held.items()},
        )
        print(f"shards on disk / raw rows: {disk / raw:.5f}")
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
