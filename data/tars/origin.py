"""What a set was made from: the folder of its tars, and where its teachers' models were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cusa.data.errors import FileFormatError, StoreError
from cusa.data.files import atomic_file
from cusa.data.parsing import read_json
from cusa.data.tars.manifest import read_manifest
from cusa.data.tars.set_files import SetFiles

ORIGIN = "origin.json"


@dataclass(frozen=True)
class SetOrigin:
    """What a set was made from, which no file of a tar says.

    It has a file of its own, as of several jobs that share the tars none writes the manifest.

    Attributes:
        image_root: The folder of the tars, absolute; empty if it is not known.
        sources: Where each teacher's model was loaded from, by the teacher's name.
    """

    image_root: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def recorded(location: str | Path) -> SetOrigin:
        """Return what a set says of its origin, or nothing if it does not.

        Raises:
            StoreError: If its file was edited and cannot be read.
        """
        with SetFiles(location).on_disk([ORIGIN]) as folder:
            if (folder / ORIGIN).exists():
                return _read_origin(folder / ORIGIN)
        # Sets that were made before there was such a file.
        try:
            manifest = read_manifest(location)
        except StoreError:
            return SetOrigin()
        sources = {name: rows.source for name, rows in manifest.teachers.items()}
        return SetOrigin(manifest.image_root, sources)

    def updated(
        self,
        image_root: str,
        sources: Mapping[str, str],
    ) -> SetOrigin:
        """Return the origin with what is known now; an empty folder leaves that known before."""
        return SetOrigin(image_root or self.image_root, {**self.sources, **sources})

    def write(self, location: str | Path) -> None:
        """Write the origin into the folder of a set, atomically; equal origins give equal bytes.

        Raises:
            ObjectError: If the object store does not take it.
        """
        with SetFiles(location).replaced(ORIGIN) as path, atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")


def record_origin(
    location: str | Path,
    image_root: str,
    sources: Mapping[str, str],
) -> SetOrigin:
    """Add to what a set says of its origin, and return all of it; what is known is not written.

    Args:
        location: Path or URL of the folder of the set.
        image_root: The folder of the tars, absolute; empty leaves that known before.
        sources: Where teachers' models were loaded from, by the teachers' names.

    Raises:
        StoreError: If the file was edited and cannot be read.
        ObjectError: If the object store does not take it.
    """
    earlier_origin = SetOrigin.recorded(location)
    origin = earlier_origin.updated(image_root, sources)
    if origin != earlier_origin:
        origin.write(location)
    return origin


def _read_origin(path: Path) -> SetOrigin:
    content: Any = None
    with suppress(FileFormatError):
        content = read_json(path)
    image_root: Any = None
    sources: Any = None
    if isinstance(content, dict):
        image_root = content.get("image_root")
        sources = content.get("sources")
    if not isinstance(image_root, str) or not _are_texts(sources):
        raise StoreError(
            f"{path} does not say where the tars and the teachers are; delete it, and pass "
            "--dataset TARS to cusa-store index",
            path=path,
        )
    return SetOrigin(image_root, sources)


def _are_texts(sources: Any) -> bool:
    if not isinstance(sources, dict):
        return False
    return all(isinstance(source, str) for source in sources.values())
