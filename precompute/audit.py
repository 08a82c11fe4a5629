"""Auditing a store: the teacher once more on a few rows, before GPU hours are spent on wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cusa.data.errors import CusaError
from cusa.data.store.reader import EmbeddingStore, Split
from cusa.data.store.schema import TeacherSettings
from cusa.data.unit_rows import unit_rows
from cusa.precompute.pipeline import caption_batches, read_image
from cusa.precompute.teachers import parse_teacher
from cusa.precompute.teachers.base import Teacher, stacked


@dataclass(frozen=True)
class Audit:
    """What the comparison of stored and new rows found.

    Attributes:
        teacher: The teacher's name in the store.
        split: The split.
        n_rows: Rows compared.
        least: Least cosine.
        mean: Mean cosine.
        worst_row: Row of the least.
        differing: Fields in which the teacher at hand is not the one recorded, with both values.
    """

    teacher: str
    split: str
    n_rows: int
    least: float
    mean: float
    worst_row: int
    differing: tuple[str, ...]


def audit(
    store: EmbeddingStore, name: str, source: str | None, sample: int, seed: int, device: str
) -> list[Audit]:
    """Embed random rows again and compare them with what is stored.

    Args:
        store: The store.
        name: The teacher's name in it.
        source: Where to load the teacher from; ``None``: from where it was loaded then.
        sample: Rows of each split.
        seed: Of the choice of rows.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        CusaError: If the teacher cannot be loaded, or an image cannot be read.
    """
    if name not in store.teachers:
        raise CusaError(
            f"{store.path} has no teacher {name!r}; it has: {', '.join(store.teachers)}"
        )
    stored = store.teachers[name]
    if stored.precision == "unknown" and source is None:
        raise CusaError(
            f"the rows of teacher {name!r} were imported; say which teacher made them: --teacher {name}=PATH"
        )
    teacher = parse_teacher(f"{name}={source or store.sources[name]}").load_as(stored, device)
    precision = stored.precision if stored.precision in ("fp32", "fp16", "bf16") else "fp32"
    differing = tuple(
        stored.differences(teacher.settings(precision, stored.dtype, stored.normalizer))
    )
    if any(field.startswith(("modality", "dim")) for field in differing):
        raise CusaError(
            f"{name}: the teacher at hand is another than the one recorded: {'; '.join(differing)}"
        )
    audits = []
    for split in store.splits_of(name):
        rows = store.embeddings(name, split)
        good = np.setdiff1d(np.arange(len(rows)), rows.skipped) if len(rows.skipped) else None
        rng, population = np.random.default_rng(seed), len(rows) if good is None else len(good)
        chosen = rng.choice(population, min(sample, population), replace=False, shuffle=False)
        chosen = np.sort(chosen if good is None else good[chosen])
        if not len(chosen):
            continue
        made = _embed(
            teacher, stored, store, store.split(split), chosen.tolist(), device, precision
        )
        kept = unit_rows(rows.gather(chosen))
        cosines = (kept * made).sum(axis=1)
        worst = int(cosines.argmin())
        audits.append(
            Audit(
                name,
                split,
                len(chosen),
                float(cosines[worst]),
                float(cosines.mean()),
                int(chosen[worst]),
                differing,
            )
        )
    return audits


def _embed(
    teacher: Teacher,
    stored: TeacherSettings,
    store: EmbeddingStore,
    split: Split,
    rows: Sequence[int],
    device: str,
    precision: str,
) -> np.ndarray:
    """float32 ``[len(rows), dim]``, L2-normalised."""
    out = np.empty((len(rows), teacher.dim), np.float32)
    if teacher.modality == "image":
        for start in range(0, len(rows), teacher.batch_size):
            paths = [
                store.image_root / split.image_paths[row]
                for row in rows[start : start + teacher.batch_size]
            ]
            pixels = stacked([read_image(path, teacher) for path in paths])
            out[start : start + len(paths)] = teacher.rows(pixels, device, precision)
        return out
    captions = [(split.captions[row], split.caption_ids[row]) for row in rows]
    for batch in caption_batches(teacher, captions, 0, stored.normalizer):
        if batch.errors:
            raise CusaError(batch.errors[0][1])
        assert batch.inputs is not None, "batches without errors have inputs"
        out[batch.rows] = teacher.rows(batch.inputs, device, precision)[batch.source]
    return out
