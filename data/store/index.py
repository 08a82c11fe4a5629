"""The index of a store: what its splits hold, and which shards hold whose rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np

from cusa.data.errors import StoreError
from cusa.data.records import Dataset, Record, Truth, caption_rows, fingerprint, iter_captions
from cusa.data.store import checksum as sealed
from cusa.data.store.hdf5 import (
    child_group,
    child_groups,
    hdf5_errors,
    read_array,
    refuse,
    text_attribute,
)
from cusa.data.store.index_checks import (
    check_caption_image,
    check_skipped,
    check_truth,
    image_root,
    read_bounds,
    read_settings,
    read_versions,
    refuse_index,
)
from cusa.data.store.schema import TeacherSettings, shard_path
from cusa.data.store.shards import ShardInfo

COLUMNS = ("image_ids", "image_paths", "caption_ids", "captions")
TRUTH_COLUMNS = ("image_labels", "indptr", "indices")
# In UTF-8, a byte that goes on with a character has these bits.
_CONTINUATION_MASK, _CONTINUATION_BITS = 0xC0, 0x80
# Repeated one by one, for readers that do not parse the JSON of the settings.
_REPEATED = (
    "modality",
    "model_id",
    "weights_sha256",
    "normalizer",
    "precision",
    "dim",
    "dtype",
    "normalized",
)


@dataclass(frozen=True)
class Texts:
    """A column of texts: uint8 ``bytes`` one after the other, int64 ``offsets`` ``[n + 1]``."""

    bytes: np.ndarray
    offsets: np.ndarray

    @staticmethod
    def of(values: Sequence[str]) -> Texts:
        """Encode texts as UTF-8."""
        encoded = [v.encode() for v in values]
        offsets = np.zeros(len(encoded) + 1, "<i8")
        np.cumsum([len(e) for e in encoded], out=offsets[1:])
        return Texts(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @staticmethod
    def read(parent: h5py.Group, name: str) -> Texts:
        """Read a column whole.

        Raises:
            StoreError: If it is missing, or its offsets do not divide its bytes.
        """
        group = child_group(parent, name)
        texts = Texts(read_array(group, "bytes", "|u1"), read_array(group, "offsets", "<i8"))
        path, edges = Path(group.file.filename), texts.offsets
        if (
            not len(edges)
            or edges[0] != 0
            or edges[-1] != len(texts.bytes)
            or (np.diff(edges) < 0).any()
        ):
            refuse(path, group.name, "its offsets do not divide its bytes")
        starts = texts.bytes[edges[edges < len(texts.bytes)]]
        if ((starts & _CONTINUATION_MASK) == _CONTINUATION_BITS).any():
            refuse(path, group.name, "its offsets cut characters in two")
        with hdf5_errors(path, group.name):
            texts.bytes.tobytes().decode()
        return texts

    def write(self, group: h5py.Group, name: str) -> None:
        """Write a column."""
        column = group.create_group(name)
        column.create_dataset("bytes", data=self.bytes)
        column.create_dataset("offsets", data=self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[str]:
        block = self.bytes.tobytes()
        return (block[a:b].decode() for a, b in itertools.pairwise(self.offsets.tolist()))


@dataclass(frozen=True)
class SplitTable:
    """What an index knows of a split.

    Attributes:
        fingerprint: sha256 (hex) over ids, paths and captions.
        columns: The texts of :data:`COLUMNS`.
        caption_image: int64 ``[n_captions]``, the image row of each caption.
        truth: Known relevance, or ``None``.
    """

    fingerprint: str
    columns: Mapping[str, Texts]
    caption_image: np.ndarray
    truth: Truth | None

    @staticmethod
    def of(records: Sequence[Record], truth: Truth | None) -> SplitTable:
        """The table of records."""
        columns = {
            "image_ids": Texts.of([r.image_id for r in records]),
            "image_paths": Texts.of([r.image_path for r in records]),
            "caption_ids": Texts.of([c for r in records for c in r.caption_ids]),
            "captions": Texts.of(list(iter_captions(records))),
        }
        return SplitTable(fingerprint(records), columns, caption_rows(records), truth)

    def n_rows(self, modality: str) -> int:
        """Rows of an image or text teacher."""
        return len(self.columns["image_ids" if modality == "image" else "caption_ids"])


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher in the index: its settings, per split its shards in row order, and where the model came from."""

    settings: TeacherSettings
    shards: Mapping[str, tuple[ShardInfo, ...]]
    source: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Index:
    """All that an index file says.

    Attributes:
        dataset: Name of the data set.
        image_root: Folder that image paths are relative to, absolute.
        splits: Tables by split name.
        teachers: Entries by teacher name.
    """

    dataset: str
    image_root: Path
    splits: Mapping[str, SplitTable]
    teachers: Mapping[str, TeacherEntry] = field(default_factory=dict)

    @staticmethod
    def of(dataset: Dataset, teachers: Mapping[str, TeacherEntry]) -> Index:
        """The index of a data set."""
        tables = {
            name: SplitTable.of(records, dataset.truth.get(name))
            for name, records in dataset.splits.items()
        }
        return Index(dataset.name, dataset.image_root.resolve(), tables, teachers)

    def joined(self, other: Index, where: str) -> Index:
        """This index with the splits and teachers of another; where both have one, shards are put together.

        Args:
            other: What to add; its known relevance wins where it has one. The image root stays.
            where: What this index is called in messages.

        Raises:
            StoreError: If the two are not of the same data, or a teacher's settings differ; names
                the field.
        """
        if self.dataset != other.dataset:
            raise StoreError(
                f"{where} belongs to another data set: field dataset is {self.dataset!r}, this is {other.dataset!r}; "
                "pass another --out",
                name="dataset",
            )
        for split in other.splits:
            if (
                split in self.splits
                and self.splits[split].fingerprint != other.splits[split].fingerprint
            ):
                raise StoreError(
                    f"{where} belongs to other data: field fingerprint of split {split!r} differs (ids, paths, "
                    "captions, --limit or --val-fraction changed); pass another --out, and --reuse to take over rows",
                    name="fingerprint",
                )
        self._refuse_shared_images(other, where)
        teachers = dict(self.teachers)
        for name, entry in other.teachers.items():
            old = teachers.get(name)
            if old is not None and (fields := entry.settings.differences(old.settings)):
                raise StoreError(
                    f"{where} holds teacher {name!r} with other settings, not to be mixed: {'; '.join(fields)}; "
                    "pass another --out or another name (--teacher NAME=...)",
                    name=name,
                )
            shards = dict(old.shards) if old is not None else {}
            for split, parts in entry.shards.items():
                ranges = {(s.start, s.stop): s for s in (*shards.get(split, ()), *parts)}
                shards[split] = tuple(ranges[r] for r in sorted(ranges))
            # Finished rows keep what they were made with; the model may have moved.
            teachers[name] = TeacherEntry(
                entry.settings, shards, entry.source, old.versions if old else entry.versions
            )
        splits = dict(self.splits)
        for split, table in other.splits.items():
            if split not in splits or table.truth is not None:
                splits[split] = table
        return Index(self.dataset, self.image_root, splits, teachers)

    def _refuse_shared_images(self, other: Index, where: str) -> None:
        """Refuse a further split with images of one that is there: training would see its test."""
        added = [split for split in other.splits if split not in self.splits]
        if not (added and self.splits):
            return
        owners: dict[str, str] = {}
        for split, table in self.splits.items():
            owners.update(dict.fromkeys(table.columns["image_ids"], split))
        for split in added:
            for image_id in other.splits[split].columns["image_ids"]:
                if image_id in owners:
                    raise StoreError(
                        f"{where} has image {image_id!r} in split {owners[image_id]!r}, it is in split {split!r} here; "
                        "pass another --out",
                        name=image_id,
                    )

    def without(self, teachers: Mapping[str, TeacherEntry]) -> Index:
        """This index without the shards of those splits that entries of the same teachers have, too."""
        kept = {
            name: replace(
                entry,
                shards={
                    s: v
                    for s, v in entry.shards.items()
                    if name not in teachers or s not in teachers[name].shards
                },
            )
            for name, entry in self.teachers.items()
        }
        return replace(self, teachers=kept)

    def gaps(self) -> list[str]:
        """The first rows of each teacher and split that no shard holds, or two, in words; none in a whole store."""
        found = []
        for name, entry in self.teachers.items():
            for split, shards in entry.shards.items():
                if gap := _gap(shards, self.splits[split].n_rows(entry.settings.modality)):
                    found.append(f"{gap} of teacher {name!r}, split {split!r}")
        return found


def _gap(shards: Sequence[ShardInfo], n_rows: int) -> str | None:
    """The first rows that no shard holds, or two, in words; shards in row order."""
    position = 0
    for start, stop in [*((s.start, s.stop) for s in shards), (n_rows, n_rows)]:
        if start != position:
            what = "no shard holds" if start > position else "two shards hold"
            return f"{what} rows {min(start, position)} to {max(start, position)}"
        position = stop
    return None


def read_index(path: Path) -> Index:
    """Read an index whole, its seal verified.

    Raises:
        StoreError: If it is missing, damaged, or no index.
    """
    sealed.read_seal(path, sealed.INDEX_FORMAT)  # what is no index at all is named as such
    if not sealed.seal_holds(path, sealed.INDEX_FORMAT):  # before the HDF5 library parses it
        refuse_index(path)
    with sealed.open_sealed(path, sealed.INDEX_FORMAT) as file:
        tables: dict[str, SplitTable] = {}
        for name, group in child_groups(child_group(file, "splits")).items():
            tables[name] = _read_split(path, group)
        entries: dict[str, TeacherEntry] = {}
        for name, group in child_groups(child_group(file, "teachers")).items():
            entries[name] = _read_teacher(path, group, tables)
        return Index(text_attribute(file, "dataset"), image_root(path, file), tables, entries)


def _read_split(path: Path, group: h5py.Group) -> SplitTable:
    columns = {name: Texts.read(group, name) for name in COLUMNS}
    caption_image = read_array(group, "caption_image", "<i8")
    lengths = {name: len(column) for name, column in columns.items()}
    n_images, n_captions = lengths["image_ids"], lengths["caption_ids"]
    if (lengths["image_paths"], lengths["captions"], len(caption_image)) != (
        n_images,
        n_captions,
        n_captions,
    ):
        refuse(path, group.name, "its columns are of different lengths")
    check_caption_image(caption_image, n_images, path, group.name)
    truth = None
    if "truth" in group:
        part = child_group(group, "truth")
        truth = Truth(*(read_array(part, name, "<i8") for name in TRUTH_COLUMNS))
        check_truth(truth, n_images, n_captions, path, group.name)
    return SplitTable(text_attribute(group, "fingerprint"), columns, caption_image, truth)


def _read_teacher(path: Path, group: h5py.Group, tables: Mapping[str, SplitTable]) -> TeacherEntry:
    settings = read_settings(path, group)
    shards: dict[str, tuple[ShardInfo, ...]] = {}
    for split, part in child_groups(group).items():
        if split not in tables:
            refuse(path, part.name, f"the index has no split {split!r}")
        shards[split] = _read_shards(path, part, tables[split].n_rows(settings.modality))
    return TeacherEntry(settings, shards, text_attribute(group, "source"), read_versions(group))


def _read_shards(path: Path, part: h5py.Group, n_rows: int) -> tuple[ShardInfo, ...]:
    """The shards of a teacher for a split; a part of a store may have gaps between them."""
    listing = child_group(part, "shards")
    bounds, offsets = read_bounds(listing), read_array(listing, "offsets", "<i8")
    files, seals = list(Texts.read(listing, "files")), list(Texts.read(listing, "sha256"))
    skipped = read_array(part, "skipped", "<i8")
    check_skipped(skipped, n_rows, path, part.name)
    if {len(bounds), len(files), len(seals), len(offsets)} != {len(offsets)}:
        refuse(path, listing.name, "its columns are of different lengths")
    for file in files:
        shard_path(path.parent, file)  # refuses what leads elsewhere
    places = np.searchsorted(skipped, bounds).tolist()
    rows = zip(files, bounds.tolist(), seals, offsets.tolist(), places, strict=True)
    return tuple(
        ShardInfo(file, start, stop, seal, offset, tuple(skipped[first:last].tolist()))
        for file, (start, stop), seal, offset, (first, last) in rows
    )


def write_index(path: Path, index: Index) -> None:
    """Write an index, whole or not at all; equal contents give equal bytes, however they came together."""

    def build(file: h5py.File) -> None:
        file.attrs["dataset"] = index.dataset
        # Images below the store's folder move with it; others stay where they are. --image-root overrides both.
        folder = path.parent.resolve()
        inside = index.image_root.is_relative_to(folder)
        root = index.image_root.relative_to(folder) if inside else index.image_root
        file.attrs["image_root"] = root.as_posix()
        splits, teachers = file.create_group("splits"), file.create_group("teachers")
        for name, table in sorted(index.splits.items()):
            _write_split(splits.create_group(name), table)
        for name, entry in sorted(index.teachers.items()):
            _write_teacher(teachers.create_group(name), entry, index.splits)

    sealed.write_sealed(path, sealed.INDEX_FORMAT, build)


def _write_split(group: h5py.Group, table: SplitTable) -> None:
    group.attrs["fingerprint"] = table.fingerprint
    for name in COLUMNS:
        table.columns[name].write(group, name)
    group.create_dataset("caption_image", data=table.caption_image.astype("<i8"))
    if table.truth is not None:
        part = group.create_group("truth")
        for name in TRUTH_COLUMNS:
            part.create_dataset(name, data=getattr(table.truth, name).astype("<i8"))


def _write_teacher(
    group: h5py.Group, entry: TeacherEntry, splits: Mapping[str, SplitTable]
) -> None:
    settings = entry.settings
    group.attrs["settings"], group.attrs["source"] = settings.to_json(), entry.source
    for name in _REPEATED:
        group.attrs[name] = getattr(settings, name)
    for library, version in sorted(entry.versions.items()):
        group.attrs[f"version.{library}"] = version
    dtype = np.dtype(settings.dtype).newbyteorder("<")
    for split, shards in sorted(entry.shards.items()):
        part = group.create_group(split)
        _create_virtual(
            part, "rows", shards, (splits[split].n_rows(settings.modality), settings.dim), dtype
        )
        listing = part.create_group("shards")
        bounds = np.asarray([(s.start, s.stop) for s in shards], "<i8").reshape(-1, 2)
        listing.create_dataset("bounds", data=bounds)
        listing.create_dataset("offsets", data=np.asarray([s.offset for s in shards], "<i8"))
        Texts.of([s.file for s in shards]).write(listing, "files")
        Texts.of([s.sha256 for s in shards]).write(listing, "sha256")
        part.create_dataset(
            "skipped", data=np.asarray([row for s in shards for row in s.skipped], "<i8")
        )


def _create_virtual(
    group: h5py.Group,
    name: str,
    shards: Sequence[ShardInfo],
    shape: tuple[int, int],
    dtype: np.dtype,
) -> None:
    """A virtual dataset over the rows of all shards.

    h5py's own create_virtual_dataset stamps it with the time of day, and no two indexes would be equal.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_fill_value(np.array(np.nan, dtype))
    space = h5py.h5s.create_simple(shape)
    for s in shards:
        block = (s.stop - s.start, shape[1])
        space.select_hyperslab((s.start, 0), block)
        properties.set_virtual(
            space, s.file.replace("%", "%%").encode(), b"rows", h5py.h5s.create_simple(block)
        )
    space.select_all()
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(dtype), space, dcpl=properties)
