"""A val split for data sets that have none: some of the training images, chosen by their ids."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from cusa.data.errors import SettingError
from cusa.data.records import SPLITS, Dataset, truth_of_images

Value = TypeVar("Value")

DEFAULT_FRACTION = 0.1
# As many as COCO's; by default a large data set gives no more.
MAX_DEFAULT_IMAGES = 5_000


def choose_val_images(image_ids: Iterable[str], fraction: float | None = None) -> frozenset[str]:
    """Choose the images of the val split: those whose ids have the lowest sha256.

    The same ids give the same choice in any order, and it hardly changes when the data grow.

    Args:
        image_ids: Ids of all training images.
        fraction: The share of them that is val, in [0, 1); at least one image where there are two,
            unless it is 0. ``None``: a tenth, at most 5,000.

    Raises:
        SettingError: If the fraction is out of range.
    """
    share = DEFAULT_FRACTION if fraction is None else fraction
    if not math.isfinite(share) or not 0 <= share < 1:
        raise SettingError(
            f"--val-fraction {fraction}: legal are 0 (no val split) to below 1", name="val_fraction"
        )
    ordered = order_by_hash(image_ids)
    n_val = round(share * len(ordered))
    if fraction is None:
        n_val = min(n_val, MAX_DEFAULT_IMAGES)
    if share > 0:
        n_val = max(n_val, 1)
    # One image stays for training.
    n_val = min(n_val, max(len(ordered) - 1, 0))
    return frozenset(ordered[:n_val])


def order_by_hash(image_ids: Iterable[str]) -> list[str]:
    """Sort ids by their sha256, the lowest first."""
    return sorted(image_ids, key=lambda image_id: hashlib.sha256(image_id.encode()).digest())


def with_val_split(dataset: Dataset, val_ids: Container[str]) -> Dataset:
    """Return the data set with some of its training images as val split, in the order they had.

    Args:
        dataset: A data set with a train split and no val split.
        val_ids: Ids of the images that are val; if none is of the train split, nothing changes.
    """
    train = dataset.splits["train"]
    is_val = np.fromiter((record.image_id in val_ids for record in train), bool, len(train))
    if not is_val.any():
        return dataset

    splits = dict(dataset.splits)
    truth = dict(dataset.truth)
    rows_of_split = {"train": np.flatnonzero(~is_val), "val": np.flatnonzero(is_val)}
    for split_name, rows in rows_of_split.items():
        splits[split_name] = tuple(train[row] for row in rows.tolist())
        if "train" in dataset.truth:
            truth[split_name] = truth_of_images(dataset.truth["train"], train, rows)
    return replace(dataset, splits=_in_order(splits), truth=_in_order(truth))


def _in_order(by_split: dict[str, Value]) -> dict[str, Value]:
    ordered = {}
    for split_name in SPLITS:
        if split_name in by_split:
            ordered[split_name] = by_split[split_name]
    return ordered
