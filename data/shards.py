"""Writing the store: atomic files, shards with checksums, and the index that joins them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from cusa.data import schema
from cusa.data.errors import CusaError
from cusa.data.records import Dataset, Record, Truth, caption_rows, fingerprint, iter_captions
from cusa.data.schema import TeacherSettings


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name, flushed to disk, only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class ShardInfo:
    """One finished shard: its file relative to the index's folder, its rows, its checksum."""

    file: str
    start: int
    stop: int
    sha256: str
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher in the index: its settings, per split its shards in row order, and where the model came from."""

    settings: TeacherSettings
    shards: Mapping[str, tuple[ShardInfo, ...]]
    source: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


class ShardWriter:
    """Writes the rows ``start`` to ``stop`` of one split to one shard; nothing appears under its name until all are in.

    Args:
        path: Final path.
        teacher: The teacher's name in the store.
        split: Split name.
        split_fingerprint: :func:`cusa.data.records.fingerprint` of the split.
        start: First row.
        stop: Row after the last.
        settings: The teacher's settings.
    """

    def __init__(
        self,
        path: Path,
        teacher: str,
        split: str,
        split_fingerprint: str,
        start: int,
        stop: int,
        settings: TeacherSettings,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._digest = hashlib.sha256()
        self._skipped: list[int] = []
        self._next, self._start, self._stop = start, start, stop
        temporary = self._stack.enter_context(atomic_file(path))
        self._file = self._stack.enter_context(h5py.File(temporary, "w", locking=False))
        schema.stamp(self._file, schema.SHARD_FORMAT)
        attrs = self._file.attrs
        attrs["teacher"], attrs["split"], attrs["split_fingerprint"] = teacher, split, split_fingerprint
        attrs["start"], attrs["stop"] = start, stop
        attrs["settings"] = settings.to_json()
        dtype = np.dtype(settings.dtype).newbyteorder("<")
        self._rows = self._file.create_dataset("rows", (stop - start, settings.dim), dtype)

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, rows: np.ndarray, skipped: Sequence[int] = ()) -> None:
        """Append rows.

        Args:
            rows: ``[n, dim]`` float; the rows of skipped items are overwritten with NaN.
            skipped: Row numbers of the split, among these rows, that have no embedding.

        Raises:
            CusaError: If another row is not finite, also once cast to the stored dtype.
        """
        with np.errstate(over="ignore"):
            block = np.array(rows, self._rows.dtype)
        block[[row - self._next for row in skipped]] = np.nan
        good = np.ones(len(block), bool)
        good[[row - self._next for row in skipped]] = False
        bad = np.flatnonzero(good & ~np.isfinite(block).all(axis=1))
        if len(bad):
            raise CusaError(
                f"the teacher returned NaN or infinity for row {self._next + bad[0]} "
                f"({len(bad)} of {len(block)} rows of this batch); try --precision fp32, or check its weights"
            )
        offset = self._next - self._start
        self._rows[offset : offset + len(block)] = block
        self._digest.update(block.tobytes())
        self._skipped.extend(int(row) for row in skipped)
        self._next += len(block)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            assert self._next == self._stop, "a shard is finished only with all its rows"
            skipped = np.asarray(self._skipped, "<i8")
            self._digest.update(skipped.tobytes())
            self._file.create_dataset("skipped", data=skipped)
            self._file.attrs["sha256"] = self._digest.hexdigest()
        self._stack.__exit__(kind, error, tb)


def read_shard_info(path: Path, name: str) -> tuple[ShardInfo, TeacherSettings, str]:
    """Header of a finished shard: info, settings, split fingerprint."""
    with schema.open_checked(path, schema.SHARD_FORMAT) as file:
        attrs = file.attrs
        info = ShardInfo(
            name, int(attrs["start"]), int(attrs["stop"]), str(attrs["sha256"]), tuple(file["skipped"][...].tolist())
        )
        return info, TeacherSettings.from_json(attrs["settings"]), str(attrs["split_fingerprint"])


def checksum_holds(path: Path) -> bool:
    """Whether a shard's rows are those that its checksum was taken of."""
    with schema.open_checked(path, schema.SHARD_FORMAT) as file:
        digest = hashlib.sha256()
        rows = file["rows"]
        for start in range(0, len(rows), 8192):
            digest.update(rows[start : start + 8192].tobytes())
        digest.update(file["skipped"][...].tobytes())
        return bool(digest.hexdigest() == file.attrs["sha256"])


def read_entries(index: Path) -> dict[str, TeacherEntry]:
    """The teachers of an index, as :func:`write_index` takes them."""
    with schema.open_checked(index, schema.INDEX_FORMAT) as file:
        return {name: _read_entry(group) for name, group in file["teachers"].items()}


def _read_entry(group: h5py.Group) -> TeacherEntry:
    shards = {}
    for split, part in group.items():
        bounds, skipped = part["shards/bounds"][...], part["skipped"][...]
        columns = [schema.read_strings(part["shards"], c) for c in ("files", "sha256")]
        shards[split] = tuple(
            ShardInfo(f, int(a), int(b), s, tuple(skipped[(skipped >= a) & (skipped < b)].tolist()))
            for f, s, (a, b) in zip(*columns, bounds, strict=True)
        )
    versions = {str(k).removeprefix("version."): str(v) for k, v in group.attrs.items() if k.startswith("version.")}
    settings = TeacherSettings.from_json(group.attrs["settings"])
    return TeacherEntry(settings, shards, str(group.attrs["source"]), versions)


def check_compatible(index: Path, dataset: Dataset, teachers: Mapping[str, TeacherSettings]) -> None:
    """Refuse to add to an index what does not fit it.

    Raises:
        CusaError: If the index is of another data set, or holds rows of a same-named teacher with other settings.
    """
    with schema.open_checked(index, schema.INDEX_FORMAT) as file:
        found = str(file.attrs["dataset"])
        if found != dataset.name:
            raise CusaError(
                f"{index} belongs to another data set: field dataset is {found!r}, this run has {dataset.name!r}; "
                "pass another --out"
            )
        for split, records in dataset.splits.items():
            if split in file["splits"] and file["splits"][split].attrs["fingerprint"] != fingerprint(records):
                raise CusaError(
                    f"{index} belongs to other data: field fingerprint of split {split!r} differs (ids, paths, "
                    "captions or --limit changed); pass another --out"
                )
        for name, settings in teachers.items():
            if name in file["teachers"]:
                old = TeacherSettings.from_json(file["teachers"][name].attrs["settings"])
                if fields := settings.differing(old):
                    raise CusaError(
                        f"{index} holds teacher {name!r} with other settings, not to be mixed: {'; '.join(fields)}; "
                        f"pass another --out or another name (--teacher NAME=...)"
                    )


def write_index(index: Path, dataset: Dataset, teachers: Mapping[str, TeacherEntry]) -> None:
    """Write the index over finished shards, keeping the splits and teachers that an earlier index had.

    Args:
        index: Path of the ``.h5`` index.
        dataset: Data set, with the splits that were worked on.
        teachers: Entries to add; a teacher that is there already gains splits.
    """
    old = read_entries(index) if index.exists() else {}
    merged = {
        name: TeacherEntry(
            entry.settings,
            {**(old[name].shards if name in old else {}), **entry.shards},
            entry.source,
            entry.versions,
        )
        for name, entry in {**old, **teachers}.items()
    }
    with atomic_file(index) as temporary, h5py.File(temporary, "w", locking=False) as file:
        schema.stamp(file, schema.INDEX_FORMAT)
        file.attrs["dataset"] = dataset.name
        # Images below the store's folder move with it; others stay where they are. --image-root overrides both.
        root, folder = dataset.image_root.resolve(), index.parent.resolve()
        inside = root.is_relative_to(folder)
        file.attrs["image_root"] = (root.relative_to(folder) if inside else root).as_posix()
        splits = file.create_group("splits")
        for name, records in dataset.splits.items():
            _write_split(splits.create_group(name), records, dataset.truth.get(name))
        if index.exists():
            with h5py.File(index, "r", locking=False) as before:
                for name in before["splits"]:
                    if name not in splits:
                        before.copy(before["splits"][name], splits, name)
        group = file.create_group("teachers")
        for name, entry in sorted(merged.items()):
            _write_teacher(group.create_group(name), entry)


def _write_split(group: h5py.Group, records: Sequence[Record], truth: Truth | None) -> None:
    group.attrs["fingerprint"] = fingerprint(records)
    schema.write_strings(group, "image_ids", [r.image_id for r in records])
    schema.write_strings(group, "image_paths", [r.image_path for r in records])
    schema.write_strings(group, "caption_ids", [c for r in records for c in r.caption_ids])
    schema.write_strings(group, "captions", list(iter_captions(records)))
    group.create_dataset("caption_image", data=caption_rows(records).astype("<i8"))
    if truth is not None:
        part = group.create_group("truth")
        for name in ("image_labels", "indptr", "indices"):
            part.create_dataset(name, data=getattr(truth, name).astype("<i8"))


def _write_teacher(group: h5py.Group, entry: TeacherEntry) -> None:
    settings = entry.settings
    group.attrs["settings"], group.attrs["source"] = settings.to_json(), entry.source
    # The fields again, one by one, for readers that do not parse JSON.
    for name in ("modality", "model_id", "weights_sha256", "normalizer", "precision", "dim", "dtype", "normalized"):
        group.attrs[name] = getattr(settings, name)
    for library, version in sorted(entry.versions.items()):
        group.attrs[f"version.{library}"] = version
    dtype = np.dtype(settings.dtype).newbyteorder("<")
    for split, shards in entry.shards.items():
        part = group.create_group(split)
        _create_virtual(part, "rows", shards, settings.dim, dtype)
        listing = part.create_group("shards")
        listing.create_dataset("bounds", data=np.asarray([(s.start, s.stop) for s in shards], "<i8"))
        schema.write_strings(listing, "files", [s.file for s in shards])
        schema.write_strings(listing, "sha256", [s.sha256 for s in shards])
        part.create_dataset("skipped", data=np.asarray([row for s in shards for row in s.skipped], "<i8"))


def _create_virtual(group: h5py.Group, name: str, shards: Sequence[ShardInfo], dim: int, dtype: np.dtype) -> None:
    """A virtual dataset over the rows of all shards.

    h5py's own create_virtual_dataset stamps it with the time of day, and no two indexes would be equal.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_fill_value(np.array(np.nan, dtype))
    space = h5py.h5s.create_simple((shards[-1].stop, dim))
    for s in shards:
        shape = (s.stop - s.start, dim)
        space.select_hyperslab((s.start, 0), shape)
        properties.set_virtual(space, s.file.replace("%", "%%").encode(), b"rows", h5py.h5s.create_simple(shape))
    space.select_all()
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(dtype), space, dcpl=properties)
