"""Trained students, side by side, as one cross-modal teacher of a store.

Side by side, they are an ensemble, whose cosine of an image and a caption is the mean of theirs. A
student that has such a teacher is born again (Furlanello et al., ICML 2018).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np

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
from cusa.train.saving.run_dir import read_history
from cusa.train.student_config import MODALITIES, Modality


@dataclass(frozen=True)
class Member:
    """A student of an ensemble.

    Attributes:
        weights_sha256: sha256 (hex) of its weights.
        tau: Temperature of its cosines.
        normalizer: Normaliser of its captions.
    """

    weights_sha256: str
    tau: float
    normalizer: str


@dataclass(frozen=True)
class Ensemble:
    """Trained students, side by side, as a cross-modal teacher.

    Attributes:
        name: The teacher's name; its rows are ``NAME-image`` and ``NAME-text``.
        members: The students.
    """

    name: str
    members: tuple[Member, ...]

    @property
    def weights_sha256(self) -> str:
        """Return the sha256 (hex) over the weights of all students, in their order."""
        digests = [member.weights_sha256 for member in self.members]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def settings(
        self,
        modality: Modality,
        dim: int,
    ) -> TeacherSettings:
        """Return what a store records of the rows of a modality.

        What the mean cosine is multiplied by is the students' mean 1 / temperature.
        """
        scales = [1 / member.tau for member in self.members]
        normalizers = dict.fromkeys(member.normalizer for member in self.members)
        return TeacherSettings(
            modality=modality,
            model_id=self.name,
            weights_sha256=self.weights_sha256,
            transform={
                "imported": True,
                CROSS_TEACHER: self.name,
                LOGIT_SCALE: float(np.mean(scales)),
            },
            normalizer="+".join(normalizers) if modality == "text" else "none",
            precision="unknown",
            dim=dim,
            dtype="float16",
            normalized=True,
        )


def lacking_modalities(
    store_path: Path,
    cross_teacher: str,
    split_name: str,
) -> list[Modality]:
    """Return the modalities of which a store lacks a cross-modal teacher's rows for a split."""
    teachers = read_index(store_path).teachers
    lacking: list[Modality] = []
    for modality, name in zip(MODALITIES, row_names(cross_teacher), strict=True):
        if name not in teachers or split_name not in teachers[name].shards:
            lacking.append(modality)
    return lacking


def import_students(
    store_path: Path,
    run_dirs: Sequence[Path],
    cross_teacher: str,
    compute: ComputeOptions,
    advance: Advance,
) -> list[tuple[str, str]]:
    """Add the embeddings of trained students to a store, as the rows of one cross-modal teacher.

    Embeddings are those of the cross-modal heads, for every split. One student at a time is loaded,
    and all embeddings of one split are in memory. An image or caption that one of the students
    cannot embed is recorded as skipped. What an interrupted call has added is kept, and the same
    call goes on.

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
    members = []
    for run_dir in run_dirs:
        model = EvaluatedModel(str(run_dir), compute, advance)
        models.append(model)
        members.append(_member(model, run_dir))
        model.release()
    ensemble = Ensemble(cross_teacher, tuple(members))
    _refuse_other_rows(store_path, ensemble)
    imported: list[tuple[str, str]] = []
    for split_name in split_names:
        if not lacking_modalities(store_path, cross_teacher, split_name):
            continue
        split = EvaluatedSplit.from_store(EmbeddingStore(store_path), split_name)
        embeddings = []
        for model in models:
            embeddings.append(split_embeddings(model, split))
            model.release()
        for name in import_ensemble(store_path, split_name, ensemble, embeddings):
            imported.append((name, split_name))
    return imported


def _member(
    model: EvaluatedModel,
    run_dir: Path,
) -> Member:
    """Describe the student of a run."""
    if model.student is None:
        raise SettingError(f"{model.name} is no run of cusa-train", name="runs")
    return Member(model.student.weights_sha256, last_tau(run_dir), model.student.normalizer)


def last_tau(run_dir: Path) -> float:
    """Return the temperature of its cosines that a run logged last.

    Raises:
        RunError: If it has logged none.
    """
    taus = [line["tau"] for line in read_history(run_dir).lines if "tau" in line]
    if not taus:
        raise RunError(
            f"{run_dir} has logged no temperature of its cosines; name a run directory of "
            "cusa-train",
            path=run_dir,
        )
    return float(taus[-1])


def _refuse_other_rows(
    store_path: Path,
    ensemble: Ensemble,
) -> None:
    """Refuse the name of a teacher that the store has from elsewhere."""
    teachers = read_index(store_path).teachers
    for name in row_names(ensemble.name):
        if name in teachers and teachers[name].settings.weights_sha256 != ensemble.weights_sha256:
            raise StoreError(
                f"{store_path} has rows of {name!r} that are not of these students; pass another "
                "--cross-teacher name",
                path=store_path,
                name=name,
            )


def import_ensemble(
    store_path: Path,
    split_name: str,
    ensemble: Ensemble,
    embeddings: Sequence[SplitEmbeddings],
) -> list[str]:
    """Add the rows of an ensemble that a store lacks for a split.

    Args:
        store_path: The store's index.
        split_name: The split.
        ensemble: The ensemble.
        embeddings: Each student's of the split.

    Returns:
        Names of the rows that were added.

    Raises:
        CusaError: If the store has other rows by a name.
    """
    added = []
    for modality in lacking_modalities(store_path, ensemble.name, split_name):
        index = read_index(store_path)
        row_numbers, rows = side_by_side(embeddings, modality)
        item_ids = index.splits[split_name].item_ids(modality)
        ids = [item_ids[row] for row in row_numbers.tolist()]
        name = row_names(ensemble.name)[MODALITIES.index(modality)]
        import_rows(
            store_path,
            replace(index, teachers={}),
            split_name,
            name,
            ensemble.settings(modality, rows.shape[1]),
            ForeignRows(ids, rows, f"students of {ensemble.name}"),
            skip_missing=True,
        )
        added.append(name)
    return added


def side_by_side(
    embeddings: Sequence[SplitEmbeddings],
    modality: Modality,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of several students as one: their cosines are the means of the students'.

    Args:
        embeddings: Each student's of one split.
        modality: ``"image"`` or ``"text"``.

    Returns:
        int64 ``[n]``, the split's rows that all students embed, ascending; and float32 ``[n, sum of
        the students' dimensions]``, of length ``sqrt(len(embeddings))``.
    """
    row_numbers = [getattr(member, f"{modality}_rows") for member in embeddings]
    common = reduce(np.intersect1d, row_numbers)
    columns = []
    for member, own_rows in zip(embeddings, row_numbers, strict=True):
        member_rows = getattr(member, modality)["cross"]
        columns.append(member_rows[np.searchsorted(own_rows, common)])
    return common, np.concatenate(columns, axis=1)
