"""The files of a run: settings, provenance, the log, and the checkpoints that it goes on from."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, Field, FiniteFloat, RootModel

from cusa.data.errors import CusaError, RunError, SettingError
from cusa.data.files import atomic_file
from cusa.data.parsing import parse_json, read_json
from cusa.train.config import Config, build_config, load_config_file, to_yaml
from cusa.train.saving.plain_values import checked
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.run_progress import Progress
from cusa.train.saving.student_folder import (
    BEST_FOLDER,
    Origin,
    SavedStudent,
    load_checkpointed,
    load_saved,
)
from cusa.train.saving.tensors import DamagedFileError, load_tensors, save_tensors

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
    content = {
        PROVENANCE_FILE: json.dumps(provenance.plain(), indent=2),
        CONFIG_FILE: to_yaml(config),
    }
    for name, text in content.items():
        with atomic_file(run_dir / name) as temporary:
            temporary.write_text(text)


def load_run(run_dir: Path) -> tuple[Config, Provenance]:
    """Settings and provenance of a run directory.

    Raises:
        CusaError: If it is not one, or one of the two is damaged; ``path`` says which.
    """
    config_file, provenance_file = run_dir / CONFIG_FILE, run_dir / PROVENANCE_FILE
    if not config_file.is_file() or not provenance_file.is_file():
        missing = f"no {CONFIG_FILE} and {PROVENANCE_FILE}"
        message = f"{run_dir} is not a run directory ({missing}); make one: cusa-train"
        raise RunError(message, path=run_dir)
    content = read_json(provenance_file)
    try:
        provenance = Provenance.from_plain(content)
    except RunError as error:
        message = f"{provenance_file} is damaged ({error}); restore it or train again"
        raise RunError(
            message,
            path=provenance_file,
            location=error.location,
            name=error.name,
        ) from None
    try:
        config = build_config(load_config_file(config_file))
    except SettingError as error:
        raise SettingError(f"{config_file}: {error}", path=config_file, name=error.name) from None
    return config, provenance


def load_trained(path: Path, checkpoint: str = "best") -> SavedStudent:
    """The student of a run.

    Args:
        path: A run directory; for ``"best"`` also a folder with a student.
        checkpoint: ``"best"`` or ``"last"``.

    Raises:
        SettingError: If ``checkpoint`` is neither.
        CusaError: If there is none, or it is damaged.
    """
    if checkpoint not in ("best", "last"):
        message = f"unknown checkpoint {checkpoint!r}; legal: best, last"
        raise SettingError(message, name="checkpoint")
    if checkpoint == "best":
        return load_saved(path)
    newest, _ = Checkpoints(path).newest(to_go_on=False)
    if newest is None:
        raise RunError(
            f"{path} holds no checkpoint; has the run been killed before its first?",
            path=path,
        )
    return load_checkpointed(
        path / BEST_FOLDER,
        newest.tensors,
        Origin.from_plain(newest.meta["origin"]),
    )


class _PlainMeta(BaseModel):
    origin: dict[str, Any]
    progress: dict[str, Any]
    scaler: dict[str, int | float]


class Checkpoint(NamedTuple):
    """What a run goes on from.

    Attributes:
        tensors: By name: student, loss, optimizer, random states.
        meta: JSON-compatible: ``origin``, ``progress`` and ``scaler``.
    """

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


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

    def newest(self, to_go_on: bool = True) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with newer ones.

        Args:
            to_go_on: Whether it must have all that a run goes on from, or a student alone.

        Returns:
            ``None`` and nothing wrong if there is no checkpoint yet.

        Raises:
            RunError: If there are some, and none is whole.
        """
        problems: list[str] = []
        for path in reversed(self.paths()):
            try:
                return _load_checkpoint(path, to_go_on), problems
            except DamagedFileError as error:
                problems.append(str(error))
        if problems:
            remedy = "restore one, or move the run away and train again"
            message = f"no checkpoint of {self._run_dir} is whole: {problems[0]}; {remedy}"
            raise RunError(message, path=self.paths()[-1])
        return None, []

    def tidy(self, step: int) -> None:
        """Remove checkpoints after a step (torn ones) and what killed processes left half-written in the run."""
        for path in self.paths():
            if _step_in_name(path) > step:
                path.unlink()
        for folder in (self._run_dir, self._folder, self._run_dir / BEST_FOLDER):
            for left in folder.glob(".*.tmp"):
                left.unlink()


def _load_checkpoint(path: Path, to_go_on: bool) -> Checkpoint:
    tensors, meta = load_tensors(path)
    steps = set()
    try:
        origin = Origin.from_plain(meta.get("origin"))
        if to_go_on:
            progress = Progress.from_plain(checked(_PlainMeta, meta, "checkpoint").progress)
            steps = {origin.step, progress.step, _step_in_name(path)}
    except RunError as error:
        message = f"{path} is damaged ({error}); use another or train again"
        raise DamagedFileError(
            message,
            path=path,
            location=error.location,
            name=error.name,
        ) from None
    if len(steps) > 1:
        of_steps = ", ".join(f"{step:,}" for step in sorted(steps))
        raise DamagedFileError(
            f"{path} is damaged (it is of steps {of_steps}); use another",
            path=path,
        )
    return Checkpoint(tensors, meta)


def _step_in_name(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


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
        lines = [line for line in read_metrics(self._path.parent) if line["step"] <= step]
        lines = [line for line in lines if line["kind"] != "val" or line["epoch"] <= epoch]
        with atomic_file(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


class MetricsHistory(NamedTuple):
    """What a run logged.

    Attributes:
        lines: Of metrics.jsonl, in order: all have ``kind``, ``step`` and ``epoch``; numbers are
            finite.
        note: Which lines are damaged and left out; empty if none is. A last line that a kill cut
            off is no damage.
    """

    lines: list[dict[str, Any]]
    note: str


def read_history(run_dir: Path) -> MetricsHistory:
    """Read a run's metrics.jsonl; damaged lines are left out."""
    path = run_dir / METRICS_FILE
    content = path.read_bytes() if path.is_file() else b""
    lines, damaged = [], []
    *complete, torn = content.split(b"\n")
    for number, line in enumerate(complete, 1):
        try:
            lines.append(_metrics_line(line, path, number))
        except (CusaError, UnicodeDecodeError):
            damaged.append(number)
    with contextlib.suppress(CusaError, UnicodeDecodeError):
        lines.append(_metrics_line(torn, path, len(complete) + 1))
    if not damaged:
        return MetricsHistory(lines, "")
    several = f" and {len(damaged) - 1:,} more" if len(damaged) > 1 else ""
    return MetricsHistory(
        lines,
        f"{path}: line {damaged[0]:,}{several} cannot be read and is left out",
    )


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl; see :func:`read_history`."""
    return read_history(run_dir).lines


_Percent = Annotated[float, Field(ge=0, le=100)]


class _StepLine(BaseModel):
    kind: str
    step: int
    epoch: int | float


class _ValidationLine(_StepLine):
    """Recalls that a line lacks are told where they are needed."""

    best: bool
    rsum: FiniteFloat
    i2t_r1: _Percent = 0.0
    i2t_r5: _Percent = 0.0
    i2t_r10: _Percent = 0.0
    t2i_r1: _Percent = 0.0
    t2i_r5: _Percent = 0.0
    t2i_r10: _Percent = 0.0


_Values = RootModel[dict[str, bool | int | FiniteFloat | str]]
_LINE_FORMS: Mapping[Any, type[_StepLine]] = {"val": _ValidationLine}


def _metrics_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """A line of metrics.jsonl.

    Raises:
        CusaError: If it is no mapping of names to numbers, texts and bools, or lacks what its kind
            has.
        UnicodeDecodeError: If it is not UTF-8.
    """
    content = checked(_Values, parse_json(line.decode(), path, number), METRICS_FILE).root
    checked(_LINE_FORMS.get(content.get("kind"), _StepLine), content, METRICS_FILE)
    return content
