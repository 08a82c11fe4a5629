"""Batches: student inputs, teacher rows and image ids of the same pairs, joined by row number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import Dataset

from cusa.data.captions import normalizer
from cusa.data.errors import CusaError, ImageError, first_line
from cusa.data.images import load_image
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.mapped_split import Split
from cusa.data.store.reader import EmbeddingStore
from cusa.data.worker_pool import StartMethod, WorkerPool
from cusa.train.student import Processors

Inputs = torch.Tensor | Mapping[str, torch.Tensor]


class StudentInputs(Protocol):
    """Reads what a student takes, by row of a split."""

    def images(self, rows: np.ndarray) -> Inputs:
        """Inputs of the image trunk for image rows."""
        ...

    def texts(self, rows: np.ndarray) -> Inputs:
        """Inputs of the text trunk for caption rows."""
        ...

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """Image rows and caption rows that have no input."""
        ...


class StoredInputs:
    """The adapter's inputs: embeddings of the store."""

    def __init__(self, image_encoder: Embeddings, text_encoder: Embeddings) -> None:
        self._image_encoder = image_encoder
        self._text_encoder = text_encoder
        for encoder in (image_encoder, text_encoder):
            encoder.require_shards()

    def images(self, rows: np.ndarray) -> torch.Tensor:
        """float32 ``[n, image_dim]``."""
        return torch.from_numpy(self._image_encoder.gather(rows)).float()

    def texts(self, rows: np.ndarray) -> torch.Tensor:
        """float32 ``[n, text_dim]``."""
        return torch.from_numpy(self._text_encoder.gather(rows)).float()

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that precompute skipped."""
        return self._image_encoder.skipped, self._text_encoder.skipped


class FileInputs:
    """A Hugging Face student's inputs: decoded image files and tokenised captions."""

    def __init__(
        self,
        split: Split,
        image_root: Path,
        processors: Processors,
        normalizer_name: str,
        skipped: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self._split = split
        self._image_root = image_root
        self._processors = processors
        self._normalizer_name = normalizer_name
        self._skipped = skipped

    def images(self, rows: np.ndarray) -> torch.Tensor:
        """float32 ``[n, 3, h, w]``."""
        pictures: list[torch.Tensor] = []
        for row in rows.tolist():
            pictures.append(self._pixels(self._image_root / self._split.image_paths[row]))
        return torch.cat(pictures)

    def _pixels(self, path: Path) -> torch.Tensor:
        image = load_image(path)
        try:
            return self._processors.pixels([image])
        except Exception as error:  # image processors raise nearly anything on odd sizes
            reason = first_line(error)
            message = f"image {path} cannot be preprocessed ({reason}); replace or remove it"
            raise ImageError(message, path=path) from None

    def texts(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """int64 ``[n, length]`` per model input."""
        normalize = normalizer(self._normalizer_name)
        captions = [normalize(self._split.captions[row]) for row in rows.tolist()]
        return self._processors.tokens(captions)

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that any teacher of the store had to skip: what it could not read, we cannot."""
        return self._skipped


@dataclass(frozen=True)
class Batch:
    """B pairs.

    Attributes:
        images: Inputs of the student's image trunk.
        texts: Inputs of its text trunk.
        teacher_image: float16 or float32 ``[B, e]``, or ``None`` where no soft labels are used.
        teacher_text: Same, ``[B, e']``.
        image_ids: int64 ``[B]``: the image row of each pair; equal rows are the same image.
    """

    images: Inputs
    texts: Inputs
    teacher_image: torch.Tensor | None
    teacher_text: torch.Tensor | None
    image_ids: torch.Tensor

    def to(self, device: torch.device, inputs: bool = True) -> Batch:
        """Move the batch to a device; the student's inputs stay behind unless ``inputs``."""

        def to_device(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        moved: dict[str, Any] = {}
        for tensor_field in fields(self):
            name = tensor_field.name
            if inputs or name not in ("images", "texts"):
                moved[name] = each_tensor(getattr(self, name), to_device)
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory; the worker pool calls it."""
        pinned: dict[str, Any] = {}
        for tensor_field in fields(self):
            value = getattr(self, tensor_field.name)
            pinned[tensor_field.name] = each_tensor(value, torch.Tensor.pin_memory)
        return Batch(**pinned)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield all tensors of the batch."""
        for tensor_field in fields(self):
            value = getattr(self, tensor_field.name)
            if isinstance(value, Mapping):
                yield from value.values()
            elif value is not None:
                yield value


def each_tensor(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Change a tensor, or each of a mapping; ``None`` stays."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: change(tensor) for name, tensor in value.items()}
    return change(value)


def on_device(batches: Iterable[Batch], device: torch.device, inputs: bool) -> Iterator[Batch]:
    """Yield batches on a device; one is copied to a GPU while that still works on the last one.

    Args:
        batches: Batches on the CPU, page-locked for a GPU.
        device: The device.
        inputs: As in :meth:`Batch.to`.
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
            # Its memory is not the copying stream's to reuse before the computing one is done.
            if tensor.is_cuda:
                tensor.record_stream(compute_stream)
        yield moved


class Pairs(Dataset[Batch]):
    """The trainable pairs of a split; indexed by a whole batch of pair numbers at once.

    A pair is left out if its image or caption has no student input, or was skipped by a teacher in
    use.

    Args:
        split: The split.
        inputs: Reader of the student's inputs.
        teachers: Image and text teacher rows, or ``None`` where no soft labels are used.
    """

    def __init__(
        self, split: Split, inputs: StudentInputs, teachers: tuple[Embeddings, Embeddings] | None
    ) -> None:
        self._split = split
        self._inputs = inputs
        self._teachers = teachers
        no_image, no_text = inputs.missing()
        if teachers is not None:
            for teacher in teachers:
                teacher.require_shards()  # now, not in the middle of an epoch
            no_image = np.union1d(no_image, teachers[0].skipped)
            no_text = np.union1d(no_text, teachers[1].skipped)
        left_out = set(no_text.tolist())
        if len(no_image):
            captions_without_image = np.flatnonzero(np.isin(split.caption_image, no_image))
            left_out.update(captions_without_image.tolist())
        # A worker process holds what is left out and no list of what is not: that one grows with
        # the data set.
        left_out_rows = np.array(sorted(left_out), np.int64)
        self.n_left_out = len(left_out_rows)
        self._kept_before = left_out_rows - np.arange(self.n_left_out)

    def __len__(self) -> int:
        return self._split.n_captions - self.n_left_out

    def rows(self, pairs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return int64 image rows and caption rows of pair numbers."""
        caption_rows = np.asarray(pairs) + np.searchsorted(self._kept_before, pairs, "right")
        return np.asarray(self._split.caption_image[caption_rows]), caption_rows

    def __getitem__(self, pairs: ArrayLike) -> Batch:
        image_rows, caption_rows = self.rows(pairs)
        teacher_image = teacher_text = None
        if self._teachers is not None:
            teacher_image = torch.from_numpy(self._teachers[0].gather(image_rows))
            teacher_text = torch.from_numpy(self._teachers[1].gather(caption_rows))
        return Batch(
            images=self._inputs.images(image_rows),
            texts=self._inputs.texts(caption_rows),
            teacher_image=teacher_image,
            teacher_text=teacher_text,
            image_ids=torch.from_numpy(image_rows),
        )


def pairs_per_step(n_pairs: int, wanted: int, processes: int) -> int:
    """Count the pairs per step of one process: as many as wanted, or all where there are fewer.

    Args:
        n_pairs: Trainable pairs.
        wanted: Pairs per step of one process, as the settings have it.
        processes: Number of processes.
    """
    return max(1, min(wanted, n_pairs // processes))


class EpochOrder:
    """Batches of pair numbers of one epoch, shuffled by (seed, epoch); incomplete ones are dropped.

    With several processes, each has its part of every batch: together they see what one alone
    would.

    Args:
        n_pairs: Trainable pairs.
        batch_size: Pairs per batch of one process.
        seed: Seed of the order.
        rank: This process.
        size: Processes.

    Attributes:
        epoch: The epoch to iterate.
        first: The first batch to yield; what lies before is done.

    Raises:
        CusaError: If there are not enough pairs.
    """

    def __init__(
        self, n_pairs: int, batch_size: int, seed: int, rank: int = 0, size: int = 1
    ) -> None:
        if n_pairs == 0:
            raise CusaError(
                "no pair can be trained on: every image or every caption was skipped; "
                "see cusa-store info"
            )
        if n_pairs < batch_size * size:
            batch = f"batch size {batch_size}"
            if size > 1:
                batch += f" in each of {size} processes"
            problem = f"{batch} is larger than the {n_pairs} trainable pairs"
            raise CusaError(f"{problem}; pass --batch-size")
        self._n_pairs = n_pairs
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._size = size
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        """Batches of an epoch, wherever it begins."""
        return self._n_pairs // (self._batch_size * self._size)

    def __iter__(self) -> Iterator[np.ndarray]:
        generator = np.random.default_rng([self._seed, self.epoch])
        order = generator.permutation(self._n_pairs)
        n_used = len(self) * self._batch_size * self._size
        batches = order[:n_used].reshape(-1, self._size, self._batch_size)
        yield from batches[self.first :, self._rank]


T = TypeVar("T")


class Loader(Generic[T]):
    """Whole batches from worker processes, epoch after epoch. To be closed, which ends the workers.

    Args:
        dataset: Its items are batches.
        order: What to index it with, in order; iterated anew for every epoch.
        workers: Worker processes; 0 reads in this one.
        pin: Whether batches go to page-locked memory.
        start_method: How worker processes begin.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        order: Iterable[Any],
        workers: int,
        pin: bool = False,
        start_method: StartMethod = "fork",
    ) -> None:
        self._pool = WorkerPool(dataset, workers, start_method, pin)
        self._order = order

    def __iter__(self) -> Iterator[T]:
        """The batches of an epoch.

        Raises:
            CusaError: If an item cannot be read, or a worker process was killed.
        """
        return self._pool.read(self._order)

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that have begun."""
        return self._pool.process_ids

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()


class Sources(NamedTuple):
    """The readers that a student needs for one split."""

    split: Split
    inputs: StudentInputs


def open_sources(
    store: EmbeddingStore,
    split_name: str,
    *,
    encoders: tuple[str, str] | None,
    processors: Processors | None,
    image_root: Path | None,
    normalizer_name: str,
) -> Sources:
    """Open a split of a store for a student.

    Args:
        store: The store.
        split_name: The split.
        encoders: Adapter: names of the image and text encoder in the store.
        processors: Hugging Face student: its processors.
        image_root: Folder of the images, if not the store's own.
        normalizer_name: Caption normaliser of a Hugging Face student.

    Raises:
        CusaError: If the split or an encoder's rows are not there, or the image folder is not.
    """
    split = store.split(split_name)
    if encoders is not None:
        image_encoder = store.embeddings(encoders[0], split_name)
        text_encoder = store.embeddings(encoders[1], split_name)
        return Sources(split, StoredInputs(image_encoder, text_encoder))
    assert processors is not None
    root = image_root or store.image_root
    if not root.is_dir():
        raise CusaError(f"image folder {root} does not exist; pass --image-root")
    skipped = store.skipped(split_name)
    return Sources(split, FileInputs(split, root, processors, normalizer_name, skipped))
