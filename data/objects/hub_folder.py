"""Folders of data sets on the Hugging Face hub, which are read and never written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from cusa.data.errors import ObjectError
from cusa.data.hub_errors import hub_library_errors, is_of_local_file
from cusa.data.objects.hub_folder_errors import (
    may_succeed_later,
    not_a_hub_folder,
    object_error,
    read_only_error,
)
from cusa.data.objects.remote import ObjectInfo, refuse_forked_process

_KIND = "dataset"
# Between tries, beyond those of huggingface_hub, which waits and asks again when a connection
# breaks, but not when a server fails in the middle of a download.
_WAITS_S = (0.5, 2.0, 8.0, 8.0)


class HubFolder:
    """A folder of a data set on the hub, through huggingface_hub; its cache is not used.

    Token and endpoint are those of huggingface_hub: of ``hf auth login``, ``HF_TOKEN`` and
    ``HF_ENDPOINT``. Without a revision in its URL, files are those of the newest commit of main at
    the time when each is fetched.

    Args:
        location: ``hf://datasets/OWNER/NAME[@REVISION][/PREFIX]``, also with a commit, a tag or a
            branch; ``%2F`` stands for a slash in the name of a branch.

    Raises:
        ObjectError: If the URL is not legal, or ``HF_HUB_OFFLINE`` is set.
    """

    def __init__(
        self,
        location: str,
    ) -> None:
        from huggingface_hub import HfApi, constants, parse_hf_uri

        self._location = location
        try:
            url = parse_hf_uri(location)
        except ValueError:  # its HfUriError
            raise not_a_hub_folder(location) from None
        if url.type != _KIND:
            raise not_a_hub_folder(location)
        if constants.HF_HUB_OFFLINE:
            raise ObjectError(
                f"{location} cannot be read, as HF_HUB_OFFLINE is set; unset it, or pass a copy on "
                f"this machine, which hf download {url.id} --repo-type dataset --local-dir FOLDER "
                "makes where there is a network",
                location=location,
                name="HF_HUB_OFFLINE",
            )
        self._api = HfApi()
        self._repository = url.id
        self._revision = url.revision
        self._prefix = url.path_in_repo.strip("/")

    def __str__(self) -> str:
        """Return the URL."""
        return self._location

    def fetch(
        self,
        object_name: str,
        target: Path,
    ) -> None:
        """Download a file; what breaks off is resumed, and its length is checked.

        Raises:
            ObjectError: If it is missing, or the hub does not give it.
            OSError: If the target cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        arrivals = TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
        with self._one_line_errors(object_name), arrivals as folder:
            os.replace(self._download(object_name, folder), target)

    def list(self) -> Iterator[ObjectInfo]:
        """Yield the files of the folder and its subfolders, with one request for each page.

        Raises:
            ObjectError: If the hub does not list them.
        """
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import EntryNotFoundError

        start = ""
        if self._prefix:
            start = f"{self._prefix}/"
        with self._one_line_errors(""), suppress(EntryNotFoundError):  # an empty folder is none
            entries = self._api.list_repo_tree(
                self._repository,
                self._prefix or None,
                recursive=True,
                revision=self._revision,
                repo_type=_KIND,
            )
            for entry in entries:
                if isinstance(entry, RepoFile):
                    yield ObjectInfo(entry.path.removeprefix(start), entry.size)

    def create(
        self,
        object_name: str,
        source: Path,
    ) -> NoReturn:
        """Refuse to create a file.

        Raises:
            ObjectError: Always.
        """
        raise read_only_error(self._location)

    def replace(
        self,
        object_name: str,
        source: Path,
    ) -> NoReturn:
        """Refuse to create or replace a file.

        Raises:
            ObjectError: Always.
        """
        raise read_only_error(self._location)

    def _download(
        self,
        object_name: str,
        folder: str,
    ) -> str:
        """Download a file into a folder, and return its path there."""
        for wait_s in _WAITS_S:
            try:
                return self._download_once(object_name, folder)
            except hub_library_errors() as error:
                if not may_succeed_later(error):
                    raise
            time.sleep(wait_s)
        return self._download_once(object_name, folder)

    def _download_once(
        self,
        object_name: str,
        folder: str,
    ) -> str:
        return self._api.hf_hub_download(
            self._repository,
            "/".join(filter(None, (self._prefix, object_name))),
            repo_type=_KIND,
            revision=self._revision,
            local_dir=folder,
            tqdm_class=_no_progress_bar(),
        )

    @contextmanager
    def _one_line_errors(
        self,
        object_name: str,
    ) -> Iterator[None]:
        """Turn what the hub's libraries raise into an :class:`ObjectError`.

        Errors of this machine's files pass unchanged.
        """
        refuse_forked_process(self._location)
        # The last is of names that are not legal.
        error_classes: tuple[type[Exception], ...] = (*hub_library_errors(), ValueError)
        try:
            yield
        except error_classes as error:
            if is_of_local_file(error) or isinstance(error, ObjectError):
                raise
            raise object_error(error, self._location, object_name) from None


@lru_cache(1)
def _no_progress_bar() -> type:
    """Return a class of progress bars that are not shown, as there may be thousands of files."""
    from huggingface_hub.utils import tqdm

    class HiddenProgressBar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "disable": True})

    return HiddenProgressBar
