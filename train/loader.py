"""Batches: the student's inputs, teacher rows and image ids of the same pairs, by row number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import Dataset

from cusa.data.batch_check import require_a_batch
from cusa.data.errors import CusaError
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.mapped_split import Split
from cusa.train.student_inputs import Inputs, StudentInputs
from cusa.train.teacher_set import MaybeRows, TeacherSet, gather_rows


@dataclass(frozen=True)
class Batch:
    """A batch of B pairs.

    Attributes:
        images: Inputs of the student's image trunk.
        texts: Inputs of the student's text trunk.
        teacher_image: float16 or float32 ``[B, e]``, a tuple of several teachers' rows, or ``None``
            if no image teacher is used.
        teacher_text: The text teachers' rows likewise.
        image_ids: int64 ``[B]``: the image row of each pair; equal rows are the same image.
        cross_teachers: Image rows and text rows of each cross-modal teacher, ``[B, e]``.
    """

    images: Inputs
    texts: Inputs
    teacher_image: MaybeRows
    teacher_text: MaybeRows
    image_ids: torch.Tensor
    cross_teachers: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    def to(self, device: torch.device, with_inputs: bool = True) -> Batch:
        """Move the batch to a device; the student's inputs only if ``with_inputs``."""
        moved_fields = {}
        for field_name, value in vars(self).items():
            is_input = field_name in ("images", "texts")
            if with_inputs or not is_input:
                moved_fields[field_name] = to_device(value, device)
        return replace(self, **moved_fields)

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory; called by the worker pool."""
        pinned_fields = {}
        for field_name, value in vars(self).items():
            pinned_fields[field_name] = each_tensor(value, torch.Tensor.pin_memory)
        return Batch(**pinned_fields)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor of the batch."""
        for value in vars(self).values():
            yield from _tensors_in(value)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, tuple):
        for member in value:
            yield from _tensors_in(member)
    elif value is not None:
        yield value


def each_tensor(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply a function to a tensor, or to each of a mapping or tuple; ``None`` stays ``None``."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: change(tensor) for name, tensor in value.items()}
    if isinstance(value, tuple):
        return tuple(each_tensor(member, change) for member in value)
    return change(value)


def to_device(value: Any, device: torch.device | str) -> Any:
    """Move a tensor, or each tensor of a mapping or tuple, to a device."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, non_blocking=True)

    return each_tensor(value, move)


def on_device(
    batches: Iterable[Batch],
    device: torch.device,
    with_inputs: bool,
) -> Iterator[Batch]:
    """Yield batches on a device; a GPU receives each while it still computes on the one before.

    Args:
        batches: Batches on the CPU, in page-locked memory for a GPU.
        device: The device.
        with_inputs: Whether to move the student's inputs, too; see :meth:`Batch.to`.
    """
    if device.type == "cuda":
        yield from _on_gpu(batches, device, with_inputs)
        return
    if device.type == "cpu":  # where they are
        yield from batches
        return
    for batch in batches:
        yield batch.to(device, with_inputs)


def _on_gpu(
    batches: Iterable[Batch],
    device: torch.device,
    with_inputs: bool,
) -> Iterator[Batch]:
    """Copy each batch to a GPU in a stream of its own, beside the computation."""
    copy_stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copy_stream):
            moved_batch = batch.to(device, with_inputs)
        compute_stream = torch.cuda.current_stream(device)
        compute_stream.wait_stream(copy_stream)
        for tensor in moved_batch.tensors():
            # The copying stream must not reuse this memory while the computing one still reads it.
            if tensor.is_cuda:
                tensor.record_stream(compute_stream)
        yield moved_batch


class Pairs(Dataset[Batch]):
    """The trainable pairs of a split, indexed by the pair numbers of a whole batch.

    A pair is left out if the student has no input for its image or caption, or if a teacher in use
    skipped one of them.

    Args:
        split: The split.
        inputs: Reader of the student's inputs.
        teachers: The teachers' rows; none if no soft labels are used.

    Attributes:
        n_left_out: Pairs that are left out.
    """

    def __init__(
        self,
        split: Split,
        inputs: StudentInputs,
        teachers: TeacherSet[Embeddings],
    ) -> None:
        self._split = split
        self._inputs = inputs
        self._teachers = teachers
        image_rows, caption_rows = _rows_left_out(inputs, teachers)
        # Keep the few rows that are left out, not the many that remain: each worker has a copy.
        left_out = np.unique(caption_rows).astype(np.int64)
        if len(image_rows):
            lacks_image = np.isin(split.caption_image, image_rows)
            without_image = np.flatnonzero(lacks_image)
            left_out = np.union1d(left_out, without_image)
        self.n_left_out = len(left_out)
        # For each row that is left out, how many rows before it are not.
        self._n_kept_before = left_out - np.arange(self.n_left_out)

    def __len__(self) -> int:
        return self._split.n_captions - self.n_left_out

    def rows(self, pair_numbers: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return the image rows and caption rows of pair numbers: int64 ``[B]`` each."""
        n_left_out_before = np.searchsorted(self._n_kept_before, pair_numbers, "right")
        caption_rows = np.asarray(pair_numbers) + n_left_out_before
        image_rows = np.asarray(self._split.caption_image[caption_rows])
        return image_rows, caption_rows

    def __getitem__(self, pair_numbers: ArrayLike) -> Batch:
        image_rows, caption_rows = self.rows(pair_numbers)

        def rows_of_images(teacher: Embeddings) -> torch.Tensor:
            return torch.from_numpy(teacher.gather(image_rows))

        def rows_of_captions(teacher: Embeddings) -> torch.Tensor:
            return torch.from_numpy(teacher.gather(caption_rows))

        teachers = gather_rows(self._teachers, rows_of_images, rows_of_captions)
        return Batch(
            images=self._inputs.image.read(image_rows),
            texts=self._inputs.text.read(caption_rows),
            teacher_image=teachers.image,
            teacher_text=teachers.text,
            image_ids=torch.from_numpy(image_rows),
            cross_teachers=teachers.cross,
        )


def _rows_left_out(
    inputs: StudentInputs,
    teachers: TeacherSet[Embeddings],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of images and of captions without an input or without a teacher's row."""
    image_rows, caption_rows = inputs.missing()
    for teacher in teachers:
        teacher.require_shards()  # now, not in the middle of an epoch
    for teacher in teachers.of_images:
        image_rows = np.union1d(image_rows, teacher.skipped)
    for teacher in teachers.of_captions:
        caption_rows = np.union1d(caption_rows, teacher.skipped)
    return image_rows, caption_rows


def pairs_per_step(n_pairs: int, n_wanted: int, n_processes: int) -> int:
    """Return the pairs per step of one process: as many as wanted, or all if there are fewer.

    Args:
        n_pairs: Trainable pairs.
        n_wanted: Pairs per step of one process that the settings ask for.
        n_processes: Number of processes.
    """
    n_available = n_pairs // n_processes
    return max(1, min(n_wanted, n_available))


@dataclass
class EpochOrder:
    """The batches of an epoch as int64 pair numbers, shuffled by seed and epoch.

    The last, incomplete batch is dropped. With several processes, each yields its share of every
    batch: together they see the batches that a single process would.

    Attributes:
        n_pairs: Trainable pairs.
        batch_size: Pairs per batch of one process.
        seed: Seed of the order.
        rank: Number of this process.
        size: Number of processes.
        epoch: The epoch to iterate over, from 0.
        first: The first batch to yield; those before it are done.

    Raises:
        StoreError: If there is no trainable pair.
        SettingError: If a batch is larger than all trainable pairs.
    """

    n_pairs: int
    batch_size: int
    seed: int
    rank: int = 0
    size: int = 1
    epoch: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        """Refuse too few pairs."""
        require_a_batch(len(self), self.n_pairs, self.batch_size, self.size)

    def __len__(self) -> int:
        """Return the batches of a whole epoch, whatever ``first`` is."""
        pairs_of_all = self.batch_size * self.size
        return self.n_pairs // pairs_of_all

    def __iter__(self) -> Iterator[np.ndarray]:
        generator = np.random.default_rng([self.seed, self.epoch])
        permutation = generator.permutation(self.n_pairs)
        shape = (len(self), self.size, self.batch_size)
        n_in_batches = math.prod(shape)
        batches = permutation[:n_in_batches].reshape(shape)
        yield from batches[self.first :, self.rank]


def next_batch(batches: Iterator[Batch]) -> tuple[Batch | None, CusaError | None]:
    """Return the next batch, ``None`` at the end, and why it could not be read, if it was not."""
    try:
        return next(batches, None), None
    except CusaError as error:
        return None, error
