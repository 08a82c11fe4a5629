"""What a run was trained on: data set, splits, teachers, encoders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator
from pydantic.dataclasses import dataclass

from cusa.data.store.schema import TeacherSettings
from cusa.train.stores import Store
from cusa.train.teacher_set import TeacherSet


def _read_settings(content: Any) -> TeacherSettings:
    if isinstance(content, TeacherSettings):
        return content
    # Parse them as the store does, so that both refuse the same settings.
    return TeacherSettings.from_json(json.dumps(content))


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher or encoder of the store, as a run used it.

    Attributes:
        name: Its name in the store.
        source: What stage one loaded it from: a file, a folder or a hub name.
        settings: Everything that decides its rows.
    """

    name: str
    source: str
    settings: Annotated[TeacherSettings, PlainValidator(_read_settings)]


@dataclass(frozen=True)
class StoredSplit:
    """A split of a store.

    Attributes:
        dataset: Name of the store's data set.
        split: Name of the split.
        fingerprint: Its fingerprint.
    """

    dataset: str
    split: str
    fingerprint: str

    @staticmethod
    def from_store(store: Store, split: str) -> StoredSplit:
        """Describe a split that a store has."""
        return StoredSplit(store.dataset, split, store.splits[split].fingerprint)


@dataclass(frozen=True)
class Beginning:
    """The trained student that a run began with.

    Attributes:
        path: The run, folder or export that it was loaded from.
        sha256: sha256 (hex) of its weights.
        dataset: Name of the data set that it was trained on.
        epoch: Epochs that it was trained for; a fraction within one.
        step: Steps that it was trained for.
    """

    path: str
    sha256: str
    dataset: str
    epoch: int | float
    step: int


def _read_teachers(content: Any) -> Any:
    """Read teachers by kind, in the tuples that strict types ask for.

    Those of earlier versions are single ones.
    """
    if not isinstance(content, Mapping):
        return content
    teachers: dict[Any, Any] = {}
    for kind, models in content.items():
        if isinstance(models, Mapping | StoredTeacher):
            models = [models]
        if isinstance(models, list):
            models = tuple(map(_pair_as_tuple, models))
        teachers[kind] = models
    return teachers


def _pair_as_tuple(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return value


@dataclass(frozen=True)
class Provenance:
    """What a run was trained on; kept as run.json.

    Attributes:
        dataset: Name of the data set.
        splits: Fingerprint by split name.
        teachers: The soft labels' teachers; none if no soft labels are used. Runs of earlier
            versions have at most one of each modality.
        encoders: The frozen encoders of stored towers by modality.
        beginning: The trained student that the run began with, if any.
        validation: The split of another store that it was validated on, if any.
    """

    dataset: str
    splits: Mapping[str, str]
    teachers: Annotated[TeacherSet[StoredTeacher], BeforeValidator(_read_teachers)]
    encoders: Mapping[str, StoredTeacher]
    beginning: Beginning | None = None
    validation: StoredSplit | None = None

    def teacher_names(self) -> dict[str, str]:
        """Return the teachers' names by kind; of several of a kind, one after the other."""
        names = {}
        for kind, teachers in self.teachers.by_kind().items():
            names[kind] = ", ".join(teacher.name for teacher in teachers)
        return names

    @property
    def encoder_names(self) -> dict[str, str]:
        """Return the names of the encoders by modality."""
        return {modality: encoder.name for modality, encoder in self.encoders.items()}

    @property
    def row_dims(self) -> dict[str, int]:
        """Return the dimensions of the encoders' rows by modality."""
        return {modality: encoder.settings.dim for modality, encoder in self.encoders.items()}

    def differences(self, store: Store, current: Provenance) -> list[str]:
        """List what the run used of a store and what has changed since.

        Args:
            store: The store as it is now.
            current: What a run with the same settings would use of it.
        """
        differences = []
        # A store may have moved, or gained teachers that the run does not use.
        if self.dataset != store.dataset:
            differences.append(f"dataset ({self.dataset!r} / {store.dataset!r})")
        for name, fingerprint in self.splits.items():
            if store.fingerprint(name) != fingerprint:
                differences.append(f"fingerprint of split {name!r}")
        if self.validation != current.validation:
            before = _shown_split(self.validation)
            now = _shown_split(current.validation)
            differences.append(f"split to validate on ({before} / {now})")
        teachers = _by_role(self.teachers)
        differences += _differences_of_teachers(teachers, _by_role(current.teachers))
        differences += _differences_of_teachers(self.encoders, current.encoders)
        return differences


def _by_role(teachers: TeacherSet[StoredTeacher]) -> dict[str, StoredTeacher]:
    """Return teachers by a description of their place among those of their kind."""
    by_role = {}
    for kind, models in teachers.by_kind().items():
        for number, model in enumerate(models, 1):
            role = kind if len(models) == 1 else f"{kind} {number}"
            by_role[role] = model
    return by_role


def _shown_split(stored: StoredSplit | None) -> str:
    if stored is None:
        return "one of the training store"
    return f"{stored.split!r} of {stored.dataset}, {stored.fingerprint[:12]}"


def _differences_of_teachers(
    before: Mapping[str, StoredTeacher],
    current: Mapping[str, StoredTeacher],
) -> list[str]:
    differences = []
    for modality, teacher in before.items():
        if modality not in current:
            differences.append(f"{modality} teacher {teacher.name!r}, which is not used now")
            continue
        current_settings = current[modality].settings
        for field in current_settings.differences(teacher.settings):
            differences.append(f"{teacher.name}.{field}")
    return differences
