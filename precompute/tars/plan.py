"""An estimate of a run over tars, from a few of them and a probe of the teachers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cusa.data.errors import DataError
from cusa.data.objects.folder import location_text
from cusa.data.tars.manifest import MANIFEST
from cusa.data.tars.pairs import TarPairs
from cusa.precompute.estimate import Estimate, measure
from cusa.precompute.pipeline import PipelineOptions
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.tars.block import TarBlock
from cusa.precompute.tars.maker import TarMaker
from cusa.precompute.tars.workplace import Workplace

# Tars that are read: at least the first number, at most the second, and no more than have these
# images.
_FEWEST_TARS = 3
_MOST_TARS = 16
_ENOUGH_IMAGES = 4_096


@dataclass(frozen=True)
class SetEstimate:
    """The work that a run over tars would have to do.

    Attributes:
        n_tars: Number of tars.
        n_done: Number of tars that have their pairs, and the rows of all teachers.
        images: Number of images of each tar that was read: int64 ``[n]``.
        captions: Number of captions of each of them: int64 ``[n]``.
        n_left_out: Number of their samples that are not pairs.
        reading_s: Seconds that it takes to read the pairs of a tar or, from an object store, to
            fetch it.
        teachers: What each teacher would make, as far as it is missing; a shard is a tar.
    """

    n_tars: int
    n_done: int
    images: np.ndarray
    captions: np.ndarray
    n_left_out: int
    reading_s: float
    teachers: Sequence[Estimate]

    @property
    def seconds(self) -> float:
        """Return how long one process would take."""
        reading_s = self.reading_s * (self.n_tars - self.n_done)
        return reading_s + sum(estimate.seconds for estimate in self.teachers)


def estimate_tars(
    tars: Sequence[Path],
    maker: TarMaker,
    workplace: Workplace,
    options: PipelineOptions,
    seconds: float,
) -> SetEstimate:
    """Read a few of the tars that are not done, and run each teacher on them for some seconds.

    Nothing is written into the set.

    Args:
        tars: The tars.
        maker: Has the teachers.
        workplace: The folder of the set.
        options: How to run the teachers.
        seconds: Duration of the measurement of each of a teacher's two rates.

    Raises:
        TarError: If a tar is damaged, and the run would stop there.
        DataError: If the tars that are read have no pairs.
        CusaError: If no item could be read, or a teacher fails.
    """
    pending: list[Path] = []
    for tar in tars:
        if not workplace.is_finished(tar, list(maker.teachers)):
            pending.append(tar)
    n_done = len(tars) - len(pending)
    if not pending:
        return SetEstimate(
            n_tars=len(tars),
            n_done=n_done,
            images=_row_counts([]),
            captions=_row_counts([]),
            n_left_out=0,
            reading_s=0.0,
            teachers=(),
        )

    began_s = time.perf_counter()
    pairs = _read_some(pending, maker)
    reading_s = (time.perf_counter() - began_s) / len(pairs)
    block = TarBlock(workplace.folder / MANIFEST, pairs)
    estimates: list[Estimate] = []
    for name in maker.teachers:
        n_missing = sum(not workplace.has_rows(tar, name) for tar in pending)
        estimates.append(_estimate_teacher(maker, name, block, n_missing, options, seconds))
    return SetEstimate(
        n_tars=len(tars),
        n_done=n_done,
        images=_row_counts(block.tasks("", "image")),
        captions=_row_counts(block.tasks("", "text")),
        n_left_out=sum(len(tar_pairs.left_out) for tar_pairs in pairs),
        reading_s=reading_s,
        teachers=estimates,
    )


def _estimate_teacher(
    maker: TarMaker,
    name: str,
    block: TarBlock,
    n_missing: int,
    options: PipelineOptions,
    seconds: float,
) -> Estimate:
    """Run a teacher on the tars of a block, and estimate its work for those without its rows."""
    loaded = maker.teachers[name]
    tasks = block.tasks(name, loaded.settings.modality)
    rates = measure(
        loaded.teacher,
        loaded.settings.normalizer,
        tasks,
        block.dataset,
        options,
        seconds,
        block.images,
    )
    n_rows = round(n_missing * np.mean(_row_counts(tasks)))
    return Estimate(name, n_rows, n_missing, n_rows * loaded.bytes_per_row, rates)


def _row_counts(tasks: Sequence[ShardTask]) -> np.ndarray:
    """Return the number of rows of each task: int64 ``[n]``."""
    return np.array([task.n_rows for task in tasks], np.int64)


def _read_some(
    pending: Sequence[Path],
    maker: TarMaker,
) -> list[TarPairs]:
    """Read the pairs of random tars, always the same ones."""
    rng = np.random.default_rng(0)
    numbers = rng.permutation(len(pending))[:_MOST_TARS]
    pairs: list[TarPairs] = []
    n_images = 0
    for number in numbers.tolist():
        tar_pairs = maker.read(pending[number])
        if tar_pairs is None:
            continue
        pairs.append(tar_pairs)
        n_images += len(tar_pairs.records)
        if len(pairs) >= _FEWEST_TARS and n_images >= _ENOUGH_IMAGES:
            break
    if not n_images:
        first_tar = pending[numbers[0]]
        raise DataError(
            f"none of {len(numbers):,} tars that were read, such as {location_text(first_tar)}, "
            "has a pair; check --caption",
            path=first_tar,
            name="caption",
        )
    return pairs
