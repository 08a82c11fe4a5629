"""Errors of folders on the Hugging Face hub, each as one line."""

from __future__ import annotations

from http import HTTPStatus

from cusa.data.errors import (
    GatedRepositoryError,
    HubRepositoryError,
    HubTokenError,
    ObjectError,
    first_line,
)
from cusa.data.hub_errors import hub_error, root_error


def object_error(
    error: Exception,
    location: str,
    object_name: str,
) -> ObjectError:
    """Return our error for one of the hub's libraries.

    Args:
        error: What they raised.
        location: URL of the folder.
        object_name: The file that was asked for; empty for the folder itself.

    Returns:
        The error; its name is empty if it is about the repository.
    """
    from huggingface_hub import errors

    error = root_error(error)
    address = f"{location}/{object_name}".rstrip("/")
    status = status_of(error)
    if isinstance(error, errors.RemoteEntryNotFoundError):
        message = f"{address}: there is no such file on the hub; check its name, and the revision"
        return ObjectError(message, location=location, name=object_name, status=status)
    if isinstance(error, ValueError):
        message = f"{address}: this is no legal name of a file ({first_line(error)}); rename it"
        return ObjectError(message, location=location, name=object_name)
    fault = hub_error(error, address)
    if isinstance(fault, GatedRepositoryError | HubRepositoryError | HubTokenError):
        fault = hub_error(error, location)
        object_name = ""
    return ObjectError(str(fault), location=location, name=object_name, status=status)


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of the hub's answer; ``None`` if there was none."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return None
    return error.response.status_code


def may_succeed_later(error: Exception) -> bool:
    """Return whether a download is worth another try at once, after those of huggingface_hub.

    It is if the server failed in the middle, or sent another number of bytes than announced.
    """
    status = status_of(error)
    if status is not None:
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR
    # huggingface_hub raises no class of its own for a wrong length.
    return type(error) is OSError and error.errno is None


def not_a_hub_folder(location: str) -> ObjectError:
    """Return the error for a URL that names no folder of a data set on the hub."""
    return ObjectError(
        f"{location!r} is not a folder of a data set on the hub; legal: "
        "hf://datasets/OWNER/NAME/PREFIX, or hf://datasets/OWNER/NAME@REVISION/PREFIX",
        location=location,
    )


def read_only_error(location: str) -> ObjectError:
    """Return the error for a folder on the hub that would be written to."""
    return ObjectError(
        f"{location} is read, not written to; make the set in a folder of this machine, then: "
        "hf upload OWNER/NAME FOLDER FOLDER --repo-type dataset",
        location=location,
    )
