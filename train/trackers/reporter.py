"""Reporting of runs to trackers; a tracker that fails costs the run nothing but its figures there.

To add a tracker, write a module with its :class:`Tracker`, and add it to :data:`TRACKERS` and to
``TrackerName`` in :mod:`cusa.train.config`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import cusa
from cusa.data.errors import FileFormatError, SettingError, first_line
from cusa.data.files import atomic_file
from cusa.data.parsing import read_json
from cusa.train.config import TrackerName
from cusa.train.config_building import by_full_name
from cusa.train.length import RunLength
from cusa.train.reporter import Outcome
from cusa.train.saving.run_progress import Progress
from cusa.train.trackers.mlflow import MlflowTracker
from cusa.train.trackers.protocol import TrackedRun, Tracker
from cusa.train.trackers.tensorboard import TensorBoardTracker
from cusa.train.trackers.trackio import TrackioTracker
from cusa.train.trackers.wandb import WandbTracker
from cusa.train.trainer import Trainer

TRACKERS: dict[TrackerName, type[Tracker]] = {
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
    "mlflow": MlflowTracker,
    "tensorboard": TensorBoardTracker,
}
# The tracked runs' ids by tracker, in the run's directory.
IDS_FILE = "trackers.json"
_PACKAGES = ("torch", "transformers", "sentence-transformers", "numpy")
_NO_FIGURES = ("kind", "step", "best")


class TrackersReporter:
    """Reports a run to trackers, in the leading process.

    An exception of a tracker is shown as a warning; the run goes on without that tracker.

    Args:
        tracker_names: The trackers.
        warn: Called with a line about a tracker that has failed.

    Raises:
        SettingError: If a tracker's package is not installed, or it lacks an account.
    """

    def __init__(
        self,
        tracker_names: Sequence[TrackerName],
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._trackers: dict[TrackerName, Tracker] = {}
        self._progress: Progress | None = None
        for tracker_name in tracker_names:
            self._trackers[tracker_name] = _make_tracker(tracker_name)

    def started(self, trainer: Trainer) -> None:
        """Begin to track the run, or go on with the tracked runs that it was begun with."""
        self._progress = trainer.progress
        self._length = trainer.setup.length
        tracked_run = _tracked_run(trainer)
        ids_path = tracked_run.run_dir / IDS_FILE
        tracked_ids = self._read_ids(ids_path)

        def begin(tracker_name: TrackerName, tracker: Tracker) -> None:
            earlier_id = tracked_ids.get(tracker_name, "")
            continued_run = replace(tracked_run, tracked_id=earlier_id)
            tracked_ids[tracker_name] = tracker.begin(continued_run)

        self._tell_all(begin)
        try:
            with atomic_file(ids_path) as temporary:
                temporary.write_text(json.dumps(tracked_ids))
        except OSError as error:
            reason = error.strerror or error
            self._warn(f"{ids_path} could not be written ({reason}); a resumed run is tracked anew")

    def _read_ids(self, ids_path: Path) -> dict[str, str]:
        if not ids_path.is_file():
            return {}
        try:
            content = read_json(ids_path)
            return TypeAdapter(dict[str, str]).validate_python(content)
        except (FileFormatError, ValidationError):
            self._warn(f"{ids_path} is damaged; the run is tracked anew")
            return {}

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Log the losses, temperatures, learning rate and speed of a step."""
        self._log("train", metrics)

    def validated(self, metrics: dict[str, Any]) -> None:
        """Log the scores of the validation split."""
        self._log("val", metrics)

    def warned(self, text: str) -> None:
        """Ignore warnings, which are for the screen."""

    def ended(self, outcome: Outcome) -> None:
        """Close the tracked runs, with the best student's figures in their summary."""
        if self._progress is None:  # not begun
            return
        summary = _summary(self._progress, self._length)
        self._tell_all(lambda _, tracker: tracker.end(summary, outcome))

    def _log(self, section: str, metrics: Mapping[str, Any]) -> None:
        figures = {}
        for figure_name, value in metrics.items():
            if figure_name not in _NO_FIGURES:
                figures[f"{section}/{figure_name}"] = value
        self._tell_all(lambda _, tracker: tracker.log(figures, metrics["step"]))

    def _tell_all(self, tell: Callable[[TrackerName, Tracker], object]) -> None:
        """Call a function for each tracker; one that fails is dropped, with a warning.

        It is not tried again, since each attempt may wait for an unreachable server.
        """
        for tracker_name, tracker in list(self._trackers.items()):
            try:
                tell(tracker_name, tracker)
            except Exception as error:
                del self._trackers[tracker_name]
                reason = f"{type(error).__name__}: {first_line(error)}"
                self._warn(
                    f"{tracker_name} failed and gets nothing more of this run, which goes on; "
                    f"metrics.jsonl has all figures ({reason})"
                )


def _make_tracker(tracker_name: TrackerName) -> Tracker:
    try:
        return TRACKERS[tracker_name]()
    except ImportError as error:
        reason = first_line(error)
        raise SettingError(
            f"--report-to {tracker_name} needs a package that cannot be imported ({reason}); "
            f"pip install 'cusa[{tracker_name}]'",
            name="train.report_to",
        ) from None


def _tracked_run(trainer: Trainer) -> TrackedRun:
    setup = trainer.setup
    facts = {
        "version.cusa": cusa.__version__,
        "version.python": platform.python_version(),
        "dataset": setup.store.dataset,
        "pairs": str(len(setup.data.pairs)),
        "device": setup.processes.device.type,
        "processes": str(setup.processes.size),
    }
    for package in _PACKAGES:
        facts[f"version.{package}"] = version(package)
    for kind, names in setup.provenance.teacher_names().items():
        facts[f"teacher.{kind}"] = names
    return TrackedRun(
        run_dir=setup.run_dir,
        project=setup.config.train.project,
        settings=by_full_name(asdict(setup.config)),
        facts=facts,
        steps_done=trainer.progress.step,
    )


def _summary(progress: Progress, length: RunLength) -> dict[str, float]:
    summary: dict[str, float] = {
        "epochs": length.epochs(progress.validated_step),
        "steps": progress.validated_step,
        "best_epoch": length.epochs(progress.best_step),
        "best_step": progress.best_step,
    }
    if progress.best_rsum is not None:
        summary["best_rsum"] = progress.best_rsum
    return summary
