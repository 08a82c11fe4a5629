"""Folders of an object store, through obstore, which is imported when one is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from cusa.data.errors import ObjectError, first_line
from cusa.data.files import atomic_file
from cusa.data.objects.remote_errors import one_line_error, settings_error

# A tar of a gigabyte takes minutes; a connection without a byte for half a minute is dead.
_CLIENT = {
    # Requests go to https but where the environment names an endpoint of http://.
    "allow_http": True,
    "connect_timeout": "5s",
    "read_timeout": "30s",
    "timeout": "15m",
}
_RETRIES = {
    "max_retries": 4,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=10),
        "base": 2,
    },
}
_STORES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
# Of an endpoint of Azure that is no URL, obstore says so itself.
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": (),
}
# These become parts of a request's head.
_IN_HEADERS = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ),
    "gs": ("GOOGLE_BEARER_TOKEN",),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_TOKEN"),
}
_PRINTABLE = re.compile("[!-~]+")
# The process whose threads obstore's are, once it has some.
_process_of_threads: list[int] = []


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing says about a file.

    Attributes:
        name: Its path relative to the folder, with ``/``.
        n_bytes: Its length.
    """

    name: str
    n_bytes: int


class RemoteFolder:
    """A prefix of a bucket in S3, Google Cloud Storage or Azure, or of what speaks their protocols.

    obstore repeats requests that may succeed later: those answered with 500 or more, and those
    whose connection breaks, of which it fetches the rest. Its threads do not survive a fork: once
    they are used, forked processes are refused.

    Args:
        scheme: ``"s3"``, ``"gs"`` or ``"az"``.
        bucket: Name of the bucket; of Azure, of the container.
        prefix: Prefix of the keys, without a slash at the end.
        location: The URL of these.

    Raises:
        ObjectError: If the extra ``cloud`` is not installed, or the environment lacks settings.
    """

    def __init__(
        self,
        scheme: str,
        bucket: str,
        prefix: str,
        location: str,
    ) -> None:
        self._location = location
        try:
            import obstore
            import obstore.exceptions
            from obstore import store as stores
        except ImportError:
            raise ObjectError(
                f"{location} needs obstore, which is not installed; pip install 'cusa[cloud]', or "
                "pip install obstore",
                location=location,
            ) from None
        _require_legal_settings(scheme, bucket, location)
        self._obstore = obstore
        store_class: Any = getattr(stores, _STORES[scheme])
        with self._one_line_errors(""):
            try:
                self._store = store_class(
                    bucket,
                    prefix=prefix or None,
                    client_options=_CLIENT,
                    retry_config=_RETRIES,
                )
            except (obstore.exceptions.BaseError, ValueError) as error:
                raise settings_error(error, location) from None

    def __str__(self) -> str:
        """Return the URL."""
        return self._location

    def fetch(
        self,
        object_name: str,
        target: Path,
    ) -> None:
        """Fetch an object with one GET, or one more for each broken connection.

        Raises:
            ObjectError: If it is missing, or the store does not give it.
        """
        with self._one_line_errors(object_name):
            answer = self._obstore.get(self._store, object_name)
            with atomic_file(target) as temporary, temporary.open("wb") as file:
                for chunk in answer.stream():
                    file.write(chunk)

    def create(
        self,
        object_name: str,
        source: Path,
    ) -> bool:
        """Create an object with one PUT, which the store refuses if there is such an object.

        A PUT that was carried out, but whose answer was lost, is repeated, and then returns False.

        Raises:
            ObjectError: If the store does not take it.
        """
        from obstore.exceptions import AlreadyExistsError

        try:
            self._put(object_name, source, "create")
        except AlreadyExistsError:
            return False
        return True

    def replace(
        self,
        object_name: str,
        source: Path,
    ) -> None:
        """Create or replace an object with one PUT.

        Raises:
            ObjectError: If the store does not take it.
        """
        self._put(object_name, source, "overwrite")

    def list(self) -> Iterator[ObjectInfo]:
        """Yield the objects of the folder, with a LIST for each page.

        Raises:
            ObjectError: If the store does not list them.
        """
        with self._one_line_errors(""):
            for page in self._obstore.list(self._store):
                for entry in page:
                    yield ObjectInfo(entry["path"], entry["size"])

    def _put(
        self,
        object_name: str,
        source: Path,
        mode: Literal["create", "overwrite"],
    ) -> None:
        # In one request: of a multi-part upload that is killed, parts would stay in the store.
        content = source.read_bytes()
        with self._one_line_errors(object_name):
            self._obstore.put(self._store, object_name, content, mode=mode, use_multipart=False)

    @contextmanager
    def _one_line_errors(
        self,
        object_name: str,
    ) -> Iterator[None]:
        """Turn what obstore raises into an :class:`ObjectError`.

        That there is such an object already, and errors of this machine's files, pass unchanged.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError

        _refuse_forked_process(self._location)
        try:
            yield
        except AlreadyExistsError:
            raise
        except (BaseError, FileNotFoundError, ValueError) as error:
            is_of_local_file = isinstance(error, OSError) and error.errno is not None
            if is_of_local_file or isinstance(error, ObjectError):
                raise
            raise one_line_error(error, self._location, object_name) from None
        except BaseException as error:
            # A fault of obstore's own, whose class cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise ObjectError(
                f"{self._location}: obstore failed ({first_line(error)}); check the settings of "
                "the environment",
                location=self._location,
                name=object_name,
            ) from None


def _refuse_forked_process(location: str) -> None:
    """Refuse a process that was forked from one that used obstore, as it would wait for ever.

    Raises:
        ObjectError: If this process was.
    """
    if not _process_of_threads:
        _process_of_threads.append(os.getpid())
    if _process_of_threads[0] != os.getpid():
        raise ObjectError(
            f"{location}: this process was forked from one that has used an object store, which "
            "obstore does not support; start worker processes by forkserver or spawn, such as "
            "DataLoader(..., multiprocessing_context='forkserver')",
            location=location,
        )


def _require_legal_settings(
    scheme: str,
    bucket: str,
    location: str,
) -> None:
    """Refuse settings that obstore would end on with a traceback of its own.

    Raises:
        ObjectError: If the bucket's name has white space, a key or region of the environment has
            some or is not ASCII, or an endpoint is no URL.
    """
    if not _PRINTABLE.fullmatch(quote(bucket, safe=" ")):
        raise ObjectError(
            f"{location}: {bucket!r} is no name of a bucket; legal are letters, digits, dots and "
            "dashes",
            location=location,
            name=bucket,
        )
    for variable in _IN_HEADERS[scheme]:
        setting = os.environ.get(variable, "")
        if setting and not _PRINTABLE.fullmatch(setting):
            raise ObjectError(
                f"{location}: the environment's {variable} has white space or characters that are "
                "not ASCII, such as a line feed at its end; set it again",
                location=location,
                name=variable,
            )
    for variable in _ENDPOINTS[scheme]:
        endpoint = os.environ.get(variable, "")
        if endpoint and not (_PRINTABLE.fullmatch(endpoint) and _is_url(endpoint)):
            raise ObjectError(
                f"{variable} is {endpoint!r}, which is no URL; pass https://HOST or "
                "http://HOST:PORT",
                location=location,
                name=variable,
            )


def _is_url(endpoint: str) -> bool:
    """Return whether an endpoint is a URL with a host, and a legal port if it has one."""
    try:
        url = urlsplit(endpoint)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False
