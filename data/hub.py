"""Models of the Hugging Face hub: in the local cache, on the hub, or neither, known in seconds."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path

from cusa.data.errors import CusaError, first_line

# Files of which a model has one; the first that is cached tells the folder of its snapshot.
_MARKERS = ("config.json", "modules.json")
# Of the one question asked before a model is loaded. The libraries ask many, each with retries,
# which takes a machine without a network up to a minute.
_TIMEOUT_S = 5.0
# The hub's own rule, which its library checks with an exception of its own: letters, digits and
# "-", "_", "."; none of "-" and "." at either end; neither "--" nor "..".
_NAME = re.compile(r"(?:\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)


def is_hub_name(source: str) -> bool:
    """Return whether a text can be the name of a model on the hub, ``owner/model``."""
    return "/" in source and _is_legal_name(source)


def _is_legal_name(source: str) -> bool:
    """Return whether the hub takes a text as a name; old models have no owner in theirs."""
    if _NAME.fullmatch(source) is None or source.endswith(".git"):
        return False
    return "--" not in source and ".." not in source


def locate(source: str, error_class: type[CusaError]) -> str:
    """Find a model's files, without waiting for a network that is not there.

    Args:
        source: A folder, or the name of a model on the hub.
        error_class: Class of the error.

    Returns:
        The folder itself; the folder of the model's snapshot in the local cache, where
        ``HF_HUB_OFFLINE`` is set or the hub does not answer; or the name, to be loaded from the
        hub.

    Raises:
        CusaError: Of ``error_class``, if it can be had neither from the cache nor from the hub, or
            cannot be the name of a model.
    """
    if os.path.isdir(source):  # Path.is_dir raises on names that are too long
        return source
    if not _is_legal_name(source):
        message = (
            f"{source!r} is neither a folder nor the name of a model on the hub; legal: "
            "owner/model of letters, digits, - _ and ., or the path of a folder"
        )
        raise error_class(message, name=source)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        problem: str | None = "HF_HUB_OFFLINE is set"
    else:
        problem = _hub_problem(source)
    if problem is None:
        return source
    snapshot = cached_snapshot(source)
    if snapshot is not None:
        return str(snapshot)
    raise error_class(
        f"{source!r} is not in the local cache ({constants.HF_HUB_CACHE}) and cannot be downloaded "
        f"({problem}); where there is a network: hf download {source} --local-dir FOLDER; then "
        "pass FOLDER",
        name=source,
    )


def require(source: str, error_class: type[CusaError]) -> None:
    """Make sure that a model of the hub can be had, before libraries are loaded for seconds.

    Args:
        source: The name of a model on the hub; other texts, and folders, are passed over.
        error_class: Class of the error.

    Raises:
        CusaError: As :func:`locate`.
    """
    if is_hub_name(source) and not os.path.exists(source):
        locate(source, error_class)


def cached_snapshot(model_name: str) -> Path | None:
    """Return the folder of a model's main revision in the local cache, if there is one."""
    from huggingface_hub import try_to_load_from_cache

    for marker in _MARKERS:
        file = try_to_load_from_cache(model_name, marker)
        if isinstance(file, str):
            return Path(file).parent
    return None


def _hub_problem(model_name: str) -> str | None:
    """Describe why a model cannot be had from the hub, ``None`` if it can."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    answers: list[str | None] = []

    def ask() -> None:
        try:
            # A model that is there may lack this file.
            with suppress(EntryNotFoundError):
                get_hf_file_metadata(hf_hub_url(model_name, _MARKERS[0]), timeout=_TIMEOUT_S)
            answers.append(None)
        except Exception as error:  # of the HTTP library, of which there are several
            answers.append(first_line(error))

    # In a thread: the time that the system takes to look up a host's name has no limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    if not answers:
        return f"no answer within {_TIMEOUT_S:g} seconds"
    return answers[0]


def has_file(source: str, name: str) -> bool:
    """Return whether a folder, or a repository on the hub, has a file of this name.

    Raises:
        Exception: Whatever the HTTP library raises.
    """
    if os.path.isdir(source):  # Path.is_dir raises on names that are too long
        return (Path(source) / name).is_file()
    from huggingface_hub import file_exists

    return bool(file_exists(source, name))
