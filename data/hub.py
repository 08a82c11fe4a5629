"""Models of the Hugging Face hub: in the local cache, on the hub, or neither, told in seconds."""

from __future__ import annotations

import threading
from pathlib import Path

from cusa.data.errors import CusaError, first_line

# Files of which a model has one; the first that is cached tells the folder of its snapshot.
_MARKERS = ("config.json", "modules.json")
# Of the one question asked before a model is loaded. The libraries ask many, each with retries,
# which takes a machine without a network up to a minute.
_TIMEOUT_S = 5.0


def is_hub_name(source: str) -> bool:
    """Whether a text can be the name of a model on the hub, ``owner/model``."""
    is_path = source.startswith((".", "/", "~")) or source.endswith("/")
    return source.count("/") == 1 and "=" not in source and not is_path


def locate(source: str, error_class: type[CusaError]) -> str:
    """Where a model's files can be had without waiting for a network that is not there.

    Args:
        source: A folder, or the name of a model on the hub.
        error_class: Class of the error.

    Returns:
        The folder itself; the folder of the model's snapshot in the local cache, where
        ``HF_HUB_OFFLINE`` is set or the hub does not answer; or the name, to be loaded from the
        hub.

    Raises:
        CusaError: Of ``error_class``, if it can be had neither from the cache nor from the hub.
    """
    if Path(source).is_dir():
        return source
    from huggingface_hub import constants

    problem = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable(source)
    if problem is None:
        return source
    snapshot = cached_snapshot(source)
    if snapshot is not None:
        return str(snapshot)
    message = (
        f"{source!r} is not in the local cache ({constants.HF_HUB_CACHE}) and cannot be downloaded "
        f"({problem}); where there is a network: hf download {source} --local-dir FOLDER; then "
        "pass FOLDER"
    )
    raise error_class(message, name=source)


def require(source: str, error_class: type[CusaError]) -> None:
    """Make sure that a model of the hub can be had, before libraries are loaded for seconds.

    Args:
        source: The name of a model on the hub; other texts, and folders, are passed over.
        error_class: Class of the error.

    Raises:
        CusaError: As :func:`locate`.
    """
    if is_hub_name(source) and not Path(source).exists():
        locate(source, error_class)


def cached_snapshot(name: str) -> Path | None:
    """The folder of a model's main revision in the local cache, ``None`` if there is none."""
    from huggingface_hub import try_to_load_from_cache

    for marker in _MARKERS:
        file = try_to_load_from_cache(name, marker)
        if isinstance(file, str):
            return Path(file).parent
    return None


def _unreachable(name: str) -> str | None:
    """Why a model cannot be had from the hub, ``None`` if it can."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(name, _MARKERS[0]), timeout=_TIMEOUT_S)
        except EntryNotFoundError:
            answers.append(None)  # the model is there, without this file
        except Exception as error:  # of the HTTP library, of which there are several
            answers.append(first_line(error))
        else:
            answers.append(None)

    # In a thread: the time that the system takes to look up a host's name has no limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    return answers[0] if answers else f"no answer within {_TIMEOUT_S:g} seconds"


def has_file(source: str, name: str) -> bool:
    """Whether a folder, or a repository on the hub, has a file of this name.

    Raises:
        Exception: Whatever the HTTP library raises.
    """
    if Path(source).is_dir():
        return (Path(source) / name).is_file()
    from huggingface_hub import file_exists

    return bool(file_exists(source, name))
