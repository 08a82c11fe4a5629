"""A val split for data sets without one: some of the training images, chosen by id."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Container
from dataclasses import replace
from itertools import compress
from typing import TypeVar

import numpy as np

from cusa.data.errors import SettingError
from cusa.data.records import SPLITS, Dataset, truth_of_images

Value = TypeVar("Value")

DEFAULT_FRACTION = 0.1
# The size of COCO's val split; by default, large data sets give no more.
MAX_DEFAULT_IMAGES = 5_000


def choose_val_images(image_ids: Collection[str], fraction: float | None = None) -> frozenset[str]:
    """Choose the images of the val split: those whose ids have the lowest sha256.

    The choice does not depend on the order of the ids, and hardly changes when the data set grows.

    Args:
        image_ids: Ids of all training images.
        fraction: The share of images to choose, in [0, 1). Unless it is 0, at least one image is
            chosen, as long as one remains for training. ``None``: a tenth, at most 5,000 images.

    Raises:
        SettingError: If the fraction is out of range.
    """
    share = DEFAULT_FRACTION if fraction is None else fraction
    if not math.isfinite(share) or not 0 <= share < 1:
        raise SettingError(
            f"--val-fraction {fraction}: legal values are from 0 (no val split) to below 1",
            name="val_fraction",
        )
    n_images = len(image_ids)
    n_val = round(share * n_images)
    if fraction is None:
        n_val = min(n_val, MAX_DEFAULT_IMAGES)
    if share > 0:
        n_val = max(n_val, 1)
    # At least one image remains for training.
    n_val = min(n_val, max(n_images - 1, 0))
    return lowest_by_hash(image_ids, n_val)


def lowest_by_hash(image_ids: Collection[str], count: int) -> frozenset[str]:
    """Return the ids with the lowest sha256."""
    if not count:
        return frozenset()
    # The first 4 bytes decide in nearly all cases, and millions of them take little memory.
    beginnings = np.fromiter(map(_first_bytes, image_ids), np.uint32)
    ordered = np.partition(beginnings, count - 1)
    highest = ordered[count - 1]
    candidates = compress(image_ids, beginnings <= highest)
    lowest = sorted(candidates, key=_sha256)[:count]
    return frozenset(lowest)


def _first_bytes(image_id: str) -> int:
    digest = _sha256(image_id)
    return int.from_bytes(digest[:4], "big")


def _sha256(image_id: str) -> bytes:
    encoded = image_id.encode()
    return hashlib.sha256(encoded).digest()


def with_val_split(dataset: Dataset, val_ids: Container[str]) -> Dataset:
    """Move some training images to a new val split; both splits keep their order.

    Args:
        dataset: A data set with a train split and no val split.
        val_ids: Ids of the images to move. If none is in the train split, the data set is returned
            as it is.
    """
    train = dataset.splits["train"]
    is_val = np.fromiter(map(val_ids.__contains__, train.image_ids), bool, len(train))
    if not is_val.any():
        return dataset

    splits = dict(dataset.splits)
    truth = dict(dataset.truth)
    rows_of_split = {"train": np.flatnonzero(~is_val), "val": np.flatnonzero(is_val)}
    for split_name, rows in rows_of_split.items():
        splits[split_name] = train.take(rows)
        if "train" in dataset.truth:
            truth[split_name] = truth_of_images(dataset.truth["train"], train, rows)
    return replace(dataset, splits=_in_order(splits), truth=_in_order(truth))


def _in_order(by_split: dict[str, Value]) -> dict[str, Value]:
    ordered = {}
    for split_name in SPLITS:
        if split_name in by_split:
            ordered[split_name] = by_split[split_name]
    return ordered
