"""Readers in a process of their own, which alone dies where a damaged file crashes a library."""

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

# What a reader gives: JSON-compatible content, and an array or none.
Read = tuple[Any, np.ndarray | None]

_CPU_SECONDS, _BYTES_PER_SECOND = 5, 5_000_000
# Of the address space; Python and the libraries take a tenth of a GiB of it.
_SPARE_MEMORY, _MEMORY_PER_BYTE = 2**30, 16
_PROGRAM = "from cusa.data.foreign.guarded_process import serve; serve()"


def read_in_child(reader: Callable[..., Read], form: str, path: Path, *arguments: str) -> Read:
    """Call a reader in a process of its own.

    Args:
        reader: A function of a module, which takes the path and the other arguments as texts.
        form: What the file should be, for the message.
        path: The file.
        arguments: What the reader takes besides.

    Returns:
        What the reader returns.

    Raises:
        FileFormatError: If the reader raises it, or its process is killed by a fault, or computes
            for longer than the file's size can explain.
    """
    seconds = _CPU_SECONDS + path.stat().st_size // _BYTES_PER_SECOND
    function = f"{reader.__module__}:{reader.__name__}"
    command = [sys.executable, "-c", _PROGRAM, str(seconds), function, str(path), *arguments]
    # Each thread of a BLAS would take memory of its own; a reader needs none of them.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "env": environment,
    }
    with subprocess.Popen(command, **options) as process:
        assert process.stdout is not None, "it was asked for"
        answer = _answer(process.stdout)
    if answer is None:
        number = -process.returncode
        reason = (
            signal.Signals(number).name
            if number in {s.value for s in signal.Signals}
            else "no answer"
        )
        raise FileFormatError(
            f"{path} cannot be read as {form} (its reader ended with {reason}); it is damaged, or not what its suffix "
            "says",
            path=path,
        )
    content, array, error = answer
    if error is not None:
        message, location = error
        raise FileFormatError(message, path=path, location=location)
    return content, array


def _answer(stream: IO[bytes]) -> tuple[Any, np.ndarray | None, list[str] | None] | None:
    """Content, array and error that a child wrote; ``None`` if it did not come to that."""
    try:
        header = json.loads(stream.readline())
    except ValueError:
        return None
    if header["dtype"] is None:
        return header["content"], None, header["error"]
    array = np.empty(header["shape"], header["dtype"])
    buffer = array.reshape(-1).view(np.uint8).data
    received = 0
    while received < len(buffer) and (count := stream.readinto(buffer[received:])):  # type: ignore[attr-defined]
        received += count
    return (header["content"], array, None) if received == len(buffer) else None


def serve() -> None:
    """Call the reader that the command line names, and write what it returns; what the child runs."""
    seconds, function, *arguments = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = _SPARE_MEMORY + _MEMORY_PER_BYTE * Path(arguments[0]).stat().st_size
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    module, name = function.split(":")
    header: dict[str, Any] = {"content": None, "dtype": None, "shape": None, "error": None}
    array: np.ndarray | None = None
    try:
        header["content"], array = getattr(importlib.import_module(module), name)(*arguments)
    except CusaError as error:
        header["error"] = [str(error), error.location]
    if array is not None:
        header |= {"dtype": array.dtype.str, "shape": array.shape}
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n")
    if array is not None:
        sys.stdout.buffer.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    sys.stdout.buffer.flush()
