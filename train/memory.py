"""Where memory is too small: one line that says which settings ask for less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cusa.data.errors import SettingError

_CPU_ALLOCATOR = "DefaultCPUAllocator"  # torch raises a plain RuntimeError for it


@contextmanager
def enough_memory(remedy: str, name: str) -> Iterator[None]:
    """Turn a failed allocation, on the GPU or the CPU, into a mistake in the settings.

    Args:
        remedy: What asks for less.
        name: The setting to name.

    Raises:
        SettingError: In place of the allocator's own error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_gpu = isinstance(error, torch.OutOfMemoryError)
        if isinstance(error, RuntimeError) and not is_gpu and _CPU_ALLOCATOR not in str(error):
            raise
        device = "the GPU" if is_gpu else "this machine"
        raise SettingError(f"not enough memory on {device}; {remedy}", name=name) from None
