"""What an object store costs: requests, CPU time and wall time beside the same files of a disk.

    python benchmarks/object_store.py --out benchmarks/results/object_store.json

The store is a small S3-compatible server of the tests, in this process, which waits 20 ms before
each answer; each way runs in a process of its own, whose CPU time is measured without the server's.

- Stage one over tars, with teachers that compute nothing, into a set: tars and set in the store,
  beside both on this machine.
- An epoch as the trainer reads it, pictures not decoded, and decoded: from copies that arrive a
  window of tars ahead, none of them kept, beside the files in place.
- A request that is answered with 503 once.
- Uploads that are killed (SIGKILL): whether what is in the store then has the bytes of an
  undisturbed run, and what the command makes of it when it is run again.
- A second creation of an object.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from loading import machine
from rich.console import Console
from rich.table import Table
from set_reading import UndecodedImages, undecoded_inputs
from tar_sets import make_rows, make_tars

from cusa.data.images import load_image
from cusa.data.objects.folder import open_folder
from cusa.data.tars.cache import TarCache
from cusa.data.tars.order import SetOrder
from cusa.data.tars.tar_set import TarSet
from cusa.data.worker_pool import WorkerPool
from cusa.train.tars.pairs import TarSetPairs
from cusa.train.tars.source import InPlace
from cusa.train.tars.supply import TarSupply
from cusa.train.teacher_set import TeacherSet

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.object_server import BUCKET, ObjectServer, running_server

SMOKE = ("--tars 4 --pairs 4 --batch-size 4 --window 1 --rounds 1 --kills 2",)
TEACHERS = ("eyes", "words")
URL = f"s3://{BUCKET}"


class DecodedImages(UndecodedImages):
    """Pictures, decoded."""

    def read(self, rows: Any) -> Any:
        """Decode pictures."""
        return [load_image(Path("picture"), content) for content in super().read(rows)]


@dataclass(frozen=True)
class Reading:
    """An epoch of batches as the trainer reads them, in one process."""

    location: str
    tars: str
    batch_size: int
    window: int
    decodes: bool
    is_copied: bool

    def __call__(self) -> None:
        """Read."""
        tar_set = TarSet(self.location, Path(self.tars))
        inputs = undecoded_inputs(DecodedImages() if self.decodes else None)
        source: Any = InPlace(tar_set, TEACHERS, reads_images=True)
        if self.is_copied:
            source = TarCache(tar_set, None, 0, TEACHERS, needs_images=True)
        pairs = TarSetPairs(
            source.files, inputs, TeacherSet(TEACHERS[:1], TEACHERS[1:]), self.window + 2
        )
        supply = TarSupply(pairs, tuple(tar_set.manifest.names), source, self.window)
        order = SetOrder(pairs.n_trainable, self.batch_size, seed=0, window=self.window)
        with closing(supply), closing(WorkerPool(pairs, workers=0)) as pool:
            for _ in supply.read(pool, order):
                pass


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds and wall seconds of work in a process of its own."""

    def timed() -> None:
        began, cpu_began = time.perf_counter(), time.process_time()
        work()
        sender.send((time.process_time() - cpu_began, time.perf_counter() - began))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    # obstore is used in such processes alone, as its threads do not survive a fork.
    process = multiprocessing.get_context("fork").Process(target=timed)
    process.start()
    sender.close()
    seconds = receiver.recv()
    process.join()
    return seconds


def requests_of(server: ObjectServer, work: Callable[[], None]) -> dict[str, Any]:
    """The requests of some work: those for files of tars, and all others."""
    server.log.clear()
    measured(work)
    log = list(server.log)
    of_tars = Counter(method for method, key in log if Path(key).stem.isdigit())
    all_requests = Counter(method for method, _ in log)
    return {"for tars": dict(of_tars), "all": dict(all_requests)}


def objects_under(server: ObjectServer, prefix: str) -> dict[str, bytes]:
    """The files of tars under a prefix, without those that say where the tars are."""
    contents = {}
    for key, content in list(server.objects.items()):
        if key.startswith(prefix) and Path(key).stem.isdigit():
            contents[key.removeprefix(prefix)] = content
    return contents


class Killer:
    """Kills a process amid an upload: the server has the head of the request, and no more."""

    def __init__(self, last_put: int, delay: float) -> None:
        self.process: Any = None
        self._puts_left = last_put
        self._delay = delay

    def __call__(self, method: str, _: str) -> None:
        """See a request before it is carried out."""
        self._puts_left -= method == "PUT"
        if method == "PUT" and not self._puts_left:
            time.sleep(self._delay)
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)


def killed_uploads(
    server: ObjectServer, tars: list[Path], expected: dict[str, bytes], kills: int
) -> dict[str, int]:
    """Kill runs at random uploads, and run the command again."""
    generator = random.Random(0)
    outcomes: Counter[str] = Counter()
    for number in range(kills):
        prefix = f"killed{number}/"
        location = Path(f"{URL}/{prefix}")
        last_put = generator.randrange(1, len(expected) + 1)
        killer = Killer(last_put, generator.random() / 50)
        killer.process = multiprocessing.get_context("fork").Process(
            target=make_rows, args=(tars, location)
        )
        server.on_request = killer
        killer.process.start()
        killer.process.join()
        server.on_request = None
        outcomes["killed"] += killer.process.exitcode == -signal.SIGKILL
        left = objects_under(server, prefix)
        outcomes["only whole files"] += left.items() <= expected.items()
        outcomes["files of a killed run"] += len(left)
        measured(partial(make_rows, tars, location))
        outcomes["equal when run again"] += objects_under(server, prefix) == expected
    return dict(outcomes)


def second_creation(server: ObjectServer, folder: Path) -> bool:
    """Whether an object that is there is left as it is by another creation."""
    (folder / "one").write_bytes(b"one")
    (folder / "two").write_bytes(b"two")

    def create_twice() -> None:
        remote = open_folder(f"{URL}/created")
        assert remote.create("file", folder / "one")
        assert not remote.create("file", folder / "two")

    measured(create_twice)
    return server.objects["created/file"] == b"one"


def paired_ratio(taken: dict[str, list[tuple[float, float]]], which: int, name: str) -> float:
    """The median over rounds of the store's seconds over those of this machine."""
    pairs = zip(taken[f"{name}, store"], taken[f"{name}, disk"], strict=True)
    return statistics.median(store[which] / disk[which] for store, disk in pairs)


@click.command()
@click.option("--tars", "n_tars", default=12)
@click.option("--pairs", "n_pairs", default=500, help="Of each tar.")
@click.option("--batch-size", default=128)
@click.option("--window", default=4, help="Tars that an epoch's pairs are drawn from at a time.")
@click.option("--latency", default=0.02, help="Seconds before each answer.")
@click.option("--rounds", default=5)
@click.option("--kills", default=20)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    n_tars: int,
    n_pairs: int,
    batch_size: int,
    window: int,
    latency: float,
    rounds: int,
    kills: int,
    out: Path | None,
) -> None:
    """Measure and print."""
    with TemporaryDirectory() as name, running_server() as (server, environment):
        folder = Path(name)
        os.environ |= environment
        server.latency = latency
        (folder / "tars").mkdir()
        local_tars = make_tars(folder / "tars", n_tars, n_pairs)
        server.store("tars/", folder / "tars", "*.tar")
        urls = [Path(f"{URL}/tars/{path.name}") for path in local_tars]

        def precompute_on_disk() -> None:
            shutil.rmtree(folder / "again", ignore_errors=True)
            make_rows(local_tars, folder / "again")

        def precompute_in_store() -> None:
            make_rows(urls, Path(f"{URL}/again"))

        def forget() -> None:
            for key in list(server.objects):
                if key.startswith("again/"):
                    del server.objects[key]

        measured(lambda: make_rows(local_tars, folder / "set"))
        server.store("set/", folder / "set", "**/*.h5")
        expected = objects_under(server, "set/")
        on_disk = (str(folder / "set"), str(folder / "tars"), batch_size, window)
        in_store = (f"{URL}/set", f"{URL}/tars", batch_size, window)
        ways: dict[str, Callable[[], None]] = {
            "stage one, disk": precompute_on_disk,
            "stage one, store": precompute_in_store,
            "epoch, disk": Reading(*on_disk, decodes=False, is_copied=False),
            "epoch, store": Reading(*in_store, decodes=False, is_copied=True),
            "decoded epoch, disk": Reading(*on_disk, decodes=True, is_copied=False),
            "decoded epoch, store": Reading(*in_store, decodes=True, is_copied=True),
        }
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, work in list(ways.items())[:: -1 if number % 2 else 1]:
                taken[way].append(measured(work))
                forget()
        requests = {
            "stage one": requests_of(server, precompute_in_store),
            "epoch": requests_of(server, ways["epoch, store"]),
        }
        assert objects_under(server, "again/") == expected
        server.failures["GET"] = 1
        requests["epoch, a GET answered with 503"] = requests_of(server, ways["epoch, store"])
        figures = machine() | {
            "tars": n_tars,
            "pairs a tar": n_pairs,
            "bytes a tar": local_tars[0].stat().st_size,
            "window": window,
            "latency": latency,
            "rounds": rounds,
            "requests": requests,
            "CPU seconds": medians(taken, 0),
            "wall seconds": medians(taken, 1),
            "store over disk": ratios(taken),
            "kills": killed_uploads(server, urls, expected, kills),
            "second creation is refused": second_creation(server, folder),
        }
    text = json.dumps(figures, indent=1)
    table = Table("work", "CPU s", "wall s")
    for way in ways:
        seconds = (figures["CPU seconds"][way], figures["wall seconds"][way])
        table.add_row(way, *(f"{value:.2f}" for value in seconds))
    Console().print(table)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


def medians(taken: dict[str, list[tuple[float, float]]], which: int) -> dict[str, float]:
    """Medians of CPU seconds (0) or wall seconds (1)."""
    by_way = {}
    for way, rounds in taken.items():
        by_way[way] = statistics.median(seconds[which] for seconds in rounds)
    return by_way


def ratios(taken: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Medians of the rounds' ratios."""
    by_work = {}
    for work in ("stage one", "epoch", "decoded epoch"):
        by_work[work] = {
            "CPU": paired_ratio(taken, 0, work),
            "wall": paired_ratio(taken, 1, work),
        }
    return by_work


if __name__ == "__main__":
    main()
