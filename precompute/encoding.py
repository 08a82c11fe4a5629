"""One batch through a teacher: checked at first, with the item named that a model fails on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cusa.data.captions import normalizer
from cusa.data.errors import FORWARD_PASS, TeacherError
from cusa.data.images import load_image
from cusa.data.records import Dataset, Record, caption_rows
from cusa.precompute.first_batch import FirstBatchCheck, is_zero
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import SizeGroups, Teacher, each_tensor, stacked


@dataclass(frozen=True)
class Batch:
    """What one forward pass of a teacher takes, and where its rows go.

    Attributes:
        inputs: Preprocessed images, or tokenised captions; ``None`` if no item could be read.
        rows: int64 ``[m]``, m >= n: the split's rows that get their embedding from it.
        source: int64 ``[m]``: which of the n outputs each of them takes.
        errors: (row, message) of the items that could not be read.
        n_cut: How many of its captions have more tokens than the teacher takes.
        digests: uint8 ``[m, 32]``: sha256 of the picture file of each row; ``None`` for captions.
    """

    inputs: torch.Tensor | Mapping[str, Any] | SizeGroups | None
    rows: np.ndarray
    source: np.ndarray
    errors: tuple[tuple[int, str], ...]
    n_cut: int = 0
    digests: np.ndarray | None = None

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; the worker pool calls it."""
        inputs = self.inputs
        if isinstance(inputs, torch.Tensor | SizeGroups):
            return replace(self, inputs=inputs.pin_memory())
        if inputs is not None:
            return replace(self, inputs=each_tensor(inputs, torch.Tensor.pin_memory))
        return self


_SHOWN = 60  # characters of a caption in a message


class BatchEncoder:
    """Runs a teacher on batches of a data set; several threads may call it.

    Args:
        teacher: The teacher.
        normalizer_name: Name of the caption normaliser.
        dataset: The data set.
        device: Where the teacher is.
        precision: What it computes in.
    """

    def __init__(
        self,
        teacher: Teacher,
        normalizer_name: str,
        dataset: Dataset,
        device: str,
        precision: str,
    ) -> None:
        self._teacher, self._normalizer_name, self._dataset = teacher, normalizer_name, dataset
        self._device, self._precision = device, precision
        self._check = FirstBatchCheck(teacher, device, precision)
        self._caption_images: dict[str, np.ndarray] = {}

    def rows(self, task: ShardTask, batch: Batch) -> np.ndarray:
        """float32 ``[n, dim]``, L2-normalised, for the batch's inputs.

        Raises:
            TeacherError: If the model fails (names the item), or its first rows are wrong.
        """
        assert batch.inputs is not None, "a batch without inputs has no rows"
        try:
            rows = self._teacher.rows(batch.inputs, self._device, self._precision)
        except TeacherError as error:
            raise self._with_item(error, task, batch) from None
        n_inputs = int(batch.source.max()) + 1
        if len(rows) != n_inputs:
            problem = f"gives {len(rows)} rows for {n_inputs} items"
            message = f"teacher {task.teacher!r} {problem}; use another model"
            raise TeacherError(message, name=task.teacher)
        self._check(task.teacher, batch.inputs, rows, self._captions(task, batch))
        return rows

    def without_zero_rows(self, task: ShardTask, batch: Batch, rows: np.ndarray) -> Batch:
        """The batch with an error in the place of each item whose row is zero.

        A bag of words gives such rows of captions whose words it does not know.
        """
        concerned = is_zero(rows)[batch.source]
        if not concerned.any():
            return batch
        problem = f"teacher {task.teacher!r} gives a row of zeros; it knows nothing in it"
        rows_of_zeros = batch.rows[concerned].tolist()
        errors = [(row, f"{self._item(task, row)}: {problem}") for row in rows_of_zeros]
        return replace(
            batch,
            rows=batch.rows[~concerned],
            source=batch.source[~concerned],
            errors=(*batch.errors, *errors),
            digests=None if batch.digests is None else batch.digests[~concerned],
        )

    def _captions(self, task: ShardTask, batch: Batch) -> list[str] | None:
        """Keys of the captions; row numbers will do, as equal captions are encoded once."""
        if self._teacher.modality == "image":
            return None
        firsts = np.unique(batch.source, return_index=True)[1]
        return [f"{task.split} {row}" for row in batch.rows[firsts].tolist()]

    def _with_item(self, error: TeacherError, task: ShardTask, batch: Batch) -> TeacherError:
        """The error of a model that fails, with the item that it fails on."""
        if error.location != FORWARD_PASS:
            return error
        firsts = np.unique(batch.source, return_index=True)[1]
        rows = batch.rows[firsts].tolist()
        if "CUDA" not in str(error):  # after which a GPU fails on everything
            for row in rows:
                try:
                    self._teacher.rows(self._input(task, row), self._device, self._precision)
                except TeacherError as alone:
                    return TeacherError(f"{self._item(task, row)}: {alone}", name=task.teacher)
        among = f"{self._item(task, rows[0])}, or one of the {len(rows) - 1} batched with it"
        return TeacherError(f"{among}: {error}", name=task.teacher)

    def _input(self, task: ShardTask, row: int) -> Any:
        """The input of one row, as a batch."""
        if self._teacher.modality == "text":
            caption, _ = self._caption(task, row)
            return self._teacher.tokens([normalizer(self._normalizer_name)(caption)])
        assert self._teacher.preprocess is not None, "an image teacher brings its preprocessing"
        path = self._dataset.image_root / self._dataset.splits[task.split][row].image_path
        return stacked([self._teacher.preprocess(load_image(path, self._teacher.draft_size))])

    def _item(self, task: ShardTask, row: int) -> str:
        """What a row is of, for messages."""
        if self._teacher.modality == "image":
            record = self._dataset.splits[task.split][row]
            return f"image {self._dataset.image_root / record.image_path}"
        caption, caption_id = self._caption(task, row)
        shown = caption if len(caption) <= _SHOWN else f"{caption[:_SHOWN]}..."
        record, number = self._record_of_caption(task, row)
        place = self._dataset.location_of(record, number)
        where = "" if place is None else f"{place[0]} {place[1]}: "
        return f"{where}caption id {caption_id} ({shown!r})"

    def _caption(self, task: ShardTask, row: int) -> tuple[str, str]:
        """Text and id of a caption row."""
        record, number = self._record_of_caption(task, row)
        return record.captions[number], record.caption_ids[number]

    def _record_of_caption(self, task: ShardTask, row: int) -> tuple[Record, int]:
        """The record that a caption row belongs to, and the caption's number in it."""
        records = self._dataset.splits[task.split]
        if task.split not in self._caption_images:
            self._caption_images[task.split] = caption_rows(records)
        images = self._caption_images[task.split]
        number = row - int(np.searchsorted(images, images[row]))
        return records[images[row]], number
