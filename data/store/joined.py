"""Data sets of a host whose items know their caption rows in a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from cusa.data.errors import DataError
from cusa.data.store.row_window import row_vector

if TYPE_CHECKING:
    from cusa.data.store.mapped_split import Split


class JoinedDataset:
    """A map-style data set that returns each item with its caption row.

    Args:
        items: The data set; it has ``items[i]`` and ``len(items)``.
        caption_rows: int64 ``[len(items)]``: the caption row of each item.

    Raises:
        DataError: If there is not a row for each item, or the items cannot be counted.
        IndexError: If the rows are no whole numbers in one dimension.
    """

    def __init__(self, items: Any, caption_rows: ArrayLike) -> None:
        if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
            raise DataError(
                f"a {type(items).__name__} has no items by number; pass a map-style data set, with "
                "items[i] and len(items)",
                name="items",
            )
        self.items = items
        self.caption_rows = row_vector(caption_rows)
        if len(items) != len(self.caption_rows):
            raise DataError(
                f"the data set has {len(items):,} items, but there are {len(self.caption_rows):,} "
                "caption rows; give one for each item, in the data set's order",
                name="caption_rows",
            )

    def __len__(self) -> int:
        return len(self.caption_rows)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        """Return an item of the data set and its caption row."""
        return self.items[number], int(self.caption_rows[number])


def join(
    items: Any,
    split: Split,
    *,
    caption_ids: Sequence[str | int] | None = None,
    annotations: str | Path | Sequence[Mapping[str, Any]] | None = None,
) -> JoinedDataset:
    """Join a map-style data set with caption rows of a store, by caption ids or by annotations.

    Args:
        items: The data set, with an item for each caption; it has ``items[i]`` and ``len(items)``.
        split: The split of the store that the items belong to.
        caption_ids: The caption id of each item, in the data set's order.
        annotations: The file or the rows that the data set was made from, in its order; the texts
            of their captions are compared with the store's.

    Raises:
        DataError: If not exactly one of ``caption_ids`` and ``annotations`` is given, ``split`` is
            none, an id or a caption is not in it, or there are not as many as items.
    """
    if (caption_ids is None) == (annotations is None):
        raise DataError("give either caption_ids or annotations", name="caption_ids")
    if not hasattr(split, "caption_rows"):
        raise DataError(
            f"a split of a store is needed, store.split(NAME), or store.join; got "
            f"{type(split).__name__}",
            name="split",
        )
    if caption_ids is not None:
        return JoinedDataset(items, split.caption_rows(caption_ids))
    assert annotations is not None
    return JoinedDataset(items, split.rows_of(annotations))
