"""What a run was trained on: data set, splits, teachers, encoders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from cusa.data.errors import RunError, first_line
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.schema import TeacherSettings
from cusa.train.saving.plain_values import checked

MOST_DIMENSIONS = 1_000_000  # of a teacher's rows


class _SettingsForm(BaseModel):
    dim: Annotated[int, Field(ge=1, le=MOST_DIMENSIONS)]
    dtype: Literal["float16", "float32"]
    model_id: str
    modality: str
    normalizer: str
    precision: str
    transform: dict[str, Any]
    weights_sha256: str


class _TeacherForm(BaseModel):
    name: str
    source: str
    settings: _SettingsForm


class _TeachersForm(BaseModel):
    image: _TeacherForm | None = None
    text: _TeacherForm | None = None


class _BeginningForm(BaseModel):
    path: str
    sha256: str
    dataset: str
    epoch: int
    step: int


class _ProvenanceForm(BaseModel):
    dataset: str
    splits: dict[str, str]
    teachers: _TeachersForm
    encoders: _TeachersForm
    beginning: _BeginningForm | None = None


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher of the store as a run used it.

    Attributes:
        name: Its name in the store.
        source: Where stage one loaded it from: a file, a folder or a hub name.
        settings: All that decides its rows.
    """

    name: str
    source: str
    settings: TeacherSettings

    @staticmethod
    def from_store(store: EmbeddingStore, name: str) -> StoredTeacher:
        """Look up a teacher of a store by name."""
        return StoredTeacher(name, store.sources[name], store.teachers[name])


@dataclass(frozen=True)
class Beginning:
    """The trained student that a run began with.

    Attributes:
        path: The run, folder or export that it was loaded from.
        sha256: Of its weights (hex).
        dataset: Name of the data set that it had been trained on.
        epoch: Epochs that it had been trained for.
        step: Steps that it had been trained for.
    """

    path: str
    sha256: str
    dataset: str
    epoch: int
    step: int


@dataclass(frozen=True)
class Provenance:
    """What a run was trained on; kept as run.json.

    Attributes:
        dataset: Name of the data set.
        splits: Fingerprint by split name.
        teachers: The soft labels' teachers by ``"image"`` and ``"text"``; empty where there are no
            soft labels.
        encoders: Same for an adapter's frozen encoders; empty for other students.
        beginning: The trained student that it began with, if it began with one.
    """

    dataset: str
    splits: Mapping[str, str]
    teachers: Mapping[str, StoredTeacher]
    encoders: Mapping[str, StoredTeacher]
    beginning: Beginning | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the entries as JSON has them."""
        return asdict(self)

    @staticmethod
    def from_dict(content: Any) -> Provenance:
        """Read the inverse of :meth:`to_dict`.

        Raises:
            RunError: If an entry is missing or of another type; says which.
        """
        form = checked(_ProvenanceForm, content, "provenance")
        beginning: Beginning | None = None
        if form.beginning is not None:
            beginning = Beginning(**form.beginning.model_dump())
        return Provenance(
            dataset=form.dataset,
            splits=form.splits,
            teachers=_stored_teachers(content["teachers"]),
            encoders=_stored_teachers(content["encoders"]),
            beginning=beginning,
        )

    def differences(self, store: EmbeddingStore, current: Provenance) -> list[str]:
        """Return what of a store is not as the run used it; a line each.

        Args:
            store: The store as it is now.
            current: What a run with the same settings would use of it.
        """
        differences: list[str] = []
        # Not its path: a store may have moved, or have gained teachers that the run does not use.
        if self.dataset != store.dataset:
            differences.append(f"dataset ({self.dataset!r} / {store.dataset!r})")
        for name, fingerprint in self.splits.items():
            if store.split(name).fingerprint != fingerprint:
                differences.append(f"fingerprint of split {name!r}")
        differences += _differences_of_teachers(self.teachers, current.teachers)
        differences += _differences_of_teachers(self.encoders, current.encoders)
        return differences


def _differences_of_teachers(
    before: Mapping[str, StoredTeacher],
    current: Mapping[str, StoredTeacher],
) -> list[str]:
    differences: list[str] = []
    for modality, teacher in before.items():
        if modality not in current:
            differences.append(f"{modality} teacher {teacher.name!r}, which is not used now")
            continue
        for field in current[modality].settings.differences(teacher.settings):
            differences.append(f"{teacher.name}.{field}")
    return differences


def _stored_teachers(content: Mapping[str, Any]) -> dict[str, StoredTeacher]:
    teachers: dict[str, StoredTeacher] = {}
    for modality in ("image", "text"):
        if content.get(modality):
            teachers[modality] = _stored_teacher(content[modality])
    return teachers


def _stored_teacher(content: Mapping[str, Any]) -> StoredTeacher:
    try:
        # As the store reads them, so that both refuse the same.
        settings = TeacherSettings.from_json(json.dumps(content["settings"]))
    except (KeyError, TypeError, ValueError) as error:
        message = f"settings of {content['name']} cannot be read: {first_line(error)}"
        raise RunError(message, name=content["name"]) from None
    return StoredTeacher(content["name"], content["source"], settings)
