"""Messages between the reading process and its workers: pickles, with their arrays sent apart.

Unpickling them is safe: only the reading process and the workers that it started hold an end of the
connection, so no message comes from a file or from another program.
"""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import socket
from collections.abc import Sequence
from io import BytesIO
from multiprocessing.connection import Connection
from typing import Any

# Bytes; each array in shared memory starts at a multiple of it.
_ALIGNMENT = 64


class _TensorPickler(pickle.Pickler):
    """Pickles tensors as arrays, whose bytes pickle protocol 5 can send out of band."""

    def reducer_override(self, value: Any) -> Any:
        """Reduce a tensor to ``torch.from_numpy`` of its array."""
        import torch

        if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16:  # numpy has none
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def send(connection: Connection, value: Any) -> None:
    """Send a value as a pickle, with the sizes of its arrays and then their bytes.

    Args:
        connection: One end of a pipe; :func:`receive` reads at the other.
        value: Any value that can be pickled; arrays and CPU tensors are sent out of band.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = BytesIO()
    _TensorPickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    arrays = [buffer.raw() for buffer in buffers]
    sizes = [array.nbytes for array in arrays]
    n_bytes = sum(map(_aligned, sizes))
    memory = _anonymous_memory(n_bytes)
    connection.send((file.getvalue(), sizes, memory is not None))
    if memory is None:
        for array in arrays:
            connection.send_bytes(array)
        return
    try:
        _fill(memory, arrays)
        with socket.socket(fileno=os.dup(connection.fileno())) as channel:
            socket.send_fds(channel, [b"\0"], [memory])
    finally:
        os.close(memory)


def receive(connection: Connection) -> Any:
    """Receive what :func:`send` sent; its arrays are writable.

    Raises:
        EOFError: If the sender dies before it has sent the whole message.
        OSError: If this process may not open another file for the shared memory.
    """
    try:
        pickled, sizes, in_memory = connection.recv()
        if not in_memory:
            buffers = [bytearray(size) for size in sizes]
            for buffer in buffers:
                connection.recv_bytes_into(buffer)
            return pickle.loads(pickled, buffers=buffers)
        with socket.socket(fileno=os.dup(connection.fileno())) as channel:
            message, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    except OSError as error:
        # An OSError without errno is how Connection reports a truncated message.
        if error.errno is None:
            raise EOFError from None
        raise
    if not message:
        raise EOFError
    # The kernel drops a file descriptor that would exceed the process's limit.
    if not descriptors:
        raise OSError(errno.EMFILE, "too many open files; hold fewer batches at a time")
    return pickle.loads(pickled, buffers=_arrays_in(descriptors[0], sizes))


def _anonymous_memory(n_bytes: int) -> int | None:
    """Return a file descriptor of anonymous memory; ``None`` if the system has none to give."""
    if not n_bytes or not hasattr(os, "memfd_create"):
        return None
    try:
        memory = os.memfd_create("cusa")
    except OSError:
        return None
    try:
        # Without this, a lack of memory would raise SIGBUS on writing.
        os.posix_fallocate(memory, 0, n_bytes)
    except OSError:
        os.close(memory)
        return None
    return memory


def _fill(memory: int, arrays: Sequence[memoryview]) -> None:
    """Write arrays into memory one after the other, each at an aligned offset."""
    with mmap.mmap(memory, 0) as mapped:
        start = 0
        for array in arrays:
            mapped[start : start + array.nbytes] = array
            start += _aligned(array.nbytes)


def _arrays_in(memory: int, sizes: Sequence[int]) -> list[memoryview]:
    """Return views of the arrays' bytes; the memory is freed with the last view."""
    try:
        mapped = memoryview(mmap.mmap(memory, 0))
    finally:
        os.close(memory)
    arrays = []
    start = 0
    for size in sizes:
        arrays.append(mapped[start : start + size])
        start += _aligned(size)
    return arrays


def _aligned(n_bytes: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
