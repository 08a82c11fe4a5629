"""Devices that models compute on, and how threads share one."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch

from cusa.data.errors import SettingError


def chosen_device(device: str | None) -> str:
    """Check the name of a device, or choose one.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; ``None`` for a GPU if there is one, else the
            CPU.

    Raises:
        SettingError: If there is no such device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    # torch knows other kinds of devices, but nothing here is tested on them.
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise SettingError(f"unknown device {device!r}; legal: cpu, cuda, cuda:N", name="device")
    # torch would report a missing GPU only on first use.
    n_gpus = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= n_gpus:
        raise SettingError(
            f"there is no device {device!r}, since torch sees {n_gpus} GPUs; pass cpu, or leave "
            "it out",
            name="device",
        )
    return str(chosen)


def one_at_a_time(device: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context manager in which threads that share a model compute.

    On a GPU, where memory is scarce, it admits one thread at a time.
    """
    if torch.device(device).type == "cpu":
        return contextlib.nullcontext()
    return threading.Lock()
