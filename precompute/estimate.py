"""Short measurements before a run: whether JPEGs may be halved, and how long the run would take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from cusa.data.errors import CusaError, ImageError
from cusa.data.images import open_image
from cusa.data.records import Dataset
from cusa.precompute.embedding import embed_images
from cusa.precompute.pipeline import PipelineOptions, encoded_batches, encoder_threads
from cusa.precompute.reading import TeacherBatch
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import Teacher

LEAST_COSINE = 0.999
# A halved JPEG keeps this many times the pixels that it is resized to; see docs/benchmarks.md.
_MARGIN = 3
# Opening a picture tells its size and format.
_MAX_OPENED = 256
_MAX_COMPARED = 16
_MIN_COMPARED = 8


@dataclass(frozen=True)
class Draft:
    """The comparison of halved and full decoding.

    Attributes:
        size: Pixels that both sides of a halved JPEG keep, ``None`` where JPEGs are to be decoded
            in full.
        cosine: Least cosine between a picture's two embeddings, ``None`` if none was compared.
    """

    size: int | None
    cosine: float | None


def choose_draft(
    teacher: Teacher,
    dataset: Dataset,
    device: str,
    precision: str,
) -> Draft:
    """Compare a teacher's embeddings of JPEGs decoded in full and halved, on a few large ones.

    The same data and weights give the same answer.

    Args:
        teacher: An image teacher.
        dataset: The data set.
        device: Where the teacher is.
        precision: What it computes in.

    Returns:
        Halving is chosen only where every cosine is at least 0.999; not where few of the pictures
        are large enough.
    """
    if teacher.input_size is None:
        return Draft(None, None)
    size = _MARGIN * teacher.input_size
    image_paths: list[Path] = []
    for path in _spread_image_paths(dataset):
        if _would_be_halved(path, size):
            image_paths.append(path)
        if len(image_paths) == _MAX_COMPARED:
            break
    if len(image_paths) < _MIN_COMPARED:
        return Draft(None, None)

    # One picture at a time, so that no row depends on those batched with it.
    full_teacher = replace(teacher, draft_size=None)
    full_rows = embed_images(full_teacher, image_paths, device, precision, batch_size=1)
    halved_teacher = replace(teacher, draft_size=size)
    halved_rows = embed_images(halved_teacher, image_paths, device, precision, batch_size=1)
    least_cosine = float((full_rows * halved_rows).sum(axis=1).min())
    if least_cosine < LEAST_COSINE:
        return Draft(None, least_cosine)
    return Draft(size, least_cosine)


def _spread_image_paths(dataset: Dataset) -> Iterator[Path]:
    """Yield the paths of pictures spread evenly over all splits."""
    n_images = sum(map(len, dataset.splits.values()))
    step = max(1, n_images // _MAX_OPENED)
    records = chain.from_iterable(dataset.splits.values())
    for record in islice(records, 0, None, step):
        yield dataset.image_root / record.image_path


def _would_be_halved(path: Path, size: int) -> bool:
    """Return whether an image is a JPEG that decoding would halve."""
    try:
        with open_image(path) as image:
            return image.format == "JPEG" and min(image.size) >= 2 * size
    except ImageError:
        # The run itself will say what is wrong with it.
        return False


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
        self._began = time.perf_counter()
        self._warm = self._began
        self._ended = self._began
        self._n_rows = 0
        self._n_timed_rows = 0

    def count(self, n_rows: int) -> float:
        """Count rows that are done now, and return the seconds since the beginning."""
        self._ended = time.perf_counter()
        self._n_rows += n_rows
        elapsed = self._ended - self._began
        if self._n_timed_rows or elapsed > self._warm_up_s:
            self._n_timed_rows += n_rows
        else:
            self._warm = self._ended
        return elapsed

    def rate(self) -> float:
        """Return the rows per second after the warm-up, or of all where it took all the time."""
        if self._ended > self._warm:
            return self._n_timed_rows / (self._ended - self._warm)
        return self._n_rows / (self._ended - self._began)


def _encoding_rate(
    teacher: Teacher,
    batches: Sequence[TeacherBatch],
    options: PipelineOptions,
    seconds: float,
) -> float:
    """Measure the rows per second of a teacher on batches in memory, round and round."""

    def encode(number: int) -> int:
        # Round and round: there may be fewer batches than passes.
        batch = batches[number % len(batches)]
        assert batch.inputs is not None, "only batches with inputs are kept"
        teacher.rows(batch.inputs, options.device, options.precision)
        return len(batch.rows)

    with encoder_threads(options) as threads:
        # The first passes are slower: each thread has one before the clock runs.
        sum(threads.map(encode, range(options.encoders)))

        n_rows = 0
        number = 0
        step = 2 * options.encoders
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            n_rows += sum(threads.map(encode, range(number, number + step)))
            number += step
        return n_rows / (time.perf_counter() - began)
