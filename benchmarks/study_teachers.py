"""Cross-modal teachers that a study makes itself: students that it has trained, side by side.

No dual encoder needs to be at hand for the rules that are taught by one. Students side by side are
an ensemble, whose cosine of an image and a caption is the mean of theirs; one that they teach is
born again (Furlanello et al., ICML 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import click

from cusa.data.store.index import read_index
from cusa.eval.students_as_teacher import (
    Ensemble,
    Member,
    import_ensemble,
    lacking_modalities,
)
from cusa.precompute.teachers.base import weights_digest

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

    What a killed study has added is left as it is: the same students make the same rows.

    Args:
        study: The study, which trains the students.
        names: The teachers that the run needs.
        own_teachers: The teachers that can be made, by name.
    """
    for name in names:
        if name in own_teachers and _splits_without(study, name):
            _add_teacher(study, name, own_teachers[name])


def _add_teacher(study: Study, name: str, teacher: StudentTeacher) -> None:
    click.echo(f"cross-modal teacher {name}: {len(teacher.seeds)} students are trained")
    students = [study.train(teacher.variant, seed) for seed in teacher.seeds]
    captions = study.store.teachers[study.settings["student"]["text_encoder"]]
    members = []
    for student in students:
        digest = weights_digest(student.student)
        members.append(Member(digest, student.tau, captions.normalizer))
    ensemble = Ensemble(name, tuple(members))
    for split_name in _splits_without(study, name):
        embeddings = [study.encode(student, split_name) for student in students]
        import_ensemble(study.store_path, split_name, ensemble, embeddings)


def _splits_without(study: Study, name: str) -> list[str]:
    """Return the splits for which the store lacks rows of a cross-modal teacher."""
    splits = read_index(study.store_path).splits
    return [split for split in splits if lacking_modalities(study.store_path, name, split)]
