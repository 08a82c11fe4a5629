"""What a run was trained on: data set, splits, teachers, encoders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cusa.data.schema import TeacherSettings
from cusa.data.store import EmbeddingStore


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
class Provenance:
    """What a run was trained on; kept as run.json.

    Attributes:
        dataset: Name of the data set.
        splits: Fingerprint by split name.
        teachers: The soft labels' teachers by ``"image"`` and ``"text"``; empty where there are no soft labels.
        encoders: Same for an adapter's frozen encoders; empty for other students.
    """

    dataset: str
    splits: Mapping[str, str]
    teachers: Mapping[str, StoredTeacher]
    encoders: Mapping[str, StoredTeacher]

    def plain(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)

    @staticmethod
    def from_plain(content: Mapping[str, Any]) -> Provenance:
        """The inverse of :meth:`plain`."""

        def named(part: Mapping[str, Any]) -> dict[str, StoredTeacher]:
            return {
                m: StoredTeacher(v["name"], v["source"], TeacherSettings.from_json(json.dumps(v["settings"])))
                for m, v in part.items()
            }

        return Provenance(content["dataset"], content["splits"], named(content["teachers"]), named(content["encoders"]))

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
                lines += [f"{teacher.name}.{f}" for f in new[modality].settings.differing(teacher.settings)]
        return lines
