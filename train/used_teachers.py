"""The teachers that a run uses, of those of its store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cusa.data.errors import SettingError, StoreError
from cusa.data.objects.folder import location_text
from cusa.data.store.cross_teachers import CROSS_TEACHER, logit_bias, logit_scale
from cusa.data.store.schema import TeacherSettings
from cusa.train.chosen_teachers import chosen_teachers, require_teachers
from cusa.train.config import Config, DataConfig
from cusa.train.loss.config import MODALITIES, LossConfig
from cusa.train.loss.rules.requirements import needed_teachers, teachers_read
from cusa.train.loss.rules.settings import RULES_OF_LOGITS
from cusa.train.loss.rules.soft_labels import CLIP_TAU
from cusa.train.saving.provenance import StoredTeacher
from cusa.train.stores import Store
from cusa.train.teacher_set import TeacherSet


def _require_both_modalities(loss: LossConfig, store: Store) -> None:
    """Refuse a store with one modality's teacher for soft labels of both.

    :class:`cusa.CUSALoss` leaves out the direction without a teacher; in a run, that could go
    unnoticed.

    Raises:
        StoreError: If it is one; says which settings it can be trained with.
    """
    user = needed_teachers(loss).get("image or text")
    stored = {settings.modality for settings in store.teachers.values()}
    missing = [modality for modality in MODALITIES if modality not in stored]
    if user is None or not missing:
        return
    location = location_text(store.path)
    [present] = stored
    raise StoreError(
        f"{user} has soft labels of images and of captions, and {location} holds no {missing[0]} "
        f"teacher; set loss.soft_label_modalities=[{present}] to train with those of one modality, "
        f"or add a teacher: cusa-precompute --teacher NAME --out {location}",
        path=Path(location),
        name=missing[0],
    )


def used_teachers(config: Config, store: Store) -> TeacherSet[StoredTeacher]:
    """Pick the teachers that the loss of a run needs.

    Args:
        config: The run's settings as given.
        store: The store.

    Raises:
        StoreError: If a teacher is missing, or several would fit; lists them.
    """
    require_teachers(config.loss, store)
    _require_both_modalities(config.loss, store)
    data = config.data
    names = chosen_teachers(
        store,
        {"image": data.image_teacher, "text": data.text_teacher, "cross": data.cross_teacher},
        teachers_read(config.loss),
        "--{}-teacher",
    )
    return names.map(lambda name: stored_teacher(store, name))


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


def with_logits_of(
    loss: LossConfig,
    cross_rows: Sequence[TeacherSettings],
) -> LossConfig:
    """Fill in the temperatures and the bias of cross-modal teachers' logits that the store records.

    Those of the settings come first. CSA has none of them: it has ``tau_soft``.

    Args:
        loss: Settings of the loss.
        cross_rows: Settings of the image rows of each cross-modal teacher that it uses.

    Raises:
        SettingError: If the rule needs a bias, and the store has none that is that of all.
    """
    if loss.rule not in RULES_OF_LOGITS:
        return loss
    taus: list[float] = []
    scales = list(map(logit_scale, cross_rows))
    for scale in scales:
        taus.append(1 / scale if scale is not None and scale > 0 else CLIP_TAU)
    if not loss.cross_teacher_taus and any(scales):
        loss = replace(loss, cross_teacher_taus=tuple(taus))
    if loss.rule == "dr-sigmoid" and loss.dr_sigmoid.teacher_bias is None:
        bias = _common_bias(cross_rows)
        loss = replace(loss, dr_sigmoid=replace(loss.dr_sigmoid, teacher_bias=bias))
    return loss


def _common_bias(cross_rows: Sequence[TeacherSettings]) -> float:
    """Return what all cross-modal teachers add to their logits, or refuse to guess it."""
    biases: dict[str, float | None] = {}
    for settings in cross_rows:
        biases[str(settings.transform[CROSS_TEACHER])] = logit_bias(settings)
    [bias, *others] = set(biases.values())
    if bias is None or others:
        recorded = ", ".join(f"{name} {bias or 'none'}" for name, bias in biases.items())
        raise SettingError(
            "set loss.dr_sigmoid.teacher_bias: the rule dr-sigmoid adds one bias to the logits of "
            f"all cross-modal teachers, and the store records these: {recorded}; for a teacher "
            "without one, take minus the logit halfway between true pairs and others, and see what "
            "comes of it by cusa-store inspect --set loss.rule=dr-sigmoid",
            name="loss.dr_sigmoid.teacher_bias",
        )
    return bias


def _names(teachers: Sequence[StoredTeacher]) -> tuple[str, ...]:
    return tuple(teacher.name for teacher in teachers)
