"""Rows to shard ranges, and which of them are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cusa.data import schema
from cusa.data.errors import CusaError
from cusa.data.schema import TeacherSettings
from cusa.data.shards import ShardInfo, checksum_holds, read_shard_info


@dataclass(frozen=True)
class SplitPlan:
    """The shards of one teacher for one split.

    Attributes:
        teacher: The teacher's name in the store.
        split: Split name.
        fingerprint: Fingerprint of the split.
        index: Path of the store's index.
        ranges: Row ranges (start, stop) of all shards, in order.
        done: Finished shards by range.
        damaged: Files under a shard's name that are no whole shard; they are made again.
    """

    teacher: str
    split: str
    fingerprint: str
    index: Path
    ranges: tuple[tuple[int, int], ...]
    done: dict[tuple[int, int], ShardInfo] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)

    @property
    def pending(self) -> list[tuple[int, int]]:
        """Ranges that are still to be encoded."""
        return [r for r in self.ranges if r not in self.done]

    def relative_file(self, start: int, stop: int) -> str:
        """Path of a shard relative to the index's folder."""
        return f"{schema.shard_folder(self.index).name}/{schema.shard_name(self.teacher, self.split, start, stop)}"

    def file(self, start: int, stop: int) -> Path:
        """Path of a shard."""
        return self.index.parent / self.relative_file(start, stop)


def shard_ranges(n_rows: int, shard_rows: int) -> tuple[tuple[int, int], ...]:
    """Consecutive ranges of ``shard_rows`` rows, the last one shorter."""
    return tuple((a, min(a + shard_rows, n_rows)) for a in range(0, n_rows, shard_rows))


def plan_split(
    index: Path,
    teacher: str,
    split: str,
    fingerprint: str,
    n_rows: int,
    shard_rows: int,
    settings: TeacherSettings,
    redo_skipped: bool = False,
) -> SplitPlan:
    """Plan a split and find the shards that an earlier run finished, their checksums taken again.

    With ``redo_skipped``, a shard that skipped rows counts as not done.

    Raises:
        CusaError: If a finished shard was made with other settings or from other data; names the fields.
    """
    plan = SplitPlan(teacher, split, fingerprint, index, shard_ranges(n_rows, shard_rows))
    for start, stop in plan.ranges:
        path = plan.file(start, stop)
        if not path.exists():
            continue
        try:
            info, found, found_fingerprint = read_shard_info(path, plan.relative_file(start, stop))
            whole = checksum_holds(path)
        except CusaError:
            whole = False
        if not whole:
            plan.damaged.append(path)
            continue
        fields: Sequence[str] = settings.differing(found)
        if found_fingerprint != fingerprint:
            fields = [*fields, f"fingerprint of split {split!r}"]
        if (info.start, info.stop) != (start, stop):
            fields = [*fields, f"rows ({info.start}-{info.stop} / {start}-{stop})"]
        if fields:
            raise CusaError(
                f"{path} was made with other settings, not to be mixed: {'; '.join(fields)}; pass another --out, or "
                "remove it to make it again"
            )
        if not (redo_skipped and info.skipped):
            plan.done[start, stop] = info
    return plan
