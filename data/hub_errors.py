"""Errors of the hub's libraries, each as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cusa.data.errors import (
    GatedRepositoryError,
    HubError,
    HubNetworkError,
    HubRepositoryError,
    HubTokenError,
    first_line,
)

LOG_IN = "log in (hf auth login) or set HF_TOKEN"
_FORBIDDEN = (401, 403)
_SERVER_ERRORS = 500


@contextmanager
def one_line_hub_errors(repository: str) -> Iterator[None]:
    """Turn what the hub's libraries raise about a repository into a :class:`HubError`.

    Raises:
        HubError: Of the class that says what is wrong. Errors of this machine's files pass
            unchanged.
    """
    try:
        yield
    except hub_library_errors() as error:
        if is_of_local_file(error):
            raise
        raise hub_error(error, repository) from None


def hub_library_errors() -> tuple[type[Exception], ...]:
    """Return the classes of what the hub's libraries raise when it does not give a file."""
    from huggingface_hub.errors import HTTPError

    # The last is what hf_xet, which transfers large files, raises.
    return HTTPError, OSError, RuntimeError


def root_error(error: Exception) -> Exception:
    """Return why a file that is not in the local cache was not downloaded, or the error itself."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause = error.__cause__
    if isinstance(error, LocalEntryNotFoundError) and isinstance(cause, Exception):
        return cause
    return error


def hub_error(error: Exception, repository: str) -> HubError:
    """Return the error of a class of ours for one of the hub's libraries."""
    from huggingface_hub import errors

    error = root_error(error)
    if isinstance(error, errors.GatedRepoError):
        return GatedRepositoryError(
            f"{repository} is gated: ask for access on its page on the hub, then {LOG_IN}",
            name=repository,
        )
    if isinstance(error, errors.RevisionNotFoundError):
        message = f"{repository} has no such revision; pass a branch, a tag or a commit of it"
        return HubRepositoryError(message, name=repository)
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubRepositoryError(
            f"the hub has no {repository}, or your token may not see it; check the name, or "
            f"{LOG_IN}",
            name=repository,
        )
    if not isinstance(error, errors.HfHubHTTPError):
        return _network_error(error, repository)
    status = error.response.status_code
    if status in _FORBIDDEN:
        message = f"the hub does not permit that with your token for {repository}; {LOG_IN}"
        return HubTokenError(message, name=repository)
    if status >= _SERVER_ERRORS:
        return _network_error(error, repository)
    message = f"the hub refuses {repository} ({error.server_message or first_line(error)})"
    return HubError(message, name=repository)


def _network_error(error: Exception, repository: str) -> HubNetworkError:
    return HubNetworkError(
        f"{repository} cannot be reached on the hub ({first_line(error)}); check the network, and "
        "run the command again: what has arrived is kept",
        name=repository,
    )


def is_of_local_file(error: Exception) -> bool:
    """Return whether an error is of this machine's files, such as a full disk."""
    is_of_network = isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, OSError) and error.errno is not None and not is_of_network
