"""Images and captions as batches for a teacher, read ahead by worker processes and threads."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from cusa.data.captions import normalizer
from cusa.data.errors import CusaError, ImageError
from cusa.data.images import max_pixels
from cusa.data.records import Dataset
from cusa.data.store.shards import DIGEST_BYTES
from cusa.data.worker_pool import WorkerPool, pinned, prefetched
from cusa.precompute.image_source import ImageSource, read_image
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import (
    Preprocessed,
    SizeGroups,
    Teacher,
    Tensors,
    stacked,
)

# A shard, and its rows to make: int64 [n], ascending.
ShardRows = tuple[ShardTask, np.ndarray]
_TEXT_BATCHES_AHEAD = 8


@dataclass(frozen=True)
class TeacherBatch:
    """The n inputs of a forward pass of a teacher, and the m >= n rows that get their embeddings.

    Attributes:
        inputs: Preprocessed images, or tokenised captions; ``None`` if no item could be read.
        rows: int64 ``[m]``: rows of the split.
        source: int64 ``[m]``: the input whose embedding each row gets, in ``[0, n)``.
        errors: (row, message) of the items that could not be read.
        n_cut: How many of the captions have more tokens than the teacher takes.
        digests: uint8 ``[m, 32]``: sha256 of each row's image file; ``None`` for captions.
    """

    inputs: Tensors | SizeGroups | None
    rows: np.ndarray
    source: np.ndarray
    errors: tuple[tuple[int, str], ...]
    n_cut: int = 0
    digests: np.ndarray | None = None

    @staticmethod
    def without_inputs(errors: Sequence[tuple[int, str]] = ()) -> TeacherBatch:
        """Return a batch that has only errors, or nothing."""
        no_rows = np.zeros(0, np.int64)
        return TeacherBatch(None, no_rows, no_rows, tuple(errors))

    @property
    def n_settled(self) -> int:
        """Number of rows that this batch settles: those embedded, and those with an error."""
        return len(self.rows) + len(self.errors)

    def first_rows(self) -> np.ndarray:
        """Return the first row of each input, int64 ``[n]``."""
        _, first_positions = np.unique(self.source, return_index=True)
        return self.rows[first_positions]

    def pin_memory(self) -> TeacherBatch:
        """Return the batch in page-locked memory; :func:`.pinned` calls this."""
        return replace(self, inputs=pinned(self.inputs))


ShardBatch = tuple[ShardTask, TeacherBatch]


# --- images


def read_image_shards(
    teacher: Teacher,
    shards: Iterator[ShardRows],
    images: ImageSource,
    workers: int,
    pin: bool,
) -> Iterator[ShardBatch]:
    """Yield batches of consecutive rows, decoded and preprocessed.

    The next shard is taken only when workers have nothing left to read ahead.

    Args:
        teacher: An image teacher.
        shards: The teacher's shards, each with the rows to read; a shard without rows gets one
            batch, which is empty.
        images: The images of the data set.
        workers: Processes that decode images; 0 decodes in this process.
        pin: Whether to put batches into page-locked memory, for transfers to a GPU.
    """
    requested: deque[ShardTask] = deque()

    def keys() -> Iterator[tuple[str, np.ndarray]]:
        for task, rows in shards:
            # A shard without rows to make still needs a batch, or it would not be written.
            for start in range(0, max(1, len(rows)), teacher.batch_size):
                requested.append(task)
                yield task.split, rows[start : start + teacher.batch_size]

    pool = WorkerPool(ImageReader(images, teacher), workers, pin=pin)
    with closing(pool), closing(pool.read(keys())) as batches:
        for batch in batches:
            yield requested.popleft(), batch


class ImageReader(TorchDataset[TeacherBatch]):
    """Decodes and preprocesses whole batches, in worker processes.

    Args:
        images: The images of the data set.
        teacher: The teacher whose preprocessing is used; workers do not run its model.
    """

    def __init__(
        self,
        images: ImageSource,
        teacher: Teacher,
    ) -> None:
        self._images = images
        self._teacher = teacher
        # Raises here if the setting is wrong, which is not the fault of an image.
        max_pixels()

    def __getitem__(self, key: tuple[str, np.ndarray]) -> TeacherBatch:
        """Read the images of some rows of a split."""
        split, requested_rows = key
        images: list[Preprocessed] = []
        digests: list[bytes] = []
        rows: list[int] = []
        errors: list[tuple[int, str]] = []
        for row in requested_rows.tolist():
            try:
                content = self._images.read(split, row)
                image = read_image(self._images.path(split, row), content, self._teacher)
            except ImageError as error:
                errors.append((row, str(error)))
            else:
                images.append(image)
                digests.append(hashlib.sha256(content).digest())
                rows.append(row)
        return TeacherBatch(
            inputs=stacked(images) if images else None,
            rows=np.asarray(rows, np.int64),
            source=np.arange(len(rows)),
            errors=tuple(errors),
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES),
        )


# --- captions


def read_caption_shards(
    teacher: Teacher,
    normalizer_name: str,
    shards: Iterator[ShardRows],
    dataset: Dataset,
    pin: bool,
) -> Iterator[ShardBatch]:
    """Yield batches of captions of similar length, tokenised a few batches ahead in a thread.

    Args:
        teacher: A text teacher.
        normalizer_name: Name of the caption normaliser.
        shards: The teacher's shards, as for :func:`read_image_shards`.
        dataset: The data set.
        pin: Whether to put batches into page-locked memory, for transfers to a GPU.
    """

    def batches() -> Iterator[ShardBatch]:
        for task, rows in shards:
            records = dataset.splits[task.split]
            captions = [(records.captions[row], records.caption_ids[row]) for row in rows.tolist()]
            if not captions:
                # The shard needs a batch, or it would not be written.
                yield task, TeacherBatch.without_inputs()
            for batch in caption_batches(teacher, captions, normalizer_name):
                errors = [(int(rows[number]), message) for number, message in batch.errors]
                batch = replace(batch, rows=rows[batch.rows], errors=tuple(errors))
                yield task, batch.pin_memory() if pin else batch

    return prefetched(batches(), _TEXT_BATCHES_AHEAD)


def caption_batches(
    teacher: Teacher,
    captions: Sequence[tuple[str, str]],
    normalizer_name: str,
) -> Iterator[TeacherBatch]:
    """Yield captions in batches of similar length, the longest first; equal ones are encoded once.

    The rows of a batch are the captions' numbers, from 0. Errors come in a first batch, which has
    no inputs.

    Args:
        teacher: A text teacher.
        captions: The captions, each with its id.
        normalizer_name: Name of the caption normaliser.
    """
    rows_of_text, errors = _group_equal_captions(captions, normalizer_name)
    if errors:
        yield TeacherBatch.without_inputs(errors)
    if not rows_of_text:
        return

    texts = list(rows_of_text)
    longest_first, is_cut = _sort_by_length(teacher, texts)
    for start in range(0, len(texts), teacher.batch_size):
        numbers = longest_first[start : start + teacher.batch_size]
        batch_texts = [texts[number] for number in numbers]
        batch_rows = [rows_of_text[text] for text in batch_texts]
        copies = np.fromiter(map(len, batch_rows), np.int64)
        yield TeacherBatch(
            inputs=teacher.tokens(batch_texts),
            rows=np.fromiter(chain.from_iterable(batch_rows), np.int64),
            source=np.repeat(np.arange(len(batch_texts)), copies),
            errors=(),
            n_cut=int(copies[is_cut[numbers]].sum()),
        )


def _sort_by_length(teacher: Teacher, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sort texts by the number of their tokens after any cut.

    Returns:
        int64 ``[n]``, the numbers of the texts, longest first; bool ``[n]``, whether each text is
        cut.
    """
    assert teacher.token_counts is not None, "a text teacher brings its tokeniser"
    token_counts = teacher.token_counts(texts)
    limit = teacher.token_limit
    is_cut = np.zeros(len(texts), bool)
    if limit is not None:
        is_cut = token_counts > limit
    if limit:
        token_counts = np.minimum(token_counts, limit)
    return np.argsort(-token_counts, kind="stable"), is_cut


def _group_equal_captions(
    captions: Sequence[tuple[str, str]],
    normalizer_name: str,
) -> tuple[dict[str, list[int]], list[tuple[int, str]]]:
    """Normalise captions, and group those that become equal.

    Returns:
        The numbers of the captions by normalised text, and (number, message) of those that cannot
        be normalised.
    """
    normalize = normalizer(normalizer_name)
    rows_of_text: dict[str, list[int]] = {}
    errors: list[tuple[int, str]] = []
    for row, (caption, caption_id) in enumerate(captions):
        try:
            rows_of_text.setdefault(normalize(caption), []).append(row)
        except CusaError as error:
            errors.append((row, f"caption id {caption_id}: {error}"))
    return rows_of_text, errors
