"""Shards: consecutive rows of one teacher for one split, in one sealed file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from cusa.data.errors import EmbeddingsError, StoreError
from cusa.data.store import checksum as sealed
from cusa.data.store.hdf5 import (
    array_location,
    read_array,
    refuse,
    text_attribute,
    whole_number_attribute,
)
from cusa.data.store.schema import TeacherSettings

_DIGESTS = "picture_sha256"
DIGEST_BYTES = 32


@dataclass(frozen=True)
class ShardInfo:
    """One finished shard.

    Attributes:
        file: Its path relative to the index's folder.
        start: First row.
        stop: Row after the last.
        sha256: Its seal.
        offset: Byte of the file at which its rows begin.
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
    """What the rows of a shard are.

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

    def differing(self, other: ShardHeader) -> list[str]:
        """The fields that differ, with both values."""
        fields = self.settings.differing(other.settings)
        if self.fingerprint != other.fingerprint:
            fields.append(f"fingerprint of split {self.split!r}")
        for name in ("teacher", "split", "start", "stop"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                fields.append(f"{name} ({mine!r} / {theirs!r})")
        return fields


def stored_rows(
    rows: np.ndarray, dtype: str, numbers: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """Embeddings as they are stored.

    Args:
        rows: ``[n, dim]`` float.
        dtype: ``"float16"`` or ``"float32"``.
        numbers: Their row numbers, for the message; ``None``: 0, 1, ...

    Returns:
        ``[n, dim]``, little-endian.

    Raises:
        EmbeddingsError: If a row is not finite, also once cast.
    """
    with np.errstate(over="ignore"):
        block = rows.astype(np.dtype(dtype).newbyteorder("<"))
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        first = bad[0] if numbers is None else numbers[bad[0]]
        raise EmbeddingsError(
            f"NaN or infinity in {len(bad)} of {len(block)} rows, the first of them row {first}; try --precision fp32 "
            "or --dtype float32, or check where they come from"
        )
    return block


def write_shard(
    folder: Path,
    file: str,
    header: ShardHeader,
    rows: np.ndarray,
    skipped: Sequence[int],
    picture_digests: np.ndarray | None = None,
) -> ShardInfo:
    """Write a shard, whole or not at all.

    Args:
        folder: The index's folder.
        file: Path relative to it.
        header: What the rows are.
        rows: ``[stop - start, dim]`` of the stored dtype; NaN where skipped.
        skipped: Row numbers of the split, ascending, that have no embedding.
        picture_digests: uint8 ``[stop - start, 32]``, sha256 of the picture files that the rows are
            of; zeros where it is not known. ``None``: of none.

    Returns:
        The shard.
    """
    assert rows.shape == (header.stop - header.start, header.settings.dim), (
        "a shard is written with all its rows"
    )
    offset = 0

    def build(content: h5py.File) -> None:
        nonlocal offset
        attrs = content.attrs
        attrs["teacher"], attrs["split"], attrs["split_fingerprint"] = (
            header.teacher,
            header.split,
            header.fingerprint,
        )
        attrs["start"], attrs["stop"] = header.start, header.stop
        attrs["settings"] = header.settings.to_json()
        offset = content.create_dataset("rows", data=rows).id.get_offset() + sealed.BLOCK
        content.create_dataset("skipped", data=np.asarray(skipped, "<i8"))
        if picture_digests is not None:
            content.create_dataset(_DIGESTS, data=picture_digests)

    seal = sealed.write_sealed(folder / file, sealed.SHARD_FORMAT, build)
    return ShardInfo(file, header.start, header.stop, seal, offset, tuple(skipped))


def read_shard(folder: Path, file: str, is_verified: bool = False) -> tuple[ShardHeader, ShardInfo]:
    """What a finished shard holds; its rows are not looked at.

    Args:
        folder: The index's folder.
        file: Path relative to it.
        is_verified: Whether it was just read whole, and its seal holds. Otherwise this is done
            here: damaged files can hang the HDF5 library.

    Raises:
        StoreError: If it cannot be read, is damaged, or its rows are not as its attributes say.
    """
    path = folder / file
    seal = sealed.read_seal(path, sealed.SHARD_FORMAT)
    if not is_verified:
        _require_whole(path)
    with sealed.open_sealed(path, sealed.SHARD_FORMAT, seal) as content:
        header = ShardHeader(
            text_attribute(content, "teacher"),
            text_attribute(content, "split"),
            text_attribute(content, "split_fingerprint"),
            whole_number_attribute(content, "start"),
            whole_number_attribute(content, "stop"),
            TeacherSettings.from_json(text_attribute(content, "settings"), path),
        )
        dtype = np.dtype(header.settings.dtype).newbyteorder("<").str
        rows = array_location(content, "rows", dtype, n_dimensions=2)
        n_rows = header.stop - header.start
        if rows.shape != (n_rows, header.settings.dim) or not 0 <= header.start < header.stop:
            refuse(path, "rows", f"{rows.shape} are not the rows {header.start} to {header.stop}")
        skipped = read_array(content, "skipped", "<i8")
        inside = ((skipped >= header.start) & (skipped < header.stop)).all()
        if not inside or (np.diff(skipped) <= 0).any():
            refuse(path, "skipped", "its rows do not ascend within the shard")
        info = ShardInfo(
            file, header.start, header.stop, seal, rows.offset, tuple(skipped.tolist())
        )
        return header, info


def _require_whole(path: Path) -> None:
    """Refuse a shard whose seal does not hold, before the HDF5 library parses it."""
    if not sealed.seal_holds(path, sealed.SHARD_FORMAT):
        message = f"{path} is damaged: its checksum does not hold; see cusa-store verify"
        raise StoreError(message, path=path)


def read_picture_digests(path: Path, seal: str) -> np.ndarray | None:
    """Read the sha256 of the picture files of a shard's rows: uint8 ``[n, 32]``, zeros if unknown.

    Args:
        path: The shard.
        seal: The seal that it must carry.

    Returns:
        ``None`` if the shard has no record of them: of captions, imported, or of format 2.0.

    Raises:
        StoreError: If it cannot be read, is damaged, or is another shard.
    """
    sealed.require_seal(path, sealed.SHARD_FORMAT, seal)
    _require_whole(path)
    with sealed.open_sealed(path, sealed.SHARD_FORMAT, seal) as content:
        if _DIGESTS not in content:
            return None
        digests = read_array(content, _DIGESTS, "|u1", n_dimensions=2)
        if digests.shape[1] != DIGEST_BYTES:
            refuse(path, _DIGESTS, f"{digests.shape[1]} bytes are no sha256")
        return digests
