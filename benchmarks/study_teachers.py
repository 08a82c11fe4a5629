"""Cross-modal teachers that a study makes itself: students that it has trained, side by side.

No dual encoder needs to be at hand for the rules that are taught by one. Students side by side are
an ensemble, whose cosine of an image and a caption is the mean of theirs; one that they teach is
born again (Furlanello et al., ICML 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import click
import numpy as np

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.foreign.rows import ForeignRows
from cusa.data.store.cross_teachers import CROSS_TEACHER, LOGIT_SCALE, row_names
from cusa.data.store.import_export import import_rows
from cusa.data.store.index import read_index
from cusa.data.store.schema import TeacherSettings
from cusa.train.student_config import MODALITIES, Modality

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
    study: Study, names: Iterable[str], own_teachers: Mapping[str, StudentTeacher]
) -> None:
    """Train the cross-modal teachers that a run needs and the store lacks, and add their rows.

    Args:
        study: The study, which trains the students.
        names: The teachers that the run needs.
        own_teachers: The teachers that can be made, by name.
    """
    for name in names:
        missing = _missing_rows(study, name)
        if name not in own_teachers or not missing:
            continue
        teacher = own_teachers[name]
        click.echo(f"cross-modal teacher {name}: {len(teacher.seeds)} students are trained")
        students = [study.train(teacher.variant, seed) for seed in teacher.seeds]
        logit_scale = float(np.mean([1 / student.tau for student in students]))
        for modality, split_name in missing:
            members = [study.encode(student, split_name) for student in students]
            _add_rows(study, name, modality, members, split_name, logit_scale)


def _missing_rows(study: Study, name: str) -> list[tuple[Modality, str]]:
    """Return the modality and split of a teacher's rows that the store lacks.

    What a killed study has added is left as it is: the same students make the same rows.
    """
    index = read_index(study.store_path)
    missing = []
    for modality, row_name in zip(MODALITIES, row_names(name), strict=True):
        entry = index.teachers.get(row_name)
        present = entry.shards if entry is not None else {}
        missing += [
            (modality, split_name) for split_name in index.splits if split_name not in present
        ]
    return missing


def _add_rows(
    study: Study,
    name: str,
    modality: Modality,
    members: Sequence[SplitEmbeddings],
    split_name: str,
    logit_scale: float,
) -> None:
    rows = side_by_side(members, modality)
    index = read_index(study.store_path)
    item_ids = index.splits[split_name].item_ids(modality)
    ids = [item_ids[row] for row in getattr(members[0], f"{modality}_rows").tolist()]
    import_rows(
        study.store_path,
        replace(index, teachers={}),
        split_name,
        row_names(name)[MODALITIES.index(modality)],
        _teacher_settings(name, modality, rows.shape[1], logit_scale),
        ForeignRows(ids, rows, f"students of {name}"),
        skip_missing=True,
    )


def side_by_side(members: Sequence[SplitEmbeddings], modality: Modality) -> np.ndarray:
    """Return the rows of several students as one: its cosines are the means of theirs.

    Args:
        members: Embeddings of one split by each student, L2-normalised ``[n, d]``.
        modality: ``"image"`` or ``"text"``.

    Returns:
        float32 ``[n, members * d]``.
    """
    return np.concatenate([getattr(member, modality)["cross"] for member in members], axis=1)


def _teacher_settings(
    name: str, modality: Modality, dim: int, logit_scale: float
) -> TeacherSettings:
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
