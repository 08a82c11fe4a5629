"""The files of a run: settings, provenance, the log, and the checkpoints that it goes on from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cusa.data.errors import CusaError, FileFormatError
from cusa.data.files import atomic_file
from cusa.data.parsing import parse_json
from cusa.train.config import Config, build_config, load_config_file, to_yaml
from cusa.train.provenance import Provenance
from cusa.train.saved import BEST_FOLDER, Origin, SavedStudent, load_checkpointed, load_saved
from cusa.train.tensors import DamagedFileError, load_tensors, save_tensors

CONFIG_FILE = "config.yaml"
PROVENANCE_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
_KEPT = 2


def begun(run_dir: Path) -> bool:
    """Whether a run has begun here."""
    return (run_dir / CONFIG_FILE).exists()


def save_run(run_dir: Path, config: Config, provenance: Provenance) -> None:
    """Write settings and provenance."""
    # The settings last: they are what tells that a run has begun.
    content = {PROVENANCE_FILE: json.dumps(provenance.plain(), indent=2), CONFIG_FILE: to_yaml(config)}
    for name, text in content.items():
        with atomic_file(run_dir / name) as temporary:
            temporary.write_text(text)


def load_run(run_dir: Path) -> tuple[Config, Provenance]:
    """Settings and provenance of a run directory.

    Raises:
        CusaError: If it is not one.
    """
    if not (run_dir / CONFIG_FILE).is_file() or not (run_dir / PROVENANCE_FILE).is_file():
        raise CusaError(
            f"{run_dir} is not a run directory (no {CONFIG_FILE} and {PROVENANCE_FILE}); make one: cusa-train"
        )
    try:
        provenance = Provenance.from_plain(json.loads((run_dir / PROVENANCE_FILE).read_text()))
    except (ValueError, KeyError, TypeError):
        raise CusaError(f"{run_dir / PROVENANCE_FILE} is damaged; restore it or train again") from None
    return build_config(load_config_file(run_dir / CONFIG_FILE)), provenance


def load_trained(path: Path, checkpoint: str = "best") -> SavedStudent:
    """The student of a run.

    Args:
        path: A run directory; for ``"best"`` also a folder with a student.
        checkpoint: ``"best"`` or ``"last"``.

    Raises:
        CusaError: If there is none, or it is damaged.
    """
    if checkpoint == "best":
        return load_saved(path)
    found, _ = Checkpoints(path).newest()
    if found is None:
        raise CusaError(f"{path} holds no checkpoint; has the run been killed before its first?")
    tensors, meta = found
    return load_checkpointed(path / BEST_FOLDER, tensors, Origin.from_plain(meta["origin"]))


class Checkpoints:
    """All that a run goes on from, a file per step; the newest two are kept, in case that one is torn.

    Args:
        run_dir: The run's directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._folder = run_dir, run_dir / "checkpoints"

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self._folder.glob(f"step-{'[0-9]' * 9}.safetensors"))

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Write one; the oldest goes once the new one is whole.

        Raises:
            OSError: If it cannot be written; all others stay.
        """
        new = self._folder / f"step-{step:09d}.safetensors"
        save_tensors(new, tensors, meta)
        others = [path for path in self.paths() if path != new]
        for path in others[: len(others) - _KEPT + 1]:
            path.unlink(missing_ok=True)

    def newest(self) -> tuple[tuple[dict[str, torch.Tensor], dict[str, Any]] | None, list[str]]:
        """Tensors and metadata of the newest one that is whole, and what is wrong with newer ones.

        Returns:
            ``None`` and nothing wrong if there is no checkpoint yet.

        Raises:
            CusaError: If there are some, and none is whole.
        """
        problems: list[str] = []
        for path in reversed(self.paths()):
            try:
                return load_tensors(path), problems
            except DamagedFileError as error:
                problems.append(str(error))
        if problems:
            raise CusaError(
                f"no checkpoint of {self._run_dir} is whole: {problems[0]}; restore one, or move the run away and "
                "train again"
            )
        return None, []

    def tidy(self, step: int) -> None:
        """Remove checkpoints after a step (torn ones) and what killed processes left half-written in the run."""
        for path in self.paths():
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        for folder in (self._run_dir, self._folder, self._run_dir / BEST_FOLDER):
            for left in folder.glob(".*.tmp"):
                left.unlink()


class MetricsLog:
    """metrics.jsonl: a line per logged step and per validation.

    Args:
        run_dir: The run's directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE
        self._waiting = ""

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line; what could not be written is written with the next one.

        Raises:
            OSError: If it cannot be written.
        """
        self._waiting += json.dumps(line) + "\n"
        length = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a") as file:
                file.write(self._waiting)
        except OSError:
            if self._path.exists():
                os.truncate(self._path, length)  # no half line
            raise
        self._waiting = ""

    def trim(self, step: int, epoch: int) -> None:
        """Keep what was written up to a step, and validations up to an epoch."""
        lines = [m for m in read_metrics(self._path.parent) if m["step"] <= step]
        kept = [json.dumps(m) + "\n" for m in lines if m.get("kind") != "val" or m.get("epoch", 0) <= epoch]
        with atomic_file(self._path) as temporary:
            temporary.write_text("".join(kept))


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, without those that are damaged: see :func:`read_metrics_log`."""
    return read_metrics_log(run_dir)[0]


def read_metrics_log(run_dir: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a run's metrics.jsonl.

    Returns:
        Its lines, and how many are damaged and left out: a kill cuts off the last one, a full disk
        may tear others.
    """
    path = run_dir / METRICS_FILE
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    lines, n_damaged = [], 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            content = parse_json(line, path, number)
        except FileFormatError:
            content = None
        if _is_log_line(content):
            lines.append(content)
        else:
            n_damaged += 1
    return lines, n_damaged


def _is_log_line(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("step"), int):
        return False
    return all(isinstance(value, (int, float, str, type(None))) for value in content.values())
