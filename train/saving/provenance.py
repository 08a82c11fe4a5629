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


class _PlainSettings(BaseModel):
    dim: Annotated[int, Field(ge=1, le=MOST_DIMENSIONS)]
    dtype: Literal["float16", "float32"]
    model_id: str
    modality: str
    normalizer: str
    precision: str
    transform: dict[str, Any]
    weights_sha256: str


class _PlainTeacher(BaseModel):
    name: str
    source: str
    settings: _PlainSettings


class _PlainTeachers(BaseModel):
    image: _PlainTeacher | None = None
    text: _PlainTeacher | None = None


class _PlainBeginning(BaseModel):
    path: str
    sha256: str
    dataset: str
    epoch: int
    step: int


class _PlainProvenance(BaseModel):
    dataset: str
    splits: dict[str, str]
    teachers: _PlainTeachers
    encoders: _PlainTeachers
    beginning: _PlainBeginning | None = None


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
    def of(store: EmbeddingStore, name: str) -> StoredTeacher:
        """A teacher of a store by name."""
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
        teachers: The soft labels' teachers by ``"image"`` and ``"text"``; empty where there are no soft labels.
        encoders: Same for an adapter's frozen encoders; empty for other students.
        beginning: The trained student that it began with, if it began with one.
    """

    dataset: str
    splits: Mapping[str, str]
    teachers: Mapping[str, StoredTeacher]
    encoders: Mapping[str, StoredTeacher]
    beginning: Beginning | None = None

    def plain(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)

    @staticmethod
    def from_plain(content: Any) -> Provenance:
        """Read the inverse of :meth:`plain`.

        Raises:
            RunError: If an entry is missing or of another type; says which.
        """
        plain = checked(_PlainProvenance, content, "provenance")

        def stored(teachers: Mapping[str, Any]) -> dict[str, StoredTeacher]:
            modalities = [modality for modality in ("image", "text") if teachers.get(modality)]
            return {modality: _stored_teacher(teachers[modality]) for modality in modalities}

        teachers, encoders = stored(content["teachers"]), stored(content["encoders"])
        beginning = None if plain.beginning is None else Beginning(**plain.beginning.model_dump())
        return Provenance(plain.dataset, plain.splits, teachers, encoders, beginning)

    def differing(self, store: EmbeddingStore, current: Provenance) -> list[str]:
        """What of a store is not as the run found it; a line each.

        Args:
            store: The store as it is now.
            current: What a run with the same settings would use of it.
        """
        lines = []
        if self.dataset != store.dataset:
            lines.append(f"dataset ({self.dataset!r} / {store.dataset!r})")
        for name, fingerprint in self.splits.items():
            if store.split(name).fingerprint != fingerprint:
                lines.append(f"fingerprint of split {name!r}")
        for old, new in ((self.teachers, current.teachers), (self.encoders, current.encoders)):
            for modality, teacher in old.items():
                if modality not in new:
                    lines.append(f"{modality} teacher {teacher.name!r}, which is not used now")
                    continue
                lines += [
                    f"{teacher.name}.{f}"
                    for f in new[modality].settings.differences(teacher.settings)
                ]
        return lines


def _stored_teacher(content: Mapping[str, Any]) -> StoredTeacher:
    try:
        settings = TeacherSettings.from_json(json.dumps(content["settings"]))
    except (KeyError, TypeError, ValueError) as error:
        message = f"settings of {content['name']} cannot be read: {first_line(error)}"
        raise RunError(message, name=content["name"]) from None
    return StoredTeacher(content["name"], content["source"], settings)
