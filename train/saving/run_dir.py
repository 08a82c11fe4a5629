"""The files of a run: its settings, provenance, log, and checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, FiniteFloat, RootModel
from torch import Tensor

from cusa.data.errors import CusaError, RunError, SettingError
from cusa.data.files import atomic_file
from cusa.data.parsing import parse_json, read_json
from cusa.train.config import Config
from cusa.train.config_building import build_config, load_config_file, to_yaml
from cusa.train.saving.plain_values import checked, named_as_damaged
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.run_progress import Progress, ProgressInEpochs
from cusa.train.saving.student_folder import (
    BEST_FOLDER,
    Origin,
    SavedStudent,
    load_saved,
    with_weights,
)
from cusa.train.saving.tensors import DamagedFileError, load_tensors, save_tensors, without_prefix

CONFIG_FILE = "config.yaml"
PROVENANCE_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
_KEPT_CHECKPOINTS = 2


def begun(run_dir: Path) -> bool:
    """Return whether a run has begun in this directory."""
    return (run_dir / CONFIG_FILE).exists()


def save_run(run_dir: Path, config: Config, provenance: Provenance) -> None:
    """Write the settings and provenance of a run.

    Raises:
        OSError: If they cannot be written.
    """
    # The settings last: their file is the sign that a run has begun.
    contents = {
        PROVENANCE_FILE: json.dumps(asdict(provenance), indent=2),
        CONFIG_FILE: to_yaml(config),
    }
    for name, text in contents.items():
        with atomic_file(run_dir / name) as temporary:
            temporary.write_text(text)


def load_run(run_dir: Path) -> tuple[Config, Provenance]:
    """Read the settings and provenance of a run directory.

    Raises:
        CusaError: If it is not a run directory, or one of its two files is damaged; ``path`` is the
            directory or the file.
    """
    config_file = run_dir / CONFIG_FILE
    provenance_file = run_dir / PROVENANCE_FILE
    if not config_file.is_file() or not provenance_file.is_file():
        raise RunError(
            f"{run_dir} is not a run directory (no {CONFIG_FILE} and {PROVENANCE_FILE}); make "
            "one: cusa-train",
            path=run_dir,
        )
    content = read_json(provenance_file)
    with named_as_damaged(provenance_file, "restore it or train again"):
        provenance = checked(Provenance, content, "provenance")
    try:
        config = build_config(load_config_file(config_file))
    except SettingError as error:
        raise SettingError(f"{config_file}: {error}", path=config_file, name=error.name) from None
    return config, provenance


def load_trained(path: Path, checkpoint: str = "best") -> SavedStudent:
    """Load the student of a run.

    Args:
        path: A run directory; for ``"best"``, also a folder that holds a student.
        checkpoint: ``"best"`` or ``"last"``.

    Raises:
        SettingError: If ``checkpoint`` is neither.
        CusaError: If there is no such student, or its files are damaged.
    """
    if checkpoint not in ("best", "last"):
        raise SettingError(
            f"unknown checkpoint {checkpoint!r}; legal: best, last", name="checkpoint"
        )
    if checkpoint == "best":
        return load_saved(path)
    # The student is enough: the rest of the checkpoint may be damaged.
    newest, _ = Checkpoints(path).newest(to_resume=False)
    if newest is None:
        raise RunError(
            f"{path} holds no checkpoint; has the run been killed before its first?", path=path
        )
    weights = without_prefix("student", newest.tensors)
    return with_weights(path / BEST_FOLDER, weights, newest.origin)


class _StateForm(BaseModel):
    progress: Progress | ProgressInEpochs
    scaler: dict[str, int | float]


class Checkpoint(NamedTuple):
    """What a run resumes from.

    Attributes:
        tensors: Tensors by name: of the student, the loss, the optimizer, and random states.
        origin: Where the weights come from.
        progress: How far the run was; :meth:`Progress.start` if only the student was asked for.
        scaler: State of the gradient scaler; empty if only the student was asked for.
    """

    tensors: dict[str, Tensor]
    origin: Origin
    progress: Progress | ProgressInEpochs
    scaler: dict[str, int | float]


class Checkpoints:
    """The checkpoints of a run, a file each.

    The newest two are kept, in case the newest is torn.

    Args:
        run_dir: The run's directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._folder = run_dir / "checkpoints"

    def paths(self) -> list[Path]:
        """List the files, oldest first."""
        return sorted(self._folder.glob(f"step-{'[0-9]' * 9}.safetensors"))

    def save(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove those that it makes superfluous.

        Args:
            step: The step that it is of.
            tensors: Its tensors by name.
            metadata: JSON-compatible; the origin, the progress and the scaler's state.

        Raises:
            OSError: If it cannot be written; the others stay.
        """
        new_path = self._folder / f"step-{step:09d}.safetensors"
        save_tensors(new_path, tensors, metadata)
        old_paths = [path for path in self.paths() if path != new_path]
        n_removed = len(old_paths) + 1 - _KEPT_CHECKPOINTS
        for checkpoint_path in old_paths[:n_removed]:
            checkpoint_path.unlink(missing_ok=True)

    def newest(self, to_resume: bool = True) -> tuple[Checkpoint | None, list[str]]:
        """Load the newest checkpoint that is whole.

        Args:
            to_resume: Whether it must hold all that a run resumes from, or only a student.

        Returns:
            The checkpoint, ``None`` if there is none yet; and what is wrong with newer ones.

        Raises:
            RunError: If there are checkpoints and none is whole.
        """
        problems: list[str] = []
        # A kill or a full disk may have torn the newest; the one before it is whole then.
        for checkpoint_path in reversed(self.paths()):
            try:
                return _load_checkpoint(checkpoint_path, to_resume), problems
            except DamagedFileError as error:
                problems.append(str(error))
        if problems:
            raise RunError(
                f"no checkpoint of {self._run_dir} is whole: {problems[0]}; restore one, or move "
                "the run away and train again",
                path=self.paths()[-1],
            )
        return None, []

    def tidy(self, step: int) -> None:
        """Remove checkpoints after a step, which are torn, and files that kills left unfinished."""
        for checkpoint_path in self.paths():
            if _step_in_name(checkpoint_path) > step:
                checkpoint_path.unlink()
        best_folder = self._run_dir / BEST_FOLDER
        for folder in (self._run_dir, self._folder, best_folder):
            for half_written in folder.glob(".*.tmp"):
                half_written.unlink()


def _load_checkpoint(checkpoint_path: Path, to_resume: bool) -> Checkpoint:
    tensors, metadata = load_tensors(checkpoint_path)
    state = _StateForm(progress=Progress.start(), scaler={})
    with named_as_damaged(checkpoint_path, "use another or train again", DamagedFileError):
        origin = Origin.from_dict(metadata.get("origin"))
        if to_resume:
            state = checked(_StateForm, metadata, "checkpoint")
    # A renamed file would be taken for another step's.
    step_in_name = _step_in_name(checkpoint_path)
    steps = {origin.step, state.progress.step, step_in_name}
    if to_resume and len(steps) > 1:
        listed = ", ".join(f"{step:,}" for step in sorted(steps))
        raise DamagedFileError(
            f"{checkpoint_path} is damaged (it is of steps {listed}); use another",
            path=checkpoint_path,
        )
    return Checkpoint(tensors, origin, state.progress, state.scaler)


def _step_in_name(checkpoint_path: Path) -> int:
    return int(checkpoint_path.stem.removeprefix("step-"))


class MetricsLog:
    """Writes metrics.jsonl: a line per logged step and per validation.

    Args:
        run_dir: The run's directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE
        self._unwritten = ""

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line, after those that could not be written before.

        Raises:
            OSError: If it cannot be written; the next call tries again.
        """
        self._unwritten += json.dumps(line) + "\n"
        length = 0
        if self._path.exists():
            length = self._path.stat().st_size
        try:
            with self._path.open("a") as file:
                file.write(self._unwritten)
        except OSError:
            if self._path.exists():
                os.truncate(self._path, length)  # leave no half line
            raise
        self._unwritten = ""

    def trim(self, progress: Progress) -> None:
        """Keep the lines of the steps and validations that a run has done, and no later ones."""
        # A validation that will be repeated may be of the run's last step.
        texts = []
        for line in read_metrics(self._path.parent):
            last_step = progress.step
            if line["kind"] == "val":
                last_step = progress.validated_step
            if line["step"] <= last_step:
                texts.append(json.dumps(line) + "\n")
        with atomic_file(self._path) as temporary:
            temporary.write_text("".join(texts))


class MetricsHistory(NamedTuple):
    """The log of a run.

    Attributes:
        lines: The lines of metrics.jsonl, in order; all have ``kind``, ``step`` and ``epoch``, and
            all numbers are finite.
        note: Which lines are damaged and left out; empty if none is. A last line that a kill cut
            off does not count as damaged.
    """

    lines: list[dict[str, Any]]
    note: str


def read_history(run_dir: Path) -> MetricsHistory:
    """Read a run's metrics.jsonl, leaving out damaged lines; no file reads as no lines."""
    path = run_dir / METRICS_FILE
    content = b""
    if path.is_file():
        content = path.read_bytes()
    lines = []
    damaged_numbers = []
    texts = content.split(b"\n")
    for number, text in enumerate(texts, 1):
        try:
            lines.append(_metrics_line(text, path, number))
        except (CusaError, UnicodeDecodeError):
            # A kill may have cut off the last line.
            if number < len(texts):
                damaged_numbers.append(number)
    if not damaged_numbers:
        return MetricsHistory(lines, "")
    listed = f"{damaged_numbers[0]:,}"
    if len(damaged_numbers) > 1:
        listed += f" and {len(damaged_numbers) - 1:,} more"
    return MetricsHistory(lines, f"{path}: line {listed} cannot be read and is left out")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics.jsonl; see :func:`read_history`."""
    return read_history(run_dir).lines


_Percent = Annotated[float, Field(ge=0, le=100)]


class _StepLine(BaseModel):
    kind: str
    step: int
    epoch: int | float


class _ValidationLine(_StepLine):
    """A validation's line; recalls may be missing, which is reported where they are needed."""

    best: bool
    rsum: FiniteFloat
    i2t_r1: _Percent = 0.0
    i2t_r5: _Percent = 0.0
    i2t_r10: _Percent = 0.0
    t2i_r1: _Percent = 0.0
    t2i_r5: _Percent = 0.0
    t2i_r10: _Percent = 0.0


_Values = RootModel[dict[str, bool | int | FiniteFloat | str]]


def _metrics_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """Parse a line of metrics.jsonl."""
    content = parse_json(line.decode(), path, number)
    values = checked(_Values, content, METRICS_FILE).root
    form: type[_StepLine] = _StepLine
    if values.get("kind") == "val":
        form = _ValidationLine
    checked(form, values, METRICS_FILE)
    return values
