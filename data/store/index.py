"""The index of a store: its splits, its teachers, and the shards of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py

from cusa.data.errors import StoreError
from cusa.data.records import Dataset
from cusa.data.repeated_texts import shared_text
from cusa.data.store.checksum import (
    INDEX_FORMAT,
    open_sealed,
    read_seal,
    seal_holds,
    write_sealed,
)
from cusa.data.store.hdf5 import child_group, child_groups, text_attribute
from cusa.data.store.index_checks import image_root, refuse_index
from cusa.data.store.part_texts import (
    TEXTS_FILE,
    read_part_tables,
    texts_path_of_part,
    texts_path_of_store,
)
from cusa.data.store.shards import ShardInfo
from cusa.data.store.split_table import SplitTable, read_split, write_fingerprint, write_split
from cusa.data.store.teacher_entry import TeacherEntry, read_teacher, write_teacher

# Of the texts; larger indexes are written without building them in memory.
_MAX_BYTES_IN_MEMORY = 1 << 26


@dataclass(frozen=True)
class Index:
    """The contents of an index file.

    Attributes:
        dataset: Name of the data set.
        image_root: Absolute path of the folder that image paths are relative to.
        splits: Tables by split name.
        teachers: Entries by teacher name.
    """

    dataset: str
    image_root: Path
    splits: Mapping[str, SplitTable]
    teachers: Mapping[str, TeacherEntry] = field(default_factory=dict)

    @staticmethod
    def from_dataset(dataset: Dataset, teachers: Mapping[str, TeacherEntry]) -> Index:
        """Return the index of a data set with the given teachers."""
        tables = {}
        for name, records in dataset.splits.items():
            tables[name] = SplitTable.from_records(records, dataset.truth.get(name))
        return Index(dataset.name, dataset.image_root.resolve(), tables, teachers)

    def joined(self, addition: Index, label: str) -> Index:
        """Return this index joined with the splits and teachers of another.

        If both have shards of a teacher for a split, the result has the shards of both.

        Args:
            addition: The index to add. Its known relevance replaces this one's; its image root is
                ignored.
            label: Name of this index in messages.

        Raises:
            StoreError: If the data or a teacher's settings differ; names the field.
        """
        self._refuse_other_data(addition, label)
        self._refuse_shared_images(addition, label)

        teachers = dict(self.teachers)
        for name, entry in addition.teachers.items():
            present = self.teachers.get(name, replace(entry, shards={}))
            _refuse_other_settings(name, present, entry, label)
            teachers[name] = _joined_entry(present, entry)

        splits = dict(self.splits)
        for name, table in addition.splits.items():
            if name not in splits or table.truth is not None:
                splits[name] = table
        return Index(self.dataset, self.image_root, splits, teachers)

    def _refuse_other_data(self, addition: Index, label: str) -> None:
        """Refuse another data set, or a split of the same name with other contents."""
        if self.dataset != addition.dataset:
            raise StoreError(
                f"{label} belongs to another data set: field dataset is {self.dataset!r}, this is "
                f"{addition.dataset!r}; pass another --out",
                name="dataset",
            )
        for split_name, table in addition.splits.items():
            if (
                split_name in self.splits
                and self.splits[split_name].fingerprint != table.fingerprint
            ):
                raise StoreError(
                    f"{label} belongs to other data: field fingerprint of split {split_name!r} "
                    "differs (ids, paths, captions, --limit or --val-fraction changed); pass "
                    "another --out, and --reuse to take over rows",
                    location=f"split {split_name!r}",
                    name="fingerprint",
                )

    def _refuse_shared_images(self, addition: Index, label: str) -> None:
        """Refuse a new split that shares images with a present one, such as test with train."""
        new_splits = [split_name for split_name in addition.splits if split_name not in self.splits]
        if not new_splits or not self.splits:
            return

        for split_name in new_splits:
            new_ids = addition.splits[split_name].columns["image_ids"]
            for present_name, table in self.splits.items():
                shared_id = shared_text(new_ids, table.columns["image_ids"])
                if shared_id is not None:
                    raise StoreError(
                        f"{label} has image {shared_id!r} in split {present_name!r}, but here it "
                        f"is in split {split_name!r}; pass another --out",
                        name=shared_id,
                    )

    def without(self, teachers: Mapping[str, TeacherEntry]) -> Index:
        """Return this index without shards of the teachers and splits that ``teachers`` has."""
        remaining = {}
        for name, entry in self.teachers.items():
            shards = dict(entry.shards)
            if name in teachers:
                for split_name in teachers[name].shards:
                    shards.pop(split_name, None)
            remaining[name] = replace(entry, shards=shards)
        return replace(self, teachers=remaining)

    def shard_files(self) -> list[str]:
        """Return the paths of all shards, relative to the index's folder, in order."""
        files: set[str] = set()
        for entry in self.teachers.values():
            for shards in entry.shards.values():
                files.update(shard.file for shard in shards)
        return sorted(files)

    def gaps(self) -> list[str]:
        """Describe gaps and overlaps of shards: the first of each teacher and split.

        A complete store has none.
        """
        gaps = []
        for name, entry in self.teachers.items():
            for split_name, shards in entry.shards.items():
                n_rows = self.splits[split_name].n_rows(entry.settings.modality)
                gap = _first_gap(shards, n_rows)
                if gap is not None:
                    gaps.append(f"{gap} of teacher {name!r}, split {split_name!r}")
        return gaps


def _refuse_other_settings(
    name: str,
    present: TeacherEntry,
    added: TeacherEntry,
    label: str,
) -> None:
    """Refuse rows of a teacher that was run with other settings."""
    differences = added.settings.differences(present.settings)
    if differences:
        raise StoreError(
            f"{label} holds teacher {name!r} with other settings, not to be mixed: "
            f"{'; '.join(differences)}; pass another --out or another name (--teacher NAME=...)",
            location="; ".join(differences),
            name=name,
        )


def _joined_entry(present: TeacherEntry, added: TeacherEntry) -> TeacherEntry:
    """Join the shards of two entries of a teacher, in row order."""
    shards = dict(present.shards)
    for split_name, added_shards in added.shards.items():
        # If both have a shard of the same rows, the added one is kept.
        by_range: dict[tuple[int, int], ShardInfo] = {}
        for shard in (*shards.get(split_name, ()), *added_shards):
            by_range[shard.start, shard.stop] = shard
        shards[split_name] = tuple(by_range[row_range] for row_range in sorted(by_range))
    # Versions are those of the rows already present; the source is where the model is now.
    return TeacherEntry(added.settings, shards, added.source, present.versions)


def _first_gap(shards: Sequence[ShardInfo], n_rows: int) -> str | None:
    """Describe the first gap or overlap of shards, which are in row order."""
    row_ranges = [(shard.start, shard.stop) for shard in shards]
    # A final empty range, so that missing rows at the end count as a gap.
    row_ranges.append((n_rows, n_rows))
    position = 0
    for start, stop in row_ranges:
        if start > position:
            return f"no shard holds rows {position} to {start}"
        if start < position:
            return f"two shards hold rows {start} to {position}"
        position = stop
    return None


def read_index(index_path: Path) -> Index:
    """Read a whole index, after verifying its seal.

    Raises:
        StoreError: If it is missing, damaged, or not an index.
    """
    # Raises a more precise error if the file is not an index at all.
    read_seal(index_path, INDEX_FORMAT)
    # Verified before the HDF5 library parses the file.
    if not seal_holds(index_path, INDEX_FORMAT):
        refuse_index(index_path)

    with open_sealed(index_path, INDEX_FORMAT) as file:
        texts_path = texts_path_of_part(index_path, file)
        tables: dict[str, SplitTable] = {}
        if texts_path is not None:
            tables = read_part_tables(index_path, file, texts_path)
        else:
            for name, group in child_groups(child_group(file, "splits")).items():
                tables[name] = read_split(index_path, group)
        entries: dict[str, TeacherEntry] = {}
        for name, group in child_groups(child_group(file, "teachers")).items():
            entries[name] = read_teacher(index_path, group, tables)
        dataset = text_attribute(file, "dataset")
        return Index(dataset, image_root(index_path, file), tables, entries)


def write_part(index_path: Path, index: Index, out: Path) -> None:
    """Write the index of a part of a store, and the file of the store's texts if it is missing.

    Args:
        index_path: Path of the part's index, beside the store's.
        index: The contents of the part.
        out: Path of the store's index.

    Raises:
        StoreError: If the disk or quota is full.
    """
    texts_path = texts_path_of_store(out, index.splits)
    if not seal_holds(texts_path, INDEX_FORMAT):
        write_index(texts_path, replace(index, teachers={}))
    write_index(index_path, index, texts_path.name)


def write_index(
    index_path: Path,
    index: Index,
    texts_file: str | None = None,
) -> None:
    """Write an index, atomically.

    Equal contents give equal bytes, in whatever order splits and teachers were added.

    Args:
        index_path: Its path.
        index: Its contents.
        texts_file: Name of a file beside it that has the splits' texts; ``None``: the index has
            them itself.

    Raises:
        StoreError: If the disk or quota is full.
    """
    write_one_split = write_split if texts_file is None else write_fingerprint
    n_bytes = 0
    for table in index.splits.values():
        n_bytes += sum(texts.n_bytes for texts in table.columns.values())

    def fill(file: h5py.File) -> None:
        file.attrs["dataset"] = index.dataset
        file.attrs["image_root"] = _stored_image_root(index_path, index.image_root).as_posix()
        if texts_file is not None:
            file.attrs[TEXTS_FILE] = texts_file
        split_groups = file.create_group("splits")
        teacher_groups = file.create_group("teachers")
        for name, table in sorted(index.splits.items()):
            write_one_split(split_groups.create_group(name), table)
        for name, entry in sorted(index.teachers.items()):
            write_teacher(teacher_groups.create_group(name), entry, index.splits)

    write_sealed(index_path, INDEX_FORMAT, fill, in_memory=n_bytes <= _MAX_BYTES_IN_MEMORY)


def _stored_image_root(index_path: Path, root: Path) -> Path:
    """Return the image root to write: relative if it is within the store's folder.

    So such images may be moved together with the store.
    """
    folder = index_path.parent.resolve()
    if root.is_relative_to(folder):
        return root.relative_to(folder)
    return root
