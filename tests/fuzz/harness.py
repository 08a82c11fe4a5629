"""Runs mutated files through our readers, each batch in a process of its own, and says how each
came out.

A case is a target, a seed and a number; these three make the mutated file. A worker process takes a
batch of cases and tells of each when it begins and how it ends. Whoever waits for it kills it when
a case takes too long, and begins another process behind the case. A worker may take up a gibibyte
of memory more than it began with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cusa.data.errors import CusaError
from tests.fuzz.mutations import BYTE_MUTATORS, Mutator

RIGHT, ONE_LINE = "right", "one_line"
FAULTS = ("traceback", "crash", "hang", "silent_difference", "memory")
OUTCOMES = (RIGHT, ONE_LINE, *FAULTS)

SECONDS_PER_CASE = 20.0
EXTRA_MEMORY = 2**30  # bytes beyond what a worker, or a process that it starts, has when it begins
BATCH = 250  # cases of one worker process
_MOST_MUTATIONS = (1, 1, 1, 1, 2, 3)  # of one file, drawn evenly
_LONGEST_LINE = (
    4096  # characters of an error, each of whose control characters may be written as four
)
_KEPT_OF_A_FAULT = 20  # files kept of one target


@dataclass(frozen=True)
class Target:
    """One kind of file that we read.

    Attributes:
        name: Such as ``"annotations/coco"``.
        make: Writes valid input in an empty folder, the same at every call; returns the file that
        is mutated.
        mutators: What may change its bytes; each case draws one to three times.
        read: Reads the file through our public reader and returns a value.
        agrees: Whether a value is right, of (value of the valid file, value read, mutated file):
        equal to that of
            the valid file, or what an independent reading of the mutated file gives.
        weight: Its share of the cases, beside the other targets'.
    """

    name: str
    make: Callable[[Path], Path]
    mutators: tuple[Mutator, ...]
    read: Callable[[Path], Any]
    agrees: Callable[[Any, Any, Path], bool]
    weight: float = 1


@dataclass(frozen=True)
class Outcome:
    """How a case came out.

    Attributes:
        case: Its number.
        kind: One of :data:`OUTCOMES`.
        detail: The error's line, the traceback, or how the process ended.
        seconds: Time that reading took, and comparing.
    """

    case: int
    kind: str
    detail: str
    seconds: float


@dataclass
class Tally:
    """The outcomes of a target.

    Attributes:
        counts: Cases by outcome.
        faults: The outcomes that must not be.
        kept: Folders with the mutated files of faults.
        seconds: Time of all cases.
        slowest: Time of the slowest one.
        peak_bytes: The most memory that a worker, or a process of its, took beyond what it began
        with.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Outcome] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Limits:
    """What a case may take.

    Attributes:
        seconds: Time.
        extra_memory: Bytes beyond what its worker began with.
    """

    seconds: float = SECONDS_PER_CASE
    extra_memory: int = EXTRA_MEMORY


@dataclass(frozen=True)
class _Prepared:
    """A target with its valid input."""

    target: Target
    folder: Path
    file: Path
    value: Any


def mutated(target: Target, content: bytes, seed: int, case: int) -> bytes:
    """The bytes of a case."""
    rng = random.Random(f"{seed}/{target.name}/{case}")
    for _ in range(rng.choice(_MOST_MUTATIONS)):
        mutate = rng.choice(target.mutators)
        try:
            content = mutate(content, rng)
        except Exception:  # of a library that parses what an earlier mutation has damaged
            content = rng.choice(BYTE_MUTATORS)(content, rng)
    return content


def run_target(
    target: Target,
    cases: range,
    seed: int,
    keep: Path,
    jobs: int = 1,
    limits: Limits = Limits(),
) -> Tally:
    """Run cases of a target.

    Args:
        target: The target.
        cases: Numbers of the cases.
        seed: Seed of all.
        keep: Folder for the mutated files of faults, each in a folder ``TARGET-CASE`` with all that
        lies
            beside it.
        jobs: Worker processes at a time.
        limits: What a case may take.

    Returns:
        How they came out.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="cusa-fuzz-") as name:
        folder = Path(name) / "input"
        folder.mkdir()
        file = target.make(folder)
        prepared = _Prepared(target, folder, file, target.read(file))
        assert target.agrees(prepared.value, target.read(file), file), (
            f"{target.name}: valid input is not read right"
        )
        waiting = [cases[start : start + BATCH] for start in range(0, len(cases), BATCH)]
        workers: list[_Worker] = []
        try:
            while waiting or workers:
                while waiting and len(workers) < jobs:
                    workers.append(_Worker(prepared, waiting.pop(0), seed, Path(name), limits))
                for worker in _ready(workers):
                    for outcome in worker.outcomes():
                        _count(outcome, worker, tally, keep)
                    if worker.ended:
                        workers.remove(worker)
                        if worker.left:
                            waiting.insert(0, worker.left)
        finally:
            for worker in workers:
                worker.stop()
    return tally


def _count(outcome: Outcome, worker: _Worker, tally: Tally, keep: Path) -> None:
    tally.counts[outcome.kind] += 1
    tally.seconds += outcome.seconds
    tally.slowest = max(tally.slowest, outcome.seconds)
    tally.peak_bytes = max(tally.peak_bytes, worker.peak_bytes)
    if outcome.kind not in FAULTS:
        return
    tally.faults.append(outcome)
    if len(tally.kept) < _KEPT_OF_A_FAULT:
        kept = keep / f"{worker.prepared.target.name.replace('/', '-')}-{outcome.case}"
        shutil.rmtree(kept, ignore_errors=True)
        worker.write_case(outcome.case, kept)
        tally.kept.append(kept)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """The workers that said something, or took too long."""
    now = time.monotonic()
    patience = min(worker.deadline for worker in workers) - now
    readable, _, _ = select.select(
        [worker.descriptor for worker in workers], [], [], max(0.0, patience)
    )
    now = time.monotonic()
    return [worker for worker in workers if worker.descriptor in readable or now >= worker.deadline]


class _Worker:
    """A process that takes a batch of cases.

    It writes a line when a case begins and one when it ends, as JSON.

    Attributes:
        prepared: Its target.
        descriptor: The pipe's end to wait for.
        deadline: When the case that it is at takes too long, by ``time.monotonic``.
        ended: Whether it is gone.
        left: The cases that it did not come to.
        peak_bytes: The most memory that it took beyond what it began with.
    """

    def __init__(
        self, prepared: _Prepared, cases: range, seed: int, folder: Path, limits: Limits
    ) -> None:
        self.prepared, self.left, self.peak_bytes, self.ended = prepared, cases, 0, False
        self._seed, self._limits, self._text, self._case = seed, limits, b"", cases[0]
        self._gives_up = False
        self.descriptor, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self.descriptor)
            _work(prepared, cases, seed, folder, limits, writing)
        os.close(writing)
        with contextlib.suppress(OSError):  # it does so itself; whoever comes first
            os.setpgid(self._pid, self._pid)
        self._began = time.monotonic()
        self.deadline = self._began + limits.seconds

    def outcomes(self) -> Iterator[Outcome]:
        """What came in since the last call; none of a case that goes on."""
        if not select.select([self.descriptor], [], [], 0)[0]:
            self.stop()
            yield self._outcome("hang", f"no answer within {self._limits.seconds:g} s")
            return
        received = os.read(self.descriptor, 1 << 16)
        if not received:
            status = self._wait()
            if self.left and not self._gives_up:
                yield self._outcome("crash", f"the process ended with status {status}")
            return
        *lines, self._text = (self._text + received).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self._case = message["case"]
            if "kind" not in message:
                self._began = time.monotonic()
                self.deadline = self._began + self._limits.seconds
                continue
            self.peak_bytes = max(self.peak_bytes, message["peak_bytes"])
            self.left = self.left[1:]
            self._gives_up = message["kind"] == "memory"
            yield Outcome(self._case, message["kind"], message["detail"], message["seconds"])

    def _outcome(self, kind: str, detail: str) -> Outcome:
        self.left = self.left[1:]
        return Outcome(self._case, kind, detail, time.monotonic() - self._began)

    def stop(self) -> None:
        """End the process, and those that it started."""
        if not self.ended:
            os.killpg(self._pid, signal.SIGKILL)
            self._wait()

    def _wait(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        os.close(self.descriptor)
        self.ended = True
        return os.waitstatus_to_exitcode(status)

    def write_case(self, case: int, folder: Path) -> None:
        """Write the input of a case."""
        write_case(self.prepared, self._seed, case, folder)


def write_case(prepared: _Prepared, seed: int, case: int, folder: Path) -> Path:
    """Write the input of a case into a new folder; the mutated file."""
    shutil.copytree(prepared.folder, folder)
    file = folder / prepared.file.relative_to(prepared.folder)
    file.write_bytes(mutated(prepared.target, prepared.file.read_bytes(), seed, case))
    return file


def _work(
    prepared: _Prepared, cases: range, seed: int, folder: Path, limits: Limits, writing: int
) -> None:
    """Take the cases; what the process runs, and it never returns."""
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        own_folder = folder / f"worker-{os.getpid()}"
        tempfile.tempdir = str(folder)
        os.chdir(folder)
        baseline = _resident_bytes()
        _limit_memory(limits.extra_memory)
        file = own_folder / prepared.file.relative_to(prepared.folder)
        content = prepared.file.read_bytes()
        listing: set[tuple[str, int, int]] | None = None
        for case in cases:
            os.write(writing, json.dumps({"case": case}).encode() + b"\n")
            if _listing(own_folder, file) != listing:  # the last reader has written there
                shutil.rmtree(own_folder, ignore_errors=True)
                shutil.copytree(prepared.folder, own_folder)
                listing = _listing(own_folder, file)
            file.write_bytes(mutated(prepared.target, content, seed, case))
            began = time.perf_counter()
            outcome = read_case(prepared.target, prepared.value, file, case)
            peak = _peak_bytes(baseline)
            if peak > limits.extra_memory and outcome.kind not in FAULTS:
                outcome = dataclasses.replace(outcome, kind="memory", detail=f"{peak:,} bytes")
            message = dataclasses.asdict(outcome) | {
                "seconds": time.perf_counter() - began,
                "peak_bytes": peak,
            }
            os.write(writing, json.dumps(message).encode() + b"\n")
            if outcome.kind == "memory":
                break  # the system tells the most memory so far, which says nothing of later cases
    finally:
        os._exit(0)


def _listing(folder: Path, mutated_file: Path) -> set[tuple[str, int, int]]:
    """Path, size and time of all files below a folder but one."""
    others = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return {
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for path in others
        if path != mutated_file
    }


def read_case(target: Target, valid_value: Any, file: Path, case: int) -> Outcome:
    """Read a mutated file and say how it came out."""
    try:
        value = target.read(file)
        agrees = target.agrees(valid_value, value, file)
    except (CusaError, click.ClickException) as error:
        line = error.format_message() if isinstance(error, click.ClickException) else str(error)
        if line.strip() and len(line.splitlines()) == 1 and len(line) <= _LONGEST_LINE:
            return Outcome(case, ONE_LINE, line[:500], 0.0)
        detail = (
            f"an error of {len(line.splitlines())} lines, {len(line)} characters: {line[:500]!r}"
        )
        return Outcome(case, "traceback", detail, 0.0)
    except MemoryError:
        return Outcome(case, "memory", traceback.format_exc(limit=-8)[-4000:], 0.0)
    except BaseException:
        return Outcome(case, "traceback", traceback.format_exc(limit=-12)[-4000:], 0.0)
    if agrees:
        return Outcome(case, RIGHT, "", 0.0)
    return Outcome(case, "silent_difference", f"read {str(value)[:1000]}", 0.0)


def _limit_memory(extra: int) -> None:
    """Limit the address space, softly: a child process may set a limit of its own."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak_bytes(baseline: int) -> int:
    """The most memory of this process beyond its first, or of a process that it started."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - baseline
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def shares(targets: Mapping[str, Target], cases: int) -> dict[str, int]:
    """Cases of each target by its weight, at least one each."""
    total = sum(target.weight for target in targets.values())
    return {name: max(1, round(cases * target.weight / total)) for name, target in targets.items()}
