"""What of a data set a run takes: splits, images, and a val split where the data set has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cusa.data.errors import SettingError
from cusa.data.records import Dataset, fingerprint
from cusa.data.store.reader import EmbeddingStore, Split
from cusa.data.validation_split import choose_val_images, order_by_hash, with_val_split


@dataclass(frozen=True)
class Selection:
    """What of a data set a run takes.

    Attributes:
        splits: Names of the splits, or ``None``: all.
        limit: How many images of each split, the first ones, or ``None``: all.
        val_fraction: Share of the training images that is val where the data set has no val split,
            or ``None``: as in the store, or a tenth.
    """

    splits: tuple[str, ...] | None
    limit: int | None
    val_fraction: float | None


def parse_splits(text: str | None) -> tuple[str, ...] | None:
    """The names of ``--splits A,B``; ``None`` where it is not given.

    Raises:
        SettingError: If it names nothing.
    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise SettingError("--splits names no split; pass names such as train,val", name="splits")
    return names


def select(dataset: Dataset, selection: Selection, store: EmbeddingStore | None) -> Dataset:
    """The data set as a run takes it, with a note where training images became a val split.

    A store that is there keeps the val split that it has: the same command goes on with it, and
    adds teachers to it, whatever the default was when it was made.

    Args:
        dataset: The data set as read.
        selection: What to take.
        store: The store that the run adds to, or ``None``.

    Raises:
        DataError: If the data set has no split of a name that was selected.
        SettingError: If the val fraction is out of range.
    """
    lacks_val = "train" in dataset.splits and "val" not in dataset.splits
    is_asked_for = selection.splits is None or bool({"train", "val"} & set(selection.splits))
    if lacks_val and is_asked_for:
        dataset = _with_val(dataset, selection, {} if store is None else store.splits)
    elif selection.val_fraction is not None and not lacks_val:
        reason = "has a val split" if "val" in dataset.splits else "has no train split"
        note = f"--val-fraction changes nothing: {dataset.name} {reason}"
        dataset = replace(dataset, notes=(*dataset.notes, note))
    return _restricted(dataset, selection)


def _restricted(dataset: Dataset, selection: Selection) -> Dataset:
    if selection.splits is not None:
        dataset = dataset.select(selection.splits)
    return dataset if selection.limit is None else dataset.limited(selection.limit)


def _with_val(dataset: Dataset, selection: Selection, stored: Mapping[str, Split]) -> Dataset:
    train_ids = [record.image_id for record in dataset.splits["train"]]
    chosen = with_val_split(dataset, choose_val_images(train_ids, selection.val_fraction))
    if selection.val_fraction is None and {"train", "val"} & set(stored):
        candidates = _possible_splits(dataset, chosen, stored)
        fitting = (split for split in candidates if _fits(split, selection.limit, stored))
        chosen = next(fitting, chosen)  # of other data: the run will say so
    if "val" not in chosen.splits:
        return chosen
    n_val, n_train = len(chosen.splits["val"]), len(train_ids)
    note = (
        f"{dataset.name} has no val split: val gets {n_val:,} of its {n_train:,} training images, chosen "
        "by the sha256 of their ids; --val-fraction takes another share, 0 none"
    )
    return replace(chosen, notes=(*dataset.notes, note))


def _possible_splits(
    unsplit: Dataset, by_default: Dataset, stored: Mapping[str, Split]
) -> Iterator[Dataset]:
    """The data set in the ways that a store of it may have been split."""
    yield unsplit  # before there was a val split by default, or --val-fraction 0
    yield by_default
    if "val" in stored:
        yield with_val_split(unsplit, frozenset(stored["val"].image_ids))
    else:  # another fraction, of which the store has the train split alone
        train_ids = [record.image_id for record in unsplit.splits["train"]]
        n_val = max(0, len(train_ids) - stored["train"].n_images)
        yield with_val_split(unsplit, frozenset(order_by_hash(train_ids)[:n_val]))


def _fits(dataset: Dataset, limit: int | None, stored: Mapping[str, Split]) -> bool:
    """Whether train and val are those of a store, as far as it has them."""
    for name in {"train", "val"} & set(stored) & set(dataset.splits):
        if fingerprint(dataset.splits[name][:limit]) != stored[name].fingerprint:
            return False
    if "val" in dataset.splits or "val" not in stored:
        return True
    train_ids = {record.image_id for record in dataset.splits["train"]}
    return train_ids.isdisjoint(stored["val"].image_ids)  # the store's val split is of another file


def with_stored_root(
    dataset: Dataset, store: EmbeddingStore | None, image_root: Path | None
) -> Dataset:
    """The data set with the store's image root, which it keeps until another one is given."""
    if store is None or image_root is not None:
        return dataset
    return replace(dataset, image_root=store.image_root)
