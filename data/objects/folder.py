"""Locations of folders: paths of this machine, and URLs of object stores."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cusa.data.errors import ObjectError
from cusa.data.files import atomic_file

if TYPE_CHECKING:
    from cusa.data.objects.hub_folder import HubFolder
    from cusa.data.objects.remote import RemoteFolder

# pathlib writes s3://bucket as s3:/bucket, and s3:// as s3:.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?:/{1,2}([^/]*)/*(.*))?", re.DOTALL)
_HUB = "hf"
_STORES = ("s3", "gs", "az")


class Folder(Protocol):
    """A folder whose files are brought to this machine."""

    def fetch(
        self,
        object_name: str,
        target: Path,
    ) -> None:
        """Write a file of the folder to a path of this machine, whole or not at all.

        Raises:
            ObjectError: If an object store does not give it.
            OSError: If this machine does not give it, or the target cannot be written.
        """


class LocalFolder:
    """A folder of this machine, such as one on a disk in the network.

    Args:
        path: The folder.
    """

    def __init__(
        self,
        path: Path,
    ) -> None:
        self._path = path

    def __str__(self) -> str:
        """Return the path."""
        return str(self._path)

    def fetch(
        self,
        object_name: str,
        target: Path,
    ) -> None:
        """Copy a file, whole or not at all.

        Raises:
            OSError: If it cannot be read, or the target cannot be written.
        """
        with atomic_file(target) as temporary:
            shutil.copyfile(self._path / object_name, temporary)


def is_remote(location: str | Path) -> bool:
    """Return whether a location is a URL of an object store."""
    return _split_url(location) is not None


def location_text(location: str | Path) -> str:
    """Return a location as users write it, also if pathlib has dropped a slash of its URL."""
    url = _split_url(location)
    if url is None:
        return os.fspath(location)
    return _join_url(*url)


def absolute_location(location: str | Path) -> str:
    """Return a URL as users write it, or the absolute path of a path of this machine."""
    if is_remote(location):
        return location_text(location)
    return str(Path(location).absolute())


def split_file(location: str | Path) -> tuple[str, str]:
    """Return the location of the folder of a file, and the file's name."""
    url = _split_url(location)
    if url is None:
        path = Path(location)
        return str(path.parent), path.name
    scheme, bucket, key = url
    prefix, _, name = key.rpartition("/")
    return _join_url(scheme, bucket, prefix), name


def open_folder(location: str | Path) -> RemoteFolder | HubFolder:
    """Open a folder of an object store, or of a data set on the Hugging Face hub.

    Args:
        location: ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX`` or ``az://CONTAINER/PREFIX``; it
            need not exist yet. Credentials and endpoint are those of the environment, by the names
            that obstore documents (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...). Or
            ``hf://datasets/OWNER/NAME/PREFIX``, also ``NAME@REVISION``, which is only read.

    Raises:
        ObjectError: If the URL is not legal, or the extra ``cloud`` is not installed, or the hub
            may not be asked.
    """
    url = _split_url(location)
    if url is None:
        raise _not_a_location(os.fspath(location))
    scheme, bucket, prefix = url
    if scheme == _HUB:
        from cusa.data.objects.hub_folder import HubFolder

        return HubFolder(_join_url(*url))
    from cusa.data.objects.remote import RemoteFolder

    return RemoteFolder(scheme, bucket, prefix, _join_url(*url))


def require_writable(location: str | Path) -> None:
    """Refuse a folder that is only read.

    Raises:
        ObjectError: If it is on the hub.
    """
    url = _split_url(location)
    if url is not None and url[0] == _HUB:
        from cusa.data.objects.hub_folder_errors import read_only_error

        raise read_only_error(_join_url(*url))


def folder_at(location: str | Path) -> Folder:
    """Open a folder of an object store, or one of this machine.

    Raises:
        ObjectError: As of :func:`open_folder`.
    """
    if is_remote(location):
        return open_folder(location)
    return LocalFolder(Path(location))


def _split_url(location: str | Path) -> tuple[str, str, str] | None:
    """Return scheme, bucket and key of a URL; ``None`` for a path of this machine.

    Raises:
        ObjectError: If it is a URL of another kind, or has no bucket.
    """
    text = os.fspath(location)
    url = _URL.fullmatch(text)
    if url is None:
        return None
    scheme, bucket, key = url.groups(default="")
    # hf: alone begins the name of a data set, hf:OWNER/NAME.
    if scheme not in _STORES and "/" not in text:
        return None
    if scheme not in (*_STORES, _HUB) or not bucket:
        raise _not_a_location(text)
    return scheme, bucket, key.rstrip("/")


def _not_a_location(text: str) -> ObjectError:
    return ObjectError(
        f"{text!r} is not a folder of an object store; legal: s3://BUCKET/PREFIX, "
        "gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, hf://datasets/OWNER/NAME/PREFIX, or a path of "
        "this machine",
        location=text,
    )


def _join_url(
    scheme: str,
    bucket: str,
    prefix: str,
) -> str:
    return f"{scheme}://{bucket}/{prefix}".rstrip("/")
