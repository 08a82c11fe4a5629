"""Selection of a run's splits and images, and of a val split if the data set has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cusa.data.errors import SettingError
from cusa.data.records import Dataset
from cusa.data.store.mapped_split import Split
from cusa.data.store.reader import EmbeddingStore
from cusa.data.validation_split import choose_val_images, lowest_by_hash, with_val_split

# The splits that training images are divided into.
_DIVIDED = frozenset({"train", "val"})


@dataclass(frozen=True)
class Selection:
    """The part of a data set that a run uses.

    Attributes:
        splits: Names of the splits; ``None``: all.
        limit: Number of images of each split, from the first; ``None``: all.
        val_fraction: Share of the training images that become val if the data set has no val split;
            ``None``: as in the store, or a tenth.
    """

    splits: tuple[str, ...] | None
    limit: int | None
    val_fraction: float | None


def split_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the names in texts such as ``"train,val"``.

    Raises:
        SettingError: If they name no split.
    """
    names = tuple(filter(None, map(str.strip, ",".join(texts).split(","))))
    if not names:
        raise SettingError("--splits names no split; pass names such as train,val", name="splits")
    return names


def select(dataset: Dataset, selection: Selection, store: EmbeddingStore | None) -> Dataset:
    """Select the part of a data set that a run uses; note if training images become val.

    The val split of an existing store is kept, whatever the default was when the store was made. So
    the same command resumes a run, and adds teachers.

    Args:
        dataset: The data set as read.
        selection: The part to use.
        store: The store that the run adds to, or ``None``.

    Raises:
        DataError: If the data set lacks a selected split.
        SettingError: If the val fraction is out of range.
    """
    has_train, has_val = "train" in dataset.splits, "val" in dataset.splits
    lacks_val = has_train and not has_val
    is_requested = selection.splits is None or not _DIVIDED.isdisjoint(selection.splits)
    if lacks_val and is_requested:
        stored_splits = {} if store is None else store.splits
        dataset = _with_val(dataset, selection, stored_splits)
    elif selection.val_fraction is not None and not lacks_val:
        reason = "has a val split" if has_val else "has no train split"
        note = f"--val-fraction changes nothing: {dataset.name} {reason}"
        dataset = replace(dataset, notes=(*dataset.notes, note))

    if selection.splits is not None:
        dataset = dataset.select(selection.splits)
    if selection.limit is not None:
        dataset = dataset.limited(selection.limit)
    return dataset


def _with_val(
    dataset: Dataset,
    selection: Selection,
    stored_splits: Mapping[str, Split],
) -> Dataset:
    """Make a val split from training images: the store's, or else the default one."""
    train_ids = dataset.splits["train"].image_ids
    divided = with_val_split(dataset, choose_val_images(train_ids, selection.val_fraction))
    if selection.val_fraction is None and not _DIVIDED.isdisjoint(stored_splits):
        for candidate in _possible_divisions(dataset, divided, stored_splits):
            if _fits(candidate, selection.limit, stored_splits):
                divided = candidate
                break
        # If none fits, the store belongs to other data, and the run will refuse it.
    if "val" not in divided.splits:
        return divided

    n_val = len(divided.splits["val"])
    note = (
        f"{dataset.name} has no val split: val gets {n_val:,} of its {len(train_ids):,} training "
        "images, chosen by the sha256 of their ids; --val-fraction sets another share, or 0"
    )
    return replace(divided, notes=(*dataset.notes, note))


def _possible_divisions(
    undivided: Dataset,
    default: Dataset,
    stored_splits: Mapping[str, Split],
) -> Iterator[Dataset]:
    """Yield the data set with each division that a store of it may have."""
    # A store from before val splits were made by default, or made with --val-fraction 0.
    yield undivided
    yield default
    if "val" in stored_splits:
        yield with_val_split(undivided, frozenset(stored_splits["val"].image_ids))
    else:
        # A store made with another fraction that has only the train split.
        train_ids = undivided.splits["train"].image_ids
        n_val = max(0, len(train_ids) - stored_splits["train"].n_images)
        yield with_val_split(undivided, lowest_by_hash(train_ids, n_val))


def _fits(dataset: Dataset, limit: int | None, stored_splits: Mapping[str, Split]) -> bool:
    """Return whether train and val are the same as in a store, if the store has them."""
    for name in _DIVIDED.intersection(stored_splits, dataset.splits):
        if dataset.splits[name][:limit].fingerprint != stored_splits[name].fingerprint:
            return False
    if "val" in dataset.splits or "val" not in stored_splits:
        return True
    # If they share no image, the store's val split came from another file.
    stored_ids = frozenset(stored_splits["val"].image_ids)
    return stored_ids.isdisjoint(dataset.splits["train"].image_ids)


def with_stored_root(
    dataset: Dataset,
    store: EmbeddingStore | None,
    image_root: Path | None,
) -> Dataset:
    """Return the data set with the store's image root, unless another one is given."""
    if store is None or image_root is not None:
        return dataset
    return replace(dataset, image_root=store.image_root)
