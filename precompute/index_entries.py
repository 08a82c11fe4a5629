"""What an index says of the teachers of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from cusa.data.errors import DataError
from cusa.data.store.shards import ShardInfo
from cusa.data.store.teacher_entry import TeacherEntry
from cusa.precompute.reuse import StoreReuse
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teacher_loading import LoadedTeacher

_RECORDED_PACKAGES = ("cusa", "numpy", "pillow", "sentence-transformers", "torch", "transformers")


def teacher_entries(
    teachers: Mapping[str, LoadedTeacher],
    tasks: Sequence[ShardTask],
    shards: Mapping[ShardTask, ShardInfo],
    reuse: StoreReuse | None,
    may_lack_rows: bool,
) -> dict[str, TeacherEntry]:
    """Make the entries of a run's teachers, their shards in the order of the tasks.

    Args:
        teachers: The loaded teachers, by name.
        tasks: All shards of the run.
        shards: What each of them holds.
        reuse: The store that rows were taken over from, or ``None``.
        may_lack_rows: Whether a teacher may have no row at all, as in a range of shards.

    Raises:
        DataError: If every item of a teacher was skipped.
    """
    entries: dict[str, TeacherEntry] = {}
    for name, loaded in teachers.items():
        shards_by_split: dict[str, list[ShardInfo]] = defaultdict(list)
        n_rows = 0
        for task in tasks:
            if task.teacher == name:
                shard = shards[task]
                shards_by_split[task.split].append(shard)
                n_rows += shard.stop - shard.start - len(shard.skipped)
        if not n_rows and not may_lack_rows:
            raise _no_rows(name, loaded.settings.modality)
        if shards_by_split:
            entries[name] = TeacherEntry(
                loaded.settings,
                {split: tuple(infos) for split, infos in shards_by_split.items()},
                _absolute_source(loaded.teacher.source),
                _library_versions(name, loaded, reuse),
            )
    return entries


def _no_rows(name: str, modality: str) -> DataError:
    problem = "no caption has words; correct them"
    if modality == "image":
        problem = "no image could be read; check --image-root"
    return DataError(
        f"teacher {name!r}: {problem}, then run again with --on-error fail to make the rows anew",
        name=name,
    )


def _absolute_source(source: str) -> str:
    """Return where a teacher was loaded from, as a path that other folders can use, too."""
    path = Path(source)
    return str(path.resolve()) if path.exists() else source


def _library_versions(
    name: str,
    loaded: LoadedTeacher,
    reuse: StoreReuse | None,
) -> Mapping[str, str]:
    """Return the library versions that a teacher's rows were made with."""
    if reuse is not None:
        versions = reuse.versions(name, loaded.settings)
        if versions:
            return versions
    return {package: version(package) for package in _RECORDED_PACKAGES}
