"""The teachers whose rows a loss needs, by its terms and its rule."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from cusa.train.loss.config import LossConfig
from cusa.train.loss.rules.settings import RuleName

# An image teacher, a text teacher, either of them, or a cross-modal teacher.
TeacherKind = Literal["image", "text", "image or text", "cross-modal"]
ARTICLES: dict[TeacherKind, str] = {
    "image": "an",
    "text": "a",
    "image or text": "an",
    "cross-modal": "a",
}

_BOTH: tuple[TeacherKind, ...] = ("image", "text")
_BY_RULE: dict[RuleName, tuple[TeacherKind, ...]] = {
    "xclr": ("text",),
    "hycd": ("cross-modal",),
    "dr": ("cross-modal",),
    "dr-sigmoid": ("cross-modal",),
    "features": _BOTH,
}
_BY_GUIDE: dict[str, tuple[TeacherKind, ...]] = {
    "image": ("image",),
    "text": ("text",),
    "both": _BOTH,
    "either": _BOTH,
    "cross": ("cross-modal",),
}


def needed_teachers(loss_config: LossConfig) -> dict[TeacherKind, str]:
    """Return the kinds of teachers that a loss needs, and for each who needs it, in words."""
    needs: dict[TeacherKind, str] = {}
    modalities, setting = _of_soft_labels(loss_config)
    if "usa" in loss_config.terms:
        needs.update(dict.fromkeys(modalities, f"USA{setting}"))
    if "csa" in loss_config.terms:
        source = f"CSA with soft_label_source={loss_config.soft_label_source}"
        match loss_config.soft_label_source:
            case "each":
                needs.update(dict.fromkeys(modalities, f"CSA{setting}"))
            case "image" | "text" as modality:
                needs[modality] = source
            case "cross":
                needs["cross-modal"] = source
            case _:
                needs.update(dict.fromkeys(_BOTH, source))
    kinds = _BY_RULE.get(loss_config.rule, ())
    rule = f"the rule {loss_config.rule}"
    if loss_config.rule == "guide":
        kinds = _BY_GUIDE[loss_config.guide.teacher]
        rule += f" with guide.teacher={loss_config.guide.teacher}"
    if loss_config.rule == "cwcl":
        kinds = modalities
        rule += setting
    needs.update(dict.fromkeys(kinds, rule))
    return needs


def _of_soft_labels(loss_config: LossConfig) -> tuple[tuple[TeacherKind, ...], str]:
    """Return whose soft labels a loss uses, and the setting that says so, if it is not both's."""
    modalities = loss_config.soft_label_modalities
    if len(modalities) == 1:
        return modalities, f" with soft_label_modalities=[{modalities[0]}]"
    return ("image or text",), ""


def teachers_read(loss_config: LossConfig) -> set[str]:
    """Return the kinds of teachers whose rows a loss takes, where there are any.

    Returns:
        Some of ``"image"``, ``"text"`` and ``"cross-modal"``.
    """
    kinds: set[str] = set(needed_teachers(loss_config))
    if "image or text" in kinds:
        kinds.update(_BOTH)
    return kinds & {*_BOTH, "cross-modal"}


def missing_teacher(
    loss_config: LossConfig,
    kinds: Collection[str],
) -> tuple[TeacherKind, str] | None:
    """Return the first kind of teacher that a loss needs and does not have, and who needs it.

    Args:
        loss_config: Settings of the loss.
        kinds: The kinds that there are: ``"image"``, ``"text"``, ``"cross-modal"``.
    """
    for kind, user in needed_teachers(loss_config).items():
        is_there = kind in kinds
        if kind == "image or text":
            is_there = "image" in kinds or "text" in kinds
        if not is_there:
            return kind, user
    return None
