"""Messages between the reading process and its workers: pickles whose arrays travel apart.

Unpickling them is safe: only the reading process and the workers that it started hold the
ends of their connection, so no message is from a file or from another program.
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

# Bytes; where each array starts in shared memory.
_ALIGNMENT = 64


class _TensorPickler(pickle.Pickler):
    """Pickles tensors as arrays, whose bytes protocol 5 can leave out of the pickle."""

    def reducer_override(self, value: Any) -> Any:
        """Reduce a tensor to an array."""
        import torch

        if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16:  # numpy has none
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def send(connection: Connection, value: Any) -> None:
    """Send a value as a pickle, the sizes of its arrays, and their bytes."""
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
        EOFError: If the sender dies before it has sent all of it.
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
        # How Connection reports a truncated message.
        if error.errno is None:
            raise EOFError from None
        raise
    if not message:
        raise EOFError
    # The kernel drops what would exceed the limit.
    if not descriptors:
        raise OSError(errno.EMFILE, "too many open files; hold fewer batches at a time")
    return pickle.loads(pickled, buffers=_arrays_in(descriptors[0], sizes))


def _anonymous_memory(n_bytes: int) -> int | None:
    """Return a file descriptor of so much memory, or ``None`` if there is none to be had."""
    if not n_bytes or not hasattr(os, "memfd_create"):
        return None
    try:
        memory = os.memfd_create("cusa")
    except OSError:
        return None
    try:
        # Fails now rather than with SIGBUS on writing.
        os.posix_fallocate(memory, 0, n_bytes)
    except OSError:
        os.close(memory)
        return None
    return memory


def _fill(memory: int, arrays: Sequence[memoryview]) -> None:
    """Write arrays into memory, each at an aligned place."""
    with mmap.mmap(memory, 0) as mapped:
        start = 0
        for array in arrays:
            mapped[start : start + array.nbytes] = array
            start += _aligned(array.nbytes)


def _arrays_in(memory: int, sizes: Sequence[int]) -> list[memoryview]:
    """Return the arrays' bytes; the memory is freed with the last of them."""
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
