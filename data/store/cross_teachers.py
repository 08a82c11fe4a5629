"""Cross-modal teachers of a store: image rows and text rows of one dual encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cusa.data.store.schema import TeacherSettings

# Keys in the settings' transform of both rows of a cross-modal teacher: its name, what its cosines
# are multiplied by, and what is added then (models with a sigmoid loss only).
CROSS_TEACHER = "cross_teacher"
LOGIT_SCALE = "logit_scale"
LOGIT_BIAS = "logit_bias"


def row_names(cross_teacher: str) -> tuple[str, str]:
    """Return the names that stage one gives to a cross-modal teacher's image and text rows."""
    return f"{cross_teacher}-image", f"{cross_teacher}-text"


def cross_teachers(teachers: Mapping[str, TeacherSettings]) -> dict[str, tuple[str, str]]:
    """Return the names of image rows and text rows by the name of their cross-modal teacher.

    Rows belong together if they name the same cross-modal teacher and the same weights, and have
    one dimension. Those of which a store has only one half are left out.

    Args:
        teachers: A store's teachers by name.
    """
    halves: dict[tuple[str, str, int], dict[str, str]] = {}
    for name, settings in teachers.items():
        cross_teacher = settings.transform.get(CROSS_TEACHER)
        if isinstance(cross_teacher, str):
            key = (cross_teacher, settings.weights_sha256, settings.dim)
            halves.setdefault(key, {}).setdefault(settings.modality, name)
    pairs: dict[str, tuple[str, str]] = {}
    for (cross_teacher, _, _), name_of in halves.items():
        if len(name_of) == 2:
            pairs.setdefault(cross_teacher, (name_of["image"], name_of["text"]))
    return pairs


def rows_of_cross_teachers(teachers: Mapping[str, TeacherSettings]) -> set[str]:
    """Return the names of all rows that are half of a cross-modal teacher, complete or not."""
    return {name for name, settings in teachers.items() if CROSS_TEACHER in settings.transform}


def logit_scale(settings: TeacherSettings) -> float | None:
    """Return what a cross-modal teacher multiplies cosines by; ``None`` if it is not recorded."""
    return _number(settings, LOGIT_SCALE)


def logit_bias(settings: TeacherSettings) -> float | None:
    """Return what a cross-modal teacher adds to its logits; ``None`` if it is not recorded."""
    return _number(settings, LOGIT_BIAS)


def _number(settings: TeacherSettings, key: str) -> float | None:
    value = settings.transform.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return None
    return float(value)
