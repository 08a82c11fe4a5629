"""What stage one returns: where the store is, and what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cusa.precompute.run import Outcome


@dataclass(frozen=True)
class TeacherRows:
    """The rows of a teacher in a store.

    Attributes:
        dim: Their dimension.
        rows: Their number by split.
        skipped: The number of rows by split that were skipped, as their item cannot be used.
    """

    dim: int
    rows: Mapping[str, int]
    skipped: Mapping[str, int]


@dataclass(frozen=True)
class PrecomputedStore:
    """A finished store; as a path, it is the store's index.

    Attributes:
        path: The store's index file; with ``shard_range``, that of this part.
        dataset: Name of the data set.
        teachers: The rows of the teachers that were asked for, by name; empty in a process that
            does not write the index.
        notes: What the user should know about the data and the teachers.
        part_of: With ``shard_range``, the store that this is a part of.
    """

    path: Path
    dataset: str
    teachers: Mapping[str, TeacherRows]
    notes: tuple[str, ...] = ()
    part_of: Path | None = None

    def __fspath__(self) -> str:
        """Return the index file, for whatever takes a path."""
        return str(self.path)


def teacher_rows(outcome: Outcome) -> dict[str, TeacherRows]:
    """Count the rows of a run's teachers, by name."""
    teachers = {}
    for teacher, entry in outcome.entries.items():
        rows = {}
        skipped = {}
        for split, shards in entry.shards.items():
            rows[split] = sum(shard.stop - shard.start for shard in shards)
            skipped[split] = sum(len(shard.skipped) for shard in shards)
        teachers[teacher] = TeacherRows(entry.settings.dim, rows, skipped)
    return teachers
