"""The pairs of a store's splits as rows for another trainer's data loader."""

from __future__ import annotations

from collections.abc import Sequence

from cusa.data.errors import DataError
from cusa.data.store.reader import EmbeddingStore
from cusa.train.teacher_rows import Teachers


class SplitTeachers:
    """The teachers' rows of several splits, for trainers with one loss for all of them.

    Rows count from 0 in each split: an evaluation that took the training split's rows would report
    a wrong loss without a word. So a batch says of which split it is.

    Args:
        store: The store.
        splits: Names of the splits; a batch may name one by its place here.
        image_teacher: Name of the image teacher; by default the only one there is.
        text_teacher: Name of the text teacher; by default the only one there is.

    Raises:
        StoreError: If the store has no such split or teacher.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        splits: tuple[str, ...],
        image_teacher: str | None = None,
        text_teacher: str | None = None,
    ) -> None:
        self.splits = splits
        self.of_split: dict[str, Teachers] = {}
        for name in splits:
            self.of_split[name] = Teachers(store, name, image_teacher, text_teacher)

    def of_batch(self, names: Sequence[str]) -> Teachers:
        """Return the teachers of a batch's split.

        Args:
            names: The split of each pair.

        Raises:
            DataError: If the pairs are of several splits.
        """
        distinct_names = sorted(set(names))
        if len(distinct_names) != 1:
            raise DataError(
                f"a batch has pairs of the splits {', '.join(distinct_names)}; give it those of "
                "one",
                name="split",
            )
        return self.of_split[distinct_names[0]]
