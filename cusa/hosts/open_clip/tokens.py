"""Tokens that begin with the label of their pair: the split's number and the caption row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset, Subset

from cusa.data.store.joined import JoinedDataset
from cusa.hosts.pairs import SplitTeachers

_LABEL_COLUMNS = 2


def take_labels(text: Tensor) -> tuple[Tensor | None, Tensor]:
    """Separate the labels of a batch from its tokens.

    Args:
        text: int64 ``[B, 2 + n]`` with labels, or ``[B, n]``.

    Returns:
        The labels, int64 ``[B, 2]`` (split number, caption row), or ``None`` if there are none; and
        the tokens, int64 ``[B, n]``.
    """
    # Only labels are negative.
    if not bool((text[:, 0] < 0).any()):
        return None, text
    pair_labels = -1 - text[:, :_LABEL_COLUMNS]
    return pair_labels, text[:, _LABEL_COLUMNS:]


class LabelledTokens(JoinedDataset, Dataset[Any]):
    """A data set of open_clip whose tokens begin with the label of their pair.

    The items are ``(image, tokens)``, or dictionaries with ``text``.

    Args:
        items: The data set, map-style.
        caption_rows: int64 ``[len(items)]``: the caption row of each item.
        teachers: The loss's.
        split: The split of the rows, one of ``teachers.splits``.

    Raises:
        DataError: If there is not a row for each item.
    """

    def __init__(
        self,
        items: Any,
        caption_rows: ArrayLike,
        teachers: SplitTeachers,
        split: str,
    ) -> None:
        super().__init__(items, caption_rows)
        self._split_number = teachers.splits.index(split)

    def __getitem__(self, number: int) -> Any:
        """Return the item; its tokens are int64 ``[2 + context_length]``."""
        item, caption_row = super().__getitem__(number)
        # Negative, as no token is.
        label = torch.tensor([-1 - self._split_number, -1 - caption_row])
        if isinstance(item, dict):
            return {**item, "text": torch.cat([label, item["text"]])}
        image, tokens = item
        return image, torch.cat([label, tokens])


def labelled_tokens(
    items: Any,
    caption_rows: ArrayLike,
    teachers: SplitTeachers,
    split: str,
) -> LabelledTokens | Subset[Any]:
    """Return a data set whose tokens begin with labels, without the pairs that a teacher skipped.

    Args:
        items: As for :class:`LabelledTokens`.
        caption_rows: int64 ``[len(items)]``, for instance from
            :meth:`cusa.data.store.mapped_split.Split.rows_of`.
        teachers: The loss's.
        split: The split of the rows, one of ``teachers.splits``.

    Raises:
        DataError: If there is not a row for each item.
    """
    labelled = LabelledTokens(items, caption_rows, teachers, split)
    trainable_captions = teachers.of_split[split].trainable_captions
    is_trainable = np.isin(labelled.caption_rows, trainable_captions)
    if is_trainable.all():
        return labelled
    return Subset(labelled, np.flatnonzero(is_trainable).tolist())
