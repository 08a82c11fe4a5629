"""Running out of memory, reported in one line that says which settings need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cusa.data.errors import SettingError

_CPU_ALLOCATOR = "DefaultCPUAllocator"  # torch raises a plain RuntimeError for it


@contextmanager
def enough_memory(remedy: str, name: str) -> Iterator[None]:
    """Turn a failed allocation within the block, on the GPU or the CPU, into a setting's error.

    Args:
        remedy: How to need less memory.
        name: The setting to blame.

    Raises:
        SettingError: In place of the allocator's own error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        device = "this machine"
        if isinstance(error, torch.OutOfMemoryError):
            device = "the GPU"
        elif isinstance(error, RuntimeError) and _CPU_ALLOCATOR not in str(error):
            raise
        raise SettingError(f"not enough memory on {device}; {remedy}", name=name) from None
