"""Batches of a tar set: inputs, teacher rows and image ids of pairs, by their global numbers."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import Dataset

from cusa.data.errors import CusaError
from cusa.data.tars.named_files import NamedFiles
from cusa.data.tars.open_tar import OpenTar
from cusa.data.tars.tar_set import TarSet
from cusa.train.loader import Batch
from cusa.train.tars.inputs import TarInputs, TarRows, gathered_caption_rows, gathered_image_rows
from cusa.train.teacher_set import TeacherSet, gather_rows


class TarSetPairs(Dataset[Batch]):
    """The trainable pairs of a tar set, indexed by the global numbers of a whole batch.

    The number of a pair is that of the trainable pairs in the tars before, in the order of the
    manifest, plus its number among the trainable pairs of its tar. A pair is trainable unless a
    teacher in use has no row for its image or its caption. As ``image_ids``, images are numbered
    in the same way, among all images.

    The tars of the last batches stay open, so that each worker process opens a tar once.

    Args:
        files: The set, or the copies of its files in a cache; a worker process has its own.
        inputs: Reader of the student's inputs.
        teachers: Names of the teachers; none if no soft labels are used.
        n_open: How many tars are open at a time, at least those of one batch.

    Attributes:
        n_trainable: int64 ``[n_tars]``, the trainable pairs of each tar.
        n_left_out: Pairs that are left out.
        teachers_read: Names of all teachers whose rows are read.
        reads_images: Whether pictures are read from the tars.
    """

    def __init__(
        self,
        files: NamedFiles,
        inputs: TarInputs,
        teachers: TeacherSet[str],
        n_open: int,
    ) -> None:
        manifest = files.manifest
        self._files = files
        self._manifest = manifest
        self._inputs = inputs
        self._teachers = teachers
        self._n_open = n_open
        self._open_tars: OrderedDict[int, OpenTar] = OrderedDict()
        self._deciding_teachers = _distinct(teachers, inputs.teachers)
        self.teachers_read = rows_read(teachers, inputs)
        self.reads_images = inputs.reads_images
        self.n_trainable = manifest.n_trainable(self._deciding_teachers)
        n_captions = int(manifest.counts["n_captions"].sum())
        n_pairs = int(self.n_trainable.sum())
        self.n_left_out = n_captions - n_pairs
        self._first_pairs = _starts(self.n_trainable)
        self._first_images = _starts(manifest.counts["n_images"])

    def __len__(self) -> int:
        return int(self._first_pairs[-1])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open_tars": OrderedDict()}

    def tars_of(self, pairs: ArrayLike) -> np.ndarray:
        """Return the numbers of the tars that pairs are in: int64, ascending."""
        tar_of_each = self._tar_of_each(np.asarray(pairs))
        return np.unique(tar_of_each)

    def _tar_of_each(self, pairs: np.ndarray) -> np.ndarray:
        # Of tars without a trainable pair, which begin where the next one begins, none is meant.
        return np.searchsorted(self._first_pairs, pairs, "right") - 1

    def __getitem__(self, pairs: ArrayLike) -> Batch:
        try:
            return self._read(np.asarray(pairs))
        except CusaError as error:
            raise self._elsewhere(error, pairs) from None

    def _elsewhere(
        self,
        error: CusaError,
        pairs: ArrayLike,
    ) -> CusaError:
        """Return an error on a copy as one on the tar or the file of the set."""
        for tar_number in self.tars_of(pairs).tolist():
            tar_name = self._manifest.names[tar_number]
            error = self._files.elsewhere(error, tar_name)
        return error

    def _read(self, pair_numbers: np.ndarray) -> Batch:
        tar_of_each = self._tar_of_each(pair_numbers)
        image_ids = np.empty(len(pair_numbers), np.int64)
        rows: list[TarRows] = []
        for tar_number in np.unique(tar_of_each).tolist():
            positions = np.flatnonzero(tar_of_each == tar_number)
            numbers_in_tar = pair_numbers[positions] - self._first_pairs[tar_number]
            rows_of_tar = self._locate(tar_number, positions, numbers_in_tar)
            image_ids[positions] = self._first_images[tar_number] + rows_of_tar.image_rows
            rows.append(rows_of_tar)
        teachers = gather_rows(
            self._teachers,
            partial(gathered_image_rows, rows),
            partial(gathered_caption_rows, rows),
        )
        return Batch(
            images=self._inputs.image.read(rows),
            texts=self._inputs.text.read(rows),
            teacher_image=teachers.image,
            teacher_text=teachers.text,
            image_ids=torch.from_numpy(image_ids),
            cross_teachers=teachers.cross,
        )

    def _locate(
        self,
        tar_number: int,
        positions: np.ndarray,
        numbers_in_tar: np.ndarray,
    ) -> TarRows:
        """Return the rows of pairs, given their numbers among the trainable pairs of a tar."""
        tar = self._open(tar_number)
        left_out = self._manifest.untrainable(tar_number, self._deciding_teachers)
        # For each row that is left out, how many rows before it are not.
        n_kept_before = left_out - np.arange(len(left_out))
        n_left_out_before = np.searchsorted(n_kept_before, numbers_in_tar, "right")
        caption_rows = numbers_in_tar + n_left_out_before
        image_rows = tar.caption_image[caption_rows]
        return TarRows(tar, positions, image_rows, caption_rows)

    def _open(self, tar_number: int) -> OpenTar:
        """Return a tar, open; of those that are open, the one used longest ago is closed."""
        tar = self._open_tars.get(tar_number)
        if tar is None:
            self._close_deleted()
            while len(self._open_tars) >= self._n_open:
                self._open_tars.popitem(last=False)
            tar_name = self._manifest.names[tar_number]
            tar = OpenTar(self._files, tar_name, self.teachers_read, self.reads_images)
            self._open_tars[tar_number] = tar
        self._open_tars.move_to_end(tar_number)
        return tar

    def _close_deleted(self) -> None:
        """Close the tars whose copies were deleted, so that they take no more room."""
        for tar_number, tar in list(self._open_tars.items()):
            if tar.is_deleted:
                del self._open_tars[tar_number]


def rows_read(
    teachers: TeacherSet[str],
    inputs: TarInputs,
) -> tuple[str, ...]:
    """Return the names of all teachers whose rows are read: for soft labels, and as inputs."""
    return _distinct(teachers, inputs.encoders)


def _distinct(*names: Iterable[str]) -> tuple[str, ...]:
    """Return names in their order, each once."""
    return tuple(dict.fromkeys(itertools.chain(*names)))


class ImageNames(Sequence[str]):
    """The names of a set's images, ``TAR/KEY``, by their global numbers, read when asked for.

    Args:
        tar_set: The set.
    """

    def __init__(self, tar_set: TarSet) -> None:
        self._tar_set = tar_set
        self._first_images = _starts(tar_set.manifest.counts["n_images"])

    def __len__(self) -> int:
        return int(self._first_images[-1])

    def __getitem__(self, image: int) -> str:  # type: ignore[override]
        n_begun = int(np.searchsorted(self._first_images, image, "right"))
        tar_number = n_begun - 1
        tar = self._tar_set.manifest.names[tar_number]
        row = image - int(self._first_images[tar_number])
        key = self._tar_set.pairs(tar).keys[row]
        return f"{tar}/{key}"


def _starts(counts: np.ndarray) -> np.ndarray:
    """Return the number of the first item of each tar, then the number of items."""
    stops = np.cumsum(counts)
    return np.append(0, stops)
