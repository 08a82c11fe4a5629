"""A teacher as it is stored in an index: its settings, and its shards for each split."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import h5py
import numpy as np

from cusa.data.store.hdf5 import (
    child_group,
    child_groups,
    read_array,
    refuse,
    text_attribute,
)
from cusa.data.store.index_checks import (
    check_lengths,
    check_skipped,
    read_bounds,
    read_settings,
    read_versions,
)
from cusa.data.store.schema import TeacherSettings, shard_path
from cusa.data.store.shards import ShardInfo
from cusa.data.store.split_table import SplitTable, read_texts, write_texts
from cusa.data.texts import Texts


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher's entry in an index.

    Attributes:
        settings: The teacher's settings.
        shards: The shards by split name, in row order.
        source: Where the model was loaded from.
        versions: Versions by library name.
    """

    settings: TeacherSettings
    shards: Mapping[str, tuple[ShardInfo, ...]]
    source: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def read_teacher(
    index_path: Path,
    teacher_group: h5py.Group,
    tables: Mapping[str, SplitTable],
) -> TeacherEntry:
    """Read a teacher's group of an index.

    Args:
        index_path: The index, for messages.
        teacher_group: The group.
        tables: The index's splits.

    Raises:
        StoreError: If something is missing, damaged, or does not fit the splits.
    """
    settings = read_settings(index_path, teacher_group)
    shards: dict[str, tuple[ShardInfo, ...]] = {}
    for split_name, split_group in child_groups(teacher_group).items():
        if split_name not in tables:
            refuse(index_path, split_group.name, f"the index has no split {split_name!r}")
        n_rows = tables[split_name].n_rows(settings.modality)
        shards[split_name] = _read_shards(index_path, split_group, n_rows)
    return TeacherEntry(
        settings=settings,
        shards=shards,
        source=text_attribute(teacher_group, "source"),
        versions=read_versions(teacher_group),
    )


def _read_shards(
    index_path: Path,
    split_group: h5py.Group,
    n_rows: int,
) -> tuple[ShardInfo, ...]:
    """Read the shards of a teacher for a split; there may be gaps in the index of a part."""
    listing = child_group(split_group, "shards")
    bounds = read_bounds(listing)
    offsets = read_array(listing, "offsets", "<i8")
    files = list(read_texts(listing, "files"))
    seals = list(read_texts(listing, "sha256"))
    skipped = read_array(split_group, "skipped", "<i8")

    check_skipped(skipped, n_rows, index_path, split_group.name)
    lengths = [len(bounds), len(offsets), len(files), len(seals)]
    check_lengths(lengths, index_path, listing.name)
    for shard_file in files:
        # Refuse paths that lead out of the folder.
        shard_path(index_path.parent, shard_file)

    shards = []
    # For each shard, the range of its own rows among the skipped ones.
    skipped_ranges = np.searchsorted(skipped, bounds).tolist()
    for number, (start, stop) in enumerate(bounds.tolist()):
        first, last = skipped_ranges[number]
        shard = ShardInfo(
            file=files[number],
            start=start,
            stop=stop,
            sha256=seals[number],
            offset=int(offsets[number]),
            skipped=tuple(skipped[first:last].tolist()),
        )
        shards.append(shard)
    return tuple(shards)


def write_teacher(
    teacher_group: h5py.Group,
    entry: TeacherEntry,
    tables: Mapping[str, SplitTable],
) -> None:
    """Write a teacher to a group of an index whose splits are ``tables``."""
    settings = entry.settings
    teacher_group.attrs["settings"] = settings.to_json()
    teacher_group.attrs["source"] = entry.source
    for setting in fields(settings):
        # The settings are repeated one by one, for readers that do not parse the JSON.
        if setting.name != "transform":
            teacher_group.attrs[setting.name] = getattr(settings, setting.name)
    for library, version in sorted(entry.versions.items()):
        teacher_group.attrs[f"version.{library}"] = version

    for split_name, shards in sorted(entry.shards.items()):
        split_group = teacher_group.create_group(split_name)
        n_rows = tables[split_name].n_rows(settings.modality)
        _write_virtual_rows(split_group, shards, (n_rows, settings.dim), settings.dtype)
        _write_shards(split_group, shards)


def _write_shards(split_group: h5py.Group, shards: Sequence[ShardInfo]) -> None:
    bounds = [(shard.start, shard.stop) for shard in shards]
    offsets = [shard.offset for shard in shards]
    skipped = list(itertools.chain.from_iterable(shard.skipped for shard in shards))

    listing = split_group.create_group("shards")
    listing.create_dataset("bounds", data=np.asarray(bounds, "<i8").reshape(-1, 2))
    listing.create_dataset("offsets", data=np.asarray(offsets, "<i8"))
    write_texts(listing, "files", Texts.from_strings(shard.file for shard in shards))
    write_texts(listing, "sha256", Texts.from_strings(shard.sha256 for shard in shards))
    split_group.create_dataset("skipped", data=np.asarray(skipped, "<i8"))


def _write_virtual_rows(
    split_group: h5py.Group,
    shards: Sequence[ShardInfo],
    shape: tuple[int, int],
    dtype_name: str,
) -> None:
    """Write a virtual dataset over the rows of all shards.

    h5py's own create_virtual_dataset would store the time of day, so that no two indexes would be
    equal.
    """
    dtype = np.dtype(dtype_name).newbyteorder("<")
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_fill_value(np.array(np.nan, dtype))

    space = h5py.h5s.create_simple(shape)
    for shard in shards:
        shard_shape = (shard.stop - shard.start, shape[1])
        space.select_hyperslab((shard.start, 0), shard_shape)
        # HDF5 reads a percent sign in a file name as a pattern, unless it is doubled.
        shard_file = shard.file.replace("%", "%%").encode()
        properties.set_virtual(space, shard_file, b"rows", h5py.h5s.create_simple(shard_shape))
    space.select_all()

    hdf5_type = h5py.h5t.py_create(dtype)
    h5py.h5d.create(
        split_group.id,
        b"rows",
        hdf5_type,
        space,
        dcpl=properties,
    )
