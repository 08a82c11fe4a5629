"""Where the rows of tars are made: in the set's own folder, or beside an object store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from cusa.data.errors import CusaError, ObjectError, StoreError
from cusa.data.files import file_digest, scratch_folder
from cusa.data.objects.folder import is_remote, location_text, open_folder, split_file
from cusa.data.objects.hub_folder import HubFolder
from cusa.data.objects.remote import RemoteFolder
from cusa.data.store.schema import file_name
from cusa.data.tars.pairs import name_of_tar
from cusa.data.tars.samples import TarError
from cusa.data.tars.set_files import PAIRS_FOLDER, SetFiles, error_elsewhere
from cusa.data.tars.units import UNIT_SUFFIXES

# Buckets and prefixes with an open connection.
_FOLDERS = 16


class Workplace:
    """The folder of this machine in which the rows of tars are made.

    If set and tars are on this machine, it is the folder of the set, and nothing is copied. Tars
    of an object store are fetched; rows and pairs for an object store are created in it when both
    are made, the pairs last, and what was fetched and made is dropped.

    Args:
        location: Path or URL of the folder of the set.
        scratch: A folder for copies.

    Attributes:
        location: As given.
        folder: The folder to make rows in.
    """

    def __init__(
        self,
        location: Path,
        scratch: Path,
    ) -> None:
        self.location = location
        self._files = SetFiles(location)
        self.folder = location
        if self._files.remote is not None:
            self.folder = scratch / "set"
        self._tars = scratch / "tars"
        self._urls: dict[Path, str] = {self.folder: str(self._files)}
        # sha256 of the set's files that were fetched, by their names.
        self._digests: dict[str, bytes] = {}
        self._open_folder = lru_cache(_FOLDERS)(open_folder)

    @property
    def listing(self) -> frozenset[str]:
        """The names of the set's files of pairs and rows, as they are in the set."""
        return self._files.listing

    def list_again(self) -> None:
        """Forget what was listed, as other runs may have gone on."""
        self._files.list_again()

    def has_rows(
        self,
        tar: Path,
        teacher_name: str,
    ) -> bool:
        """Return whether the set has a teacher's rows of a tar."""
        return f"{file_name(teacher_name)}/{name_of_tar(tar)}.h5" in self.listing

    def is_finished(
        self,
        tar: Path,
        teacher_names: Sequence[str],
    ) -> bool:
        """Return whether the set has the pairs of a tar, and the rows of teachers."""
        return self.listing.issuperset(_files_of_tar(name_of_tar(tar), teacher_names))

    def fetch_samples(self) -> None:
        """Fetch the set's first file of the pairs and of each teacher's rows.

        They tell with which settings the others were made.
        """
        if self._files.remote is not None:
            for name in self._files.first_files():
                self._fetch(name)

    def fetch(
        self,
        tar: Path,
        teacher_names: Sequence[str],
    ) -> Path:
        """Return the path of a tar on this machine, where the set's files of it are, too.

        Raises:
            TarError: If the object store has no such tar.
            ObjectError: If it does not give the tar or a file.
        """
        tar_name = name_of_tar(tar)
        if self._files.remote is not None:
            stored_names = self.listing.intersection(_files_of_tar(tar_name, teacher_names))
            for name in stored_names - set(self._digests):
                self._fetch(name)
        if not is_remote(tar):
            return tar
        local_tar = self._tars / tar.name
        self._urls[local_tar] = location_text(tar)
        folder, tar_file = split_file(tar)
        try:
            self._open_folder(folder).fetch(tar_file, local_tar)
        except ObjectError as error:
            # Other problems say nothing about the tar.
            if not error.is_missing:
                raise
            raise TarError(str(error), path=tar, name=tar_name) from None
        return local_tar

    def deliver(
        self,
        tar_name: str,
        teacher_names: Sequence[str],
    ) -> None:
        """Create the files of a tar in the object store, its pairs last, and drop all copies.

        Raises:
            StoreError: If the store has a file with other bytes.
            ObjectError: If it does not take a file.
        """
        if self._files.remote is not None:
            for name in _files_of_tar(tar_name, teacher_names):
                self._deliver(name)
        self.drop(tar_name, teacher_names)

    def drop(
        self,
        tar_name: str,
        teacher_names: Sequence[str],
    ) -> None:
        """Drop the copies of a tar and of its files."""
        for suffix in UNIT_SUFFIXES:
            local_tar = self._tars / f"{tar_name}{suffix}"
            # Only copies: whatever else has that path is the user's.
            if self._urls.pop(local_tar, None) is not None:
                local_tar.unlink(missing_ok=True)
        if self._files.remote is not None:
            for name in _files_of_tar(tar_name, teacher_names):
                (self.folder / name).unlink(missing_ok=True)
                self._digests.pop(name, None)

    @contextmanager
    def errors_named(self) -> Iterator[None]:
        """Name URLs in errors, not the copies of what they point to."""
        try:
            yield
        except CusaError as error:
            named_error = error
            for local_path, url in self._urls.items():
                named_error = error_elsewhere(named_error, local_path, url)
            raise named_error from None

    def _fetch(
        self,
        name: str,
    ) -> None:
        """Fetch a file of the set, unless it has gone since it was listed."""
        local_file = self.folder / name
        try:
            self._remote.fetch(name, local_file)
        except ObjectError as error:
            if not error.is_missing:
                raise
            return
        self._digests[name] = file_digest(local_file)

    def _deliver(
        self,
        name: str,
    ) -> None:
        local_file = self.folder / name
        digest = file_digest(local_file)
        stored_digest = self._digests.get(name)
        if stored_digest is None and self._remote.create(name, local_file):
            return
        if stored_digest is None:
            # Another run was faster.
            with self._files.on_disk([name]) as folder:
                stored_digest = file_digest(folder / name)
        elif stored_digest != digest and not name.startswith(f"{PAIRS_FOLDER}/"):
            # Damaged rows, or some that were skipped.
            self._remote.replace(name, local_file)
            return
        if stored_digest != digest:
            raise StoreError(
                f"{self._files}/{name} is there with other contents than this run makes; delete it "
                "and run the command again, or pass another --out",
                path=self._files.path / name,
                name=name,
            )

    @property
    def _remote(self) -> RemoteFolder | HubFolder:
        assert self._files.remote is not None, "of a set on this machine, nothing is copied"
        return self._files.remote


@contextmanager
def open_workplace(location: Path) -> Iterator[Workplace]:
    """Open the workplace of a set; copies are dropped at the end.

    Args:
        location: Path or URL of the folder of the set.
    """
    with scratch_folder() as scratch:
        workplace = Workplace(location, scratch)
        with workplace.errors_named():
            yield workplace


def _files_of_tar(
    tar_name: str,
    teacher_names: Sequence[str],
) -> list[str]:
    """Return the names of a tar's files, its pairs last."""
    folders = [*map(file_name, teacher_names), PAIRS_FOLDER]
    return [f"{folder}/{tar_name}.h5" for folder in folders]
