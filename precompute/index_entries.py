"""The index entries of the teachers of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
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
    """Make the index entries of a run's teachers, with the shards in the order of the tasks.

    Args:
        teachers: The loaded teachers, by name.
        tasks: All shards of the run.
        shards: The finished shard of each task.
        reuse: The store that rows were taken over from, or ``None``.
        may_lack_rows: Whether a teacher may have no row at all, as in a range of shards.

    Raises:
        DataError: If every item of a teacher was skipped.
    """
    entries: dict[str, TeacherEntry] = {}
    for name, loaded in teachers.items():
        teacher_tasks = [task for task in tasks if task.teacher == name]
        n_rows = sum(task.n_rows - len(shards[task].skipped) for task in teacher_tasks)
        if not n_rows and not may_lack_rows:
            raise _no_rows(name, loaded.settings.modality)
        if not teacher_tasks:
            continue
        shards_by_split: dict[str, tuple[ShardInfo, ...]] = {}
        for split, split_tasks in groupby(teacher_tasks, attrgetter("split")):
            shards_by_split[split] = tuple(shards[task] for task in split_tasks)
        # Rows that were taken over were made with the other store's library versions.
        versions = reuse.versions(name, loaded.settings) if reuse is not None else None
        if not versions:
            versions = {package: version(package) for package in _RECORDED_PACKAGES}
        source = absolute_source(loaded.teacher.source)
        entries[name] = TeacherEntry(loaded.settings, shards_by_split, source, versions)
    return entries


def _no_rows(name: str, modality: str) -> DataError:
    problem = "no caption has words; correct them"
    if modality == "image":
        problem = "no image could be read; check --image-root"
    return DataError(
        f"teacher {name!r}: {problem}, then run again with --on-error fail to make the rows anew",
        name=name,
    )


def absolute_source(source: str) -> str:
    """Return where a teacher was loaded from; a path is made absolute."""
    path = Path(source)
    return str(path.resolve()) if path.exists() else source
