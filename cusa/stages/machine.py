"""The machine's devices and cores, and how many processes read on it by default."""

from __future__ import annotations

from cusa.data.environment import cpu_count
from cusa.data.errors import SettingError

MAX_WORKERS = 8


def pick_device(device: str) -> str:
    """Return the device ``"cpu"`` or ``"cuda"`` for the option ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises:
        SettingError: If ``"cuda"`` is requested but not available.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise SettingError(
            "--device cuda: no CUDA device is available to this torch; pass --device cpu or auto",
            name="device",
        )
    if device != "auto":
        return device
    return "cuda" if has_cuda else "cpu"


def default_workers(inputs_are_stored: bool, processes: int = 1) -> int:
    """Choose the number of processes that read inputs: one per core, at most 8.

    Args:
        inputs_are_stored: Whether inputs are rows of a store; these need no reading process.
        processes: Number of processes that share this machine's cores.
    """
    if inputs_are_stored:
        return 0
    return max(1, min(cpu_count() // processes, MAX_WORKERS))
