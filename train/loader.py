"""Batches: the student's inputs, teacher rows and image ids of the same pairs, by row number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import Dataset

from cusa.data.batch_check import require_a_batch
from cusa.data.captions import normalizer
from cusa.data.errors import CusaError, ImageError, first_line
from cusa.data.images import load_image
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.mapped_split import Split
from cusa.train.student import Processors

Inputs = torch.Tensor | Mapping[str, torch.Tensor]


class StudentInputs(Protocol):
    """Reads a student's inputs by row of a split."""

    def images(self, rows: np.ndarray) -> Inputs:
        """Read the image trunk's inputs for int64 image rows ``[n]``."""

    def texts(self, rows: np.ndarray) -> Inputs:
        """Read the text trunk's inputs for int64 caption rows ``[n]``."""

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image rows and the caption rows that have no input, int64 each."""


@dataclass(frozen=True)
class StoredInputs:
    """The adapter's inputs: embeddings of the store.

    Attributes:
        image_encoder: The image encoder's embeddings of the split.
        text_encoder: The text encoder's embeddings of the split.
    """

    image_encoder: Embeddings
    text_encoder: Embeddings

    def __post_init__(self) -> None:
        """Refuse missing shards now rather than in the middle of an epoch."""
        self.image_encoder.require_shards()
        self.text_encoder.require_shards()

    def images(self, rows: np.ndarray) -> torch.Tensor:
        """Read float32 ``[n, image_dim]``."""
        return torch.from_numpy(self.image_encoder.gather(rows)).float()

    def texts(self, rows: np.ndarray) -> torch.Tensor:
        """Read float32 ``[n, text_dim]``."""
        return torch.from_numpy(self.text_encoder.gather(rows)).float()

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image rows and the caption rows that ``cusa-precompute`` skipped."""
        return self.image_encoder.skipped, self.text_encoder.skipped


@dataclass(frozen=True)
class FileInputs:
    """A Hugging Face student's inputs: decoded image files and tokenised captions.

    Attributes:
        split: The split.
        image_root: Folder of the images.
        processors: The student's image processor and tokeniser.
        normalizer_name: Name of the caption normaliser.
        skipped: Rows of images and of captions that a teacher of the store could not read.
    """

    split: Split
    image_root: Path
    processors: Processors
    normalizer_name: str
    skipped: tuple[np.ndarray, np.ndarray]

    def images(self, rows: np.ndarray) -> torch.Tensor:
        """Decode and preprocess images: float32 ``[n, 3, h, w]``.

        Raises:
            ImageError: If a file cannot be read or preprocessed.
        """
        paths = [self.image_root / self.split.image_paths[row] for row in rows.tolist()]
        return torch.cat([pixels_of_file(self.processors, path) for path in paths])

    def texts(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Normalise and tokenise captions: int64 ``[n, length]`` by name of the model's input."""
        normalize = normalizer(self.normalizer_name)
        captions = [normalize(self.split.captions[row]) for row in rows.tolist()]
        return self.processors.tokens(captions)

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that any teacher of the store skipped: they are unreadable here, too."""
        return self.skipped


def pixels_of_file(
    processors: Processors,
    path: Path,
    content: bytes | None = None,
) -> torch.Tensor:
    """Decode and preprocess an image: float32 ``[1, 3, h, w]``.

    Args:
        processors: A student's processors.
        path: The file; errors name it.
        content: Its bytes, if they are not to be read from the path.

    Raises:
        ImageError: If it cannot be decoded or preprocessed.
    """
    image = load_image(path, content)
    try:
        return processors.pixels([image])
    except Exception as error:  # on odd sizes, image processors raise nearly anything
        raise ImageError(
            f"image {path} cannot be preprocessed ({first_line(error)}); replace or remove it",
            path=path,
        ) from None


@dataclass(frozen=True)
class Batch:
    """A batch of B pairs.

    Attributes:
        images: Inputs of the student's image trunk.
        texts: Inputs of the student's text trunk.
        teacher_image: float16 or float32 ``[B, e]``, or ``None`` if no soft labels are used.
        teacher_text: float16 or float32 ``[B, e']``, or ``None`` likewise.
        image_ids: int64 ``[B]``: the image row of each pair; equal rows are the same image.
    """

    images: Inputs
    texts: Inputs
    teacher_image: torch.Tensor | None
    teacher_text: torch.Tensor | None
    image_ids: torch.Tensor

    def to(self, device: torch.device, inputs: bool = True) -> Batch:
        """Move the batch to a device; the student's inputs only if ``inputs``."""

        def to_device(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        moved = {}
        for name, value in vars(self).items():
            if inputs or name not in ("images", "texts"):
                moved[name] = each_tensor(value, to_device)
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory; called by the worker pool."""
        pinned = {}
        for name, value in vars(self).items():
            pinned[name] = each_tensor(value, torch.Tensor.pin_memory)
        return Batch(**pinned)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor of the batch."""
        for value in vars(self).values():
            if isinstance(value, Mapping):
                yield from value.values()
            elif value is not None:
                yield value


def each_tensor(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply a function to a tensor, or to each tensor of a mapping; ``None`` stays ``None``."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: change(tensor) for name, tensor in value.items()}
    return change(value)


def on_device(
    batches: Iterable[Batch],
    device: torch.device,
    inputs: bool,
) -> Iterator[Batch]:
    """Yield batches on a device; a GPU receives each while it still computes on the one before.

    Args:
        batches: Batches on the CPU, in page-locked memory for a GPU.
        device: The device.
        inputs: Whether to move the student's inputs, too; see :meth:`Batch.to`.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device, inputs)
        return
    copy_stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copy_stream):
            moved = batch.to(device, inputs)
        compute_stream = torch.cuda.current_stream(device)
        compute_stream.wait_stream(copy_stream)
        for tensor in moved.tensors():
            # The copying stream must not reuse this memory while the computing one still reads it.
            if tensor.is_cuda:
                tensor.record_stream(compute_stream)
        yield moved


class Pairs(Dataset[Batch]):
    """The trainable pairs of a split, indexed by the pair numbers of a whole batch.

    A pair is left out if the student has no input for its image or caption, or if a teacher in use
    skipped one of them.

    Args:
        split: The split.
        inputs: Reader of the student's inputs.
        teachers: The image teacher's and the text teacher's rows; empty or ``None`` if no soft
            labels are used.

    Attributes:
        n_left_out: Pairs that are left out.
    """

    def __init__(
        self,
        split: Split,
        inputs: StudentInputs,
        teachers: Sequence[Embeddings] | None,
    ) -> None:
        self._split = split
        self._inputs = inputs
        self._teachers = teachers
        no_image, no_text = inputs.missing()
        if teachers:
            for teacher in teachers:
                teacher.require_shards()  # now, not in the middle of an epoch
            no_image = np.union1d(no_image, teachers[0].skipped)
            no_text = np.union1d(no_text, teachers[1].skipped)
        # Keep the few rows that are left out, not the many that remain: each worker has a copy.
        left_out_rows = np.unique(no_text).astype(np.int64)
        if len(no_image):
            without_image = np.flatnonzero(np.isin(split.caption_image, no_image))
            left_out_rows = np.union1d(left_out_rows, without_image)
        self.n_left_out = len(left_out_rows)
        self._kept_before = left_out_rows - np.arange(self.n_left_out)

    def __len__(self) -> int:
        return self._split.n_captions - self.n_left_out

    def rows(self, pairs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return the image rows and caption rows of pair numbers: int64 ``[B]`` each."""
        caption_rows = np.asarray(pairs) + np.searchsorted(self._kept_before, pairs, "right")
        return np.asarray(self._split.caption_image[caption_rows]), caption_rows

    def __getitem__(self, pairs: ArrayLike) -> Batch:
        image_rows, caption_rows = self.rows(pairs)
        teacher_image = teacher_text = None
        if self._teachers:
            teacher_image = torch.from_numpy(self._teachers[0].gather(image_rows))
            teacher_text = torch.from_numpy(self._teachers[1].gather(caption_rows))
        return Batch(
            self._inputs.images(image_rows),
            self._inputs.texts(caption_rows),
            teacher_image,
            teacher_text,
            torch.from_numpy(image_rows),
        )


def pairs_per_step(
    n_pairs: int,
    wanted: int,
    processes: int,
) -> int:
    """Return the pairs per step of one process: as many as wanted, or all if there are fewer.

    Args:
        n_pairs: Trainable pairs.
        wanted: Pairs per step of one process that the settings ask for.
        processes: Number of processes.
    """
    return max(1, min(wanted, n_pairs // processes))


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
        return self.n_pairs // (self.batch_size * self.size)

    def __iter__(self) -> Iterator[np.ndarray]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.n_pairs)
        n_used = len(self) * self.batch_size * self.size
        batches = order[:n_used].reshape(-1, self.size, self.batch_size)
        yield from batches[self.first :, self.rank]


class Sources(NamedTuple):
    """A split, and the reader of a student's inputs for it."""

    split: Split
    inputs: StudentInputs

    @property
    def lack_a_modality(self) -> bool:
        """Return whether the split has no image, or no caption, with an input."""
        no_image, no_text = self.inputs.missing()
        return len(no_image) == self.split.n_images or len(no_text) == self.split.n_captions


def next_batch(batches: Iterator[Batch]) -> tuple[Batch | None, CusaError | None]:
    """Return the next batch, ``None`` at the end, and why it could not be read, if it was not."""
    try:
        return next(batches, None), None
    except CusaError as error:
        return None, error
