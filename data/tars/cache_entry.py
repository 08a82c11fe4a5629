"""A folder of a cache: held while it is used, filled by one process, removed by any."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

# Held by all who use the entry, and held alone to remove it.
_USE_LOCK = ".lock"
# Held alone to fill the entry.
_FILL_LOCK = ".filling"
# Files are here until they are verified.
_ARRIVING = "arriving"
# A user's other folders are never taken for entries.
_ENTRY_NAME = re.compile(r"[0-9a-f]{32}")
_REMOVED_SUFFIX = ".removed"


class CacheEntry:
    """A folder of a cache that this process uses, so that no other process removes it.

    Locks (``flock``) end with their process. They are given back explicitly: forked processes
    inherit the descriptors, and with them locks that are merely closed.

    Args:
        folder: The folder; made unless it is there. Its name has 32 hexadecimal digits.

    Raises:
        OSError: If it cannot be made.
    """

    def __init__(
        self,
        folder: Path,
    ) -> None:
        self._folder = folder
        self._lock = _held_lock(folder)

    @contextlib.contextmanager
    def filling(self) -> Iterator[Path]:
        """Keep other processes from filling the entry; wait if one does.

        Yields:
            A new folder for files that are not verified yet, dropped at the end.
        """
        arriving = self._folder / _ARRIVING
        lock = os.open(self._folder / _FILL_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # That of a killed process.
            shutil.rmtree(arriving, ignore_errors=True)
            arriving.mkdir()
            yield arriving
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
            _give_back(lock)

    def release(self) -> None:
        """Let other processes remove the entry, those used longest ago first."""
        with contextlib.suppress(OSError):
            os.utime(self._folder)
        _give_back(self._lock)


def _held_lock(folder: Path) -> int:
    """Return a descriptor that shares the lock of an entry's use."""
    while True:
        # Another process may remove the folder until it is held, also while mkdir looks for it.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / _USE_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if os.fstat(lock).st_nlink:
                return lock
            _give_back(lock)


def _give_back(lock: int) -> None:
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def remove_unused(
    cache_folder: Path,
    n_bytes_kept: int,
) -> None:
    """Remove entries that no process uses until the cache is small enough, the oldest first.

    Args:
        cache_folder: The folder of the entries.
        n_bytes_kept: How many bytes all entries may have together.
    """
    # What processes left that were killed while they removed an entry.
    for removed_folder in cache_folder.glob(f".*{_REMOVED_SUFFIX}"):
        shutil.rmtree(removed_folder, ignore_errors=True)
    times_and_entries: list[tuple[int, Path]] = []
    for folder in cache_folder.iterdir():
        if _ENTRY_NAME.fullmatch(folder.name):
            with contextlib.suppress(FileNotFoundError):
                times_and_entries.append((folder.stat().st_mtime_ns, folder))
    sizes = {folder: _n_bytes(folder) for _, folder in sorted(times_and_entries)}
    n_bytes = sum(sizes.values())
    for folder, n_bytes_of_entry in sizes.items():
        if n_bytes <= n_bytes_kept:
            return
        if _remove_if_unused(folder):
            n_bytes -= n_bytes_of_entry


def _n_bytes(folder: Path) -> int:
    n_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                n_bytes += os.stat(os.path.join(parent, name)).st_size
    return n_bytes


def _remove_if_unused(folder: Path) -> bool:
    """Remove an entry unless a process uses it, and return whether it was removed."""
    try:
        lock = os.open(folder / _USE_LOCK, os.O_RDWR)
    except (FileNotFoundError, PermissionError):
        # Removed by another process, or another user's.
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # At once, as others may make a new one of that name.
        removed_folder = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_REMOVED_SUFFIX}")
        folder.rename(removed_folder)
        shutil.rmtree(removed_folder, ignore_errors=True)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return False
    finally:
        _give_back(lock)
    return True
