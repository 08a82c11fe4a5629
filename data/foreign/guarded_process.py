"""Readers in a child process: a damaged file that crashes a library kills only the child."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from cusa.data.errors import CusaError, FileFormatError

# What a reader returns: JSON-compatible content, and an array or ``None``.
Read = tuple[Any, np.ndarray | None]

# Limits of the child's CPU time and address space; larger files get more of both.
_CPU_SECONDS = 5
_BYTES_PER_SECOND = 5_000_000
# Of this GiB, Python and the libraries take a tenth.
_SPARE_MEMORY = 2**30
_MEMORY_PER_BYTE = 16
_PROGRAM = "from cusa.data.foreign.guarded_process import serve; serve()"


def read_in_child(
    reader: Callable[..., Read],
    form: str,
    path: Path,
    *arguments: str,
) -> Read:
    """Call a reader in a child process.

    Args:
        reader: A module-level function that takes the path and the further arguments as texts.
        form: The format that the file should have, for the message.
        path: The file.
        arguments: Further arguments of the reader.

    Returns:
        The reader's result.

    Raises:
        FileFormatError: If the reader raises a :class:`CusaError` or ``PermissionError``, or the
            child crashes or exceeds its limits, which grow with the file's size.
    """
    seconds = _CPU_SECONDS + path.stat().st_size // _BYTES_PER_SECOND
    function = f"{reader.__module__}:{reader.__name__}"
    command = [sys.executable, "-c", _PROGRAM, str(seconds), function, str(path), *arguments]
    # Each thread of a BLAS would take memory of its own; a reader needs none of them.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    with process:
        assert process.stdout is not None, "stdout is a pipe"
        answer = _receive_answer(process.stdout)

    if answer is None:
        raise FileFormatError(
            f"{path} cannot be read as {form} (its reader ended with "
            f"{_cause_of_end(process.returncode)}); it is damaged, or not what its suffix says",
            path=path,
        )
    content, array, error = answer
    if error is not None:
        message, location = error
        raise FileFormatError(message, path=path, location=location)
    return content, array


def _cause_of_end(return_code: int) -> str:
    """Return the name of the signal that killed a process, or that it gave no answer."""
    try:
        return signal.Signals(-return_code).name
    except ValueError:
        return "no answer"


def _receive_answer(stream: IO[bytes]) -> tuple[Any, np.ndarray | None, list[str] | None] | None:
    """Read the content, array and error that a child wrote; ``None`` if it did not finish."""
    try:
        header = json.loads(stream.readline())
    except ValueError:
        return None
    if header["dtype"] is None:
        return header["content"], None, header["error"]
    array = np.empty(header["shape"], header["dtype"])
    buffer = array.reshape(-1).view(np.uint8).data
    received = 0
    while received < len(buffer):
        count = stream.readinto(buffer[received:])  # type: ignore[attr-defined]
        if not count:
            return None
        received += count
    return header["content"], array, None


def serve() -> None:
    """Call the reader that the command line names, and write its result to standard output.

    This is the child's whole program.
    """
    seconds, function, *arguments = sys.argv[1:]
    file_size = Path(arguments[0]).stat().st_size
    _limit_resources(int(seconds), file_size)

    module_name, function_name = function.split(":")
    reader = getattr(importlib.import_module(module_name), function_name)
    header: dict[str, Any] = {"content": None, "dtype": None, "shape": None, "error": None}
    array: np.ndarray | None = None
    try:
        header["content"], array = reader(*arguments)
    except (CusaError, PermissionError) as error:
        header["error"] = [str(error), getattr(error, "location", "")]

    # One line of JSON, then the bytes of the array.
    if array is not None:
        header["dtype"] = array.dtype.str
        header["shape"] = array.shape
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n")
    if array is not None:
        flat_array = np.ascontiguousarray(array).reshape(-1)
        sys.stdout.buffer.write(flat_array.view(np.uint8).data)
    sys.stdout.buffer.flush()


def _limit_resources(seconds: int, file_size: int) -> None:
    """Limit this process's CPU time and memory, and keep it from dumping core."""
    memory = _SPARE_MEMORY + _MEMORY_PER_BYTE * file_size
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
