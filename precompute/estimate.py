"""A short measurement before a run: how long it would take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from cusa.data.errors import CusaError
from cusa.data.records import Dataset
from cusa.precompute.pipeline import PipelineOptions, encoded_batches, encoder_threads
from cusa.precompute.reading import TeacherBatch
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import Teacher


@dataclass(frozen=True)
class Rates:
    """Rows per second.

    Attributes:
        whole: Reading, encoding and all.
        encoding: The teacher alone, on inputs in memory.
    """

    whole: float
    encoding: float


@dataclass(frozen=True)
class Estimate:
    """The time and space that a teacher would take.

    Attributes:
        teacher: The teacher's name in the store.
        n_rows: Its rows.
        n_shards: Its shards.
        n_bytes: Their bytes on disk.
        rates: Rows per second of this process.
    """

    teacher: str
    n_rows: int
    n_shards: int
    n_bytes: int
    rates: Rates


def measure(
    teacher: Teacher,
    normalizer_name: str,
    tasks: Sequence[ShardTask],
    dataset: Dataset,
    options: PipelineOptions,
    seconds: float,
) -> Rates:
    """Run a teacher for a few seconds, writing nothing.

    Args:
        teacher: The teacher.
        normalizer_name: Name of the caption normaliser.
        tasks: All its shards, of which the first are read.
        dataset: The data set.
        options: How to run.
        seconds: How long, for each of the two rates.

    Raises:
        CusaError: If no item could be read.
    """
    batches: list[TeacherBatch] = []
    stopwatch = _Stopwatch(warm_up_s=seconds / 2)
    encoded = encoded_batches(teacher, normalizer_name, iter(tasks), dataset, options)
    with closing(encoded):
        for _, batch, _ in encoded:
            elapsed = stopwatch.count(len(batch.rows))
            if batch.inputs is not None and len(batches) < 4 * options.encoders:
                batches.append(batch)
            if elapsed > seconds + seconds / 2:
                break
    if not batches:
        raise CusaError(f"nothing could be read for teacher {teacher.model_id}; check --image-root")
    return Rates(stopwatch.rate(), _encoding_rate(teacher, batches, options, seconds))


class _Stopwatch:
    """Rows per second since the end of a warm-up: workers start, the device warms up.

    Args:
        warm_up_s: Seconds that are left out, if there are rows after them.
    """

    def __init__(self, warm_up_s: float) -> None:
        self._warm_up_s = warm_up_s
        self._started_at = time.perf_counter()
        self._warmed_up_at = self._started_at
        self._ended_at = self._started_at
        self._n_rows = 0
        self._n_timed_rows = 0

    def count(self, n_rows: int) -> float:
        """Count rows that are done now, and return the seconds since the beginning."""
        self._ended_at = time.perf_counter()
        self._n_rows += n_rows
        elapsed = self._ended_at - self._started_at
        if self._n_timed_rows or elapsed > self._warm_up_s:
            self._n_timed_rows += n_rows
        else:
            self._warmed_up_at = self._ended_at
        return elapsed

    def rate(self) -> float:
        """Return the rows per second after the warm-up, or of all where it took all the time."""
        if self._ended_at > self._warmed_up_at:
            return self._n_timed_rows / (self._ended_at - self._warmed_up_at)
        return self._n_rows / (self._ended_at - self._started_at)


def _encoding_rate(
    teacher: Teacher,
    batches: Sequence[TeacherBatch],
    options: PipelineOptions,
    seconds: float,
) -> float:
    """Measure the rows per second of a teacher on batches in memory, round and round."""

    def encode(pass_number: int) -> int:
        # Round and round: there may be fewer batches than passes.
        batch = batches[pass_number % len(batches)]
        assert batch.inputs is not None, "only batches with inputs are kept"
        teacher.rows(batch.inputs, options.device, options.precision)
        return len(batch.rows)

    with encoder_threads(options) as threads:
        # The first passes are slower: each thread has one before the clock runs.
        sum(threads.map(encode, range(options.encoders)))

        n_rows = 0
        first_pass = 0
        n_passes = 2 * options.encoders
        started_at = time.perf_counter()
        while time.perf_counter() < started_at + seconds:
            n_rows += sum(threads.map(encode, range(first_pass, first_pass + n_passes)))
            first_pass += n_passes
        return n_rows / (time.perf_counter() - started_at)
