"""Trained students, side by side, as one cross-modal teacher of a store.

Side by side, they are an ensemble, whose cosine of an image and a caption is the mean of theirs. A
student that has such a teacher is born again (Furlanello et al., ICML 2018).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
from torch import nn

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import RunError, SettingError, StoreError
from cusa.data.foreign.rows import ForeignRows
from cusa.data.store.cross_teachers import CROSS_TEACHER, LOGIT_SCALE, row_names
from cusa.data.store.import_export import import_rows
from cusa.data.store.index import read_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import TeacherSettings, check_name
from cusa.eval.evaluators.split_embeddings import split_embeddings
from cusa.eval.evaluators.splits import EvaluatedSplit
from cusa.eval.models.embedding_providers import Advance
from cusa.eval.models.evaluated_models import ComputeOptions, EvaluatedModel
from cusa.precompute.teachers.base import weights_digest
from cusa.train.saving.run_dir import read_history
from cusa.train.student_config import MODALITIES, Modality


def import_students(
    store_path: Path,
    run_dirs: Sequence[Path],
    cross_teacher: str,
    compute: ComputeOptions,
    advance: Advance,
) -> list[tuple[str, str]]:
    """Add the embeddings of trained students to a store, as the rows of one cross-modal teacher.

    Embeddings are those of the cross-modal heads, for every split. An image or caption that one of
    the students cannot embed is recorded as skipped. What an interrupted call has added is kept,
    and the same call goes on.

    Args:
        store_path: The store's index.
        run_dirs: The students' runs.
        cross_teacher: Name for the teacher; its rows are ``NAME-image`` and ``NAME-text``.
        compute: How embeddings are computed.
        advance: Called with the progress.

    Returns:
        Teacher and split of the rows that were added.

    Raises:
        CusaError: If a run has no student, or its stored towers have other encoders than the store;
            or the store has other rows by this name.
    """
    check_name(cross_teacher)
    split_names = list(read_index(store_path).splits)
    models = []
    for run_dir in run_dirs:
        models.append(EvaluatedModel(str(run_dir), compute, advance))
    weights = students_sha256(_student(model) for model in models)
    scale = logit_scale(run_dirs)
    _refuse_other_rows(store_path, cross_teacher, weights)
    imported: list[tuple[str, str]] = []
    for split_name in split_names:
        lacking = lacking_modalities(store_path, cross_teacher, split_name)
        if not lacking:
            continue
        store = EmbeddingStore(store_path)
        split = EvaluatedSplit(
            store.dataset,
            store.split(split_name),
            store.image_root,
            *store.skipped(split_name),
            store,
        )
        members = [split_embeddings(model, split) for model in models]
        for modality in lacking:
            settings = teacher_settings(cross_teacher, modality, members, scale, weights)
            teacher = import_side_by_side(store_path, split_name, settings, members)
            imported.append((teacher, split_name))
    return imported


def _refuse_other_rows(
    store_path: Path,
    cross_teacher: str,
    weights_sha256: str,
) -> None:
    """Refuse the name of a teacher that the store has from elsewhere."""
    teachers = read_index(store_path).teachers
    for name in row_names(cross_teacher):
        if name in teachers and teachers[name].settings.weights_sha256 != weights_sha256:
            raise StoreError(
                f"{store_path} has rows of {name!r} that are not of these students; pass another "
                "--cross-teacher name",
                path=store_path,
                name=name,
            )


def lacking_modalities(
    store_path: Path,
    cross_teacher: str,
    split_name: str,
) -> list[Modality]:
    """Return the modalities of which a store lacks a cross-modal teacher's rows for a split."""
    teachers = read_index(store_path).teachers
    lacking = []
    for modality, name in zip(MODALITIES, row_names(cross_teacher), strict=True):
        if name not in teachers or split_name not in teachers[name].shards:
            lacking.append(modality)
    return lacking


def teacher_settings(
    cross_teacher: str,
    modality: Modality,
    members: Sequence[SplitEmbeddings],
    logit_scale: float,
    weights_sha256: str,
) -> TeacherSettings:
    """Return what a store records of students side by side.

    Args:
        cross_teacher: The teacher's name.
        modality: Whose rows they are.
        members: Embeddings of a split by each student.
        logit_scale: What their cosines are multiplied by.
        weights_sha256: sha256 (hex) over the weights of all students.
    """
    dims = [member.image["cross"].shape[1] for member in members]
    return TeacherSettings(
        modality=modality,
        model_id=cross_teacher,
        weights_sha256=weights_sha256,
        transform={"imported": True, CROSS_TEACHER: cross_teacher, LOGIT_SCALE: logit_scale},
        normalizer="none",
        precision="unknown",
        dim=sum(dims),
        dtype="float16",
        normalized=True,
    )


def import_side_by_side(
    store_path: Path,
    split_name: str,
    settings: TeacherSettings,
    members: Sequence[SplitEmbeddings],
) -> str:
    """Add the embeddings of several students to a store as rows of one teacher.

    Args:
        store_path: The store's index.
        split_name: The split.
        settings: What the store records of the teacher.
        members: Embeddings of the split by each student.

    Returns:
        The teacher's name in the store.

    Raises:
        CusaError: If the store has other rows by this name.
    """
    index = read_index(store_path)
    row_numbers, rows = side_by_side(members, settings.modality)
    item_ids = index.splits[split_name].item_ids(settings.modality)
    ids = [item_ids[row] for row in row_numbers.tolist()]
    cross_teacher = settings.transform[CROSS_TEACHER]
    image_name, text_name = row_names(cross_teacher)
    teacher = image_name if settings.modality == "image" else text_name
    import_rows(
        store_path,
        replace(index, teachers={}),
        split_name,
        teacher,
        settings,
        ForeignRows(ids, rows, f"students of {cross_teacher}"),
        skip_missing=True,
    )
    return teacher


def side_by_side(
    members: Sequence[SplitEmbeddings],
    modality: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of several students as one: their cosines are the means of the students'.

    Args:
        members: Embeddings of one split by each student.
        modality: ``"image"`` or ``"text"``.

    Returns:
        int64 ``[n]``, the split's rows that all students embed, ascending; and float32 ``[n, sum of
        the students' dimensions]``, of length ``sqrt(len(members))``.
    """
    row_numbers = [getattr(member, f"{modality}_rows") for member in members]
    common = reduce(np.intersect1d, row_numbers)
    columns = []
    for member, own_rows in zip(members, row_numbers, strict=True):
        embeddings = getattr(member, modality)["cross"]
        columns.append(embeddings[np.searchsorted(own_rows, common)])
    return common, np.concatenate(columns, axis=1)


def logit_scale(run_dirs: Sequence[Path]) -> float:
    """Return what the students' mean cosine is multiplied by: their mean 1 / temperature.

    Temperatures are those that the runs logged last.

    Raises:
        RunError: If a run has logged none.
    """
    scales = []
    for run_dir in run_dirs:
        taus = [line["tau"] for line in read_history(run_dir).lines if "tau" in line]
        if not taus:
            raise RunError(
                f"{run_dir} has logged no temperature of its cosines; name a run directory of "
                "cusa-train",
                path=run_dir,
            )
        scales.append(1 / taus[-1])
    return float(np.mean(scales))


def students_sha256(students: Iterable[nn.Module]) -> str:
    """Compute the sha256 (hex) over the weights of students, in their order."""
    digest = hashlib.sha256()
    for student in students:
        digest.update(weights_digest(student).encode())
    return digest.hexdigest()


def _student(model: EvaluatedModel) -> nn.Module:
    if model.student is None:
        raise SettingError(f"{model.name} is no run of cusa-train", name="runs")
    return model.student.student
