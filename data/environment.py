"""Where a computation runs: the machine, the cores that it may use, and versions of packages."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

_CPU_FACTS = Path("/proc/cpuinfo")
_PACKAGES = ("cusa", "torch", "transformers", "numpy")


def cpu_count() -> int:
    """Count the cores that this process may use."""
    # Containers and job schedulers may allow fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_name(device: str) -> str:
    """Name the processor that computes, such as ``"AMD EPYC 7763, 2 cores"``.

    The name of the machine itself is left out, since reports and runs are shared.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    """
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    n_cores = cpu_count()
    return f"{_cpu_name()}, {n_cores} core{'s' * (n_cores != 1)}"


def _cpu_name() -> str:
    try:
        lines = _CPU_FACTS.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    for line in lines:
        fact, _, value = line.partition(":")
        if fact.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


def versions() -> dict[str, str]:
    """Return the versions of this library and of those that decide its figures, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
