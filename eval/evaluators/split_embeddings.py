"""A model's embeddings of a split, and its teachers' rows: computed once for all suites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import DataError, StoreError, StudentError
from cusa.data.store.reader import EmbeddingStore
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.metrics.relevance import positions_of_rows
from cusa.eval.models.embedding_providers import Source
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.models.student import StudentEncoder
from cusa.eval.report.false_negative_pairs import Teachers
from cusa.train.assemble import student_sources
from cusa.train.encode_split import encode_split
from cusa.train.saving.provenance import Provenance

BOTH_MODALITIES = frozenset({"image", "text"})


def split_embeddings(model: EvaluatedModel, split: EvaluatedSplit) -> SplitEmbeddings:
    """Return a model's embeddings of a split; they are computed once, until it is released.

    Args:
        model: The model; a student reads its store, all others read files.
        split: The split.

    Raises:
        CusaError: If the store is another than the one that a run was trained on, the model lacks
            a modality, or an input cannot be read.
    """
    return model.compute_once(split, lambda: _embed(model, split))


def _embed(model: EvaluatedModel, split: EvaluatedSplit) -> SplitEmbeddings:
    if split.store is None or model.student is None:
        return embed_files(model.source, split)
    return _embed_stored(model, model.student, split, split.store)


def embed_files(source: Source, split: EvaluatedSplit) -> SplitEmbeddings:
    """Embed the images and captions of a split from their files.

    Args:
        source: The model.
        split: The split.

    Raises:
        CusaError: If the model lacks a modality, an input cannot be read, or none is left.
    """
    if missing := BOTH_MODALITIES - source.modalities:
        raise StudentError(
            f"{source.name} embeds no {'s and no '.join(sorted(missing))}s; retrieval needs both",
            name=source.name,
        )
    view = split.view
    image_rows = np.setdiff1d(np.arange(view.n_images), split.skipped_images)
    caption_rows = np.setdiff1d(np.arange(view.n_captions), split.skipped_captions)
    if not len(image_rows) or not len(caption_rows):
        raise DataError(
            f"split {view.name!r} has no image or no caption that could be read", name=view.name
        )

    image_paths = map(split.image_root.joinpath, _at_rows(view.image_paths, image_rows))
    images = source.images(_at_rows(view.image_ids, image_rows), list(image_paths))
    captions = _at_rows(view.captions, caption_rows)
    texts = source.texts(_at_rows(view.caption_ids, caption_rows), captions)

    image_position = positions_of_rows(image_rows, view.n_images)
    caption_image = image_position[np.asarray(view.caption_image)[caption_rows]]
    return SplitEmbeddings(images, texts, image_rows, caption_rows, caption_image)


def _at_rows(values: Sequence[str], rows: np.ndarray) -> list[str]:
    return [values[row] for row in rows.tolist()]


def _embed_stored(
    model: EvaluatedModel, student: StudentEncoder, split: EvaluatedSplit, store: EmbeddingStore
) -> SplitEmbeddings:
    """Embed a split by a student: an adapter reads its frozen encoders' rows from the store."""
    origin, compute = student.origin, model.compute
    check_store(store, origin.provenance, model.name, split.is_own_store)
    encoder_names = tuple(encoder.name for encoder in origin.provenance.encoders.values())
    data_settings = replace(origin.config.data, image_root=str(split.image_root))
    sources = student_sources(
        store,
        split.view.name,
        replace(origin.config, data=data_settings),
        encoder_names,
        student.processors,
    )
    workers = compute.workers
    if workers is None:
        workers = 0 if encoder_names else compute.readers
    return encode_split(
        student.student,
        sources,
        compute.device,
        compute.batch_size,
        workers,
        advance=model.advance,
    )


def split_teachers(model: EvaluatedModel, split: EvaluatedSplit) -> Teachers:
    """Return the teachers' rows of a split.

    Args:
        model: The model; a run's own teachers are preferred.
        split: The split; without a store, there are no teachers.

    Returns:
        The teachers that the run was trained with, or the only ones of the store.
    """
    if split.store is None:
        return Teachers(None, None)
    rows = {}
    for modality in ("image", "text"):
        name = _teacher_name(model, split.store, modality)
        rows[modality] = split.store.embeddings(name, split.view.name) if name else None
    return Teachers(rows["image"], rows["text"])


def _teacher_name(model: EvaluatedModel, store: EmbeddingStore, modality: str) -> str | None:
    stored = [name for name, teacher in store.teachers.items() if teacher.modality == modality]
    used = model.origin.provenance.teachers.get(modality) if model.origin else None
    if used and used.name in stored:
        return used.name
    return stored[0] if len(stored) == 1 else None


def check_store(store: EmbeddingStore, provenance: Provenance, run: str, own: bool) -> None:
    """Refuse a store that is not the one that a run was trained on.

    Args:
        store: The store.
        provenance: What the run was trained on.
        run: Its name.
        own: Whether it should be the run's own; another, named on purpose, may be of other data,
            but its encoders must be the same.

    Raises:
        CusaError: If it is another; names the fields.
    """
    differences = []
    if own:
        if store.dataset != provenance.dataset:
            differences.append(f"dataset ({store.dataset!r} / {provenance.dataset!r})")
        for name, fingerprint in provenance.splits.items():
            if name in store.splits and store.splits[name].fingerprint != fingerprint:
                differences.append(f"fingerprint of split {name!r}")
    for modality, encoder in provenance.encoders.items():
        store.pick_teacher(modality, encoder.name, "--embeddings of a store")
        for setting in encoder.settings.differences(store.teachers[encoder.name]):
            differences.append(f"{encoder.name}.{setting}")
    if differences:
        raise StoreError(
            f"{store.path} is not the store that {run} was trained on: {'; '.join(differences)}; "
            "train again, or pass --embeddings",
            path=store.path,
        )
