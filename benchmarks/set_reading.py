"""What it costs to read a set of tars, beside webdataset and beside files.

    python benchmarks/set_reading.py --images FOLDER --out benchmarks/results/set_reading.json

Tars as img2dataset writes them, of pictures that repeat those of --images (else made-up ones), each
with a made-up caption, and rows of two teachers (512 and 768 numbers, float16, made up). In one
process, in turns; the figures are CPU times of a pair, and medians over rounds of one way's over
another's beside it:

- batches of the set, in windows of tars, as the trainer reads them: teacher rows, captions and the
  bytes of the pictures, which are not decoded; beside webdataset, which yields the bytes of each
  sample in the tar's order. All files are verified, the tars' own bytes only in the first epoch,
  which is measured by itself;
- webdataset with the stage `with_teachers`, beside webdataset without it;
- batches of a Hugging Face student, pictures decoded and preprocessed as for CLIP and captions
  tokenised; beside those of a store of the same pairs, whose pictures are files.
"""

from __future__ import annotations

import io
import itertools
import json
import statistics
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import webdataset
from loading import TEACHERS, coco_size_store, folder_of, machine, paired, save_processors
from rich.console import Console
from rich.table import Table

from cusa.cli.console import quiet_libraries
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.shards import ShardHeader, write_shard
from cusa.data.tars.manifest import write_manifest
from cusa.data.tars.manifest_building import build_manifest
from cusa.data.tars.order import SetOrder
from cusa.data.tars.origin import SetOrigin
from cusa.data.tars.pair_files import write_pairs
from cusa.data.tars.pairs import read_pairs_of_tar
from cusa.data.tars.tar_set import TarSet
from cusa.data.tars.webdataset_stage import with_teachers
from cusa.data.worker_pool import WorkerPool
from cusa.train.config import Config
from cusa.train.loader import EpochOrder, Pairs
from cusa.train.sources import student_sources
from cusa.train.tars.inputs import TarInputs, TarRows, tar_inputs
from cusa.train.tars.pairs import TarSetPairs
from cusa.train.tars.source import InPlace
from cusa.train.tars.supply import TarSupply
from cusa.train.teacher_set import TeacherSet

from timing import cpu_seconds, in_turns

SMOKE = ("--images {images} --tars 3 --pairs 4 --batch-size 4 --batches 2 --rounds 1",)
WINDOW = 8


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    tar.addfile(header, io.BytesIO(content))


def write_tar(path: Path, store: EmbeddingStore, rows: range) -> None:
    """Write the pairs of some rows of a store, whose images have a caption each, as a tar."""
    split = store.split("train")
    with tarfile.open(path, "w") as tar:
        for row in rows:
            picture = (store.image_root / split.image_paths[row]).read_bytes()
            caption = split.captions[row]
            description = {
                "caption": caption,
                "url": f"https://pictures.example/{row}.jpg",
                "key": f"{row:09d}",
                "status": "success",
                "error_message": None,
                "width": 224,
                "height": 224,
                "exif": "{}",
                "sha256": "0" * 64,
            }
            add_file(tar, f"{row:09d}.jpg", picture)
            add_file(tar, f"{row:09d}.txt", caption.encode())
            add_file(tar, f"{row:09d}.json", json.dumps(description).encode())


def make_set(folder: Path, store: EmbeddingStore, n_tars: int) -> TarSet:
    """A set of the store's pairs and rows, and its tars; made once per folder."""
    set_folder, tars = folder / "set", folder / "tars"
    if (set_folder / "set.h5").exists():
        return TarSet(set_folder)
    tars.mkdir(exist_ok=True)
    bounds = np.linspace(0, store.split("train").n_images, n_tars + 1).astype(int).tolist()
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        path = tars / f"{number:05d}.tar"
        write_tar(path, store, range(start, stop))
        pairs = read_pairs_of_tar(path, "txt", may_be_damaged=False)
        for teacher, settings in store.teachers.items():
            header = ShardHeader(
                teacher, pairs.name, pairs.records.fingerprint, 0, stop - start, settings
            )
            rows = store[teacher, "train"][start:stop]
            write_shard(set_folder, f"{teacher}/{pairs.name}.h5", header, rows, [])
        write_pairs(set_folder, pairs)
    write_manifest(set_folder, build_manifest(set_folder, SetOrigin(str(tars.resolve()))))
    return TarSet(set_folder)


class UndecodedImages:
    """The bytes of pictures."""

    def read(self, rows: Sequence[TarRows]) -> Any:
        """Read files of pictures."""
        files = []
        for in_tar in rows:
            files += map(in_tar.tar.image, in_tar.image_rows.tolist())
        return files


class UntokenizedCaptions:
    """Captions as they are."""

    def read(self, rows: Sequence[TarRows]) -> Any:
        """Read captions."""
        captions = []
        for in_tar in rows:
            captions += in_tar.tar.captions[in_tar.caption_rows]
        return captions


def undecoded_inputs(images: Any = None) -> TarInputs:
    """Files of pictures, or what ``images`` reads, and captions; no row of a teacher."""
    return TarInputs(images or UndecodedImages(), UntokenizedCaptions(), (), (), reads_images=True)


class Batches:
    """Reads the next batches of a data set whenever it is called, one epoch after the other."""

    def __init__(self, pairs: Any, order: SetOrder | EpochOrder, batches: int | None) -> None:
        self._pairs = pairs
        self._order = order
        self._batches = batches or len(order)
        self.n_pairs = self._batches * order.batch_size

    def __call__(self) -> None:
        """Read."""
        self._order.epoch += 1
        order = [numbers for _, numbers in zip(range(self._batches), self._order, strict=False)]
        for _ in self._read(order):
            pass

    def _read(self, order: Sequence[np.ndarray]) -> Any:
        return WorkerPool(self._pairs, workers=0).read(order)


class SetBatches(Batches):
    """Batches of a set, as the trainer reads them, in its first epoch or in later ones."""

    def __init__(
        self,
        tar_set: TarSet,
        inputs: TarInputs,
        batch_size: int,
        batches: int | None,
        is_first_epoch: bool = False,
    ) -> None:
        self._is_first_epoch = is_first_epoch
        image_teacher, text_teacher = TEACHERS
        used_teachers = TeacherSet((image_teacher,), (text_teacher,))
        pairs = TarSetPairs(tar_set, inputs, used_teachers, WINDOW + 2)
        self._source = InPlace(tar_set, pairs.teachers_read, pairs.reads_images)
        self._supply = TarSupply(pairs, tuple(tar_set.manifest.names), self._source, WINDOW)
        order = SetOrder(pairs.n_trainable, batch_size, seed=0, window=WINDOW)
        super().__init__(pairs, order, batches)

    def _read(self, order: Sequence[np.ndarray]) -> Any:
        if self._is_first_epoch:
            self._source.verified_tars.clear()
        return self._supply.read(WorkerPool(self._pairs, workers=0), order)


def read_webdataset(paths: Sequence[str], stages: Sequence[Any]) -> Callable[[], None]:
    """A function that reads all samples of some tars."""

    def read() -> None:
        for _ in webdataset.WebDataset(list(paths), shardshuffle=False).compose(*stages):
            pass

    return read


@click.command()
@click.option(
    "--images", type=click.Path(exists=True, path_type=Path), help="Folder of JPEG files to repeat."
)
@click.option("--tars", "n_tars", default=8)
@click.option("--pairs", "n_pairs", default=2000, help="Of each tar.")
@click.option("--batch-size", default=128)
@click.option("--batches", default=8, help="Batches of decoded pictures in a round.")
@click.option("--rounds", default=7)
@click.option("--store", type=click.Path(path_type=Path), help="Folder to keep the inputs in.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    images: Path | None,
    n_tars: int,
    n_pairs: int,
    batch_size: int,
    batches: int,
    rounds: int,
    store: Path | None,
    out: Path | None,
) -> None:
    """Measure and print."""
    quiet_libraries()
    with folder_of(store) as folder:
        n_images = n_tars * n_pairs
        opened = EmbeddingStore(coco_size_store(folder, images, n_images, captions=1))
        tar_set = make_set(folder, opened, n_tars)
        paths = [str(tar_set.tar_path(name)) for name in tar_set.manifest.names]
        processors = save_processors(folder / "clip")
        sources = student_sources(opened, "train", Config(), {}, processors)
        image_rows, text_rows = [opened.embeddings(name, "train") for name in TEACHERS]
        teachers = TeacherSet((image_rows,), (text_rows,))
        decoded = tar_inputs({}, processors, Config().data.normalizer, tuple(TEACHERS))
        files = Batches(
            Pairs(*sources, teachers), EpochOrder(n_images, batch_size, seed=0), batches
        )
        ways: dict[str, Callable[[], None]] = {
            "set": SetBatches(tar_set, undecoded_inputs(), batch_size, None),
            "set, first epoch": SetBatches(
                tar_set, undecoded_inputs(), batch_size, None, is_first_epoch=True
            ),
            "webdataset": read_webdataset(paths, []),
            "webdataset with_teachers": read_webdataset(paths, [with_teachers(tar_set)]),
        }
        taken = in_turns(ways, rounds, cpu_seconds)
        decoding: dict[str, Callable[[], None]] = {
            "set, decoded": SetBatches(tar_set, decoded, batch_size, batches),
            "files, decoded": files,
        }
        taken |= in_turns(decoding, rounds, cpu_seconds)
    sizes = {name: getattr(way, "n_pairs", n_images) for name, way in {**ways, **decoding}.items()}
    per_pair = {name: np.array(taken[name]) / sizes[name] for name in taken}
    figures: dict[str, Any] = machine() | {
        "tars": n_tars,
        "pairs a tar": n_pairs,
        "batch size": batch_size,
        "rounds": rounds,
        "CPU us a pair": {
            name: 1e6 * statistics.median(values) for name, values in per_pair.items()
        },
        "speed over webdataset": paired(per_pair, "webdataset", "set"),
        "first epoch, speed over webdataset": paired(per_pair, "webdataset", "set, first epoch"),
        "speed of webdataset, with_teachers": paired(
            per_pair, "webdataset", "webdataset with_teachers"
        ),
        "decoded, speed over files": paired(per_pair, "files, decoded", "set, decoded"),
    }
    table = Table("read", "CPU us a pair")
    for name, microseconds in figures["CPU us a pair"].items():
        table.add_row(name, f"{microseconds:.1f}")
    Console().print(table)
    text = json.dumps(figures, indent=1)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
