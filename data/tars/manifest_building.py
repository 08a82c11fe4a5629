"""Building of a manifest from the files of a set, as a listing of its folder shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import numpy as np

from cusa.data.errors import StoreError
from cusa.data.store.schema import TeacherSettings
from cusa.data.store.shards import read_shard
from cusa.data.tars.each_file import SetReader, read_each
from cusa.data.tars.manifest import COUNTS, SEAL_BYTES, Manifest, TarRows
from cusa.data.tars.origin import SetOrigin
from cusa.data.tars.pair_files import PairFile, pairs_path, read_pairs
from cusa.data.tars.set_files import PAIRS_FOLDER, SetFiles


def build_manifest(
    location: str | Path,
    origin: SetOrigin | None = None,
    processes: int = 1,
) -> Manifest:
    """Build the manifest of a set from the files in its folder, verifying all checksums.

    Args:
        location: Path or URL of the folder of the set. Of an object store, the files of some tars
            are fetched at a time.
        origin: What the set was made from; ``None``: as the set says.
        processes: Number of processes that read; 1: threads of this one.

    Raises:
        StoreError: If there is no tar, a file is damaged, a teacher lacks a tar's rows, or tars
            were made with different settings or captions.
        ObjectError: If the object store does not give a file.
    """
    files = SetFiles(location)
    folder = files.path
    names = _require_tars(files)
    if origin is None:
        origin = SetOrigin.recorded(location)
    teacher_names = files.teachers()
    reader = _EntryReader(folder, teacher_names)
    entries = list(read_each(folder, reader, names, processes, parses=True))

    caption_rules = [entry.caption_rule for entry in entries]
    _require_equal("captions", caption_rules, names, files)
    teachers: dict[str, TarRows] = {}
    for teacher_name in teacher_names:
        shards = [entry.teachers[teacher_name] for entry in entries]
        shard_settings = [shard.settings.to_json() for shard in shards]
        _require_equal(f"rows of teacher {teacher_name!r}", shard_settings, names, files)
        teachers[teacher_name] = _joined_shards(shards, origin.sources.get(teacher_name))
    counts: dict[str, np.ndarray] = {}
    for column_name in COUNTS:
        counts[column_name] = np.array([entry.counts[column_name] for entry in entries], np.int64)
    return Manifest(
        names=names,
        counts=counts,
        is_complete=np.fromiter(map(attrgetter("is_complete"), entries), bool),
        caption_rule=caption_rules[0],
        pair_seals=_seal_array(map(attrgetter("pair_seal"), entries)),
        teachers=teachers,
        image_root=origin.image_root,
    )


def _require_tars(files: SetFiles) -> list[str]:
    names = files.tars()
    if not names:
        raise StoreError(
            f"{files} holds no tar's pairs ({PAIRS_FOLDER}/NAME.h5); run cusa-precompute with "
            f"--out {files}",
            path=files.path,
        )
    return names


def _joined_shards(
    shards: Sequence[_ShardEntry],
    source: str | None,
) -> TarRows:
    untrainable = list(map(attrgetter("untrainable"), shards))
    return TarRows(
        settings=shards[0].settings,
        seals=_seal_array(map(attrgetter("seal"), shards)),
        offsets=np.fromiter(map(attrgetter("offset"), shards), np.int64),
        n_skipped=np.fromiter(map(attrgetter("n_skipped"), shards), np.int64),
        untrainable=np.concatenate(untrainable),
        untrainable_offsets=np.append(0, np.cumsum(list(map(len, untrainable)))),
        source=source or shards[0].settings.model_id,
    )


def first_file(folder: Path) -> Path | None:
    """Return the file of the first tar in a teacher's folder, or in that of the pairs."""
    return min(folder.glob("[!.]*.h5"), default=None)


def stored_modalities(folder: Path) -> dict[str, str]:
    """Return the modality of each teacher that has rows in the folder of a set, by its name."""
    modalities: dict[str, str] = {}
    for teacher_name in SetFiles(folder).teachers():
        shard_path = first_file(folder / teacher_name)
        if shard_path is not None:
            header, _ = read_shard(folder, f"{teacher_name}/{shard_path.name}")
            modalities[teacher_name] = header.settings.modality
    return modalities


@dataclass(frozen=True)
class _ShardEntry:
    """A teacher's rows for a tar; attributes as in :class:`TarRows`."""

    settings: TeacherSettings
    seal: str
    offset: int
    n_skipped: int
    untrainable: np.ndarray


@dataclass(frozen=True)
class _TarEntry:
    """A tar's entry in the manifest; attributes as in :class:`Manifest`."""

    caption_rule: str
    is_complete: bool
    counts: Mapping[str, int]
    pair_seal: str
    teachers: Mapping[str, _ShardEntry]


@dataclass(frozen=True)
class _EntryReader(SetReader):
    """Reads the entries of tars by their names.

    Attributes:
        teacher_names: Names of the teachers.
    """

    teacher_names: Sequence[str]

    def __getitem__(self, name: str) -> _TarEntry:
        file_names = [f"{folder}/{name}.h5" for folder in (PAIRS_FOLDER, *self.teacher_names)]
        with self.files.on_disk(file_names) as folder:
            return _read_entry(folder, self.teacher_names, name)


def _read_entry(
    folder: Path,
    teacher_names: Sequence[str],
    name: str,
) -> _TarEntry:
    """Read the files of a tar and check that they belong together."""
    pairs = read_pairs(pairs_path(folder, name))
    n_rows = {"image": len(pairs.keys), "text": len(pairs.captions)}
    teachers: dict[str, _ShardEntry] = {}
    for teacher_name in teacher_names:
        shard_file = f"{teacher_name}/{name}.h5"
        header, info = read_shard(folder, shard_file)
        expected_header = replace(
            header,
            teacher=teacher_name,
            split=name,
            fingerprint=pairs.fingerprint,
            start=0,
            stop=n_rows[header.settings.modality],
        )
        if header != expected_header:
            raise StoreError(
                f"{folder / shard_file} does not hold the rows of {pairs.tar}'s pairs; move it "
                "away and run the cusa-precompute command again",
                path=folder / shard_file,
                name=teacher_name,
            )
        teachers[teacher_name] = _ShardEntry(
            settings=header.settings,
            seal=info.sha256,
            offset=info.offset,
            n_skipped=len(info.skipped),
            untrainable=_untrainable_captions(header.settings.modality, info.skipped, pairs),
        )
    counts = {
        "n_images": len(pairs.keys),
        "n_captions": len(pairs.captions),
        "n_left_out": len(pairs.left_out),
        "tar_bytes": pairs.tar_bytes,
    }
    return _TarEntry(pairs.caption_rule, pairs.is_complete, counts, pairs.seal, teachers)


def _untrainable_captions(
    modality: str,
    skipped: Sequence[int],
    pairs: PairFile,
) -> np.ndarray:
    """Return the caption rows that a teacher skipped, or whose images it skipped: int64 ``[n]``."""
    skipped_rows = np.array(skipped, np.int64)
    if modality == "text":
        return skipped_rows
    return np.flatnonzero(np.isin(pairs.caption_image, skipped_rows))


def _require_equal(
    subject: str,
    values: Sequence[str],
    names: Sequence[str],
    files: SetFiles,
) -> None:
    """Refuse a set whose tars were made with different settings."""
    for name, value in zip(names, values, strict=True):
        if value != values[0]:
            raise StoreError(
                f"{files}: the {subject} of {name} were made with other settings than those of "
                f"{names[0]}; move the files of one of them away and run cusa-precompute again",
                path=files.path,
                name=name,
            )


def _seal_array(seals: Iterable[str]) -> np.ndarray:
    joined = b"".join(map(bytes.fromhex, seals))
    return np.frombuffer(joined, np.uint8).reshape(-1, SEAL_BYTES)
