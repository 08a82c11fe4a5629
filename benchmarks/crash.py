"""Kill cusa-precompute at random moments, run it again to the end, and compare every byte with an
undisturbed run.

    python benchmarks/crash.py --kills 200 --ranks 1 --out benchmarks/results/crash_1.json
    python benchmarks/crash.py --kills 200 --ranks 2 --out benchmarks/results/crash_2.json
    python benchmarks/crash.py --kills 50 --ranks 2 --tars --out benchmarks/results/crash_tars.json

Each run is a process of its own, forked from this one, which has the libraries loaded already. It
is killed (SIGKILL) in one of four ways, drawn at random: after a random time; at a random file
operation (opening, renaming, removing, flushing, locking); in the middle of writing a shard or the
index, at a random byte; and, of several ranks, only one of them, after which the others get the
SIGTERM that torchrun would send.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

# Kills over files: tests/precompute/test_processes.py.
SMOKE = ("--kills 1 --tars",)
PATIENCE_S = 30


@dataclass(frozen=True)
class Kill:
    """How a process is to end.

    Attributes:
        way: ``"time"``, ``"operation"`` or ``"byte"``.
        at: Seconds; number of the file operation; bytes that a file may reach.
    """

    way: str
    at: float


def start(
    args: Sequence[str], env: dict[str, str], log: Path, kill: Kill | None, report: Path
) -> int:
    """Fork a process that runs cusa-precompute; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        with log.open("ab", buffering=0) as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.environ.update(env)
        if kill is not None:
            _arm(kill, report)
        from cusa.cli.precompute import main

        main(list(args), standalone_mode=True)
        os._exit(0)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException as error:
        print("TRACEBACK", repr(error), file=sys.stderr, flush=True)
        os._exit(70)


def _arm(kill: Kill, report: Path) -> None:
    """Let this process kill itself at a file operation or while a file grows."""
    if kill.way == "byte":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(kill.at), resource.RLIM_INFINITY))
        # The kernel ends the process within its write.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        return
    if kill.way != "operation":
        return
    count = 0

    def seen(operation: str, path: object) -> None:
        nonlocal count
        if "store" not in str(path):
            return
        count += 1
        if count == int(kill.at):
            report.write_text(f"{operation} of {kind_of(str(path))}")
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "fcntl.lockf"):
            seen(event.removeprefix("os.").removeprefix("fcntl."), arguments[0])

    sys.addaudithook(hook)
    fsync = os.fsync

    def flushing(descriptor: int) -> None:
        seen("flush", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    os.fsync = flushing


def kind_of(path: str) -> str:
    """What a path of the store is."""
    name = Path(path).name
    folder_name = Path(path).parent.name
    kind = (
        "lock"
        if name == ".lock"
        else "pairs"
        if folder_name == "pairs"
        else "shard"
        if "-0" in name or folder_name in ("vit", "words")
        else "index"
        if ".h5" in name
        else "folder"
    )
    return f"{kind}'s temporary" if name.endswith(".tmp") else kind


def end_of(children: list[int], kill: Kill | None, victim: int, grace_s: float = 20) -> list[int]:
    """Wait for all; kill the victim in time; once one has failed, stop the others as torchrun does.
    Statuses.
    """
    statuses: dict[int, int] = {}
    began, stopping = time.perf_counter(), 0.0
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    statuses[child] = status
        now = time.perf_counter()
        if (
            kill is not None
            and kill.way == "time"
            and now > began + kill.at
            and children[victim] not in statuses
        ):
            os.kill(children[victim], signal.SIGKILL)
            kill = None
        if any(statuses.values()) and not stopping:
            stopping = now
            for child in set(children) - set(statuses):
                os.kill(child, signal.SIGTERM)
        if (stopping and now > stopping + grace_s) or now > began + PATIENCE_S:
            for child in set(children) - set(statuses):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return [statuses[child] for child in children]


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store but the lock."""
    return {
        str(p.relative_to(store)): p.read_bytes()
        for p in store.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def phase_of(store: Path, whole: dict[str, bytes]) -> str:
    """Where a run stood, by what it left."""
    left = contents(store) if store.exists() else {}
    if not {"store.h5", "set.h5"}.isdisjoint(left):
        return "after the index"
    if any(name.endswith(".tmp") for name in left):
        last = next(name for name in left if name.endswith(".tmp"))
        return f"{kind_of(last)} left"
    done, all_shards = sum(name in left for name in whole), len(whole) - 1
    if not done:
        return "before the first shard"
    return "all shards there, no index" if done == all_shards else "some shards there"


def crash(
    folder: Path,
    args: Callable[[Path], list[str]],
    kills: int,
    ranks: int,
    seed: int,
    on_kill: Callable[[int, bool], None] = lambda number, same: None,
) -> dict[str, object]:
    """Kill and rerun, so many times.

    Args:
        folder: Where the stores go.
        args: cusa-precompute's arguments for a store's path.
        kills: How many.
        ranks: Processes of each run.
        seed: Of when to kill.
        on_kill: Told the number of each kill, and whether the rerun gave the same bytes.

    Returns:
        Counts by way and phase, and what went wrong.
    """
    rng = random.Random(seed)

    def run(store: Path, kill: Kill | None, victim: int) -> tuple[list[int], str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        report, log = folder / "report", folder / "log"
        report.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
        children = [
            start(
                args(store / "store.h5"),
                {
                    **common,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(ranks),
                },
                log,
                kill if rank == victim else None,
                report,
            )
            for rank in range(ranks)
        ]
        return end_of(children, kill, victim), report.read_text() if report.exists() else ""

    began = time.perf_counter()
    statuses, _ = run(folder / "whole", None, 0)
    assert not any(statuses), (folder / "log").read_text()
    seconds = time.perf_counter() - began
    whole = contents(folder / "whole")
    largest = max(len(content) for content in whole.values())
    ways, phases, wrong = Counter(), Counter(), []
    number = 0
    while number < kills:
        store = folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        way = rng.choice(["time", "operation", "byte"])
        most = {"time": 1.05 * seconds, "operation": 12 * len(whole) / ranks, "byte": largest}[way]
        kill = Kill(way, rng.uniform(0 if way == "time" else 1, most))
        victim = rng.randrange(ranks)
        statuses, where = run(store, kill, victim)
        # The limit on a file's bytes may also end a worker; the run then says so, and fails.
        is_killed = any(os.WIFSIGNALED(status) for status in statuses)
        if not is_killed and "killed by SIGXFSZ" not in (folder / "log").read_text():
            if any(statuses):
                wrong.append(f"{kill}: statuses {statuses}: {(folder / 'log').read_text()[-500:]}")
                number += 1
            continue  # it had ended before
        number += 1
        ways[way] += 1
        phases[where or phase_of(store, whole)] += 1
        again, _ = run(store, None, 0)
        found = contents(store)
        same = not any(again) and found == whole
        if not same:
            names = [name for name in {*found, *whole} if found.get(name) != whole.get(name)]
            wrong.append(
                f"{kill} ({where}): statuses {again}, differing {names}: "
                f"{(folder / 'log').read_text()[-500:]}"
            )
        on_kill(number, same)
    return {
        "kills": kills,
        "identical": kills - len(wrong),
        "ranks": ranks,
        "seconds_of_a_whole_run": seconds,
        "ways": dict(ways.most_common()),
        "phases": dict(phases.most_common()),
        "wrong": wrong,
    }


def make_inputs(
    folder: Path, are_tars: bool = False, workers: int = 0
) -> Callable[[Path], list[str]]:
    """Small pictures and captions, two tiny teachers, and the arguments for them."""
    from tests.data.tars.tar_files import write_tars
    from tests.helpers import make_pairs, make_tiny_sentence, make_tiny_vit

    if are_tars:
        source = write_tars(folder / "data", n_tars=10, n_pairs=3)[0].parent
    else:
        source = make_pairs(folder / "data", n=24, n_val=6, captions=3)
    vit, words = make_tiny_vit(folder / "vit"), make_tiny_sentence(folder / "words")
    options = [
        "--dataset",
        str(source),
        "--teacher",
        f"vit={vit}",
        "--teacher",
        f"words={words}",
        "--batch-size",
        "2",
        "--workers",
        str(workers),
    ]
    if are_tars:
        return lambda store: [*options, "--out", str(store.parent)]
    return lambda store: [*options, "--shard-rows", "5", "--out", str(store)]


def load_libraries() -> None:
    """Load what the forked processes need, with one thread: forking a process with threads is not
    safe.
    """
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    import torch

    torch.set_num_threads(1)
    import sentence_transformers  # noqa: F401
    import tqdm
    import transformers  # noqa: F401

    # Its own is shared between forked processes, and dies with a killed one.
    tqdm.tqdm.set_lock(threading.RLock())

    import cusa.precompute.run
    import cusa.precompute.tars.run
    import cusa.precompute.teachers.sentence
    import cusa.precompute.teachers.vision  # noqa: F401


@click.command()
@click.option("--kills", default=200)
@click.option("--ranks", default=1)
@click.option("--seed", default=0)
@click.option("--tars", "are_tars", is_flag=True, help="Of WebDataset tars instead of files.")
@click.option("--workers", default=0, help="Processes that decode images.")
@click.option("--out", type=click.Path(path_type=Path))
def main(kills: int, ranks: int, seed: int, are_tars: bool, workers: int, out: Path | None) -> None:
    """Kill and rerun; print the counts."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    load_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = crash(
            folder,
            make_inputs(folder, are_tars, workers),
            kills,
            ranks,
            seed,
            lambda n, same: print(n, same, flush=True),
        )
    results["machine"] = platform.platform()
    print(json.dumps(results, indent=1))
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(bool(results["wrong"]))


if __name__ == "__main__":
    main()
