"""The files of a tar set, in a folder of this machine or in an object store."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from cusa.data.errors import CusaError, ObjectError
from cusa.data.files import scratch_folder
from cusa.data.objects.folder import is_remote, location_text, open_folder

PAIRS_FOLDER = "pairs"
_SUFFIX = ".h5"
_FILE = re.compile(r"[^./][^/]*/[^./][^/]*\.h5")


class SetFiles:
    """The files of a set.

    Args:
        location: Path or URL of the folder of the set.

    Attributes:
        path: The folder's path, or its URL as a path.
        remote: The folder, if it is in an object store.
    """

    def __init__(
        self,
        location: str | Path,
    ) -> None:
        self.path = Path(location)
        self.remote = None
        if is_remote(location):
            self.remote = open_folder(location)

    def __str__(self) -> str:
        """Return the folder's path or URL."""
        return location_text(self.path)

    @cached_property
    def listing(self) -> frozenset[str]:
        """The names of the files of pairs and rows, ``FOLDER/NAME.h5``, as they are at first."""
        if self.remote is None:
            paths = self.path.glob(f"[!.]*/[!.]*{_SUFFIX}")
            return frozenset(f"{path.parent.name}/{path.name}" for path in paths)
        names = (entry.name for entry in self.remote.list())
        return frozenset(filter(_FILE.fullmatch, names))

    def list_again(self) -> None:
        """Forget what was listed."""
        self.__dict__.pop("listing", None)

    def tars(self) -> list[str]:
        """Return the names of the tars whose pairs are there, sorted.

        A file of pairs is written after the rows of the tar, so that the tar is finished.
        """
        return sorted(self._names_in(PAIRS_FOLDER))

    def teachers(self) -> list[str]:
        """Return the names of the teachers that have rows, sorted."""
        folders = {name.partition("/")[0] for name in self.listing}
        return sorted(folders - {PAIRS_FOLDER})

    def first_files(self) -> list[str]:
        """Return the first file of the pairs, and of each teacher's rows."""
        first_names: dict[str, str] = {}
        for name in sorted(self.listing, reverse=True):
            first_names[name.partition("/")[0]] = name
        return list(first_names.values())

    def _names_in(
        self,
        subfolder: str,
    ) -> Iterator[str]:
        prefix = f"{subfolder}/"
        for name in self.listing:
            if name.startswith(prefix):
                yield name.removeprefix(prefix).removesuffix(_SUFFIX)

    @contextmanager
    def on_disk(
        self,
        names: Iterable[str],
    ) -> Iterator[Path]:
        """Yield a folder of this machine that has the named files, unless they are missing.

        Files of an object store are fetched, and dropped at the end. Errors name their URLs.

        Raises:
            ObjectError: If the object store does not give them.
        """
        if self.remote is None:
            yield self.path
            return
        with scratch_folder() as scratch:
            for name in names:
                try:
                    self.remote.fetch(name, scratch / name)
                except ObjectError as error:
                    if not error.is_missing:
                        raise
            try:
                yield scratch
            except CusaError as error:
                raise error_elsewhere(error, scratch, str(self)) from None

    @contextmanager
    def replaced(
        self,
        name: str,
    ) -> Iterator[Path]:
        """Yield the path to write a file to; of an object store, it is sent there at the end.

        Raises:
            ObjectError: If the object store does not take it.
        """
        if self.remote is None:
            yield self.path / name
            return
        with scratch_folder() as scratch:
            yield scratch / name
            self.remote.replace(name, scratch / name)


def error_elsewhere(
    error: CusaError,
    local_path: Path,
    location: str,
) -> CusaError:
    """Return an error on the copy of a file as one on the file itself."""
    moved_error = error.reworded(str(error).replace(str(local_path), location))
    if error.path is not None:
        moved_error.path = Path(str(error.path).replace(str(local_path), location))
    return moved_error
