"""Read, encode, write: one teacher over the shards that it is handed, the three at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from cusa.data.captions import normalizer
from cusa.data.errors import CusaError, DataError, ImageError, first_line
from cusa.data.files import file_digest
from cusa.data.images import load_image, max_pixels
from cusa.data.records import Dataset, Record, caption_rows
from cusa.data.store.shards import DIGEST_BYTES, ShardHeader, ShardInfo, stored_rows, write_shard
from cusa.data.worker_pool import WorkerPool
from cusa.precompute.encoding import Batch, BatchEncoder
from cusa.precompute.reuse import ReusedRows
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import Preprocessed, Teacher, stacked

_TEXT_BATCHES_AHEAD = 8


@dataclass(frozen=True)
class PipelineOptions:
    """How to run a teacher.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        workers: Image decoding processes; 0 decodes in this one.
        encoders: Threads that run the teacher. On a GPU two, so that one launches a batch while the other fetches the
            rows of the last; on a CPU one per core, each computing on one core alone, so that rows do not depend on
            how many cores there are.
        skip_errors: Record undecodable images, empty captions, and items whose row would be zero,
            instead of stopping.
    """

    device: str
    precision: str
    workers: int
    encoders: int
    skip_errors: bool


_EMPTY_BATCH = Batch(None, np.zeros(0, np.int64), np.zeros(0, np.int64), ())


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
    """Make the shards that an iterator hands out; it is asked for the next one as late as reading ahead allows.

    What a row's batch is made of depends on its shard alone, so that the rows do not depend on who makes the shard, or
    when.

    Args:
        teacher: The loaded teacher.
        normalizer_name: Name of the caption normaliser; images have none.
        header_of: What the rows of a shard are.
        tasks: Shards of this teacher.
        dataset: The data set.
        options: How to run.
        on_progress: Called after each batch with the shard and the number of its rows just done; may raise to stop.
        reuse: Which rows of a shard another store holds; they are not made.
        on_cut: Called with the number of a batch's captions that were cut, if there are any.

    Returns:
        The shards made.

    Raises:
        DataError: If an item cannot be read, or its row is zero, and errors are not skipped.
        TeacherError: If the teacher fails, or its first rows are wrong
            (:mod:`cusa.precompute.first_batch`).
        CusaError: If the teacher returns NaN.
    """
    written: dict[ShardTask, Future[ShardInfo]] = {}
    shard: _Shard | None = None
    reused: dict[ShardTask, ReusedRows] = {}

    def rows_to_make(task: ShardTask) -> np.ndarray:
        if reuse is None:
            return _all_rows(task)
        reused[task] = reuse(task)
        return np.setdiff1d(_all_rows(task), reused[task].rows)

    encoded = encoded_batches(teacher, normalizer_name, tasks, dataset, options, rows_to_make)
    with ThreadPoolExecutor(1) as writer, closing(encoded):
        for task, batch, rows in encoded:
            if batch.errors and not options.skip_errors:
                message = f"{batch.errors[0][1]} (--on-error skip would leave it out)"
                raise DataError(message, name=task.teacher)
            if batch.n_cut:
                on_cut(batch.n_cut)
            n_reused = 0
            if shard is None:
                shard = _Shard(task, header_of(task))
                if task in reused:
                    n_reused = shard.take_over(reused.pop(task))
            shard.add(batch, rows)
            if shard.is_full:
                for earlier in list(written.values())[-1:]:
                    earlier.result()  # one shard is written while the next one is encoded, not more
                written[task] = writer.submit(shard.write)
                shard = None
            on_progress(task, n_reused + len(batch.rows) + len(batch.errors))
        return {task: done.result() for task, done in written.items()}


def _all_rows(task: ShardTask) -> np.ndarray:
    return np.arange(task.start, task.stop)


def encoded_batches(
    teacher: Teacher,
    normalizer_name: str,
    tasks: Iterator[ShardTask],
    dataset: Dataset,
    options: PipelineOptions,
    rows_to_make: Callable[[ShardTask], np.ndarray] = _all_rows,
) -> Generator[tuple[ShardTask, Batch, np.ndarray | None], None, None]:
    """Read and encode: the batches of each shard in turn, with float32 ``[n, dim]`` for its inputs.

    A shard of which no row is to be made has one batch without rows.
    """
    read = _read_images if teacher.modality == "image" else _read_captions
    encoder = BatchEncoder(teacher, normalizer_name, dataset, options.device, options.precision)
    waiting: deque[tuple[ShardTask, Batch, Future[np.ndarray] | None]] = deque()
    with encoder_threads(options) as encoders:
        for task, batch in read(teacher, normalizer_name, tasks, dataset, options, rows_to_make):
            rows = None if batch.inputs is None else encoders.submit(encoder.rows, task, batch)
            waiting.append((task, batch, rows))
            if len(waiting) > options.encoders:
                yield _done(waiting.popleft(), encoder)
        while waiting:
            yield _done(waiting.popleft(), encoder)


def _done(
    item: tuple[ShardTask, Batch, Future[np.ndarray] | None], encoder: BatchEncoder
) -> tuple[ShardTask, Batch, np.ndarray | None]:
    task, batch, future = item
    if future is None:
        return task, batch, None
    rows = future.result()
    return task, encoder.without_zero_rows(task, batch, rows), rows


@contextmanager
def encoder_threads(options: PipelineOptions) -> Iterator[ThreadPoolExecutor]:
    """Threads that run a teacher; on a CPU, each computes on one core."""
    threads = torch.get_num_threads()
    if options.device == "cpu":
        torch.set_num_threads(1)
    try:
        # The number is a thread's own: each has to set it, too. It changes nothing of what a GPU does.
        with ThreadPoolExecutor(
            options.encoders, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


class _Shard:
    """The rows of a shard while they come in."""

    def __init__(self, task: ShardTask, header: ShardHeader) -> None:
        dtype = np.dtype(header.settings.dtype).newbyteorder("<")
        self._task, self._header = task, header
        self._rows = np.full((task.n_rows, header.settings.dim), np.nan, dtype)
        self._digests = np.zeros((task.n_rows, DIGEST_BYTES), np.uint8)
        self._skipped: list[int] = []
        self._filled = 0

    @property
    def is_full(self) -> bool:
        """Whether every row is embedded or skipped."""
        return self._filled == self._task.n_rows

    def take_over(self, reused: ReusedRows) -> int:
        """Fill in the rows of another store; how many they are."""
        places = reused.rows - self._task.start
        self._rows[places] = reused.read()
        if reused.picture_digests is not None:
            self._digests[places] = reused.picture_digests
        self._filled += len(places)
        return len(places)

    def add(self, batch: Batch, rows: np.ndarray | None) -> None:
        if rows is not None:
            try:
                firsts = batch.rows[np.unique(batch.source, return_index=True)[1]]
                block = stored_rows(rows, self._header.settings.dtype, firsts)
            except CusaError as error:
                raise CusaError(
                    f"teacher {self._task.teacher!r}, split {self._task.split!r}: {error}"
                ) from None
            self._rows[batch.rows - self._task.start] = block[batch.source]
        if batch.digests is not None:
            self._digests[batch.rows - self._task.start] = batch.digests
        self._skipped += [row for row, _ in batch.errors]
        self._filled += len(batch.rows) + len(batch.errors)

    def write(self) -> ShardInfo:
        folder, file = self._task.index.parent, self._task.file
        digests = self._digests if self._digests.any() else None
        return write_shard(folder, file, self._header, self._rows, sorted(self._skipped), digests)


# --- images


def _read_images(
    teacher: Teacher,
    _normalizer_name: str,
    tasks: Iterator[ShardTask],
    dataset: Dataset,
    options: PipelineOptions,
    rows_to_make: Callable[[ShardTask], np.ndarray],
) -> Iterator[tuple[ShardTask, Batch]]:
    """Batches of consecutive rows; workers ask for the next shard when they have nothing left to read ahead."""
    asked: deque[ShardTask] = deque()

    def order() -> Iterator[tuple[str, np.ndarray]]:
        for task in tasks:
            rows = rows_to_make(task)
            for start in range(0, max(1, len(rows)), teacher.batch_size):
                asked.append(task)
                yield task.split, rows[start : start + teacher.batch_size]

    pool = WorkerPool(ImageReader(dataset, teacher), options.workers, pin=options.device != "cpu")
    with closing(pool), closing(pool.read(order())) as batches:
        for batch in batches:
            yield asked.popleft(), batch


class ImageReader(TorchDataset[Batch]):
    """Decodes and preprocesses whole batches, in worker processes.

    Args:
        dataset: Where the images are.
        teacher: Whose preprocessing; its model stays out of the workers.
    """

    def __init__(self, dataset: Dataset, teacher: Teacher) -> None:
        # One block of text rather than a list: a list's reference counts would copy its pages into every worker.
        self._paths = {
            split: np.array([r.image_path for r in records], np.dtypes.StringDType())
            for split, records in dataset.splits.items()
        }
        self._root, self._teacher = dataset.image_root, teacher
        max_pixels()  # a wrong setting is no error of an image

    def __getitem__(self, place: tuple[str, np.ndarray]) -> Batch:
        """The images of some rows of a split."""
        split, asked_rows = place
        pixels, rows, errors, digests = [], [], [], []
        for row in asked_rows.tolist():
            try:
                path = self._root / str(self._paths[split][row])
                pixels.append(read_image(path, self._teacher))
                digests.append(file_digest(path))
                rows.append(row)
            except (CusaError, OSError) as error:
                errors.append((row, str(error)))
        inputs = stacked(pixels) if pixels else None
        recorded = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
        row_numbers = np.asarray(rows, np.int64)
        return Batch(inputs, row_numbers, np.arange(len(rows)), tuple(errors), digests=recorded)


def read_image(path: Path, teacher: Teacher) -> Preprocessed:
    """An image as a teacher takes it: float32 ``[3, h, w]``, or arrays by name.

    Raises:
        ImageError: If it cannot be read.
    """
    assert teacher.preprocess is not None, "an image teacher brings its preprocessing"
    image = load_image(path, teacher.draft_size)
    try:
        return teacher.preprocess(image)
    except Exception as error:  # image processors raise nearly anything on odd sizes
        reason = first_line(error)
        message = f"image {path} cannot be preprocessed ({reason}); replace or remove it"
        raise ImageError(message, path=path) from None


# --- captions


def _read_captions(
    teacher: Teacher,
    normalizer_name: str,
    tasks: Iterator[ShardTask],
    dataset: Dataset,
    options: PipelineOptions,
    rows_to_make: Callable[[ShardTask], np.ndarray],
) -> Iterator[tuple[ShardTask, Batch]]:
    """Batches by token length, tokenised a few ahead in a thread."""
    firsts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split, records in dataset.splits.items():
        images = caption_rows(records)
        firsts[split] = (
            images,
            np.searchsorted(images, images),
        )  # image row and its first caption's row, by caption row

    def batches() -> Iterator[tuple[ShardTask, Batch]]:
        for task in tasks:
            images, first = firsts[task.split]
            records, rows = dataset.splits[task.split], rows_to_make(task)
            captions = [_caption(records[images[r]], r - int(first[r])) for r in rows.tolist()]
            if not captions:
                yield task, _EMPTY_BATCH
            for batch in caption_batches(teacher, captions, 0, normalizer_name):
                errors = tuple((int(rows[number]), message) for number, message in batch.errors)
                batch = replace(batch, rows=rows[batch.rows], errors=errors)
                yield task, batch.pin_memory() if options.device != "cpu" else batch

    return _ahead(batches(), _TEXT_BATCHES_AHEAD)


def _caption(record: Record, number: int) -> tuple[str, str]:
    return record.captions[number], record.caption_ids[number]


def caption_batches(
    teacher: Teacher, captions: Sequence[tuple[str, str]], first_row: int, normalizer_name: str
) -> Iterator[Batch]:
    """Captions as batches of like length, the longest first; identical ones are encoded once.

    Args:
        teacher: A text teacher.
        captions: (caption, caption id) of consecutive rows.
        first_row: Row of the first.
        normalizer_name: Name of the caption normaliser.
    """
    normalize = normalizer(normalizer_name)
    places: dict[str, list[int]] = {}
    errors = []
    for row, (caption, caption_id) in enumerate(captions, first_row):
        try:
            places.setdefault(normalize(caption), []).append(row)
        except CusaError as error:
            errors.append((row, f"caption id {caption_id}: {error}"))
    assert teacher.token_counts is not None, "a text teacher brings its tokeniser"
    if errors:
        nothing = np.zeros(0, np.int64)
        yield Batch(None, nothing, nothing, tuple(errors))
    texts = list(places)
    counts = teacher.token_counts(texts) if texts else np.zeros(0, np.int64)
    limit = teacher.token_limit
    is_cut = counts > limit if limit is not None else np.zeros(len(texts), bool)
    order = np.argsort(-np.minimum(counts, limit or counts.max(initial=0)), kind="stable")
    for start in range(0, len(order), teacher.batch_size):
        chosen = [texts[i] for i in order[start : start + teacher.batch_size]]
        rows = [places[text] for text in chosen]
        counted = np.array([len(r) for r in rows], np.int64)
        source = np.repeat(np.arange(len(chosen)), counted)
        n_cut = int(counted[is_cut[order[start : start + len(chosen)]]].sum())
        all_rows = np.asarray([row for r in rows for row in r], np.int64)
        yield Batch(teacher.tokens(chosen), all_rows, source, (), n_cut)


def _ahead(
    items: Iterator[tuple[ShardTask, Batch]], depth: int
) -> Iterator[tuple[ShardTask, Batch]]:
    """The same items, up to ``depth`` of them made in advance by a thread."""
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, None) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, items, None))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
