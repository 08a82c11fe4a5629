"""The teachers' rows of a batch, for any trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import default_collate

from cusa.data.errors import DataError, StoreError
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.reader import EmbeddingStore, GivenStore, opened
from cusa.data.store.row_window import row_vector
from cusa.data.store.teacher_choice import TeacherNames
from cusa.train.chosen_teachers import chosen_teachers, require_teachers
from cusa.train.loss.config import MODALITIES, GivenLoss, given_loss
from cusa.train.loss.rules.requirements import teachers_read
from cusa.train.teacher_set import MaybeRows, gather_rows


@dataclass(frozen=True)
class TeacherBatch:
    """The teachers' rows of B pairs.

    Attributes:
        image: float16 or float32 ``[B, e]`` of the image teacher; of several, a tuple in their
            order; ``None`` if the store has none, or the loss needs none.
        text: ``[B, e']`` of the text teacher, or a tuple, or ``None``, likewise.
        image_ids: int64 ``[B]``: the image row of each pair; equal rows are the same image.
        cross: Image rows and text rows of each cross-modal teacher, ``[B, e]`` each.
    """

    image: MaybeRows
    text: MaybeRows
    image_ids: torch.Tensor
    cross: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()


class Teachers:
    """The stored rows of a split's teachers, by caption row.

    The store may hold a teacher of one modality only, which is enough for one direction of CSA or
    USA.

    Args:
        store: The store, or its path.
        split: Name of the split.
        image_teacher: Name of the image teacher, or names of several; ``None``: the store's only
            one, or its only uni-modal one.
        text_teacher: Name or names of the text teachers likewise.
        cross_teacher: Name of the cross-modal teacher, or names of several; an empty list: the
            store's only one; ``None``: that one if ``config`` needs it, or else none.
        config: Settings of the loss that takes the rows, or values by name: rows that it does not
            need are not read. ``None``: rows of both modalities are read.

    Attributes:
        split: The split.

    Raises:
        StoreError: If the store lacks the split, a named teacher or one that the loss needs, has no
            teacher at all, or has several of a modality of which none is named.
        SettingError: If a setting of the loss is illegal.
    """

    def __init__(
        self,
        store: GivenStore,
        split: str,
        image_teacher: TeacherNames = None,
        text_teacher: TeacherNames = None,
        cross_teacher: TeacherNames = None,
        config: GivenLoss = None,
    ) -> None:
        store = opened(store)
        self.split = store.split(split)
        if not store.teachers:
            raise StoreError(
                f"{store.path} holds no teacher; add one: cusa-precompute --teacher NAME --out "
                f"{store.path}",
                path=store.path,
            )
        kinds = {*MODALITIES} if cross_teacher is None else {*MODALITIES, "cross-modal"}
        if config is not None:
            loss = given_loss(config)
            require_teachers(loss, store)
            kinds = teachers_read(loss)
        wanted = {"image": image_teacher, "text": text_teacher, "cross": cross_teacher}
        names = chosen_teachers(store, wanted, kinds, "{}_teacher")
        self._teachers = names.map(partial(_rows_of_teacher, store, split))

    def rows(
        self,
        caption_rows: ArrayLike | torch.Tensor,
        device: torch.device | str | None = None,
    ) -> TeacherBatch:
        """Return the teachers' rows for captions and their images.

        Args:
            caption_rows: int ``[B]``: caption rows of the split, for instance from
                :meth:`cusa.Split.caption_rows`; a tensor may be on any device.
            device: The device of the tensors; ``None``: the CPU.

        Raises:
            IndexError: If a row is out of range, or they are no whole numbers in one dimension.
            DataError: If a teacher skipped an image or caption of the batch; names the first.
        """
        split = self.split
        row_numbers = caption_row_numbers(caption_rows)
        _require_in_range(row_numbers, split.n_captions)
        image_numbers = np.asarray(split.caption_image)[row_numbers]

        def rows_of_images(teacher: Embeddings) -> torch.Tensor:
            return _on_device(_gather(teacher, image_numbers, "image", split.image_ids), device)

        def rows_of_captions(teacher: Embeddings) -> torch.Tensor:
            return _on_device(_gather(teacher, row_numbers, "caption", split.caption_ids), device)

        rows = gather_rows(self._teachers, rows_of_images, rows_of_captions)
        return TeacherBatch(
            image=rows.image,
            text=rows.text,
            image_ids=_on_device(image_numbers, device),
            cross=rows.cross,
        )

    @property
    def trainable_captions(self) -> np.ndarray:
        """Return the rows of captions that no teacher skipped, nor their images: int64, sorted."""
        is_trainable = np.ones(self.split.n_captions, bool)
        for teacher in self._teachers.of_captions:
            is_trainable[teacher.skipped] = False
        for teacher in self._teachers.of_images:
            lacks_image = np.isin(self.split.caption_image, teacher.skipped)
            is_trainable &= ~lacks_image
        return np.flatnonzero(is_trainable)


def caption_row_numbers(rows: ArrayLike | torch.Tensor) -> np.ndarray:
    """Return rows as int64 ``[n]``; a tensor may be on any device.

    Raises:
        IndexError: If they are no whole numbers in one dimension.
    """
    if isinstance(rows, torch.Tensor):
        rows = rows.numpy(force=True)
    return row_vector(rows)


def _require_in_range(row_numbers: np.ndarray, n_captions: int) -> None:
    if not row_numbers.size:
        return
    least = row_numbers.min()
    greatest = row_numbers.max()
    if least < 0 or greatest >= n_captions:
        raise IndexError(
            f"caption rows must be from 0 to {n_captions - 1:,}, not {least:,} to {greatest:,}"
        )


def _rows_of_teacher(
    store: EmbeddingStore,
    split: str,
    name: str,
) -> Embeddings:
    rows = store.embeddings(name, split)
    # Refuse missing shards now rather than in the middle of an epoch.
    rows.require_shards()
    return rows


def _gather(
    embeddings: Embeddings,
    row_numbers: np.ndarray,
    kind: str,
    ids: Sequence[str],
) -> np.ndarray:
    """Return a teacher's rows, float16 or float32 ``[B, e]``, refusing those that it skipped."""
    is_skipped = np.isin(row_numbers, embeddings.skipped)
    if is_skipped.any():
        first_skipped = row_numbers[is_skipped][0]
        skipped_id = ids[int(first_skipped)]
        raise DataError(
            f"{kind} {skipped_id!r} has no row: its teacher skipped it; leave such pairs out "
            "(Teachers.trainable_captions has the others)",
            name=skipped_id,
        )
    return embeddings.gather(row_numbers)


def _on_device(rows: np.ndarray, device: torch.device | str | None) -> torch.Tensor:
    return torch.from_numpy(rows).to(device or "cpu", non_blocking=True)


def collate_joined(
    batch: Sequence[tuple[Any, int]],
    collate: Callable[[list[Any]], Any] = default_collate,
) -> tuple[Any, torch.Tensor]:
    """Collate items of a :class:`cusa.data.store.joined.JoinedDataset`.

    Args:
        batch: Items with their caption rows.
        collate: Collate function of the items themselves.

    Returns:
        The collated items, and int64 ``[B]`` caption rows for :meth:`Teachers.rows`: a tensor, so
        that whatever splits, pads or moves the items of a batch does the same with their rows.
    """
    items = []
    caption_rows = []
    for item, caption_row in batch:
        items.append(item)
        caption_rows.append(caption_row)
    return collate(items), torch.tensor(caption_rows, dtype=torch.int64)
