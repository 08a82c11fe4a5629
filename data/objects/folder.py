"""Folders whose files are fetched and created whole, on this machine or in an object store."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cusa.data.errors import ObjectError
from cusa.data.files import atomic_file

# pathlib writes s3://bucket as s3:/bucket.
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}([^/]*)/*(.*)", re.DOTALL)
_SCHEMES = ("s3", "gs", "az")
_MISSING = 404


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing says about a file.

    Attributes:
        name: Its path relative to the folder, with ``/``.
        n_bytes: Its length.
    """

    name: str
    n_bytes: int


class Folder(Protocol):
    """A folder; ``str()`` of it is its location.

    A file is there whole or not at all. Every method raises :class:`ObjectError` if it fails, after
    a bounded number of retries.
    """

    def fetch(
        self,
        file_name: str,
        target: Path,
    ) -> None:
        """Copy a whole file to a path of this machine, atomically, with one request."""
        ...

    def create(
        self,
        file_name: str,
        source: Path,
    ) -> bool:
        """Create a file with the contents of a file of this machine, with one request.

        Returns:
            Whether it was created; False if there is such a file, which then stays as it is.
        """
        ...

    def replace(
        self,
        file_name: str,
        source: Path,
    ) -> None:
        """Create a file, or replace it, as :meth:`create` does."""
        ...

    def list(
        self,
        prefix: str = "",
    ) -> Iterator[ObjectInfo]:
        """Yield the files of the subfolder ``prefix``, and of its subfolders; none if missing."""
        ...


def is_remote(location: str | Path) -> bool:
    """Return whether a location is a URL of an object store."""
    return _split_url(location) is not None


def location_text(location: str | Path) -> str:
    """Return a location as users write it, also if pathlib has dropped a slash of its URL."""
    url = _split_url(location)
    if url is None:
        return os.fspath(location)
    return _join_url(*url)


def split_file(location: str | Path) -> tuple[str, str]:
    """Return the location of the folder of a file, and the file's name."""
    url = _split_url(location)
    if url is None:
        path = Path(location)
        return str(path.parent), path.name
    scheme, bucket, key = url
    prefix, _, name = key.rpartition("/")
    return _join_url(scheme, bucket, prefix), name


def open_folder(location: str | Path) -> Folder:
    """Open a folder.

    Args:
        location: Path of a folder, which need not exist yet; or ``s3://BUCKET/PREFIX``,
            ``gs://BUCKET/PREFIX`` or ``az://CONTAINER/PREFIX``. Credentials and endpoint are those
            of the environment, by the names that obstore documents (``AWS_ACCESS_KEY_ID``,
            ``AWS_ENDPOINT_URL``, ...).

    Raises:
        ObjectError: If the URL is not legal, or the extra ``cloud`` is not installed.
    """
    url = _split_url(location)
    if url is None:
        return LocalFolder(Path(location))
    from cusa.data.objects.remote import RemoteFolder

    scheme, bucket, prefix = url
    return RemoteFolder(scheme, bucket, prefix, _join_url(scheme, bucket, prefix))


def _split_url(location: str | Path) -> tuple[str, str, str] | None:
    """Return scheme, bucket and key of a URL; ``None`` for a path of this machine.

    Raises:
        ObjectError: If it is a URL of another kind, or has no bucket.
    """
    text = os.fspath(location)
    url = _URL.fullmatch(text)
    if url is None:
        return None
    scheme, bucket, key = url.groups()
    if scheme not in _SCHEMES and "://" not in text:
        return None
    if scheme not in _SCHEMES or not bucket:
        raise ObjectError(
            f"{text!r} is not a folder of an object store; legal: s3://BUCKET/PREFIX, "
            "gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, or a path of this machine",
            location=text,
        )
    return scheme, bucket, key.rstrip("/")


def _join_url(
    scheme: str,
    bucket: str,
    prefix: str,
) -> str:
    return f"{scheme}://{bucket}/{prefix}".rstrip("/")


class LocalFolder:
    """A folder of this machine, or of a file system that it mounts.

    Args:
        path: Path of the folder, which need not exist yet.

    Attributes:
        path: As given.
    """

    def __init__(
        self,
        path: Path,
    ) -> None:
        self.path = path

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def fetch(
        self,
        file_name: str,
        target: Path,
    ) -> None:
        """Copy a file, atomically.

        Raises:
            ObjectError: If it is missing or cannot be read.
        """
        source = self.path / file_name
        try:
            file = source.open("rb")
        except OSError as error:
            status = None
            if isinstance(error, FileNotFoundError):
                status = _MISSING
            raise ObjectError(
                f"{source} cannot be read ({error.strerror}); check the path",
                location=str(self),
                name=file_name,
                status=status,
            ) from None
        with file, atomic_file(target) as temporary, temporary.open("wb") as copy:
            shutil.copyfileobj(file, copy)

    def create(
        self,
        file_name: str,
        source: Path,
    ) -> bool:
        """Create a file by a temporary one that is renamed; False if there is such a file.

        If two processes create it at a time, the later one's stays.
        """
        if (self.path / file_name).exists():
            return False
        self.replace(file_name, source)
        return True

    def replace(
        self,
        file_name: str,
        source: Path,
    ) -> None:
        """Create or replace a file by a temporary one that is renamed."""
        with atomic_file(self.path / file_name) as temporary:
            shutil.copyfile(source, temporary)

    def list(
        self,
        prefix: str = "",
    ) -> Iterator[ObjectInfo]:
        """Yield the files of a subfolder and its subfolders, but for hidden ones."""
        for folder, subfolders, names in os.walk(self.path / prefix):
            subfolders[:] = [subfolder for subfolder in subfolders if not subfolder.startswith(".")]
            for name in names:
                path = Path(folder, name)
                if not name.startswith("."):
                    relative_path = path.relative_to(self.path)
                    yield ObjectInfo(relative_path.as_posix(), path.stat().st_size)
