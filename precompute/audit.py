"""The audit of a store, which runs its teachers again on a few rows and compares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from cusa.data.errors import DataError, StoreError, TeacherError
from cusa.data.images import read_image_file
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import TeacherSettings
from cusa.data.unit_rows import unit_rows
from cusa.precompute.image_source import read_image
from cusa.precompute.reading import caption_batches
from cusa.precompute.teachers import parse_teacher
from cusa.precompute.teachers.base import Teacher, stacked

# Rows of unknown precision are compared with rows computed in fp32.
_PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Audit:
    """The comparison of a split's stored rows with new ones.

    Attributes:
        teacher: The teacher's name in the store.
        split: The split.
        n_rows: Number of rows compared.
        least: Least cosine of a stored row and its new one.
        mean: Mean cosine.
        worst_row: Row with the least cosine.
        differing: Settings in which the loaded teacher differs from the one recorded, with both
            values.
    """

    teacher: str
    split: str
    n_rows: int
    least: float
    mean: float
    worst_row: int
    differing: tuple[str, ...]


def audit(
    store: EmbeddingStore,
    name: str,
    source: str | None,
    sample: int,
    seed: int,
    device: str,
) -> list[Audit]:
    """Embed random rows again and compare them with the stored ones.

    Args:
        store: The store.
        name: The teacher's name in the store.
        source: Where to load the teacher from; ``None``: where the store says it was loaded from.
        sample: Number of rows to compare in each split.
        seed: Seed of the random choice of rows.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        CusaError: If the store has no such teacher, the teacher cannot be loaded or is of another
            modality or dimension, or an image or caption cannot be read.
    """
    if name not in store.teachers:
        raise StoreError(
            f"{store.path} has no teacher {name!r}; it has: {', '.join(store.teachers)}",
            path=store.path,
            name=name,
        )
    stored = store.teachers[name]
    recorded_source = None if stored.precision == "unknown" else store.sources[name]
    recorded = load_recorded_teacher(name, stored, source or recorded_source, device)
    audits: list[Audit] = []
    for split in store.splits_of(name):
        embeddings = store.embeddings(name, split)
        rows = choose_rows(len(embeddings), embeddings.skipped, sample, seed)
        if not len(rows):
            continue
        new_rows = _embed(recorded, store, split, rows.tolist())
        audits.append(compare(recorded, split, rows, embeddings.gather(rows), new_rows))
    return audits


@dataclass(frozen=True)
class RecordedTeacher:
    """The teacher of stored rows, loaded again.

    Attributes:
        name: Its name in the store.
        teacher: The teacher.
        settings: The settings of its new rows.
        differing: Settings in which it differs from the one recorded, with both values.
        device: ``"cpu"`` or ``"cuda"``.
    """

    name: str
    teacher: Teacher
    settings: TeacherSettings
    differing: tuple[str, ...]
    device: str

    def embed_images(self, images: Iterable[tuple[Path, bytes]]) -> np.ndarray:
        """Embed image files, given as paths and bytes: float32 ``[n, dim]``, L2-normalised."""
        blocks: list[np.ndarray] = []
        pending = iter(images)
        while batch := list(islice(pending, self.teacher.batch_size)):
            inputs = [read_image(path, content, self.teacher) for path, content in batch]
            precision = self.settings.precision
            blocks.append(self.teacher.rows(stacked(inputs), self.device, precision))
        return np.concatenate(blocks)

    def embed_captions(self, captions: Sequence[tuple[str, str]]) -> np.ndarray:
        """Embed (caption, id) pairs: float32 ``[n, dim]``, L2-normalised."""
        embeddings = np.empty((len(captions), self.teacher.dim), np.float32)
        for batch in caption_batches(self.teacher, captions, self.settings.normalizer):
            if batch.errors:
                _, message = batch.errors[0]
                raise DataError(message)
            assert batch.inputs is not None, "batches without errors have inputs"
            batch_rows = self.teacher.rows(batch.inputs, self.device, self.settings.precision)
            embeddings[batch.rows] = batch_rows[batch.source]
        return embeddings


def load_recorded_teacher(
    name: str,
    stored: TeacherSettings,
    source: str | None,
    device: str,
) -> RecordedTeacher:
    """Load the teacher of stored rows.

    Args:
        name: The teacher's name.
        stored: The settings of its stored rows.
        source: Where to load it from; ``None`` if that is unknown.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        TeacherError: If it cannot be loaded, or is of another modality or dimension.
    """
    if source is None:
        raise TeacherError(
            f"the rows of teacher {name!r} were imported; say which teacher made them: "
            f"--teacher {name}=PATH",
            name=name,
        )
    teacher = parse_teacher(f"{name}={source}").load_as(stored, device)
    precision = stored.precision if stored.precision in _PRECISIONS else "fp32"
    settings = teacher.settings(precision, stored.dtype, stored.normalizer)
    # Rows may agree although other fields differ; the comparison will show it.
    differing = tuple(stored.differences(settings))
    if any(field.startswith(("modality", "dim")) for field in differing):
        raise TeacherError(
            f"{name}: the loaded teacher is not the one recorded: {'; '.join(differing)}",
            name=name,
        )
    return RecordedTeacher(name, teacher, settings, differing, device)


def compare(
    recorded: RecordedTeacher,
    split: str,
    rows: np.ndarray,
    stored_rows: np.ndarray,
    new_rows: np.ndarray,
) -> Audit:
    """Compare stored rows with new ones.

    Args:
        recorded: Their teacher.
        split: The split, or the tar.
        rows: int64 ``[n]``, the rows' numbers.
        stored_rows: ``[n, dim]``.
        new_rows: float32 ``[n, dim]``, L2-normalised.
    """
    cosines = (unit_rows(stored_rows) * new_rows).sum(axis=1)
    worst = int(cosines.argmin())
    return Audit(
        teacher=recorded.name,
        split=split,
        n_rows=len(rows),
        least=float(cosines[worst]),
        mean=float(cosines.mean()),
        worst_row=int(rows[worst]),
        differing=recorded.differing,
    )


def choose_rows(
    n_rows: int,
    skipped: np.ndarray,
    sample: int,
    seed: int,
) -> np.ndarray:
    """Choose random rows among those that were not skipped: int64 ``[n]``, ascending."""
    candidates: np.ndarray | None = None
    if len(skipped):
        candidates = np.setdiff1d(np.arange(n_rows), skipped)
    population = n_rows if candidates is None else len(candidates)

    # Drawn as numbers below the population, which needs no list of millions of rows.
    rng = np.random.default_rng(seed)
    n_chosen = min(sample, population)
    chosen = rng.choice(population, n_chosen, replace=False, shuffle=False)
    if candidates is not None:
        chosen = candidates[chosen]
    return np.sort(chosen)


def _embed(
    recorded: RecordedTeacher,
    store: EmbeddingStore,
    split_name: str,
    rows: Sequence[int],
) -> np.ndarray:
    """Embed the items of some rows: float32 ``[len(rows), dim]``, L2-normalised."""
    split = store.split(split_name)
    if recorded.teacher.modality == "image":
        paths = (store.image_root / split.image_paths[row] for row in rows)
        return recorded.embed_images((path, read_image_file(path)) for path in paths)
    return recorded.embed_captions([(split.captions[row], split.caption_ids[row]) for row in rows])
