"""Runs on an MLflow server."""

from __future__ import annotations

import time

from cusa.train.reporter import Outcome
from cusa.train.trackers.protocol import Figures, TrackedRun

_MOST_PARAMETERS = 100  # that MLflow takes at a time
_STATUS: dict[Outcome, str] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
}


class MlflowTracker:
    """Logs to the server that ``MLFLOW_TRACKING_URI`` names, in an experiment per project."""

    def __init__(self) -> None:
        import mlflow

        self._mlflow = mlflow

    def begin(self, tracked_run: TrackedRun) -> str:
        """Begin a run with its parameters, which MLflow never changes; or set one running again."""
        # A client of its own: mlflow's global run may be the host's.
        self._client = self._mlflow.MlflowClient()
        if tracked_run.tracked_id:
            self._client.update_run(tracked_run.tracked_id, status="RUNNING")
            self._run_id = tracked_run.tracked_id
            return self._run_id
        project = tracked_run.project_or("MLFLOW_EXPERIMENT_NAME")
        created = self._client.create_run(
            self._experiment_id(project),
            tags=dict(tracked_run.facts),
            run_name=tracked_run.run_dir.name,
        )
        self._run_id = created.info.run_id
        parameters = []
        make_parameter = self._mlflow.entities.Param
        for name, value in tracked_run.settings.items():
            parameters.append(make_parameter(name, str(value)))
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            batch = parameters[start : start + _MOST_PARAMETERS]
            self._client.log_batch(self._run_id, params=batch)
        return self._run_id

    def _experiment_id(self, project: str) -> str:
        experiment = self._client.get_experiment_by_name(project)
        if experiment is None:
            return self._client.create_experiment(project)
        return experiment.experiment_id

    def log(self, figures: Figures, step_number: int) -> None:
        """Log figures of a step, in one call to the server."""
        milliseconds = int(1000 * time.time())
        metrics = []
        make_metric = self._mlflow.entities.Metric
        for name, value in figures.items():
            metric = make_metric(name, value, milliseconds, step_number)
            metrics.append(metric)
        self._client.log_batch(self._run_id, metrics=metrics)

    def end(self, summary: Figures, outcome: Outcome) -> None:
        """Log the summary as metrics without a section, and end the run."""
        milliseconds = int(1000 * time.time())
        for name, value in summary.items():
            self._client.log_metric(self._run_id, name, value, milliseconds)
        self._client.set_terminated(self._run_id, _STATUS[outcome])
