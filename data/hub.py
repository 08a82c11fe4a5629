"""Where a Hugging Face model is: in the local cache, on the hub or neither, found in seconds."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from cusa.data.errors import CusaError, first_line

Answer = TypeVar("Answer")
# A model or a trained student has one of these files; a cached one shows where its snapshot is.
_MARKERS = (
    "config.json",
    "modules.json",
    "heads.safetensors",
    "student.safetensors",
    "best/student.safetensors",
)
# Timeout of the single request made before a model is loaded. The libraries make many, each with
# retries, which takes up to a minute on a machine without a network.
_TIMEOUT_S = 5.0
# The hub's rule for names, checked here for the sake of our own message: letters, digits, "-", "_"
# and "."; no "-" or "." at either end; neither "--" nor "..".
_NAME = re.compile(r"(?:\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)


def is_hub_name(source: str) -> bool:
    """Return whether a text could be the name of a model on the hub, ``owner/model``."""
    return "/" in source and _is_legal_name(source)


def is_remote(source: str) -> bool:
    """Return whether a text is the name of a model on the hub, and nothing on this machine.

    A name in a folder that exists is taken for a mistyped path.
    """
    return is_hub_name(source) and not os.path.exists(source) and not Path(source).parent.is_dir()


def _is_legal_name(source: str) -> bool:
    """Return whether the hub would accept a name; those of old models have no owner."""
    if _NAME.fullmatch(source) is None or source.endswith(".git"):
        return False
    return "--" not in source and ".." not in source


def locate(source: str, error_class: type[CusaError]) -> str:
    """Find a model's files, without waiting long for a network that is down.

    Args:
        source: A folder, or the name of a model on the hub.
        error_class: Class of the error to raise.

    Returns:
        For a folder, the folder itself. For a name: the name, to be loaded from the hub; or, if
        ``HF_HUB_OFFLINE`` is set or the hub does not answer, the folder of the model's snapshot in
        the local cache.

    Raises:
        CusaError: An ``error_class``, if the model is neither in the cache nor on the hub, or the
            name is not legal.
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
    """Check that a model of the hub is available, before slow libraries are imported.

    Args:
        source: The name of a model on the hub; anything else, such as a folder, is ignored.
        error_class: Class of the error to raise.

    Raises:
        CusaError: As :func:`locate` raises it.
    """
    if is_hub_name(source) and not os.path.exists(source):
        locate(source, error_class)


def cached_snapshot(model_name: str) -> Path | None:
    """Return the folder of a model's main revision in the local cache, or ``None``."""
    from huggingface_hub import try_to_load_from_cache

    for marker in _MARKERS:
        file = try_to_load_from_cache(model_name, marker)
        if isinstance(file, str):
            return Path(file).parents[marker.count("/")]
    return None


def _hub_problem(model_name: str) -> str | None:
    """Describe why a model cannot be loaded from the hub; ``None`` if it can."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    url = hf_hub_url(model_name, _MARKERS[0])
    try:
        # The model may exist without this file.
        with suppress(EntryNotFoundError):
            ask_hub(lambda: get_hf_file_metadata(url, timeout=_TIMEOUT_S))
    except Exception as error:  # huggingface_hub may use any of several HTTP libraries
        return first_line(error)
    return None


def ask_hub(question: Callable[[], Answer]) -> Answer:
    """Return the hub's answer to a small question, or fail within seconds.

    Args:
        question: Asks the hub through ``huggingface_hub``, and returns the answer.

    Raises:
        TimeoutError: If there is no answer within 5 seconds.
        Exception: Whatever ``question`` raises.
    """
    answers: list[Answer] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:  # huggingface_hub may use any of several HTTP libraries
            errors.append(error)

    # In a thread, since a timeout does not cover the lookup of the host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {_TIMEOUT_S:g} seconds")
    return answers[0]


def has_file(source: str, name: str) -> bool:
    """Return whether a folder, or a repository on the hub, has a file with this name.

    Raises:
        Exception: Whatever the HTTP library raises for a repository on the hub.
    """
    if os.path.isdir(source):  # Path.is_dir raises on names that are too long
        return (Path(source) / name).is_file()
    from huggingface_hub import file_exists

    return bool(file_exists(source, name))


def load_advice(source: str, option: str) -> str:
    """Return what the user should do about a model that does not load.

    Args:
        source: Its folder or hub name.
        option: How to give its folder instead, such as ``"--teacher NAME=FOLDER"``.
    """
    if Path(source).exists():
        return "repair the files in its folder, or download them again"
    download = f"hf download {source} --local-dir FOLDER where there is a network"
    return f"pass its folder: {option} ({download})"
