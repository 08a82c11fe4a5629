"""The audit of a store, which runs its teachers again on a few rows and compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cusa.data.errors import DataError, StoreError, TeacherError
from cusa.data.images import read_image_file
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import TeacherSettings
from cusa.data.unit_rows import unit_rows
from cusa.precompute.image_source import read_image
from cusa.precompute.reading import caption_batches
from cusa.precompute.teachers import parse_teacher
from cusa.precompute.teachers.base import Preprocessed, Teacher, stacked

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
    teacher, settings = _load_recorded_teacher(store, name, source, device)
    stored = store.teachers[name]
    # Rows may agree although other fields differ; the comparison will show it.
    differing = tuple(stored.differences(settings))
    if any(field.startswith(("modality", "dim")) for field in differing):
        raise TeacherError(
            f"{name}: the loaded teacher is not the one recorded: {'; '.join(differing)}",
            name=name,
        )

    audits: list[Audit] = []
    for split in store.splits_of(name):
        embeddings = store.embeddings(name, split)
        rows = _choose_rows(embeddings, sample, seed)
        if not len(rows):
            continue
        stored_rows = unit_rows(embeddings.gather(rows))
        new_rows = _embed(teacher, settings, store, split, rows.tolist(), device)
        cosines = (stored_rows * new_rows).sum(axis=1)
        worst = int(cosines.argmin())
        audits.append(
            Audit(
                teacher=name,
                split=split,
                n_rows=len(rows),
                least=float(cosines[worst]),
                mean=float(cosines.mean()),
                worst_row=int(rows[worst]),
                differing=differing,
            ),
        )
    return audits


def _load_recorded_teacher(
    store: EmbeddingStore,
    name: str,
    source: str | None,
    device: str,
) -> tuple[Teacher, TeacherSettings]:
    """Load the teacher of stored rows; return it with the settings of its new rows."""
    if name not in store.teachers:
        raise StoreError(
            f"{store.path} has no teacher {name!r}; it has: {', '.join(store.teachers)}",
            path=store.path,
            name=name,
        )
    stored = store.teachers[name]
    if stored.precision == "unknown" and source is None:
        raise TeacherError(
            f"the rows of teacher {name!r} were imported; say which teacher made them: "
            f"--teacher {name}=PATH",
            name=name,
        )

    request = parse_teacher(f"{name}={source or store.sources[name]}")
    teacher = request.load_as(stored, device)
    precision = stored.precision if stored.precision in _PRECISIONS else "fp32"
    return teacher, teacher.settings(precision, stored.dtype, stored.normalizer)


def _choose_rows(
    embeddings: Embeddings,
    sample: int,
    seed: int,
) -> np.ndarray:
    """Choose random rows among those that were not skipped: int64 ``[n]``, ascending."""
    candidates: np.ndarray | None = None
    if len(embeddings.skipped):
        candidates = np.setdiff1d(np.arange(len(embeddings)), embeddings.skipped)
    population = len(embeddings) if candidates is None else len(candidates)

    # Drawn as numbers below the population, which needs no list of millions of rows.
    rng = np.random.default_rng(seed)
    n_chosen = min(sample, population)
    chosen = rng.choice(population, n_chosen, replace=False, shuffle=False)
    if candidates is not None:
        chosen = candidates[chosen]
    return np.sort(chosen)


def _embed(
    teacher: Teacher,
    settings: TeacherSettings,
    store: EmbeddingStore,
    split_name: str,
    rows: Sequence[int],
    device: str,
) -> np.ndarray:
    """Embed the items of some rows: float32 ``[len(rows), dim]``, L2-normalised."""
    split = store.split(split_name)
    if teacher.modality == "image":
        blocks: list[np.ndarray] = []
        for start in range(0, len(rows), teacher.batch_size):
            images: list[Preprocessed] = []
            for row in rows[start : start + teacher.batch_size]:
                path = store.image_root / split.image_paths[row]
                images.append(read_image(path, read_image_file(path), teacher))
            blocks.append(teacher.rows(stacked(images), device, settings.precision))
        return np.concatenate(blocks)

    captions = [(split.captions[row], split.caption_ids[row]) for row in rows]
    embeddings = np.empty((len(rows), teacher.dim), np.float32)
    for batch in caption_batches(teacher, captions, settings.normalizer):
        if batch.errors:
            _, message = batch.errors[0]
            raise DataError(message)
        assert batch.inputs is not None, "batches without errors have inputs"
        batch_embeddings = teacher.rows(batch.inputs, device, settings.precision)
        embeddings[batch.rows] = batch_embeddings[batch.source]
    return embeddings
