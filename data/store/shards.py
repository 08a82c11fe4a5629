"""Shards: sealed files, each with consecutive rows of a teacher for a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from cusa.data.errors import EmbeddingsError
from cusa.data.store.checksum import (
    BLOCK,
    SHARD_FORMAT,
    ChecksumError,
    open_sealed,
    read_seal,
    require_seal,
    seal_holds,
    write_sealed,
)
from cusa.data.store.hdf5 import (
    array_location,
    read_array,
    refuse,
    text_attribute,
    whole_number_attribute,
)
from cusa.data.store.schema import TeacherSettings

_DIGESTS = "picture_sha256"
_RANGE_FIELDS = ("teacher", "split", "start", "stop")
DIGEST_BYTES = 32


@dataclass(frozen=True)
class ShardInfo:
    """A finished shard.

    Attributes:
        file: The shard's path relative to the index's folder.
        start: First row.
        stop: Row after the last.
        sha256: The file's seal.
        offset: Byte of the file at which the rows begin.
        skipped: Row numbers of the split, ascending, that have no embedding.
    """

    file: str
    start: int
    stop: int
    sha256: str
    offset: int
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class ShardHeader:
    """The teacher, split and row range that a shard's rows belong to.

    Attributes:
        teacher: The teacher's name in the store.
        split: Split name.
        fingerprint: :func:`cusa.data.records.fingerprint` of the split.
        start: First row.
        stop: Row after the last.
        settings: The teacher's settings.
    """

    teacher: str
    split: str
    fingerprint: str
    start: int
    stop: int
    settings: TeacherSettings

    def differences(self, compared: ShardHeader) -> list[str]:
        """Return the fields that differ, each with both values."""
        fields = self.settings.differences(compared.settings)
        if self.fingerprint != compared.fingerprint:
            fields.append(f"fingerprint of split {self.split!r}")

        for name in _RANGE_FIELDS:
            own_value = getattr(self, name)
            compared_value = getattr(compared, name)
            if own_value != compared_value:
                fields.append(f"{name} ({own_value!r} / {compared_value!r})")
        return fields


def stored_rows(
    rows: np.ndarray,
    dtype: str,
    row_numbers: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Cast embeddings to the dtype in which they are stored.

    Args:
        rows: ``[n, dim]`` float.
        dtype: ``"float16"`` or ``"float32"``.
        row_numbers: The rows' numbers, for the message; ``None``: 0, 1, ...

    Returns:
        ``[n, dim]`` of ``dtype``, little-endian.

    Raises:
        EmbeddingsError: If a row is not finite, before or after the cast.
    """
    # A number beyond float16's range becomes infinite, which is refused below.
    with np.errstate(over="ignore"):
        block = rows.astype(np.dtype(dtype).newbyteorder("<"))

    nonfinite_rows = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if not len(nonfinite_rows):
        return block

    first = nonfinite_rows[0]
    if row_numbers is not None:
        first = row_numbers[first]
    raise EmbeddingsError(
        f"NaN or infinity in {len(nonfinite_rows)} of {len(block)} rows, the first of them row "
        f"{first}; try --precision fp32 or --dtype float32, or check their source",
        location=f"row {first}",
    )


def write_shard(
    folder: Path,
    shard_file: str,
    header: ShardHeader,
    rows: np.ndarray,
    skipped: Sequence[int],
    picture_digests: np.ndarray | None = None,
) -> ShardInfo:
    """Write a shard, atomically.

    Args:
        folder: The index's folder.
        shard_file: The shard's path relative to it.
        header: Teacher, split and range of the rows.
        rows: ``[stop - start, dim]`` of the stored dtype; NaN where skipped.
        skipped: Row numbers of the split, ascending, that have no embedding.
        picture_digests: uint8 ``[stop - start, 32]``, sha256 of each row's image file; zeros where
            it is unknown. ``None``: the shard records none.

    Returns:
        The shard's entry for the index.

    Raises:
        StoreError: If the disk or quota is full.
    """
    expected_shape = (header.stop - header.start, header.settings.dim)
    assert rows.shape == expected_shape, "a shard is written with all its rows"
    # Set by fill, once HDF5 has laid out the file.
    offset = 0

    def fill(content: h5py.File) -> None:
        nonlocal offset
        content.attrs["teacher"] = header.teacher
        content.attrs["split"] = header.split
        content.attrs["split_fingerprint"] = header.fingerprint
        content.attrs["start"] = header.start
        content.attrs["stop"] = header.stop
        content.attrs["settings"] = header.settings.to_json()

        dataset = content.create_dataset("rows", data=rows)
        # A dataset without rows has no place in the file.
        if len(rows):
            # HDF5 counts from the end of the user block, which holds the seal.
            offset = dataset.id.get_offset() + BLOCK
        content.create_dataset("skipped", data=np.asarray(skipped, "<i8"))
        if picture_digests is not None:
            content.create_dataset(_DIGESTS, data=picture_digests)

    seal = write_sealed(folder / shard_file, SHARD_FORMAT, fill)
    return ShardInfo(
        file=shard_file,
        start=header.start,
        stop=header.stop,
        sha256=seal,
        offset=offset,
        skipped=tuple(skipped),
    )


def read_shard(
    folder: Path,
    shard_file: str,
    is_verified: bool = False,
) -> tuple[ShardHeader, ShardInfo]:
    """Read a finished shard, without its rows.

    Args:
        folder: The index's folder.
        shard_file: The shard's path relative to it.
        is_verified: Whether the caller has just verified the seal. If not, it is verified here, as
            damaged files can hang the HDF5 library.

    Raises:
        StoreError: If it cannot be read, is damaged, or its attributes contradict its rows.
    """
    shard_path = folder / shard_file
    seal = read_seal(shard_path, SHARD_FORMAT)
    if not is_verified:
        require_intact(shard_path)
    with open_sealed(shard_path, SHARD_FORMAT, seal) as content:
        header = _read_header(content, shard_path)
        offset = _read_rows_offset(content, header, shard_path)
        skipped = _read_skipped(content, header, shard_path)

    info = ShardInfo(
        file=shard_file,
        start=header.start,
        stop=header.stop,
        sha256=seal,
        offset=offset,
        skipped=skipped,
    )
    return header, info


def require_intact(shard_path: Path) -> None:
    """Refuse a shard whose seal does not hold, before the HDF5 library parses it.

    Raises:
        ChecksumError: If it does not hold.
    """
    if not seal_holds(shard_path, SHARD_FORMAT):
        message = f"{shard_path} is damaged: its checksum does not hold; see cusa-store verify"
        raise ChecksumError(message, path=shard_path)


def _read_header(content: h5py.File, shard_path: Path) -> ShardHeader:
    return ShardHeader(
        teacher=text_attribute(content, "teacher"),
        split=text_attribute(content, "split"),
        fingerprint=text_attribute(content, "split_fingerprint"),
        start=whole_number_attribute(content, "start"),
        stop=whole_number_attribute(content, "stop"),
        settings=TeacherSettings.from_json(text_attribute(content, "settings"), shard_path),
    )


def _read_rows_offset(
    content: h5py.File,
    header: ShardHeader,
    shard_path: Path,
) -> int:
    """Return the byte at which the rows begin, after checking their shape and dtype."""
    # Rows are little-endian on every machine.
    dtype = np.dtype(header.settings.dtype).newbyteorder("<").str
    rows = array_location(content, "rows", dtype, n_dimensions=2)
    expected_shape = (header.stop - header.start, header.settings.dim)
    is_range = 0 <= header.start <= header.stop
    if rows.shape != expected_shape or not is_range:
        refuse(shard_path, "rows", f"{rows.shape} are not the rows {header.start} to {header.stop}")
    return rows.offset


def _read_skipped(
    content: h5py.File,
    header: ShardHeader,
    shard_path: Path,
) -> tuple[int, ...]:
    """Read the numbers of the rows that have no embedding."""
    skipped = read_array(content, "skipped", "<i8")
    is_outside = (skipped < header.start) | (skipped >= header.stop)
    if is_outside.any() or (np.diff(skipped) <= 0).any():
        refuse(shard_path, "skipped", "its rows do not ascend within the shard")
    return tuple(skipped.tolist())


def read_picture_digests(shard_path: Path, seal: str) -> np.ndarray | None:
    """Read the sha256 of each row's image file.

    Args:
        shard_path: The shard.
        seal: The seal that it must carry.

    Returns:
        uint8 ``[n, 32]``, zeros where unknown; ``None`` if the shard records none, as with rows of
        captions, imported rows, and format 2.0.

    Raises:
        StoreError: If the shard cannot be read, is damaged, or is another one.
    """
    require_seal(shard_path, SHARD_FORMAT, seal)
    require_intact(shard_path)
    with open_sealed(shard_path, SHARD_FORMAT, seal) as content:
        # Stores of format 2.0 have no such dataset.
        if _DIGESTS not in content:
            return None
        digests = read_array(content, _DIGESTS, "|u1", n_dimensions=2)
        if digests.shape[1] != DIGEST_BYTES:
            refuse(shard_path, _DIGESTS, f"{digests.shape[1]} bytes are not a sha256")
        return digests
