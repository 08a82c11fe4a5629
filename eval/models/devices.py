"""Devices that models compute on, and how the threads of an evaluation share one."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch

from cusa.data.errors import SettingError


def chosen_device(device: str | None) -> str:
    """Check the name of a device; ``None`` chooses a GPU if there is one.

    Raises:
        SettingError: If there is no such device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    # torch knows other devices, on which nothing here is tested.
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise SettingError(f"unknown device {device!r}; legal: cpu, cuda, cuda:N", name="device")
    # torch says so only when the device is first used.
    n_gpus = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= n_gpus:
        raise SettingError(
            f"there is no device {device!r}: torch sees {n_gpus} GPUs; pass cpu or nothing",
            name="device",
        )
    return str(chosen)


def one_at_a_time(device: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which threads that share a model compute.

    On a GPU it admits one thread at a time, as memory is scarce.
    """
    if torch.device(device).type == "cpu":
        return contextlib.nullcontext()
    return threading.Lock()
