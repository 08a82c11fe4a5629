"""Errors of object stores, each as one line."""

from __future__ import annotations

import re

from cusa.data.errors import ObjectError, first_line

# "Server returned non-2xx status code: 503 Service Unavailable: <Error><Code>SlowDown</Code>..."
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
# obstore asks these for credentials if the environment has none.
_CREDENTIAL_SERVERS = re.compile(r"169\.254\.|metadata\.google\.internal|computeMetadata")
_NO_AZURE_ACCOUNT = "Account must be specified"
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_VARIABLES = {"s3": "AWS_*", "gs": "GOOGLE_*", "az": "AZURE_*"}
_FORBIDDEN = (401, 403)
_MISSING = 404
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
# S3 answers 503 to too many requests, the others 429.
_BUSY = (408, 429)
_SERVER_ERRORS = 500


def one_line_error(
    error: Exception,
    location: str,
    object_name: str,
) -> ObjectError:
    """Return our error for one of obstore's.

    Args:
        error: What obstore raised.
        location: URL of the folder.
        object_name: The object that was asked for; empty for the folder itself.

    Returns:
        The error; its name is that of the environment's variables if there are no credentials, and
        empty if there is no bucket.
    """
    description = first_line(error)
    credentials = _CREDENTIALS[location.partition(":")[0]]
    if _CREDENTIAL_SERVERS.search(description):
        return _no_credentials(location, credentials)
    # Of an answer in several lines, the code is not in the first one.
    code_match = _CODE.search(str(error))
    code = "" if code_match is None else code_match[1]
    if code in _NO_BUCKET:
        object_name = ""
    status = _status(error, description)
    if status is None:
        problem = _problem_without_answer(error, description)
    else:
        problem = _problem_of_status(status, code, object_name, credentials)
    address = f"{location}/{object_name}".rstrip("/")
    message = f"{address}: {problem}"
    return ObjectError(message, location=location, name=object_name, status=status)


def settings_error(
    error: Exception,
    location: str,
) -> ObjectError:
    """Return our error for what obstore raised when it read the environment's settings.

    Its name is that of the variables.
    """
    description = first_line(error)
    if _NO_AZURE_ACCOUNT in description:
        return _no_credentials(location, _CREDENTIALS["az"])
    variables = _VARIABLES[location.partition(":")[0]]
    return ObjectError(
        f"{location}: obstore does not take the environment's {variables} ({description}); set "
        "them again",
        location=location,
        name=variables,
    )


def _no_credentials(
    location: str,
    credentials: str,
) -> ObjectError:
    return ObjectError(
        f"{location}: there are no credentials for it; set {credentials}",
        location=location,
        name=credentials,
    )


def _status(
    error: Exception,
    description: str,
) -> int | None:
    """Return the HTTP status of an answer; ``None`` if there was no answer."""
    if isinstance(error, FileNotFoundError):
        return _MISSING
    status = _STATUS.search(description)
    if status is None:
        return None
    return int(status[1])


def _problem_without_answer(
    error: Exception,
    description: str,
) -> str:
    if isinstance(error, ValueError):
        return f"this is not a legal name of an object ({description}); rename it"
    # Behind the dash is the problem, before it the request.
    _, _, problem = description.rpartition(" - ")
    return (
        f"the store cannot be reached, or the connection breaks ({problem}); check the settings of "
        "the environment and the network, and run the command again: what is finished is kept"
    )


def _problem_of_status(
    status: int,
    code: str,
    object_name: str,
    credentials: str,
) -> str:
    answer = f"{status}, {code}" if code else str(status)
    if status in _FORBIDDEN:
        return f"access is denied ({answer}); check {credentials}, and what they permit"
    if status == _MISSING and not object_name:
        return f"there is no such bucket ({answer}); check its name and the endpoint"
    if status == _MISSING:
        return f"there is no such object ({answer}); check its name"
    if status >= _SERVER_ERRORS or status in _BUSY:
        return (
            f"the store fails ({answer}), also when it is asked again; run the command again "
            "later: what is finished is kept"
        )
    return f"the store refuses the request ({answer}); check the endpoint and the region"
