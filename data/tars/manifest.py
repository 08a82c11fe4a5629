"""The manifest of a tar set: its tars, their numbers of rows, and the seals of their files."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from cusa.data.errors import StoreError
from cusa.data.store.checksum import ChecksumError, open_sealed, read_seal, seal_holds, write_sealed
from cusa.data.store.hdf5 import child_group, child_groups, read_array, refuse, text_attribute
from cusa.data.store.index_checks import check_lengths
from cusa.data.store.schema import TeacherSettings, file_name
from cusa.data.store.split_table import read_texts, write_texts
from cusa.data.tars.set_files import SetFiles
from cusa.data.texts import Texts

MANIFEST = "set.h5"
SET_FORMAT = "cusa-embeddings-set"
COUNTS = ("n_images", "n_captions", "n_left_out", "tar_bytes")
_SEALS = "seals"
_UNTRAINABLE = ("untrainable", "untrainable_offsets")
SEAL_BYTES = 32


@dataclass(frozen=True)
class TarRows:
    """The rows that a teacher has for the tars of a set.

    Attributes:
        settings: The teacher's settings.
        seals: uint8 ``[n_tars, 32]``, the seal of each tar's file of rows.
        offsets: int64 ``[n_tars]``, the byte of each file at which its rows begin.
        n_skipped: int64 ``[n_tars]``, how many rows have no embedding.
        untrainable: The caption rows of each tar that have no row themselves or whose image has
            none, one tar after the other, ascending within each: int64 ``[n]``.
        untrainable_offsets: int64 ``[n_tars + 1]``: where in ``untrainable`` each tar begins.
        source: Where the teacher's model was loaded from; its name, if that is not known.
    """

    settings: TeacherSettings
    seals: np.ndarray
    offsets: np.ndarray
    n_skipped: np.ndarray
    untrainable: np.ndarray
    untrainable_offsets: np.ndarray
    source: str


@dataclass(frozen=True)
class Manifest:
    """The manifest of a tar set.

    Attributes:
        names: The tars' names without ``.tar``, in alphabetical order.
        counts: int64 ``[n_tars]`` by name: ``n_images``, ``n_captions``, ``n_left_out`` and
            ``tar_bytes``.
        is_complete: bool ``[n_tars]``, whether each tar was whole.
        caption_rule: Where captions are, ``"txt"``, ``"json:FIELD"`` or ``"parquet:COLUMN"``.
        pair_seals: uint8 ``[n_tars, 32]``, the seal of each tar's file of pairs.
        teachers: The rows of each teacher by its name.
        image_root: The folder of the tars, absolute; empty if it is not known.
    """

    names: Sequence[str]
    counts: Mapping[str, np.ndarray]
    is_complete: np.ndarray
    caption_rule: str
    pair_seals: np.ndarray
    teachers: Mapping[str, TarRows]
    image_root: str = ""

    @property
    def n_tars(self) -> int:
        """Return the number of tars."""
        return len(self.names)

    def untrainable(
        self,
        tar_number: int,
        teachers: Iterable[str],
    ) -> np.ndarray:
        """Return the caption rows of a tar that lack a row of one of some teachers, or whose image
        does: int64 ``[n]``, ascending.
        """
        rows = [np.zeros(0, np.int64)]
        for teacher_name in teachers:
            stored = self.teachers[teacher_name]
            start, stop = stored.untrainable_offsets[tar_number : tar_number + 2].tolist()
            rows.append(stored.untrainable[start:stop])
        return np.unique(np.concatenate(rows))

    def n_trainable(
        self,
        teachers: Iterable[str],
    ) -> np.ndarray:
        """Return how many captions of each tar all of some teachers have rows for, and for whose
        images: int64 ``[n_tars]``.
        """
        tar_and_row = [np.zeros((2, 0), np.int64)]
        for teacher_name in teachers:
            stored = self.teachers[teacher_name]
            n_of_tar = np.diff(stored.untrainable_offsets)
            tars = np.repeat(np.arange(self.n_tars), n_of_tar)
            tar_and_row.append(np.stack([tars, stored.untrainable]))
        left_out = np.unique(np.concatenate(tar_and_row, axis=1), axis=1)
        return self.counts["n_captions"] - np.bincount(left_out[0], minlength=self.n_tars)


def write_manifest(
    folder: str | Path,
    manifest: Manifest,
) -> None:
    """Write the manifest of a set, atomically; equal contents give equal bytes.

    Args:
        folder: Path or URL of the folder of the set.
        manifest: The manifest.

    Raises:
        StoreError: If the disk or quota is full.
        ObjectError: If the object store does not take it.
    """

    def fill(content: h5py.File) -> None:
        content.attrs["caption"] = manifest.caption_rule
        content.attrs["image_root"] = manifest.image_root
        write_texts(content, "names", Texts.from_strings(manifest.names))
        for column_name in COUNTS:
            counts = manifest.counts[column_name].astype("<i8")
            content.create_dataset(column_name, data=counts)
        content.create_dataset("complete", data=manifest.is_complete.astype("|u1"))
        content.create_dataset(_SEALS, data=manifest.pair_seals)
        teachers = content.create_group("teachers")
        for teacher_name, rows in sorted(manifest.teachers.items()):
            group = teachers.create_group(teacher_name)
            group.attrs["settings"] = rows.settings.to_json()
            group.attrs["source"] = rows.source
            group.create_dataset(_SEALS, data=rows.seals)
            group.create_dataset("offsets", data=rows.offsets.astype("<i8"))
            group.create_dataset("n_skipped", data=rows.n_skipped.astype("<i8"))
            for column_name in _UNTRAINABLE:
                column = getattr(rows, column_name)
                group.create_dataset(column_name, data=column.astype("<i8"))

    with SetFiles(folder).replaced(MANIFEST) as path:
        write_sealed(path, SET_FORMAT, fill)


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a set.

    Args:
        folder: Path or URL of the folder of the set.

    Raises:
        StoreError: If it is missing, damaged, or its columns contradict each other.
        ObjectError: If the object store does not give it.
    """
    with SetFiles(folder).on_disk([MANIFEST]) as folder_on_disk:
        return _read_manifest(folder_on_disk)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise StoreError(
            f"{path} is missing; run cusa-store index {folder} to make it from the files of the "
            "set",
            path=path,
        )
    seal = read_seal(path, SET_FORMAT)
    if not seal_holds(path, SET_FORMAT):
        raise ChecksumError(
            f"{path} is damaged: its checksum does not hold; run cusa-store index {folder} to make "
            "it again",
            path=path,
        )
    with open_sealed(path, SET_FORMAT, seal) as content:
        names = tuple(read_texts(content, "names"))
        counts = {name: read_array(content, name, "<i8") for name in COUNTS}
        teachers: dict[str, TarRows] = {}
        for teacher_name, group in child_groups(child_group(content, "teachers")).items():
            teachers[teacher_name] = _read_teacher(group, path, len(names))
        manifest = Manifest(
            names=names,
            counts=counts,
            is_complete=read_array(content, "complete", "|u1").astype(bool),
            caption_rule=text_attribute(content, "caption"),
            pair_seals=_read_seals(content, path),
            teachers=teachers,
            image_root=_optional_text(content, "image_root", ""),
        )
    _check_names(manifest, path)
    columns = [names, manifest.is_complete, manifest.pair_seals, *counts.values()]
    check_lengths(map(len, columns), path, "names")
    return manifest


def _check_names(
    manifest: Manifest,
    path: Path,
) -> None:
    """Refuse names that are not those of files in the folder of a set."""
    names = manifest.names
    in_order = all(map(operator.lt, names, names[1:]))
    if not in_order or any("/" in name for name in names):
        refuse(path, "names", "they are not names of files in alphabetical order")
    for teacher_name in manifest.teachers:
        if teacher_name != file_name(teacher_name) or teacher_name.startswith("."):
            refuse(path, f"teachers/{teacher_name}", "it is not a teacher's name")


def _read_teacher(
    group: h5py.Group,
    path: Path,
    n_tars: int,
) -> TarRows:
    settings = TeacherSettings.from_json(text_attribute(group, "settings"), path)
    untrainable, untrainable_offsets = (read_array(group, name, "<i8") for name in _UNTRAINABLE)
    is_whole = len(untrainable_offsets) and untrainable_offsets[0] == 0
    if not is_whole or untrainable_offsets[-1] != len(untrainable):
        refuse(path, group.name, "its untrainable rows are not divided among the tars")
    if (np.diff(untrainable_offsets) < 0).any():
        refuse(path, group.name, "its untrainable rows are not divided among the tars")
    rows = TarRows(
        settings=settings,
        seals=_read_seals(group, path),
        offsets=read_array(group, "offsets", "<i8"),
        n_skipped=read_array(group, "n_skipped", "<i8"),
        untrainable=untrainable,
        untrainable_offsets=untrainable_offsets,
        source=_optional_text(group, "source", settings.model_id),
    )
    lengths = map(len, (rows.seals, rows.offsets, rows.n_skipped, untrainable_offsets[1:]))
    check_lengths([n_tars, *lengths], path, group.name)
    return rows


def _optional_text(
    group: h5py.Group,
    attribute_name: str,
    default: str,
) -> str:
    """Read an attribute that manifests of earlier versions lack."""
    if attribute_name not in group.attrs:
        return default
    return text_attribute(group, attribute_name)


def _read_seals(
    group: h5py.Group,
    path: Path,
) -> np.ndarray:
    seals = read_array(group, _SEALS, "|u1", n_dimensions=2)
    if seals.shape[1] != SEAL_BYTES:
        refuse(path, _SEALS, f"{seals.shape[1]} bytes are not a sha256")
    return seals
