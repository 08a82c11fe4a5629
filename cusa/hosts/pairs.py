"""The teachers' rows of a store's splits, for other libraries' trainers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cusa.data.errors import DataError
from cusa.data.store.reader import GivenStore, opened
from cusa.data.store.teacher_choice import TeacherNames
from cusa.train.loss.config import GivenLoss
from cusa.train.teacher_rows import TeacherBatch, Teachers


class SplitTeachers:
    """The teachers' rows of several splits, for trainers that use one loss for all splits.

    Rows are numbered from 0 in each split, so an evaluation with the training split's rows would
    silently report a wrong loss. Therefore each batch names its split.

    Args:
        store: The store, or its path.
        splits: Names of the splits.
        image_teacher: Name or names of the image teachers; by default the only one there is.
        text_teacher: Name or names of the text teachers; by default the only one there is.
        cross_teacher: Name or names of the cross-modal teachers; ``None``: the only one there is if
            ``config`` needs it, or else none; an empty list: the only one there is.
        config: Settings of the loss, or values by name, which tell the teachers that it needs;
            ``None``: those of both modalities.

    Attributes:
        splits: Names of the splits, as given.
        of_split: The teachers' rows by split name.

    Raises:
        StoreError: If the store has no such split or teacher.
        DataError: If the splits are a single text.
    """

    def __init__(
        self,
        store: GivenStore,
        splits: tuple[str, ...],
        image_teacher: TeacherNames = None,
        text_teacher: TeacherNames = None,
        cross_teacher: TeacherNames = None,
        config: GivenLoss = None,
    ) -> None:
        if isinstance(splits, str):
            raise DataError(
                f"splits must be a tuple of names, ({splits!r},); got the text {splits!r}",
                name="splits",
            )
        store = opened(store)
        self.splits = splits
        self.of_split: dict[str, Teachers] = {}
        for name in splits:
            self.of_split[name] = Teachers(
                store, name, image_teacher, text_teacher, cross_teacher, config
            )

    def of_batch(self, names: Sequence[str]) -> Teachers:
        """Return the teachers of a batch's split.

        Args:
            names: The split's name for each pair of the batch.

        Raises:
            DataError: If the pairs belong to several splits.
        """
        distinct_names = sorted(set(names))
        if len(distinct_names) != 1:
            raise DataError(
                f"a batch has pairs of the splits {', '.join(distinct_names)}; it must have pairs "
                "of one split",
                name="split",
            )
        return self.of_split[distinct_names[0]]

    @torch.compiler.disable  # it reads files
    def rows(
        self,
        pair_labels: torch.Tensor,
    ) -> TeacherBatch:
        """Return the teachers' rows of a batch whose pairs are labelled.

        Args:
            pair_labels: int64 ``[B, 2]``: the split's position in ``splits``, and the caption row.
                The rows are moved to its device.

        Raises:
            DataError: If the pairs belong to several splits.
        """
        split_numbers, caption_rows = pair_labels.T.tolist()
        names = [self.splits[number] for number in split_numbers]
        return self.of_batch(names).rows(caption_rows, pair_labels.device)


def split_number(
    splits: Sequence[str],
    name: str,
) -> int:
    """Return the number of a split among those of a loss, by which labels name it.

    Raises:
        DataError: If it is not one of them.
    """
    if name not in splits:
        raise DataError(
            f"{name!r} is not among the loss's splits ({', '.join(splits)}); name it there, too",
            name=name,
        )
    return splits.index(name)


def usable_captions(
    store: GivenStore,
    split: str,
) -> np.ndarray:
    """Return the caption rows of the pairs of which no teacher skipped anything: int64, sorted.

    Raises:
        StoreError: If the store has no such split.
    """
    store = opened(store)
    no_image, no_caption = store.skipped(split)
    is_usable = ~np.isin(store.split(split).caption_image, no_image)
    is_usable[no_caption] = False
    return np.flatnonzero(is_usable)
