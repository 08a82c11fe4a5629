"""Cross-modal teachers that a study makes itself: students that it has trained, side by side.

No dual encoder needs to be at hand for the rules that are taught by one. A single student that
teaches another of its kind is born again (Furlanello et al., ICML 2018); several of them side by
side are an ensemble, whose cosine of an image and a caption is the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import click
import numpy as np

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.foreign.rows import ForeignRows
from cusa.data.store.cross_teachers import CROSS_TEACHER, LOGIT_SCALE, row_names
from cusa.data.store.import_export import import_rows
from cusa.data.store.index import read_index
from cusa.data.store.schema import TeacherSettings
from cusa.train.student_config import MODALITIES

from study_runs import Study, Variant


@dataclass(frozen=True)
class StudentTeacher:
    """A cross-modal teacher that is made of students.

    Attributes:
        variant: What the students are trained with.
        seeds: A student for each.
    """

    variant: Variant
    seeds: tuple[int, ...]


def add_missing_teachers(
    study: Study,
    variant: Variant,
    student_teachers: Mapping[str, StudentTeacher],
) -> None:
    """Train the cross-modal teachers that a run needs and the store lacks, and add their rows.

    Args:
        study: The study, which trains the students.
        variant: The run's.
        student_teachers: The teachers that can be made, by name.
    """
    for name in variant.cross_teachers:
        if name in student_teachers:
            _add_teacher(study, name, student_teachers[name])


def _add_teacher(study: Study, name: str, teacher: StudentTeacher) -> None:
    index = read_index(study.store_path)
    # What a killed study has added is left as it is: the same students make the same rows.
    missing = []
    for modality, row_name in zip(MODALITIES, row_names(name), strict=True):
        entry = index.teachers.get(row_name)
        present = entry.shards if entry is not None else {}
        missing += [(modality, row_name, split) for split in index.splits if split not in present]
    if not missing:
        return
    click.echo(f"cross-modal teacher {name}: its {len(teacher.seeds)} students are trained")
    students = [study.train(teacher.variant, seed) for seed in teacher.seeds]
    logit_scale = float(np.mean([1 / student.tau for student in students]))
    data = replace(index, teachers={})
    for modality, row_name, split in missing:
        members = [study.encode(student, split) for student in students]
        rows = side_by_side(members, modality)
        item_ids = index.splits[split].item_ids(modality)
        ids = [item_ids[row] for row in getattr(members[0], f"{modality}_rows").tolist()]
        settings = _teacher_settings(name, modality, rows.shape[1], logit_scale)
        foreign = ForeignRows(ids, rows, f"students of {name}")
        import_rows(study.store_path, data, split, row_name, settings, foreign, skip_missing=True)


def side_by_side(members: Sequence[SplitEmbeddings], modality: str) -> np.ndarray:
    """Return the rows of several students as one: its cosines are the means of theirs.

    Args:
        members: Embeddings of one split by each student, L2-normalised ``[n, d]``.
        modality: ``"image"`` or ``"text"``.

    Returns:
        float32 ``[n, members * d]``.
    """
    return np.concatenate([getattr(member, modality)["cross"] for member in members], axis=1)


def _teacher_settings(name: str, modality: str, dim: int, logit_scale: float) -> TeacherSettings:
    return TeacherSettings(
        modality=modality,
        model_id=name,
        weights_sha256="unknown",
        transform={"imported": True, CROSS_TEACHER: name, LOGIT_SCALE: logit_scale},
        normalizer="none",
        precision="unknown",
        dim=dim,
        dtype="float16",
        normalized=True,
    )
