"""A model's embeddings of a split, computed once for all suites, and its teachers' rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cusa.data.embeddings import SplitEmbeddings, SplitItems
from cusa.data.errors import DataError, StoreError
from cusa.data.store.embeddings import Embeddings
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.teacher_choice import default_teacher
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.metrics.relevance import positions_of_rows
from cusa.eval.models.embedding_providers import EmbeddingProvider
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.models.student import StudentEncoder
from cusa.eval.report.false_negative_pairs import Teachers
from cusa.train.encode_split import encode_split
from cusa.train.saving.provenance import Provenance
from cusa.train.sources import student_sources

BOTH_MODALITIES = frozenset({"image", "text"})


def split_embeddings(model: EvaluatedModel, split: EvaluatedSplit) -> SplitEmbeddings:
    """Return a model's embeddings of a split, which are computed once until the model is released.

    Args:
        model: A model that embeds both modalities. A student reads the store's rows where the split
            is in a store; any other model reads image files and captions.
        split: The split.

    Raises:
        CusaError: If the store is not the one that a run was trained on, an input cannot be read,
            or no image or no caption is left.
    """
    if split not in model.split_embeddings:
        student, store = model.student, split.store
        if student is None or store is None:
            embeddings = _embed_files(model.provider, split)
        else:
            embeddings = _embed_stored(model, student, split, store)
        model.split_embeddings[split] = embeddings
    return model.split_embeddings[split]


def split_facts(split: EvaluatedSplit, items: SplitItems) -> dict[str, Any]:
    """Return the keys of a results file that describe the split a model was measured on."""
    return {
        "dataset": split.dataset,
        "split": split.view.name,
        "split_fingerprint": split.view.fingerprint,
        "n_images": len(items.image_rows),
        "n_captions": len(items.text_rows),
    }


def _embed_files(provider: EmbeddingProvider, split: EvaluatedSplit) -> SplitEmbeddings:
    """Embed the images and captions of a split from their files."""
    view = split.view
    image_rows = np.setdiff1d(np.arange(view.n_images), split.skipped_images)
    caption_rows = np.setdiff1d(np.arange(view.n_captions), split.skipped_captions)
    if not len(image_rows) or not len(caption_rows):
        raise DataError(
            f"split {view.name!r} has no readable image or no caption; pass another --split",
            name=view.name,
        )

    image_paths = map(split.image_root.joinpath, _at_rows(view.image_paths, image_rows))
    images = provider.images(_at_rows(view.image_ids, image_rows), list(image_paths))
    captions = _at_rows(view.captions, caption_rows)
    texts = provider.texts(_at_rows(view.caption_ids, caption_rows), captions)

    image_position = positions_of_rows(image_rows, view.n_images)
    caption_image = image_position[np.asarray(view.caption_image)[caption_rows]]
    return SplitEmbeddings(images, texts, image_rows, caption_rows, caption_image)


def _at_rows(
    values: Sequence[str],
    rows: np.ndarray,
) -> list[str]:
    return [values[row] for row in rows.tolist()]


def _embed_stored(
    model: EvaluatedModel,
    student: StudentEncoder,
    split: EvaluatedSplit,
    store: EmbeddingStore,
) -> SplitEmbeddings:
    """Embed a split with a student; stored towers read their encoders' rows from the store."""
    origin, compute = student.origin, model.compute
    _check_store(store, origin.provenance, model.name, split.is_own_store)
    encoder_names = origin.provenance.encoder_names
    data_settings = replace(origin.config.data, image_root=str(split.image_root))
    config = replace(origin.config, data=data_settings)
    sources = student_sources(store, split.view.name, config, encoder_names, student.processors)
    workers = compute.workers
    if workers is None:
        workers = compute.readers if student.processors.read_files else 0
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
        model: The model.
        split: The split; without a store, there are no teachers.

    Returns:
        For each modality the first teacher that the run was trained with, else the store's default,
        else ``None``.
    """
    if split.store is None:
        return Teachers(None, None)
    rows: dict[str, Embeddings | None] = {"image": None, "text": None}
    for modality in rows:
        name = _teacher_name(model, split.store, modality)
        if name is not None:
            rows[modality] = split.store.embeddings(name, split.view.name)
    return Teachers(rows["image"], rows["text"])


def _teacher_name(model: EvaluatedModel, store: EmbeddingStore, modality: str) -> str | None:
    if model.origin is not None:
        trained_with = model.origin.provenance.teachers.by_kind().get(modality, ())
        for teacher in trained_with:
            stored = store.teachers.get(teacher.name)
            if stored is not None and stored.modality == modality:
                return teacher.name
    return default_teacher(store.teachers, modality)


def _check_store(
    store: EmbeddingStore,
    provenance: Provenance,
    run_name: str,
    is_own_store: bool,
) -> None:
    """Refuse a store that is not the one a run was trained on.

    A store that the user names may hold other data, but its encoders must be the same.
    """
    differences = []
    if is_own_store:
        dataset, fingerprints = provenance.dataset, provenance.splits
        validation = provenance.validation
        if validation is not None:
            dataset, fingerprints = validation.dataset, {validation.split: validation.fingerprint}
        if store.dataset != dataset:
            differences.append(f"dataset ({store.dataset!r} / {dataset!r})")
        for name, fingerprint in fingerprints.items():
            if name in store.splits and store.splits[name].fingerprint != fingerprint:
                differences.append(f"fingerprint of split {name!r}")
    for modality, encoder in provenance.encoders.items():
        store.pick_teacher(modality, encoder.name, "--embeddings of a store")
        for setting in encoder.settings.differences(store.teachers[encoder.name]):
            differences.append(f"{encoder.name}.{setting}")
    if differences:
        raise StoreError(
            f"{store.path} is not the store that {run_name} was trained or validated on: "
            f"{'; '.join(differences)}; train again, or pass --embeddings",
            path=store.path,
        )
