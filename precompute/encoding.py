"""Encoding of batches: checks of the first ones, and errors that name the item at fault."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cusa.data.captions import normalizer, shown_caption
from cusa.data.errors import FORWARD_PASS, TeacherError
from cusa.data.records import Dataset
from cusa.precompute.first_batch import FirstBatchCheck, is_zero
from cusa.precompute.image_source import ImageSource, read_image
from cusa.precompute.reading import ShardBatch, TeacherBatch
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers.base import Teacher, TeacherInputs, stacked

# ``location`` of the error if a model gives more or fewer rows than items.
ROW_COUNT = "row count"
# The shard, the batch, and the rows of its n inputs, float32 [n, dim]; None without inputs.
EncodedBatch = tuple[ShardTask, TeacherBatch, np.ndarray | None]


class BatchEncoder:
    """Runs a teacher on batches of a data set; several threads may call it.

    Args:
        teacher: The teacher.
        normalizer_name: Name of the caption normaliser.
        dataset: The data set.
        images: Its images.
        device: The teacher's device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
    """

    def __init__(
        self,
        teacher: Teacher,
        normalizer_name: str,
        dataset: Dataset,
        images: ImageSource,
        device: str,
        precision: str,
    ) -> None:
        self._teacher = teacher
        self._normalizer_name = normalizer_name
        self._dataset = dataset
        self._images = images
        self._device = device
        self._precision = precision
        self._check = FirstBatchCheck(teacher, device, precision)

    def encode(self, task_and_batch: ShardBatch) -> EncodedBatch:
        """Encode a batch of a shard.

        An item whose row is zero becomes an error of the returned batch. For example, a
        bag-of-words model gives zeros for a caption of which it knows no word.

        Returns:
            The shard, the batch, and float32 ``[n, dim]``, L2-normalised, for its inputs; ``None``
            if it has no inputs.

        Raises:
            TeacherError: If the model fails (names the item), or the check of its first rows does.
        """
        task, batch = task_and_batch
        if batch.inputs is None:
            return task, batch, None
        try:
            rows = self._teacher.rows(batch.inputs, self._device, self._precision)
        except TeacherError as error:
            raise self._with_item(error, task, batch) from None

        n_inputs = int(batch.source.max()) + 1
        if len(rows) != n_inputs:
            raise TeacherError(
                f"teacher {task.teacher!r} gives {len(rows)} rows for {n_inputs} items; use "
                "another model",
                location=ROW_COUNT,
                name=task.teacher,
            )
        keys: list[str] | None = None
        if self._teacher.modality == "text":
            # Row numbers can stand for captions here, as equal captions are encoded only once.
            keys = [f"{task.split} {row}" for row in batch.first_rows().tolist()]
        self._check(task.teacher, batch.inputs, rows, keys)

        has_zero_row = is_zero(rows)[batch.source]
        if has_zero_row.any():
            batch = self._without_rows(task, batch, has_zero_row)
        return task, batch, rows

    def _without_rows(
        self,
        task: ShardTask,
        batch: TeacherBatch,
        has_zero_row: np.ndarray,
    ) -> TeacherBatch:
        """Return a batch in which rows, chosen by bool ``[m]``, are replaced by errors."""
        problem = f"teacher {task.teacher!r} gives a row of zeros, as it knows nothing in it"
        errors = list(batch.errors)
        for row in batch.rows[has_zero_row].tolist():
            errors.append((row, f"{self._describe_item(task, row)}: {problem}"))
        digests = batch.digests
        if digests is not None:
            digests = digests[~has_zero_row]
        return replace(
            batch,
            rows=batch.rows[~has_zero_row],
            source=batch.source[~has_zero_row],
            errors=tuple(errors),
            digests=digests,
        )

    def _with_item(
        self,
        error: TeacherError,
        task: ShardTask,
        batch: TeacherBatch,
    ) -> TeacherError:
        """Return the error of a model that failed, with the item that it fails on."""
        if error.location != FORWARD_PASS:
            return error

        rows = batch.first_rows().tolist()
        # After a CUDA error, the GPU fails on everything, so the item cannot be found.
        if "CUDA" not in str(error):
            for row in rows:
                try:
                    self._teacher.rows(self._input(task, row), self._device, self._precision)
                except TeacherError as error_alone:
                    return self._item_error(task, row, error_alone)
        qualifier = f", or one of the {len(rows) - 1} batched with it"
        return self._item_error(task, rows[0], error, qualifier)

    def _item_error(
        self,
        task: ShardTask,
        row: int,
        error: TeacherError,
        qualifier: str = "",
    ) -> TeacherError:
        message = f"{self._describe_item(task, row)}{qualifier}: {error}"
        if self._teacher.modality == "image":
            path = self._images.path(task.split, row)
            return TeacherError(message, path=path, name=task.teacher)
        caption_id = self._dataset.splits[task.split].caption_ids[row]
        return TeacherError(message, location=f"caption id {caption_id}", name=task.teacher)

    def _input(
        self,
        task: ShardTask,
        row: int,
    ) -> TeacherInputs:
        if self._teacher.modality == "text":
            caption = self._dataset.splits[task.split].captions[row]
            normalize = normalizer(self._normalizer_name)
            return self._teacher.tokens([normalize(caption)])
        content = self._images.read(task.split, row)
        path = self._images.path(task.split, row)
        return stacked([read_image(path, content, self._teacher)])

    def _describe_item(
        self,
        task: ShardTask,
        row: int,
    ) -> str:
        """Describe the item of a row, for messages."""
        if self._teacher.modality == "image":
            return f"image {self._images.path(task.split, row)}"

        records = self._dataset.splits[task.split]
        caption = shown_caption(records.captions[row])
        description = f"caption id {records.caption_ids[row]} ({caption})"
        location = self._dataset.location_of(task.split, row)
        if location is None:
            return description
        annotation_file, entry = location
        return f"{annotation_file} {entry}: {description}"
