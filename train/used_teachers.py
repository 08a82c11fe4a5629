"""The teachers that a run uses, of those of its store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cusa.data.objects.folder import location_text
from cusa.data.store.cross_teachers import CROSS_TEACHER, logit_bias, logit_scale
from cusa.data.store.teacher_choice import pick_cross_teachers, pick_teachers
from cusa.train.config import Config, DataConfig
from cusa.train.loss.config import LossConfig
from cusa.train.loss.rules.requirements import needed_teachers
from cusa.train.saving.provenance import StoredTeacher
from cusa.train.stores import Store
from cusa.train.teacher_set import TeacherSet

# Rules whose targets are a cross-modal teacher's own distributions, at its own temperature.
_RULES_WITH_LOGITS = ("hycd", "dr", "dr-sigmoid")


def used_teachers(config: Config, store: Store) -> TeacherSet[StoredTeacher]:
    """Pick the teachers that the loss of a run needs.

    A teacher that the settings name must be there, whether this loss needs it or not: a misspelt
    name would go unnoticed until a loss does.

    Args:
        config: The run's settings as given.
        store: The store.

    Raises:
        StoreError: If a teacher is missing, or several would fit; lists them.
    """
    data = config.data
    location = location_text(store.path)
    kinds = needed_teachers(config.loss)
    wanted_names = {"image": data.image_teacher, "text": data.text_teacher}
    uni_modal: dict[str, tuple[str, ...]] = {}
    for modality, wanted in wanted_names.items():
        is_needed = modality in kinds or "image or text" in kinds
        names: tuple[str, ...] = ()
        if is_needed or wanted:
            flag = f"--{modality}-teacher"
            names = pick_teachers(location, store.teachers, modality, wanted, flag)
        uni_modal[modality] = names if is_needed else ()
    cross: tuple[tuple[str, str], ...] = ()
    is_needed = "cross-modal" in kinds
    if is_needed or data.cross_teacher:
        cross = pick_cross_teachers(location, store.teachers, data.cross_teacher, "--cross-teacher")
    if not is_needed:
        cross = ()
    teachers = TeacherSet(uni_modal["image"], uni_modal["text"], cross)
    return teachers.map(lambda name: stored_teacher(store, name))


def stored_teacher(store: Store, name: str) -> StoredTeacher:
    """Describe a teacher that a store has."""
    return StoredTeacher(name, store.sources[name], store.teachers[name])


def with_teachers(data: DataConfig, teachers: TeacherSet[StoredTeacher]) -> DataConfig:
    """Fill in the names of the teachers that a run uses."""
    cross_names = []
    for image_rows, _ in teachers.cross:
        cross_names.append(str(image_rows.settings.transform[CROSS_TEACHER]))
    return replace(
        data,
        image_teacher=_names(teachers.image) or data.image_teacher,
        text_teacher=_names(teachers.text) or data.text_teacher,
        cross_teacher=tuple(cross_names) or data.cross_teacher,
    )


def with_logits_of(loss: LossConfig, teachers: TeacherSet[StoredTeacher]) -> LossConfig:
    """Fill in the temperatures and the bias of cross-modal teachers' logits that the store records.

    Those of the settings come first. For CSA, none are filled in: there, ``tau_soft`` is the
    default.

    Args:
        loss: Settings of the loss.
        teachers: The teachers that it uses.
    """
    if loss.rule not in _RULES_WITH_LOGITS:
        return loss
    settings = [image_rows.settings for image_rows, _ in teachers.cross]
    scales = list(map(logit_scale, settings))
    taus = tuple(1 / scale for scale in scales if scale is not None and scale > 0)
    if not loss.cross_teacher_taus and len(taus) == len(scales):
        loss = replace(loss, cross_teacher_taus=taus)
    biases = set(map(logit_bias, settings))
    if loss.dr_sigmoid.teacher_bias is None and len(biases) == 1:
        dr_sigmoid = replace(loss.dr_sigmoid, teacher_bias=biases.pop())
        loss = replace(loss, dr_sigmoid=dr_sigmoid)
    return loss


def _names(teachers: Sequence[StoredTeacher]) -> tuple[str, ...]:
    return tuple(teacher.name for teacher in teachers)
