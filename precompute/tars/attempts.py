"""Counting of attempts at tars over all actors; imported by a process of its own, so kept light."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Attempts:
    """Counts how often actors have begun each tar."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(
        self,
        tar: str,
    ) -> int:
        """Count an attempt at a tar, and return the number of all of them."""
        self._counts[tar] = self._counts.get(tar, 0) + 1
        return self._counts[tar]


@dataclass(frozen=True)
class AttemptCounter:
    """Counts attempts at a tar, from any node.

    Attributes:
        attempts: Ray's handle of an actor of :class:`Attempts`.
    """

    attempts: Any

    def __call__(
        self,
        tar: Path,
    ) -> int:
        """Count an attempt at a tar, and return the number of all of them."""
        import ray

        return ray.get(self.attempts.add.remote(str(tar)))
