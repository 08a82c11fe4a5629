"""What a run is asked to make, and whom it tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cusa.precompute.pipeline import PipelineOptions
from cusa.precompute.teachers.base import Pooling


@dataclass(frozen=True)
class RunOptions:
    """The settings of a run.

    Attributes:
        out: Path of the store's index.
        pipeline: How to run a teacher.
        batch_size: Items per forward pass; ``None``: what suits the teacher.
        shard_rows: Rows per shard; ``None``: as the store's, or 16,384.
        shard_range: Only these of all the run's shards, by number; ``None``: all.
        dtype: What rows are stored as.
        normalizer: Name of the caption normaliser.
        reuse: Index of another store whose rows are taken over where they are of the same pictures,
            captions and settings; ``None``: of no other.
        pooling: What of a Hugging Face vision model's output becomes a row; ``None``: the best that
            it has.
        check_pictures: Whether rows that were made before pictures were turned upright and laid
            over white may stay, if no picture of the data set is one that this concerns.
    """

    out: Path
    pipeline: PipelineOptions
    batch_size: int | None
    shard_rows: int | None
    shard_range: tuple[int, int] | None
    dtype: str
    normalizer: str
    reuse: Path | None = None
    pooling: Pooling | None = None
    check_pictures: bool = False


class RunReporter(Protocol):
    """Whoever a run tells how it goes."""

    def loading(self, teacher: str) -> None:
        """Say that a teacher's weights are about to be loaded."""
        ...

    def loaded(self) -> None:
        """Say that they are loaded."""
        ...

    def planned(
        self,
        teacher: str,
        split: str,
        n_rows: int,
        n_done: int,
    ) -> None:
        """Take note of a teacher's rows for a split, and how many of them are finished."""
        ...

    def advanced(
        self,
        teacher: str,
        split: str,
        n_done: int,
        file: str,
    ) -> None:
        """Take note of the rows that all processes have done, and of the shard made here."""
        ...

    def note(self, text: str) -> None:
        """Tell something that the user should know."""
        ...

    def fault(self, text: str) -> None:
        """Tell of an image or a caption that cannot be used; the run will stop."""
        ...
