"""The teachers that a run uses, of those of its store."""

from __future__ import annotations

from dataclasses import replace

from cusa.data.objects.folder import location_text
from cusa.data.store.cross_teachers import CROSS_TEACHER
from cusa.data.store.teacher_choice import pick_cross_teachers, pick_teachers
from cusa.train.config import Config, DataConfig
from cusa.train.saving.provenance import StoredTeacher
from cusa.train.stores import Store
from cusa.train.teacher_set import TeacherSet


def used_teachers(config: Config, store: Store) -> TeacherSet[StoredTeacher]:
    """Pick the teachers that the loss of a run needs.

    Args:
        config: The run's settings as given.
        store: The store.

    Raises:
        StoreError: If a teacher is missing, or several would fit; lists them.
    """
    data = config.data
    location = location_text(store.path)
    names = TeacherSet[str]()
    if {"csa", "usa"} & set(config.loss.terms):
        names = TeacherSet(
            pick_teachers(location, store.teachers, "image", data.image_teacher, "--image-teacher"),
            pick_teachers(location, store.teachers, "text", data.text_teacher, "--text-teacher"),
        )
    if data.cross_teacher is not None:
        cross = pick_cross_teachers(location, store.teachers, data.cross_teacher, "--cross-teacher")
        names = replace(names, cross=cross)
    return names.map(lambda name: stored_teacher(store, name))


def stored_teacher(store: Store, name: str) -> StoredTeacher:
    """Describe a teacher that a store has."""
    return StoredTeacher(name, store.sources[name], store.teachers[name])


def with_teachers(data: DataConfig, teachers: TeacherSet[StoredTeacher]) -> DataConfig:
    """Fill in the names of the teachers that a run uses."""
    names = {}
    for setting, kind in (("image_teacher", teachers.image), ("text_teacher", teachers.text)):
        if kind:
            names[setting] = tuple(teacher.name for teacher in kind)
    if teachers.cross:
        cross_names = []
        for image_rows, _ in teachers.cross:
            cross_names.append(str(image_rows.settings.transform[CROSS_TEACHER]))
        names["cross_teacher"] = tuple(cross_names)
    return replace(data, **names)
