"""A webdataset stage that adds the rows of a tar set to samples, by their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cusa.data.store.teacher_choice import optional_teachers
from cusa.data.tars.pair_files import PairFile
from cusa.data.tars.pairs import TEXT_CAPTIONS, name_of_tar
from cusa.data.tars.samples import TarError
from cusa.data.tars.tar_set import TarSet

# Tars whose rows are in memory at a time.
_TARS_IN_MEMORY = 2
Sample = dict[str, Any]


@dataclass(frozen=True)
class _LoadedTar:
    """What a set holds for a tar.

    Attributes:
        pairs: The pairs.
        image_rows: The image row of each key.
        caption_rows: The first caption row of each image row, then the number of captions; int64
            ``[n_images + 1]``.
        left_out: Keys of the samples that are not pairs.
        skipped: Image rows without an embedding of a chosen teacher, or without one for a caption.
        teachers: Rows of each chosen teacher by its name, ``[n, dim]``.
    """

    pairs: PairFile
    image_rows: Mapping[str, int]
    caption_rows: np.ndarray
    left_out: frozenset[str]
    skipped: frozenset[int]
    teachers: Mapping[str, np.ndarray]


def with_teachers(
    tar_set: TarSet,
    image_teacher: str | None = None,
    text_teacher: str | None = None,
) -> Callable[[Iterable[Sample]], Iterator[Sample]]:
    """Return a webdataset stage that adds the teachers' rows to each sample, by its key.

    ``dataset.compose(with_teachers(TarSet("cc12m_teachers")))``, after samples are decoded, as
    ``decode`` refuses arrays, and before they are shuffled, as the rows are read tar by tar. A
    sample gets ``"image_teacher"``, ``[dim]``, and ``"text_teacher"``: ``[dim]``, or
    ``[n_captions, dim]`` if captions are a field of the ``.json`` file, without a row for a blank
    caption. Samples that the set left out, or that a teacher skipped, are dropped.

    Args:
        tar_set: The set.
        image_teacher: The image teacher's name; ``None``: the only one, if there is one.
        text_teacher: The text teacher's name; ``None``: the only one, if there is one.

    Raises:
        StoreError: If a teacher is to be chosen, or the set has no rows for a tar.
        TarError: If a sample is not in the set, as its tar was changed.
    """
    location = str(tar_set.files)
    chosen: dict[str, str | None] = {}
    for modality, name in (("image", image_teacher), ("text", text_teacher)):
        names = optional_teachers(location, tar_set.teachers, modality, name, f"{modality}_teacher")
        chosen[modality] = names[0] if names else None

    def add_rows(samples: Iterable[Sample]) -> Iterator[Sample]:
        @lru_cache(_TARS_IN_MEMORY)
        def read(url: str) -> _LoadedTar:
            return _read_tar(tar_set, _tar_of_url(url), chosen)

        for sample in samples:
            rows = read(sample["__url__"])
            teacher_rows = _rows_of_sample(rows, sample, chosen)
            if teacher_rows is not None:
                yield {**sample, **teacher_rows}

    return add_rows


def _tar_of_url(url: str) -> str:
    """Return the name of a tar, given its path or URL."""
    if "://" in url:
        url = urlsplit(url).path
    return name_of_tar(Path(url))


def _read_tar(
    tar_set: TarSet,
    tar: str,
    chosen: Mapping[str, str | None],
) -> _LoadedTar:
    pairs = tar_set.pairs(tar)
    first_captions = np.searchsorted(pairs.caption_image, np.arange(len(pairs.keys) + 1))
    teachers: dict[str, np.ndarray] = {}
    skipped: set[int] = set()
    for modality, teacher in chosen.items():
        if teacher is None:
            continue
        teachers[modality] = tar_set.rows(teacher, tar)
        is_skipped = np.isnan(teachers[modality][:, 0])
        skipped_rows = np.flatnonzero(is_skipped)
        if modality == "text":
            skipped_rows = pairs.caption_image[skipped_rows]
        skipped.update(skipped_rows.tolist())
    image_rows = {key: row for row, key in enumerate(pairs.keys)}
    left_out = frozenset(map(itemgetter(0), pairs.left_out))
    return _LoadedTar(pairs, image_rows, first_captions, left_out, frozenset(skipped), teachers)


def _rows_of_sample(
    rows: _LoadedTar,
    sample: Sample,
    chosen: Mapping[str, str | None],
) -> Sample | None:
    """Return the teachers' rows of a sample; ``None`` if it is left out."""
    key = sample["__key__"]
    image_row = rows.image_rows.get(key)
    if image_row is None:
        if key not in rows.left_out:
            raise TarError(
                f"{sample['__url__']} has a sample {key!r} that its rows were not made from; the "
                "tar has changed, so make its rows again",
                name=key,
            )
        return None
    if image_row in rows.skipped:
        return None
    teacher_rows: Sample = {}
    if chosen["image"]:
        teacher_rows["image_teacher"] = rows.teachers["image"][image_row]
    if chosen["text"]:
        start, stop = rows.caption_rows[image_row : image_row + 2].tolist()
        text_rows = rows.teachers["text"][start:stop]
        is_single = rows.pairs.caption_rule == TEXT_CAPTIONS
        teacher_rows["text_teacher"] = text_rows[0] if is_single else text_rows
    return teacher_rows
