"""The pipeline of a teacher, which reads, encodes and writes shards at the same time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from cusa.data.errors import CusaError, DataError, TeacherError
from cusa.data.records import Dataset
from cusa.data.store.shards import DIGEST_BYTES, ShardHeader, ShardInfo, stored_rows, write_shard
from cusa.data.worker_pool import mapped_ahead
from cusa.precompute.encoding import BatchEncoder, EncodedBatch
from cusa.precompute.image_source import ImageFiles, ImageSource
from cusa.precompute.reading import (
    ShardRows,
    TeacherBatch,
    read_caption_shards,
    read_image_shards,
)
from cusa.precompute.reuse import ReusedRows
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import Teacher


@dataclass(frozen=True)
class PipelineOptions:
    """How to run a teacher.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        workers: Processes that decode images; 0 decodes in this process.
        encoders: Threads that run the teacher: on a GPU two, so that one launches a batch while the
            other fetches the rows of the last batch; on a CPU one per core, each computing on a
            single core, so that rows do not depend on the number of cores.
        skip_errors: Whether undecodable images, empty captions, and items whose row would be zero
            are recorded as skipped instead of stopping the run.
    """

    device: str
    precision: str
    workers: int
    encoders: int
    skip_errors: bool


def encode_shards(
    teacher: Teacher,
    normalizer_name: str,
    header_of: Callable[[ShardTask], ShardHeader],
    tasks: Iterator[ShardTask],
    dataset: Dataset,
    options: PipelineOptions,
    on_progress: Callable[[ShardTask, int], None],
    reuse: Callable[[ShardTask], ReusedRows] | None = None,
    on_cut: Callable[[int], object] = lambda n_captions: None,
    images: ImageSource | None = None,
) -> dict[ShardTask, ShardInfo]:
    """Make the shards that an iterator yields, taking each as late as reading ahead allows.

    The batches of a shard depend on the shard alone. So its rows do not depend on which process
    makes it, or when.

    Args:
        teacher: The loaded teacher.
        normalizer_name: Name of the caption normaliser; images have none.
        header_of: Returns the header of a shard.
        tasks: Shards of this teacher.
        dataset: The data set.
        options: How to run the teacher.
        on_progress: Called after each batch with the shard and the number of rows just finished;
            may raise to stop.
        reuse: Looks up which rows of a shard another store has; they are copied.
        on_cut: Called with the number of captions of a batch that were cut, unless it is 0.
        images: The images; ``None``: the data set's files.

    Returns:
        The shards made, by task.

    Raises:
        DataError: If an item cannot be read, or its row is zero, and errors are not skipped.
        TeacherError: If the teacher fails, or its first rows are wrong
            (:mod:`cusa.precompute.first_batch`).
        CusaError: If the teacher returns NaN or infinity, or a shard cannot be written.
    """
    reused: dict[ShardTask, ReusedRows] = {}

    def rows_to_make() -> Iterator[ShardRows]:
        for task in tasks:
            rows = task.rows
            if reuse is not None:
                reused[task] = reuse(task)
                rows = np.setdiff1d(rows, reused[task].rows)
            yield task, rows

    encoded = encoded_batches(teacher, normalizer_name, rows_to_make(), dataset, options, images)

    def full_shards() -> Iterator[_Shard]:
        shard: _Shard | None = None
        for task, batch, rows in encoded:
            if batch.errors and not options.skip_errors:
                row, message = batch.errors[0]
                message = f"{message} (--on-error skip would leave it out)"
                raise DataError(message, location=f"row {row}", name=task.teacher)
            if batch.n_cut:
                on_cut(batch.n_cut)

            # No batch belongs to two shards, so each shard begins with its first batch.
            n_reused = 0
            if shard is None:
                shard = _Shard(task, header_of(task))
                if task in reused:
                    n_reused = shard.take_over(reused.pop(task))
            shard.add(batch, rows)
            if shard.n_settled == task.n_rows:
                yield shard
                shard = None
            on_progress(task, n_reused + batch.n_settled)

    # A shard is written while the next one is encoded; no more than two are in memory.
    with ThreadPoolExecutor(1) as writing_thread, closing(encoded):
        return dict(mapped_ahead(writing_thread, _Shard.write, full_shards(), depth=1))


# --- encoding


def encoded_batches(
    teacher: Teacher,
    normalizer_name: str,
    shards: Iterator[ShardRows],
    dataset: Dataset,
    options: PipelineOptions,
    images: ImageSource | None = None,
) -> Generator[EncodedBatch, None, None]:
    """Yield the batches of each shard in turn, with float32 ``[n, dim]`` for their inputs.

    A shard without rows to make has one batch, which is empty.

    Raises:
        TeacherError: If the teacher fails, or its first rows are wrong.
    """
    images = images or ImageFiles(dataset)
    pin = options.device != "cpu"
    if teacher.modality == "image":
        batches = read_image_shards(teacher, shards, images, options.workers, pin)
    else:
        batches = read_caption_shards(teacher, normalizer_name, shards, dataset, pin)

    encoder = BatchEncoder(
        teacher,
        normalizer_name,
        dataset,
        images,
        options.device,
        options.precision,
    )
    with encoder_threads(options) as threads:
        # Each thread has a batch and one more is waiting, so that no thread is idle.
        yield from mapped_ahead(threads, encoder.encode, batches, options.encoders)


@contextmanager
def encoder_threads(options: PipelineOptions) -> Iterator[ThreadPoolExecutor]:
    """Start the threads that run a teacher; on a CPU, each computes on a single core."""
    n_torch_threads = torch.get_num_threads()
    if options.device == "cpu":
        torch.set_num_threads(1)
    try:
        # torch's number of threads is set per thread. It has no effect on a GPU.
        with ThreadPoolExecutor(
            options.encoders,
            initializer=torch.set_num_threads,
            initargs=(1,),
        ) as threads:
            yield threads
    finally:
        torch.set_num_threads(n_torch_threads)


# --- shards


class _Shard:
    """The rows of a shard in the making; a row is settled once it is embedded or skipped."""

    def __init__(
        self,
        task: ShardTask,
        header: ShardHeader,
    ) -> None:
        self.n_settled = 0
        self._task = task
        self._header = header
        dtype = np.dtype(header.settings.dtype).newbyteorder("<")
        self._rows = np.full((task.n_rows, header.settings.dim), np.nan, dtype)
        self._digests = np.zeros((task.n_rows, DIGEST_BYTES), np.uint8)
        self._skipped: list[int] = []

    def take_over(self, reused: ReusedRows) -> int:
        """Fill in rows from another store, and return their number."""
        self._fill_in(reused.rows, reused.read(), reused.picture_digests)
        return len(reused.rows)

    def add(
        self,
        batch: TeacherBatch,
        rows: np.ndarray | None,
    ) -> None:
        """Fill in the rows of a batch: float32 ``[n, dim]``, ``None`` if it has no inputs.

        Raises:
            CusaError: If a row is not finite.
        """
        if rows is not None:
            stored = self._as_stored(batch, rows)[batch.source]
            self._fill_in(batch.rows, stored, batch.digests)
        self._skipped += [row for row, _ in batch.errors]
        self.n_settled += len(batch.errors)

    def _fill_in(
        self,
        row_numbers: np.ndarray,
        rows: np.ndarray,
        digests: np.ndarray | None,
    ) -> None:
        positions = row_numbers - self._task.start
        self._rows[positions] = rows
        if digests is not None:
            self._digests[positions] = digests
        self.n_settled += len(positions)

    def _as_stored(
        self,
        batch: TeacherBatch,
        rows: np.ndarray,
    ) -> np.ndarray:
        try:
            return stored_rows(rows, self._header.settings.dtype, batch.first_rows())
        except CusaError as error:
            split, teacher = self._task.split, self._task.teacher
            message = f"teacher {teacher!r}, split {split!r}: {error}"
            raise TeacherError(message, location=f"split {split}", name=teacher) from None

    def write(self) -> tuple[ShardTask, ShardInfo]:
        digests = self._digests if self._digests.any() else None
        task = self._task
        skipped = sorted(self._skipped)
        info = write_shard(task.index.parent, task.file, self._header, self._rows, skipped, digests)
        return task, info
