"""Read, encode, write: one teacher over the shards handed to it, all three at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from cusa.data.errors import CusaError, DataError
from cusa.data.records import Dataset
from cusa.data.store.shards import DIGEST_BYTES, ShardHeader, ShardInfo, stored_rows, write_shard
from cusa.precompute.encoding import BatchEncoder
from cusa.precompute.reading import RowsToMake, TeacherBatch, read_caption_shards, read_image_shards
from cusa.precompute.reuse import ReusedRows
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import Teacher


@dataclass(frozen=True)
class PipelineOptions:
    """How to run a teacher.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        workers: Image decoding processes; 0 decodes in this one.
        encoders: Threads that run the teacher. On a GPU two, so that one launches a batch while
            the other fetches the rows of the last; on a CPU one per core, each computing on one
            core alone, so that rows do not depend on how many cores there are.
        skip_errors: Record undecodable images, empty captions, and items whose row would be zero,
            instead of stopping.
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
) -> dict[ShardTask, ShardInfo]:
    """Make the shards that an iterator hands out, asking for each as late as reading ahead allows.

    What a row's batch is made of depends on its shard alone, so that the rows do not depend on who
    makes the shard, or when.

    Args:
        teacher: The loaded teacher.
        normalizer_name: Name of the caption normaliser; images have none.
        header_of: Returns the header of a shard.
        tasks: Shards of this teacher.
        dataset: The data set.
        options: How to run.
        on_progress: Called after each batch with the shard and the number of its rows just done;
            may raise to stop.
        reuse: Looks up which rows of a shard another store holds; they are not made.
        on_cut: Called with the number of a batch's captions that were cut, if there are any.

    Returns:
        The shards made.

    Raises:
        DataError: If an item cannot be read, or its row is zero, and errors are not skipped.
        TeacherError: If the teacher fails, or its first rows are wrong
            (:mod:`cusa.precompute.first_batch`).
        CusaError: If the teacher returns NaN.
    """
    reused: dict[ShardTask, ReusedRows] = {}

    def rows_to_make(task: ShardTask) -> np.ndarray:
        if reuse is None:
            return _all_rows(task)
        reused[task] = reuse(task)
        return np.setdiff1d(_all_rows(task), reused[task].rows)

    encoded = encoded_batches(
        teacher,
        normalizer_name,
        tasks,
        dataset,
        options,
        rows_to_make,
    )
    shard: _Shard | None = None
    with ThreadPoolExecutor(1) as writing_thread, closing(encoded):
        writer = _ShardWriter(writing_thread)
        for task, batch, rows in encoded:
            if batch.errors and not options.skip_errors:
                row, message = batch.errors[0]
                raise DataError(
                    f"{message} (--on-error skip would leave it out)",
                    location=f"row {row}",
                    name=task.teacher,
                )
            if batch.n_cut:
                on_cut(batch.n_cut)

            # A shard begins with its first batch, and no batch belongs to two.
            n_reused = 0
            if shard is None:
                shard = _Shard(task, header_of(task))
                if task in reused:
                    n_reused = shard.take_over(reused.pop(task))
            shard.add(batch, rows)
            if shard.is_full:
                writer.write(shard)
                shard = None
            on_progress(task, n_reused + batch.n_settled)
        return writer.finish()


def _all_rows(task: ShardTask) -> np.ndarray:
    return np.arange(task.start, task.stop)


# --- encoding


# float32 [n, dim] for the inputs of the batch; None where it has none.
EncodedBatch = tuple[ShardTask, TeacherBatch, np.ndarray | None]


def encoded_batches(
    teacher: Teacher,
    normalizer_name: str,
    tasks: Iterator[ShardTask],
    dataset: Dataset,
    options: PipelineOptions,
    rows_to_make: RowsToMake = _all_rows,
) -> Generator[EncodedBatch, None, None]:
    """Yield the batches of each shard in turn, with float32 ``[n, dim]`` for their inputs.

    A shard of which no row is to be made has one batch without rows.
    """
    pin = options.device != "cpu"
    if teacher.modality == "image":
        batches = read_image_shards(
            teacher,
            tasks,
            dataset,
            rows_to_make,
            options.workers,
            pin,
        )
    else:
        batches = read_caption_shards(
            teacher,
            normalizer_name,
            tasks,
            dataset,
            rows_to_make,
            pin,
        )

    encoder = BatchEncoder(
        teacher,
        normalizer_name,
        dataset,
        options.device,
        options.precision,
    )
    pending: deque[_PendingBatch] = deque()
    with encoder_threads(options) as threads:
        for task, batch in batches:
            rows = None
            if batch.inputs is not None:
                rows = threads.submit(encoder.rows, task, batch)
            pending.append(_PendingBatch(task, batch, rows))
            # Each thread has a batch, and one more waits: no thread is without work.
            if len(pending) > options.encoders:
                yield pending.popleft().wait(encoder)
        while pending:
            yield pending.popleft().wait(encoder)


@dataclass(frozen=True)
class _PendingBatch:
    """A batch that a thread encodes, or one without inputs."""

    task: ShardTask
    batch: TeacherBatch
    rows: Future[np.ndarray] | None

    def wait(self, encoder: BatchEncoder) -> EncodedBatch:
        """Wait for the rows, and make errors of those that are zero."""
        if self.rows is None:
            return self.task, self.batch, None
        rows = self.rows.result()
        return self.task, encoder.without_zero_rows(self.task, self.batch, rows), rows


@contextmanager
def encoder_threads(options: PipelineOptions) -> Iterator[ThreadPoolExecutor]:
    """Start the threads that run a teacher; on a CPU, each computes on one core."""
    n_torch_threads = torch.get_num_threads()
    if options.device == "cpu":
        torch.set_num_threads(1)
    try:
        # The number is a thread's own: each has to set it, too. It changes nothing of what a GPU
        # does.
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
    """The rows of a shard while they come in."""

    def __init__(self, task: ShardTask, header: ShardHeader) -> None:
        self.task = task
        self._header = header
        dtype = np.dtype(header.settings.dtype).newbyteorder("<")
        self._rows = np.full((task.n_rows, header.settings.dim), np.nan, dtype)
        self._digests = np.zeros((task.n_rows, DIGEST_BYTES), np.uint8)
        self._skipped: list[int] = []
        self._n_settled = 0

    @property
    def is_full(self) -> bool:
        """Whether every row is embedded or skipped."""
        return self._n_settled == self.task.n_rows

    def take_over(self, reused: ReusedRows) -> int:
        """Fill in the rows of another store, and return their number."""
        positions = reused.rows - self.task.start
        self._rows[positions] = reused.read()
        if reused.picture_digests is not None:
            self._digests[positions] = reused.picture_digests
        self._n_settled += len(positions)
        return len(positions)

    def add(self, batch: TeacherBatch, rows: np.ndarray | None) -> None:
        """Fill in the rows of a batch: float32 ``[n, dim]``, ``None`` if it has no inputs.

        Raises:
            CusaError: If a row is not finite.
        """
        positions = batch.rows - self.task.start
        if rows is not None:
            self._rows[positions] = self._as_stored(batch, rows)[batch.source]
        if batch.digests is not None:
            self._digests[positions] = batch.digests
        self._skipped += [row for row, _ in batch.errors]
        self._n_settled += batch.n_settled

    def _as_stored(self, batch: TeacherBatch, rows: np.ndarray) -> np.ndarray:
        try:
            return stored_rows(rows, self._header.settings.dtype, batch.first_rows())
        except CusaError as error:
            raise CusaError(
                f"teacher {self.task.teacher!r}, split {self.task.split!r}: {error}",
                location=f"split {self.task.split}",
                name=self.task.teacher,
            ) from None

    def write(self) -> ShardInfo:
        """Write the shard's file."""
        return write_shard(
            self.task.index.parent,
            self.task.file,
            self._header,
            self._rows,
            sorted(self._skipped),
            self._digests if self._digests.any() else None,
        )


class _ShardWriter:
    """Writes a shard while the next one is encoded."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._written: dict[ShardTask, Future[ShardInfo]] = {}
        self._last: Future[ShardInfo] | None = None

    def write(self, shard: _Shard) -> None:
        """Begin to write a shard, once the one before is written: no more are held in memory."""
        if self._last is not None:
            self._last.result()
        self._last = self._thread.submit(shard.write)
        self._written[shard.task] = self._last

    def finish(self) -> dict[ShardTask, ShardInfo]:
        """Wait for the last shard, and return what all of them hold."""
        return {task: written.result() for task, written in self._written.items()}
