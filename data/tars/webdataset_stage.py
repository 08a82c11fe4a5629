"""A webdataset stage that adds the rows of a tar set to samples, by their keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cusa.data.store.teacher_choice import (
    TeacherNames,
    optional_teachers,
    pick_cross_teachers,
)
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
        teachers: Rows ``[n, dim]`` of each chosen teacher by its name.
    """

    pairs: PairFile
    image_rows: Mapping[str, int]
    caption_rows: np.ndarray
    left_out: frozenset[str]
    skipped: frozenset[int]
    teachers: Mapping[str, np.ndarray]

    def copied(self, name: str, place: int | slice) -> np.ndarray:
        """Return a copy of a teacher's rows: a view would keep those of the whole tar in memory."""
        return self.teachers[name][place].copy()


@dataclass(frozen=True)
class _ChosenTeachers:
    """The names of the teachers whose rows a sample gets.

    Attributes:
        image: Image teachers.
        text: Text teachers.
        cross: Image rows and text rows of each cross-modal teacher; ``None``: samples get no field
            for them.
    """

    image: tuple[str, ...]
    text: tuple[str, ...]
    cross: tuple[tuple[str, str], ...] | None

    @property
    def image_row_teachers(self) -> list[str]:
        """Return all names that have a row for each image, each once."""
        return list(dict.fromkeys([*self.image, *(image for image, _ in self.cross or ())]))

    @property
    def caption_row_teachers(self) -> list[str]:
        """Return all names that have a row for each caption, each once."""
        return list(dict.fromkeys([*self.text, *(text for _, text in self.cross or ())]))


def with_teachers(
    tar_set: TarSet | str | os.PathLike[str],
    image_teacher: TeacherNames = None,
    text_teacher: TeacherNames = None,
    cross_teacher: TeacherNames = None,
) -> Callable[[Iterable[Sample]], Iterator[Sample]]:
    """Return a webdataset stage that adds the teachers' rows to each sample, by its key.

    ``dataset.compose(with_teachers(TarSet("cc12m_teachers")))``, after samples are decoded, as
    ``decode`` refuses arrays, and before they are shuffled, as the rows are read tar by tar. A
    sample gets ``"image_teacher"``, ``[dim]``, and ``"text_teacher"``: ``[dim]``, or
    ``[n_captions, dim]`` if captions are a field of the ``.json`` file, without a row for a blank
    caption. Of several teachers, the field is a tuple in their order. ``"cross_teachers"`` is a
    tuple of the image row and the text row of each cross-modal teacher. If captions are files
    ``.txt``, torch's ``default_collate`` makes of these what :class:`cusa.CUSALoss` takes; if they
    are a field of the ``.json`` file, choose a caption of each sample, and its row, before.
    Samples that the set left out, or that a teacher skipped, are dropped.

    Args:
        tar_set: The set, or its folder.
        image_teacher: Name of the image teacher, or names of several; ``None``: the only one, if
            there is one.
        text_teacher: Name or names of the text teachers likewise.
        cross_teacher: Name of the cross-modal teacher, or names of several; an empty list: the
            set's only one; ``None``: none.

    Raises:
        StoreError: If a teacher is to be chosen, or the set has no rows for a tar.
        TarError: If a sample is not in the set, as its tar was changed.
    """
    if not isinstance(tar_set, TarSet):
        tar_set = TarSet(tar_set)
    location = str(tar_set.files)
    teachers = tar_set.teachers
    cross = None
    if cross_teacher is not None:
        cross = pick_cross_teachers(location, teachers, cross_teacher, "cross_teacher")
    chosen = _ChosenTeachers(
        image=optional_teachers(location, teachers, "image", image_teacher, "image_teacher"),
        text=optional_teachers(location, teachers, "text", text_teacher, "text_teacher"),
        cross=cross,
    )

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
    chosen: _ChosenTeachers,
) -> _LoadedTar:
    pairs = tar_set.pairs(tar)
    first_captions = np.searchsorted(pairs.caption_image, np.arange(len(pairs.keys) + 1))
    teachers: dict[str, np.ndarray] = {}
    skipped: set[int] = set()
    for name in chosen.image_row_teachers:
        teachers[name] = tar_set.rows(name, tar)
        skipped.update(_skipped_rows(teachers[name]).tolist())
    for name in chosen.caption_row_teachers:
        teachers[name] = tar_set.rows(name, tar)
        skipped_captions = _skipped_rows(teachers[name])
        skipped.update(pairs.caption_image[skipped_captions].tolist())
    image_rows = {key: row for row, key in enumerate(pairs.keys)}
    left_out = frozenset(map(itemgetter(0), pairs.left_out))
    return _LoadedTar(pairs, image_rows, first_captions, left_out, frozenset(skipped), teachers)


def _skipped_rows(rows: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows that a teacher skipped, which are NaN."""
    return np.flatnonzero(np.isnan(rows[:, 0]))


def _rows_of_sample(
    rows: _LoadedTar,
    sample: Sample,
    chosen: _ChosenTeachers,
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
    start, stop = rows.caption_rows[image_row : image_row + 2].tolist()
    is_single = rows.pairs.caption_rule == TEXT_CAPTIONS
    captions = start if is_single else slice(start, stop)
    teacher_rows: Sample = {}
    if chosen.image:
        teacher_rows["image_teacher"] = _one_or_several(rows, chosen.image, image_row)
    if chosen.text:
        teacher_rows["text_teacher"] = _one_or_several(rows, chosen.text, captions)
    if chosen.cross is not None:
        pairs = []
        for image_name, text_name in chosen.cross:
            pairs.append((rows.copied(image_name, image_row), rows.copied(text_name, captions)))
        teacher_rows["cross_teachers"] = tuple(pairs)
    return teacher_rows


def _one_or_several(
    rows: _LoadedTar,
    names: tuple[str, ...],
    place: int | slice,
) -> np.ndarray | tuple[np.ndarray, ...]:
    """Return one teacher's rows, or a tuple of several teachers'."""
    rows_of_teachers = tuple(rows.copied(name, place) for name in names)
    return rows_of_teachers[0] if len(names) == 1 else rows_of_teachers
