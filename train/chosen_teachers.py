"""The teachers of a store that a loss needs, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cusa.data.errors import StoreError
from cusa.data.objects.folder import location_text
from cusa.data.store.cross_teachers import cross_teachers
from cusa.data.store.teacher_choice import (
    TeacherNames,
    optional_teachers,
    pick_cross_teachers,
)
from cusa.train.loss.config import MODALITIES, LossConfig
from cusa.train.loss.rules.requirements import ARTICLES, missing_teacher
from cusa.train.teacher_set import TeacherSet

if TYPE_CHECKING:
    # Teachers(...) of a store needs none of what reads sets of tars.
    from cusa.train.stores import Store


def require_teachers(loss: LossConfig, store: Store) -> None:
    """Refuse a store without a kind of teacher that a loss needs.

    Raises:
        StoreError: If one is missing; says who needs it.
    """
    modalities = {settings.modality for settings in store.teachers.values()}
    kinds = {*modalities, "cross-modal"} if cross_teachers(store.teachers) else modalities
    missing = missing_teacher(loss, kinds)
    if missing is None:
        return
    kind, user = missing
    location = location_text(store.path)
    maker = "clip:NAME" if kind == "cross-modal" else "NAME"
    raise StoreError(
        f"{user} needs {ARTICLES[kind]} {kind} teacher, and {location} holds only "
        f"{', '.join(store.teachers) or 'none'}; add one: cusa-precompute --teacher {maker} "
        f"--out {location}",
        path=Path(location),
        name="cross" if kind == "cross-modal" else kind,
    )


def chosen_teachers(
    store: Store,
    wanted: Mapping[str, TeacherNames],
    kinds: Collection[str],
    flags: str,
) -> TeacherSet[str]:
    """Return the names of the teachers of some kinds: those that are wanted, or the only ones.

    A teacher that is wanted must be there, even if it is of another kind: a misspelt name would go
    unnoticed until a loss needs it.

    Args:
        store: The store; it may lack image teachers or text teachers.
        wanted: Names of ``"image"``, ``"text"`` and ``"cross"``, if any.
        kinds: Some of ``"image"``, ``"text"`` and ``"cross-modal"``.
        flags: The options for the names, for error messages, with ``{}`` for those of ``wanted``.

    Raises:
        StoreError: If a teacher is missing, or several would fit; lists them.
    """
    location = location_text(store.path)
    chosen: dict[str, tuple[str, ...]] = {}
    for modality in MODALITIES:
        names: tuple[str, ...] = ()
        if modality in kinds or wanted[modality]:
            flag = flags.format(modality)
            names = optional_teachers(location, store.teachers, modality, wanted[modality], flag)
        chosen[modality] = names if modality in kinds else ()
    cross: tuple[tuple[str, str], ...] = ()
    if "cross-modal" in kinds or wanted["cross"]:
        flag = flags.format("cross")
        cross = pick_cross_teachers(location, store.teachers, wanted["cross"], flag)
    if "cross-modal" not in kinds:
        cross = ()
    return TeacherSet(chosen["image"], chosen["text"], cross)
