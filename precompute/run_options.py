"""The settings of a run, and the interface of its reporter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cusa.data.encoders.vision_encoder import Pooling
from cusa.precompute.pipeline import PipelineOptions


@dataclass(frozen=True)
class RunOptions:
    """The settings of a run.

    Attributes:
        out: Path of the store's index.
        pipeline: How to run a teacher.
        batch_size: Items per forward pass; ``None``: the teacher's default.
        shard_rows: Rows per shard; ``None``: as in the store, or 16,384.
        shard_range: First shard to make, and the one after the last; ``None``: all of them.
        dtype: Dtype of the stored rows: ``"float16"`` or ``"float32"``.
        normalizer: Name of the caption normaliser.
        reuse: Index of another store, whose rows of the same pictures or captions and the same
            settings are copied; ``None``: rows are not reused.
        pooling: The part of a Hugging Face vision model's output that becomes a row; ``None``: the
            best that the model has.
        check_pictures: Whether rows from before pictures were turned upright and laid over white
            are kept, if they would be the same for every picture of the data set.
    """

    out: Path
    pipeline: PipelineOptions
    batch_size: int | None = None
    shard_rows: int | None = None
    shard_range: tuple[int, int] | None = None
    dtype: str = "float16"
    normalizer: str = "albef"
    reuse: Path | None = None
    pooling: Pooling | None = None
    check_pictures: bool = False


class RunReporter(Protocol):
    """Receives the events of a run."""

    def loading(self, teacher: str) -> None:
        """Report that a teacher's weights are about to be loaded."""
        ...

    def loaded(self) -> None:
        """Report that the weights are loaded."""
        ...

    def planned(
        self,
        teacher: str,
        split: str,
        n_rows: int,
        n_done: int,
    ) -> None:
        """Report the number of a teacher's rows for a split, and of those already finished."""
        ...

    def advanced(
        self,
        teacher: str,
        split: str,
        n_done: float,
        file: str,
    ) -> None:
        """Report the rows that all processes have made, and this process's current shard.

        Of tars, parts are counted, too.
        """
        ...

    def note(self, text: str) -> None:
        """Report something that the user should know."""
        ...

    def fault(self, text: str) -> None:
        """Report an image or a caption that cannot be used; the run will stop."""
        ...
