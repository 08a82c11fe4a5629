"""A short measurement to estimate how long a run would take."""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from cusa.data.errors import DataError
from cusa.data.records import Dataset
from cusa.precompute.image_source import ImageSource
from cusa.precompute.pipeline import PipelineOptions, encoded_batches, encoder_threads
from cusa.precompute.reading import TeacherBatch
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import Teacher


@dataclass(frozen=True)
class Rates:
    """Rows per second.

    Attributes:
        whole: Of the whole pipeline, which reads and encodes.
        encoding: Of the teacher alone, on inputs in memory.
    """

    whole: float
    encoding: float


@dataclass(frozen=True)
class Estimate:
    """The work that a teacher would have to do.

    Attributes:
        teacher: The teacher's name in the store.
        n_rows: Number of rows.
        n_shards: Number of shards.
        n_bytes: Bytes of the rows on disk.
        rates: Rows per second in this process.
    """

    teacher: str
    n_rows: int
    n_shards: int
    n_bytes: int
    rates: Rates

    @property
    def seconds(self) -> float:
        """Return how long this process would take."""
        return self.n_rows / self.rates.whole


def measure(
    teacher: Teacher,
    normalizer_name: str,
    tasks: Sequence[ShardTask],
    dataset: Dataset,
    options: PipelineOptions,
    seconds: float,
    images: ImageSource | None = None,
) -> Rates:
    """Run a teacher for a few seconds without writing anything.

    Args:
        teacher: The teacher.
        normalizer_name: Name of the caption normaliser.
        tasks: The teacher's shards; rows are read from the first ones.
        dataset: The data set.
        options: How to run the teacher.
        seconds: Duration of the measurement of each of the two rates.
        images: The images; ``None``: the data set's files.

    Raises:
        CusaError: If no item could be read, or the teacher fails.
    """
    warm_up_s = seconds / 2
    batches: list[TeacherBatch] = []
    # After each batch: the seconds since the start, and the batch's rows.
    elapsed_s = [0.0]
    n_rows = [0]
    began = time.perf_counter()
    shards = ((task, task.rows) for task in tasks)
    encoded = encoded_batches(teacher, normalizer_name, shards, dataset, options, images)
    with closing(encoded):
        for _, batch, _ in encoded:
            elapsed_s.append(time.perf_counter() - began)
            n_rows.append(len(batch.rows))
            if batch.inputs is not None and len(batches) < 4 * options.encoders:
                batches.append(batch)
            if elapsed_s[-1] > warm_up_s + seconds:
                break
    if not batches:
        raise DataError(f"nothing could be read for teacher {teacher.model_id}; check --image-root")

    whole_rate = _warm_rate(elapsed_s, n_rows, warm_up_s)
    return Rates(whole_rate, _encoding_rate(teacher, batches, options, seconds))


def _warm_rate(
    elapsed_s: Sequence[float],
    n_rows: Sequence[int],
    warm_up_s: float,
) -> float:
    """Return the rows per second after the warm-up, in which workers and device get going.

    If there was no batch after the warm-up, return the rate over the whole time.
    """
    n_warm_up = bisect(elapsed_s, warm_up_s)
    if n_warm_up == len(elapsed_s):
        n_warm_up = 1
    return sum(n_rows[n_warm_up:]) / (elapsed_s[-1] - elapsed_s[n_warm_up - 1])


def _encoding_rate(
    teacher: Teacher,
    batches: Sequence[TeacherBatch],
    options: PipelineOptions,
    seconds: float,
) -> float:
    """Measure the rows per second of a teacher on batches in memory."""

    def encode(pass_number: int) -> int:
        # There may be fewer batches than passes, so the batches are cycled through.
        batch = batches[pass_number % len(batches)]
        assert batch.inputs is not None, "only batches with inputs are kept"
        teacher.rows(batch.inputs, options.device, options.precision)
        return len(batch.rows)

    with encoder_threads(options) as threads:
        # Each thread makes a first pass, which is slower, before the clock starts.
        sum(threads.map(encode, range(options.encoders)))

        n_rows = 0
        first_pass = 0
        n_passes = 2 * options.encoders
        started_at = time.perf_counter()
        while time.perf_counter() < started_at + seconds:
            n_rows += sum(threads.map(encode, range(first_pass, first_pass + n_passes)))
            first_pass += n_passes
        return n_rows / (time.perf_counter() - started_at)
