"""Read, encode, write: one teacher over one split, shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from cusa.data.captions import normalizer
from cusa.data.errors import CusaError
from cusa.data.images import load_image
from cusa.data.records import Dataset
from cusa.data.schema import TeacherSettings
from cusa.data.shards import ShardInfo, ShardWriter, read_shard_info
from cusa.precompute.plan import SplitPlan
from cusa.precompute.teachers.base import Teacher


@dataclass(frozen=True)
class PipelineOptions:
    """How to run a teacher.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        workers: Image decoding processes; 0 decodes in this one.
        skip_errors: Record undecodable images and empty captions instead of stopping.
    """

    device: str
    precision: str
    workers: int
    skip_errors: bool


@dataclass(frozen=True)
class Batch:
    """Preprocessed items of consecutive rows.

    Attributes:
        start: First row.
        stop: Row after the last.
        inputs: float32 ``[n, 3, h, w]`` or captions; good items only, ``None`` if there is none.
        errors: (row, message) of the items that could not be read.
    """

    start: int
    stop: int
    inputs: torch.Tensor | list[str] | None
    errors: tuple[tuple[int, str], ...]

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; DataLoader calls it."""
        return replace(self, inputs=self.inputs.pin_memory()) if isinstance(self.inputs, torch.Tensor) else self


def encode_split(
    teacher: Teacher,
    settings: TeacherSettings,
    dataset: Dataset,
    plan: SplitPlan,
    options: PipelineOptions,
    on_progress: Callable[[int, str], None],
) -> tuple[ShardInfo, ...]:
    """Make the pending shards of a plan.

    Args:
        teacher: The loaded teacher.
        settings: What its shards record.
        dataset: The data set.
        plan: Shards of one split.
        options: How to run.
        on_progress: Called with (rows just done, shard file).

    Returns:
        All shards of the plan, in row order.

    Raises:
        CusaError: If an item cannot be read and errors are not skipped, or the teacher returns NaN.
    """
    done = dict(plan.done)
    batches = iter(_read(teacher, settings, dataset, plan, options))
    for start, stop in plan.pending:
        path = plan.file(start, stop)
        with ShardWriter(path, plan.teacher, plan.split, plan.fingerprint, start, stop, settings) as writer:
            position = start
            while position < stop:
                batch = next(batches)
                assert batch.start == position, "batches come in row order"
                if batch.errors and not options.skip_errors:
                    raise CusaError(f"{batch.errors[0][1]} (--on-error skip would leave it out)")
                try:
                    writer.write(_encode(teacher, batch, options), [row for row, _ in batch.errors])
                except CusaError as error:
                    raise CusaError(f"teacher {plan.teacher!r}, split {plan.split!r}: {error}") from None
                position = batch.stop
                on_progress(batch.stop - batch.start, path.name)
        done[start, stop], _, _ = read_shard_info(path, plan.relative_file(start, stop))
    return tuple(done[r] for r in plan.ranges)


def _encode(teacher: Teacher, batch: Batch, options: PipelineOptions) -> np.ndarray:
    """float32 ``[stop - start, dim]``; rows of unreadable items stay zero, the writer marks them."""
    rows = np.zeros((batch.stop - batch.start, teacher.dim), np.float32)
    if batch.inputs is not None:
        bad = {row - batch.start for row, _ in batch.errors}
        good = [i for i in range(len(rows)) if i not in bad]
        rows[good] = teacher.rows(batch.inputs, options.device, options.precision)
    return rows


def batch_ranges(plan: SplitPlan, batch_size: int) -> list[tuple[int, int]]:
    """Row ranges of the batches of all pending shards; none crosses a shard, so a resumed run has the same batches."""
    return [(a, min(a + batch_size, stop)) for start, stop in plan.pending for a in range(start, stop, batch_size)]


def _read(
    teacher: Teacher, settings: TeacherSettings, dataset: Dataset, plan: SplitPlan, options: PipelineOptions
) -> Iterable[Batch]:
    ranges = batch_ranges(plan, teacher.batch_size)
    records = dataset.splits[plan.split]
    if teacher.modality == "text":
        captions = [(caption, key) for r in records for caption, key in zip(r.captions, r.caption_ids, strict=True)]
        return read_captions(captions, ranges, settings.normalizer)
    reader = ImageReader([dataset.image_root / r.image_path for r in records], ranges, teacher.preprocess)
    # The reader's items are batches already: batch_size=None hands them on as they are, in order.
    workers = min(options.workers, len(ranges))
    return DataLoader(reader, batch_size=None, num_workers=workers, pin_memory=options.device == "cuda")


def read_captions(
    captions: Sequence[tuple[str, str]], ranges: Sequence[tuple[int, int]], normalizer_name: str
) -> Iterator[Batch]:
    """Normalise captions.

    Args:
        captions: (caption, caption id) by row.
        ranges: Row range of each batch.
        normalizer_name: Name of the caption normaliser.
    """
    normalize = normalizer(normalizer_name)
    for start, stop in ranges:
        texts, errors = [], []
        for row in range(start, stop):
            caption, caption_id = captions[row]
            try:
                texts.append(normalize(caption))
            except CusaError as error:
                errors.append((row, f"caption id {caption_id}: {error}"))
        yield Batch(start, stop, texts or None, tuple(errors))


class ImageReader(TorchDataset[Batch]):
    """Decodes and preprocesses whole batches, in worker processes of a DataLoader.

    Args:
        paths: Image files by row.
        ranges: Row range of each batch.
        preprocess: PIL image -> float32 ``[3, h, w]``.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        ranges: Sequence[tuple[int, int]],
        preprocess: Callable[[Image.Image], np.ndarray] | None,
    ) -> None:
        assert preprocess is not None, "an image teacher brings its preprocessing"
        # One block of text rather than a list: a list's reference counts would copy its pages into every worker.
        self._paths = np.array([str(p) for p in paths], np.dtypes.StringDType())
        self._ranges = np.asarray(ranges, np.int64).reshape(-1, 2)
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, number: int) -> Batch:
        start, stop = self._ranges[number].tolist()
        pixels, errors = [], []
        for row in range(start, stop):
            path = Path(self._paths[row])
            try:
                image = load_image(path)
                try:
                    pixels.append(torch.from_numpy(self._preprocess(image)))
                except (OSError, ValueError) as error:
                    raise CusaError(f"image {path} cannot be preprocessed ({error}); replace or remove it") from None
            except CusaError as error:
                errors.append((row, str(error)))
        return Batch(start, stop, torch.stack(pixels) if pixels else None, tuple(errors))
