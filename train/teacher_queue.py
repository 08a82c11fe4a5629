"""The rows of a momentum queue: which pairs its slots hold, for their teacher rows and ids."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cusa.data.errors import DataError, SettingError
from cusa.train.loss.gather import GatherGroup
from cusa.train.teacher_rows import TeacherBatch, Teachers, caption_row_numbers

_EMPTY = -1


class TeacherQueue(nn.Module):
    """A ring buffer of caption rows that goes along with a host's queue of features.

    ALBEF, BLIP, X2-VLM and MoCo keep the features of earlier batches in a queue of Q slots, the
    oldest of which are overwritten. This queue holds the caption rows of the same pairs in the same
    slots, 8 bytes each, so that teacher rows and image ids of the queue are looked up in the store
    instead of being kept on the GPU. It must have the size of the host's queue and be filled by the
    same calls; it is saved with the model's other buffers, if it is a submodule, and valid for the
    store that the rows are of.

    Args:
        size: The number of slots Q.
        gather: Whether :meth:`enqueue` adds the pairs of all ranks of ``torch.distributed``, in the
            order of ranks, as those hosts do with features. All ranks must call then. Without a
            process group, or with one rank, it changes nothing.
        group: Process group to gather over; ``None``: the default one.

    Attributes:
        caption_rows: int64 ``[Q]``: the caption row in each slot, -1 in empty ones.
        next_slot: int64 scalar: the slot that the next pair takes.

    Raises:
        SettingError: If ``size`` is no whole number above zero.
    """

    caption_rows: Tensor
    next_slot: Tensor

    def __init__(
        self,
        size: int,
        *,
        gather: bool = True,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        is_whole = isinstance(size, int) and not isinstance(size, bool)
        if not is_whole or size < 1:
            raise SettingError(f"size must be a whole number from 1, got {size!r}", name="size")
        self.gather = gather
        self._group = group
        empty_slots = torch.full((size,), _EMPTY)
        self.register_buffer("caption_rows", empty_slots)
        self.register_buffer("next_slot", torch.tensor(0))

    def candidates(
        self,
        teachers: Teachers,
        caption_rows: ArrayLike | Tensor,
        device: torch.device | str | None = None,
    ) -> tuple[TeacherBatch, Tensor]:
        """Look up the teacher rows of a batch and, behind them, of the queue.

        Args:
            teachers: The store's rows.
            caption_rows: int ``[B]``: the caption rows of the batch.
            device: The device of the results; ``None``: the CPU.

        Returns:
            The rows and image ids of B + Q candidates; and bool ``[B + Q]``, ``False`` for empty
            slots, in which the rows are any.

        Raises:
            DataError: If the batch is empty, or a teacher skipped one of its pairs.
            IndexError: If a row is out of range, or they are no whole numbers in one dimension.
        """
        batch_rows = caption_row_numbers(caption_rows)
        if not len(batch_rows):
            raise DataError(
                "the batch is empty: give the caption row of each pair", name="caption_rows"
            )
        queued_rows = self.caption_rows.numpy(force=True)
        is_filled = queued_rows != _EMPTY
        # An empty slot needs a row that can be looked up, and the batch's can.
        slot_rows = np.where(is_filled, queued_rows, batch_rows[0])
        candidate_rows = np.concatenate([batch_rows, slot_rows])
        teacher_batch = teachers.rows(candidate_rows, device)

        is_in_batch = np.ones(len(batch_rows), bool)
        is_candidate = np.concatenate([is_in_batch, is_filled])
        mask = torch.from_numpy(is_candidate)
        return teacher_batch, mask.to(device or "cpu", non_blocking=True)

    def enqueue(self, caption_rows: ArrayLike | Tensor) -> None:
        """Put the pairs of a batch into the queue, in place of the oldest ones.

        Call it where the host puts their features into its own queue.

        Args:
            caption_rows: int ``[B]``: the caption rows of this rank's batch.

        Raises:
            IndexError: If a row is negative, or they are no whole numbers in one dimension.
            DataError: If there are more pairs, of all ranks together, than slots.
        """
        batch_rows = caption_row_numbers(caption_rows)
        if len(batch_rows) and batch_rows.min() < 0:
            raise IndexError(f"caption rows must be from 0, not {batch_rows.min():,}")
        device = self.caption_rows.device
        rows = torch.from_numpy(batch_rows).to(device)
        group = None
        if self.gather:
            group = GatherGroup.if_several(self._group)
        if group is not None:
            group.agree([rows[:, None]], None, None)
            rows = group.all_rows(rows)
        n_pairs = len(rows)
        size = len(self.caption_rows)
        if n_pairs > size:
            raise DataError(
                f"{n_pairs:,} pairs do not fit into a queue of {size:,}; make it larger",
                name="caption_rows",
            )
        offsets = torch.arange(n_pairs, device=device)
        slots = (self.next_slot + offsets) % size
        self.caption_rows[slots] = rows
        self.next_slot.copy_((self.next_slot + n_pairs) % size)
