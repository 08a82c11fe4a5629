"""Copies of the files of a tar set on this machine, verified when they arrive."""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cusa.data.errors import CusaError, ObjectError, SettingError, StoreError
from cusa.data.files import scratch_folder
from cusa.data.objects.folder import Folder, folder_at, is_remote, location_text
from cusa.data.store.checksum import SHARD_FORMAT
from cusa.data.store.schema import file_name
from cusa.data.tars.cache_entry import CacheEntry, remove_unused
from cusa.data.tars.cached_files import CachedFiles
from cusa.data.tars.open_tar import require_unchanged, unreadable_tar
from cusa.data.tars.pair_files import PAIRS_FORMAT, read_tar_sha256, require_intact
from cusa.data.tars.samples import TarError
from cusa.data.tars.set_files import PAIRS_FOLDER, error_elsewhere
from cusa.data.tars.tar_set import TarSet

_DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class _CachedFile:
    """A file of a tar, and its copy.

    Attributes:
        folder: The folder that it is in.
        name: Its name there.
        copy: The path of its copy.
        verify: Raises a :class:`CusaError` if a path is not that of the file that the set names.
    """

    folder: Folder
    name: str
    copy: Path
    verify: Callable[[Path], None]

    def has_copy(self) -> bool:
        """Return whether there is a copy, all bytes of it verified."""
        try:
            self.verify(self.copy)
        except (StoreError, TarError):
            return False
        return True


class TarCache:
    """Brings copies of tars and of their pairs and rows to this machine, verified on arrival.

    Several processes may share a folder: one of them fetches a tar, those that need it meanwhile
    wait. Copies that no process uses stay as long as there is room. Object stores are asked from
    here alone; worker processes read the copies.

    Args:
        tar_set: The set.
        folder: The folder of the copies; ``None``: one of this process, which is dropped at the
            end.
        n_bytes_kept: How many bytes of copies stay, unless more are in use.
        teachers: Names of the teachers whose rows are needed.
        needs_images: Whether the tars themselves are needed.

    Attributes:
        files: Where the copies are.
        n_threads: How many tars are worth fetching at a time.

    Raises:
        SettingError: If the folder cannot be made.
        StoreError: If it is not known where the tars are.
    """

    # One connection seldom gives all that an object store has to give.
    n_threads = 4

    def __init__(
        self,
        tar_set: TarSet,
        folder: Path | None,
        n_bytes_kept: int,
        teachers: Sequence[str],
        needs_images: bool,
    ) -> None:
        self._tar_set = tar_set
        self._n_bytes_kept = n_bytes_kept
        self._teachers = teachers
        self._entries: dict[str, CacheEntry] = {}
        self._set_folder = folder_at(tar_set.path)
        self._tars_folder: Folder | None = None
        if needs_images:
            first_tar = tar_set.tar_path(tar_set.manifest.names[0])
            self._tars_folder = folder_at(location_text(first_tar.parent))
        cleanup = contextlib.ExitStack()
        if folder is None:
            folder = cleanup.enter_context(scratch_folder())
        else:
            _make_folder(folder)
        # Also where the process ends without close().
        self._finalizer = weakref.finalize(self, cleanup.close)
        self.files = CachedFiles(tar_set, folder)

    def bring(
        self,
        tar: str,
    ) -> None:
        """Make sure that there are copies of a tar's files, and keep them until :meth:`drop`.

        Raises:
            StoreError: If a file is damaged or another one, or the disk is full.
            TarError: If the tar is missing or has changed.
            ObjectError: If an object store does not give a file.
        """
        try:
            self._entries[tar] = self._filled_entry(tar)
        except OSError as error:
            raise StoreError(
                f"tar {tar} and its files cannot be copied to {self.files.path} "
                f"({error.strerror}); check the disks",
                path=self.files.path,
                name=tar,
            ) from None

    def _filled_entry(
        self,
        tar: str,
    ) -> CacheEntry:
        entry = CacheEntry(self.files.entry_path(tar))
        try:
            missing_files = [file for file in self._files_of(tar) if not file.has_copy()]
            if missing_files:
                self._fetch(entry, missing_files, tar)
        except BaseException:
            entry.release()
            raise
        return entry

    def drop(
        self,
        tar: str,
    ) -> None:
        """Let the copies of a tar's files go when there is no room."""
        entry = self._entries.pop(tar, None)
        if entry is not None:
            entry.release()

    def close(self) -> None:
        """Drop the copies for which there is no room, or a temporary folder."""
        for tar in list(self._entries):
            self.drop(tar)
        if self.files.path.is_dir():
            remove_unused(self.files.path, self._n_bytes_kept)
        self._finalizer()

    def _files_of(
        self,
        tar: str,
    ) -> Iterator[_CachedFile]:
        """Yield the files of a tar that are needed, its pairs first."""
        files = self.files
        yield _CachedFile(
            folder=self._set_folder,
            name=f"{PAIRS_FOLDER}/{tar}.h5",
            copy=files.pairs_path(tar),
            verify=self._verifier(PAIRS_FORMAT, files.pairs_seal(tar)),
        )
        for teacher in self._teachers:
            yield _CachedFile(
                folder=self._set_folder,
                name=f"{file_name(teacher)}/{tar}.h5",
                copy=files.rows_path(teacher, tar),
                verify=self._verifier(SHARD_FORMAT, files.rows_seal(teacher, tar)),
            )
        if self._tars_folder is not None:
            yield _CachedFile(
                folder=self._tars_folder,
                name=files.tar_path(tar).name,
                copy=files.tar_path(tar),
                verify=partial(self._verify_tar, tar=tar),
            )

    def _verifier(
        self,
        file_format: str,
        seal: str,
    ) -> Callable[[Path], None]:
        """Return what verifies a file of pairs or rows."""
        return partial(
            require_intact,
            file_format=file_format,
            expected_seal=seal,
            set_location=str(self._tar_set.files),
        )

    def _verify_tar(
        self,
        path: Path,
        tar: str,
    ) -> None:
        tar_sha256 = read_tar_sha256(self.files.pairs_path(tar), self.files.pairs_seal(tar))
        require_unchanged(path, self.files.tar_bytes(tar), tar_sha256)

    def _fetch(
        self,
        entry: CacheEntry,
        missing_files: Sequence[_CachedFile],
        tar: str,
    ) -> None:
        """Fetch files; where the disk is full, without the copies that no process uses."""
        problem: str | None = None
        for n_bytes_kept in (self._n_bytes_kept - self._tar_set.tar_bytes(tar), 0):
            remove_unused(self.files.path, n_bytes_kept)
            try:
                _fetch_whole(entry, missing_files, tar)
            except OSError as error:
                if error.errno not in _DISK_FULL_ERRORS:
                    raise
                problem = error.strerror
            else:
                return
        raise StoreError(
            f"the copies of the tars in use do not fit into {self.files.path} ({problem}); make "
            "room, name a folder on a larger disk with --set data.cache=FOLDER, or read fewer tars "
            "at a time with --set data.window=NUMBER",
            path=self.files.path,
            name="data.cache",
        )


def _make_folder(folder: Path) -> None:
    if is_remote(folder):
        raise SettingError(
            f"data.cache is {location_text(folder)}, and copies are kept on this machine; name a "
            "folder of it",
            name="data.cache",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(
            f"the folder {folder} for copies of tars cannot be made ({error.strerror}); name "
            "another one with --set data.cache=FOLDER",
            name="data.cache",
        ) from None


def _fetch_whole(
    entry: CacheEntry,
    missing_files: Sequence[_CachedFile],
    tar: str,
) -> None:
    """Fetch files, verify each, and only then give it its name, unless another process did."""
    with entry.filling() as arriving:
        for file in missing_files:
            if file.has_copy():
                continue
            arrived = arriving / file.copy.name
            _arrive(file, arrived, tar)
            file.copy.parent.mkdir(exist_ok=True)
            os.replace(arrived, file.copy)


def _arrive(
    file: _CachedFile,
    arrived: Path,
    tar: str,
) -> None:
    """Fetch a file to a path, and verify it."""
    location = f"{file.folder}/{file.name}"
    # Else it is a file of pairs or rows.
    is_tar = file.copy.suffix != ".h5"
    try:
        file.folder.fetch(file.name, arrived)
        file.verify(arrived)
    except ObjectError as error:
        if not (is_tar and error.is_missing):
            raise
        message = f"{error}; if the tars were moved, pass their folder as --image-root"
        raise TarError(message, path=Path(location), name=tar) from None
    except FileNotFoundError as error:
        if is_tar:
            raise unreadable_tar(Path(location), error) from None
        raise StoreError(
            f"{location} is missing; run the cusa-precompute command again to make it",
            path=Path(location),
            name=tar,
        ) from None
    except CusaError as error:
        raise error_elsewhere(error, arrived, location) from None
