"""Files that appear whole or not at all, and the lock that keeps two runs off one store."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from cusa.data.errors import LockedError

# (offset, length); length 0 is "to the end, wherever that is".
_WHOLE_FILE = [(0, 0)]
# Folder of a process's files that nobody needs after it, and the file in it that is locked.
_SCRATCH_PREFIX = "cusa-scratch-"
_SCRATCH_LOCK = ".lock"
_UNSUPPORTED_ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LOCKED_ERRORS = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    The file is flushed to disk before it is renamed. A killed process leaves its temporary file
    behind; :func:`sweep` removes it. As long as the process lives, it holds a lock (``flock``) on
    the file, for :func:`sweep_dead`.
    """
    is_new_folder = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _create_temporary(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
        if is_new_folder:
            # The new folder's own name must outlive a power cut, too.
            _flush_folder(path.parent.parent)
    except OSError as error:
        # When the disk is full, the system does not say for which file.
        if error.errno == errno.ENOSPC:
            error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


def _create_temporary(path: Path) -> tuple[Path, int]:
    """Create a temporary file beside a path, and return it with the descriptor of its lock."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _try_lock(lock)
        if os.fstat(lock).st_nlink:
            return temporary, lock
        # Another process swept the file before it was locked.
        os.close(lock)


def _try_lock(descriptor: int) -> bool | None:
    """Lock a file; ``False`` if another process holds it, ``None`` if locks are not supported."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED_ERRORS:
            return None
        if error.errno in _LOCKED_ERRORS:
            return False
        raise
    return True


def sweep_dead(folders: Sequence[Path]) -> None:
    """Remove the temporary files in folders that killed processes left there.

    Those of running processes stay, also those of other runs.
    """
    for folder in folders:
        for temporary in folder.glob(".*.tmp"):
            _remove_dead(temporary)


def sweep(
    paths: Sequence[Path],
    shared_paths: Sequence[Path] = (),
) -> None:
    """Remove the temporary files that killed processes left when they wrote these paths.

    Args:
        paths: Hold the folder's lock: a running process has such files, too.
        shared_paths: Paths that runs with other locks write, too; their files stay.
    """
    for folder in {path.parent for path in (*paths, *shared_paths)}:
        for temporary in folder.glob(".*.tmp"):
            # .NAME.RANDOM.tmp, as atomic_file names it
            final_path = folder / temporary.name.removeprefix(".").rsplit(".", 2)[0]
            if final_path in paths:
                temporary.unlink(missing_ok=True)
            elif final_path in shared_paths:
                _remove_dead(temporary)


def _remove_dead(temporary: Path) -> None:
    """Remove a temporary file unless the process that writes it is running."""
    with contextlib.suppress(FileNotFoundError):
        lock = os.open(temporary, os.O_RDWR)
        if _try_lock(lock):
            temporary.unlink(missing_ok=True)
        os.close(lock)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder for files that are dropped at the end, in the system's (``TMPDIR``).

    Those that killed processes left behind are removed.
    """
    _sweep_scratch_folders()
    folder, lock = _create_scratch_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _create_scratch_folder() -> tuple[Path, int]:
    """Create a scratch folder, and return it with the descriptor of its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX))
        lock = os.open(folder / _SCRATCH_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        _try_lock(lock)
        if os.fstat(lock).st_nlink:
            return folder, lock
        # Another process swept the folder before it was locked.
        os.close(lock)


@functools.cache
def _sweep_scratch_folders() -> None:
    """Remove the scratch folders of processes that do not run any more; once in a process."""
    for lock_file in Path(tempfile.gettempdir()).glob(f"{_SCRATCH_PREFIX}*/{_SCRATCH_LOCK}"):
        # Of another user, or swept by another process.
        with contextlib.suppress(PermissionError, FileNotFoundError):
            lock = os.open(lock_file, os.O_RDWR)
            if _try_lock(lock):
                shutil.rmtree(lock_file.parent, ignore_errors=True)
            os.close(lock)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> bytes:
    """Compute the sha256 of a file's bytes.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class FolderLock:
    """A lock that keeps a second run off the files of a first one.

    The folder is a run directory, or a folder of shards. The lock is a record lock (``fcntl``) on
    the folder's file ``.lock``: network file systems support it, and the operating system drops it
    when the process ends. Each shard is represented by one byte, at an offset derived from its
    name, so that jobs with different shards of one store do not exclude each other. The processes
    of one run share the lock: the first takes it alone, then calls :meth:`share`, and the others
    :meth:`join`.

    Args:
        folder: The folder.
        names: The shards to lock; ``None`` for the whole folder.

    Attributes:
        held: False where the file system does not support locks.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None = None) -> None:
        self._ranges = _WHOLE_FILE
        if names is not None:
            self._ranges = [(_offset(name), 1) for name in names]
        self._path = folder / ".lock"
        self._file: TextIO | None = None
        self._took = False
        self.held = True

    def take(self) -> None:
        """Take the lock exclusively.

        Raises:
            LockedError: If another process holds it; says which.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+", encoding="utf-8", errors="replace")
        self._set(fcntl.LOCK_EX)
        self._took = self.held
        if not self.held:
            return
        if self._ranges == _WHOLE_FILE:
            self._file.truncate(0)
        now = time.strftime("%F %T")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
        self._file.flush()

    def share(self) -> None:
        """Let other processes of this run :meth:`join`; other runs stay out."""
        self._set(fcntl.LOCK_SH)

    def join(self) -> None:
        """Hold the lock together with the process that shared it, and after that one ends."""
        self._file = self._path.open("a+", encoding="utf-8", errors="replace")
        self._set(fcntl.LOCK_SH)

    def release(self) -> None:
        """Give the lock back."""
        if self._file is None:
            return
        if self._took and self._ranges == _WHOLE_FILE:
            self._file.truncate(0)
        self._file.close()

    def __enter__(self) -> FolderLock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _set(self, kind: int) -> None:
        """Take a lock of a kind, ``fcntl.LOCK_EX`` or ``fcntl.LOCK_SH``, without waiting."""
        assert self._file is not None
        try:
            for offset, length in self._ranges:
                fcntl.lockf(self._file, kind | fcntl.LOCK_NB, length, offset)
        except OSError as error:
            if error.errno in _UNSUPPORTED_ERRORS:
                self.held = False
                return
            if error.errno not in _LOCKED_ERRORS:
                raise
            self._file.seek(0)
            owners = self._file.read().splitlines() or ["unknown process"]
            # This also gives back the ranges that were free.
            self.release()
            raise LockedError(
                f"another run is working on {self._path.parent} ({owners[-1]}); "
                "wait for it, stop it, or name another folder",
                path=self._path.parent,
                name=owners[-1],
            ) from None


def _offset(name: str) -> int:
    """Derive the offset of a shard's byte from its name: 56 bits, legal on every file system."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:7], "big")
