"""Trained students on the Hugging Face hub, downloaded to its local cache."""

from __future__ import annotations

from pathlib import Path

from cusa.data.errors import HubError, HubNetworkError, StudentError
from cusa.data.hub import ask_hub, cached_snapshot, is_remote
from cusa.data.hub_errors import one_line_hub_errors
from cusa.train.saving.student_folder import BEST_FOLDER, HEADS_FILE, WEIGHTS_FILE

_STUDENT_FILES = (HEADS_FILE, WEIGHTS_FILE, f"{BEST_FOLDER}/{WEIGHTS_FILE}")
# Of a run that was uploaded as a whole.
_NOT_NEEDED = ["checkpoints/*", "eval/*", "index/*"]


def local_student(path: Path | str) -> Path:
    """Return the folder of a student: the path itself, or its download for a name on the hub.

    Args:
        path: A folder, or ``"owner/model"``.

    Raises:
        StudentError: If the repository holds no student.
        HubError: If the repository cannot be seen, or the hub does not answer and the student is
            not in the local cache.
    """
    name = str(path)
    if not is_remote(name):
        return Path(path)
    try:
        folder = student_on_hub(name)
    except HubError as error:
        raise error.reworded(f"{name} is no folder here, and {error}") from None
    if folder is None:
        raise StudentError(
            f"{name} on the hub holds no student of cusa-train ({', '.join(_STUDENT_FILES)}); pass "
            "one, or load other models by cusa.load_encoder",
            name=name,
        )
    return folder


def student_on_hub(name: str) -> Path | None:
    """Download a student from the hub, unless its newest version is in the local cache.

    Args:
        name: The name of a repository.

    Returns:
        Its folder in the cache; ``None`` if the repository holds no student.

    Raises:
        HubError: As :func:`local_student` raises it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with one_line_hub_errors(name):
            files = ask_hub(lambda: api.list_repo_files(name))
    except HubNetworkError:
        snapshot = cached_snapshot(name)
        if snapshot is None:
            raise
        if not _holds_student(snapshot):
            return None
        return snapshot
    if set(files).isdisjoint(_STUDENT_FILES):
        return None
    with one_line_hub_errors(name):
        return Path(api.snapshot_download(name, ignore_patterns=_NOT_NEEDED))


def _holds_student(folder: Path) -> bool:
    return any((folder / file).is_file() for file in _STUDENT_FILES)
