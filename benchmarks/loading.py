"""What teacher rows add to loading: batches of decoded images and tokenised captions, with and
without them.

    python benchmarks/loading.py --out benchmarks/results/loading.json

The trainer's own loader over a store of COCO's size (113,287 images x 512, 566,435 captions x 768,
float16, made up), with CLIP's preprocessing at 224 px, against the same loader over the same pairs
without teachers. The two take turns, each turn with other pairs; the figure is the median over
rounds of the two rates beside each other. Reading rows takes microseconds where a batch takes
seconds, so the rows are also gathered by themselves: their share of a batch's time, and that of the
first batches, which map the rows' pages into the process; worker processes do that in their turns.
Where others use the machine, too, rates say little; hence the CPU time of this process and its
workers beside them. The image paths of the store repeat a few hundred pictures: made-up ones of 640
x 480, or those of --images.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from cusa.cli.console import quiet_libraries
from cusa.data.environment import cpu_count
from cusa.data.record import Record
from cusa.data.record_columns import Records
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.index import Index, write_index
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
from cusa.data.worker_pool import WorkerPool
from cusa.train.config import Config
from cusa.train.loader import EpochOrder, Pairs
from cusa.train.sources import student_sources
from cusa.train.teacher_set import TeacherSet
from cusa.train.towers.processors import ImageProcessing, Processors, Tokenization

from timing import in_turns, seconds

SMOKE = ("--n-images 40 --images {images} --batch-size 4 --batches 2 --rounds 1 --workers 1",)
SIZES = {"train": 113_287, "val": 5_000}
CAPTIONS_PER_IMAGE = 5
TEACHERS = {"unicom": ("image", 512), "mpnet": ("text", 768)}
WORDS = tuple(f"w{i}" for i in range(2000))
PICTURES = 256
TOUCHING = 500  # batches after which a process has touched nearly all pages of the rows


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a run was measured on."""
    found: dict[str, Any] = {
        "machine": platform.platform(),
        "torch": torch.__version__,
        "cores": cpu_count(),
    }
    return found | {"gpu": torch.cuda.get_device_name()} if device == "cuda" else found


def paired(found: dict[str, list[float]], name: str, base: str) -> float:
    """Median over rounds of one way's seconds over another's beside it."""
    return statistics.median(a / b for a, b in zip(found[name], found[base], strict=True))


@contextlib.contextmanager
def folder_of(store: Path | None) -> Iterator[Path]:
    """The folder that the store is kept in, or a temporary one."""
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
        yield store
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def make_pictures(folder: Path, n: int) -> None:
    """Made-up JPEG files of COCO's usual 640 x 480, smooth with some noise: about as long to decode
    as photographs.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize(
            (640, 480), Image.BICUBIC
        )
        noisy = np.asarray(coarse) + rng.normal(0, 8, (480, 640, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            folder / f"{i:03d}.jpg", quality=90
        )


def made_up_records(
    split: str, n: int, paths: Sequence[str], n_captions: int = CAPTIONS_PER_IMAGE
) -> list[Record]:
    """So many images of a split, whose files repeat, with captions of 8 to 13 words."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 14, n * n_captions).tolist()
    words = iter(rng.integers(0, len(WORDS), sum(lengths)).tolist())
    texts = [" ".join(WORDS[w] for w in itertools.islice(words, length)) for length in lengths]
    return [
        Record(
            f"{split}{i}",
            paths[i % len(paths)],
            tuple(texts[i * n_captions : (i + 1) * n_captions]),
            tuple(f"{split}{i}#{c}" for c in range(n_captions)),
        )
        for i in range(n)
    ]


def coco_size_store(
    folder: Path,
    images: Path | None = None,
    n_images: int = SIZES["train"],
    captions: int = CAPTIONS_PER_IMAGE,
) -> Path:
    """A store of COCO's size with made-up rows; made once per folder.

    Args:
        folder: Where it lies.
        images: Folder of the pictures that its image paths repeat; ``None``: made-up ones.
        n_images: Of the training split, if not as many as COCO has.
        captions: Of each image.

    Returns:
        Its index.
    """
    index = folder / "store.h5"
    if index.exists():
        return index
    root = (images or folder / "images").resolve()
    if images is None and not root.exists():
        make_pictures(root, min(PICTURES, n_images))
    paths = sorted(str(p.relative_to(root)) for p in root.rglob("*.jpg"))
    sizes = {"train": n_images, "val": min(n_images, SIZES["val"])}
    splits = {}
    for split, n in sizes.items():
        records = Records.from_records(made_up_records(split, n, paths, captions))
        splits[split] = SplitTable.from_records(records, None)
    rng = np.random.default_rng(0)
    entries = {}
    for name, (modality, dim) in TEACHERS.items():
        settings = TeacherSettings(
            modality, "made up", "0" * 64, {}, "none", "fp32", dim, "float16", True
        )
        shards: dict[str, tuple[Any, ...]] = {}
        for split, table in splits.items():
            for start, stop in shard_ranges(table.n_rows(modality), SHARD_ROWS):
                rows = rng.standard_normal((stop - start, dim), np.float32)
                rows /= np.linalg.norm(rows, axis=1, keepdims=True)
                header = ShardHeader(name, split, table.fingerprint, start, stop, settings)
                file = f"{shard_folder(index).name}/{shard_name(name, split, start, stop)}"
                info = write_shard(folder, file, header, rows.astype(np.float16), [])
                shards[split] = (*shards.get(split, ()), info)
        entries[name] = TeacherEntry(settings, shards)
    write_index(index, Index("made up", root, splits, entries))
    return index


def save_processors(folder: Path) -> Processors:
    """CLIP's image preprocessing and a tokeniser of the made-up words, saved and as the trainer has
    them.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    vocabulary = {word: i for i, word in enumerate((*special.values(), *WORDS))}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=77, **special)
    image_processor = CLIPImageProcessorPil()
    image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Processors(ImageProcessing(image_processor), Tokenization(tokenizer, 77, "longest"))


class Part:
    """Some batches of an epoch, and those of the next one when iterated again."""

    def __init__(self, order: EpochOrder, batches: int) -> None:
        self._order, self._batches = order, batches

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[np.ndarray]:
        self._order.epoch += 1
        return itertools.islice(iter(self._order), self._batches)


def cpu_seconds() -> float:
    """That this process and its workers have used so far."""
    ticks = 0
    for pid in [os.getpid(), *(p.pid for p in multiprocessing.active_children())]:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])  # in user and in system mode
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(
    pairs: dict[str, Pairs], workers: int, batch_size: int, batches: int, rounds: int
) -> dict[str, Any]:
    """Rates and CPU time with so many workers, by way."""
    pools = {name: WorkerPool(p, workers, "fork") for name, p in pairs.items()}
    orders = {
        name: Part(EpochOrder(len(p), batch_size, seed=0), batches) for name, p in pairs.items()
    }

    cpu: dict[str, list[float]] = {name: [] for name in pairs}

    def read(name: str) -> None:
        began = cpu_seconds()
        for _ in pools[name].read(orders[name]):
            pass
        cpu[name].append(cpu_seconds() - began)

    found = in_turns({name: lambda x=name: read(x) for name in pools}, rounds)  # type: ignore[misc]
    cpu = {name: taken[1:] for name, taken in cpu.items()}  # the first turn is the one to warm up
    for pool in pools.values():
        pool.close()
    return {
        "batches_per_s": {
            name: batches / statistics.median(times) for name, times in found.items()
        },
        "rate_with_over_without": paired(found, "without", "with"),
        "cpu_s_with_over_without": paired(cpu, "with", "without"),
        "rounds_s": found,
        "rounds_cpu_s": cpu,
    }


def row_seconds(pairs: Pairs, teachers: Sequence[Embeddings], batch_size: int) -> list[float]:
    """Of reading the teacher rows of one batch after the other, in a process that has not touched
    them yet.
    """
    order = Part(EpochOrder(len(pairs), batch_size, seed=1), TOUCHING)
    rows = [pairs.rows(numbers) for numbers in order]
    return [
        seconds(lambda x=x: [t.gather(n) for t, n in zip(teachers, x, strict=True)]) for x in rows
    ]  # type: ignore[misc]


@click.command()
@click.option("--batch-size", default=128)
@click.option("--batches", default=8, help="A turn's.")
@click.option("--rounds", default=11)
@click.option("--workers", multiple=True, default=(0, 2), type=int)
@click.option("--store", type=click.Path(path_type=Path), help="Folder to keep the store in.")
@click.option(
    "--images", type=click.Path(exists=True, path_type=Path), help="Folder of JPEG files to repeat."
)
@click.option(
    "--n-images", default=SIZES["train"], help="Of the training split; five captions each."
)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    batch_size: int,
    batches: int,
    rounds: int,
    workers: tuple[int, ...],
    store: Path | None,
    images: Path | None,
    n_images: int,
    out: Path | None,
) -> None:
    """Measure, print a table, write the figures to --out."""
    quiet_libraries()
    with folder_of(store) as folder:
        opened = EmbeddingStore(coco_size_store(folder, images, n_images))
        processors = save_processors(folder / "clip")
        sources = student_sources(opened, "train", Config(), {}, processors)
        teachers = (opened.embeddings("unicom", "train"), opened.embeddings("mpnet", "train"))
        used = TeacherSet(teachers[:1], teachers[1:])
        pairs = {"without": Pairs(*sources, TeacherSet()), "with": Pairs(*sources, used)}
        # First: it leaves their pages in this process's map.
        rows_s = row_seconds(pairs["with"], teachers, batch_size)
        by_workers = {n: measure(pairs, n, batch_size, batches, rounds) for n in workers}
    later_s = statistics.median(rows_s[-100:])
    results = machine() | {
        "batch_size": batch_size,
        "batches": batches,
        "rows_alone_s_per_batch": later_s,
    }
    single = {str(n): rows_s[n - 1] for n in (1, 10, 100, len(rows_s)) if n <= len(rows_s)}
    results["rows_alone_s"] = {"all": sum(rows_s)} | single
    table = Table(
        "workers",
        "batches/s without",
        "with rows",
        "with / without",
        "CPU time",
        "rows alone / batch",
    )
    for n, found in by_workers.items():
        rates = found["batches_per_s"]
        found["rows_alone_share"] = later_s * rates["without"]
        ratios = (
            f"{found[key]:.4f}" for key in ("rate_with_over_without", "cpu_s_with_over_without")
        )
        share = f"{found['rows_alone_share']:.2e}"
        table.add_row(str(n), f"{rates['without']:.3f}", f"{rates['with']:.3f}", *ratios, share)
    Console(width=110).print(table)
    if out is not None:
        out.write_text(json.dumps(results | {"workers": by_workers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
