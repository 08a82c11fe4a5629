"""Stand-ins for the packages of trackers, whose real ones bring 80 to 170 MB.

Each takes what the real one takes of the calls that are made, refuses what that refuses (wandb
0.31, mlflow-skinny 3.17, trackio 0.43), and keeps the runs of all calls by id.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any


@dataclass
class Seen:
    """A tracked run: what was sent of it."""

    project: str
    name: str
    config: dict[str, Any]
    figures: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    status: str = "running"

    def of(self, name: str) -> list[tuple[int, float]]:
        """The steps and values of a figure."""
        return [(step, figures[name]) for step, figures in self.figures if name in figures]


class WandbRun:
    """A run of wandb."""

    def __init__(self, run_id: str, seen: Seen) -> None:
        self.id = run_id
        self.summary = seen.summary
        self._seen = seen
        self._metrics: dict[str, str | None] = {}

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        assert step_metric is None or step_metric in self._metrics
        self._metrics[name] = step_metric

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        if self._seen.status != "running":
            raise RuntimeError("Run is finished; cannot log")
        figures = dict(data)
        self._seen.figures.append((int(figures.pop("step")), figures))

    def finish(self, exit_code: int | None = None) -> None:
        self._seen.status = "finished" if exit_code == 0 else "failed"


class Wandb(ModuleType):
    """wandb."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.seen: dict[str, Seen] = {}
        error = type("Error", (Exception,), {})
        self.errors = SimpleNamespace(
            Error=error,
            UsageError=type("UsageError", (error,), {}),
            CommError=type("CommError", (error,), {}),
        )

    def login(self) -> bool:
        return True

    def init(
        self,
        *,
        project: str,
        name: str,
        id: str | None,
        resume: str,
        dir: str,
        config: dict[str, Any],
        allow_val_change: bool,
        reinit: str,
    ) -> WandbRun:
        assert (resume, reinit, allow_val_change) == ("allow", "create_new", True)
        run_id = id or f"wandb{len(self.seen)}"
        seen = self.seen.setdefault(run_id, Seen(project, name, {}))
        seen.status = "running"
        seen.config.update(config)
        return WandbRun(run_id, seen)


class TrackioRun:
    """A run of Trackio."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step is None:  # the next one
            self._seen.summary.update(metrics)
        else:
            self._seen.figures.append((step, metrics))

    def finish(self) -> None:
        self._seen.status = "finished"


class Trackio(ModuleType):
    """trackio."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.seen: dict[str, Seen] = {}

    def init(
        self, project: str, name: str, *, config: dict[str, Any], resume: str, embed: bool
    ) -> TrackioRun:
        assert (resume, embed) == ("allow", False)
        assert not any(key.startswith("_") for key in config)
        return TrackioRun(self.seen.setdefault(name, Seen(project, name, dict(config))))


class MlflowError(Exception):
    """What mlflow raises."""


class MlflowClient:
    """The client of mlflow; all instances see the same server."""

    server: dict[str, Seen]
    experiments: dict[str, str]

    def get_experiment_by_name(self, name: str) -> Any:
        if name not in self.experiments:
            return None
        return SimpleNamespace(experiment_id=self.experiments[name])

    def create_experiment(self, name: str) -> str:
        if name in self.experiments:
            raise MlflowError(f"Experiment {name!r} already exists.")
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> Any:
        assert all(isinstance(value, str) for value in tags.values())
        names = {number: name for name, number in self.experiments.items()}
        run_id = f"mlflow{len(self.server)}"
        self.server[run_id] = Seen(names[experiment_id], run_name, dict(tags))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, status: str) -> None:
        self._seen(run_id).status = status.lower()

    def _seen(self, run_id: str) -> Seen:
        if run_id not in self.server:
            raise MlflowError(f"Run with id={run_id} not found")
        return self.server[run_id]

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        seen = self._seen(run_id)
        if len(params) > 100:
            raise MlflowError("a batch has at most 100 parameters")
        for param in params:
            if seen.config.get(param.key, param.value) != param.value:
                raise MlflowError(f"Changing param values is not allowed: {param.key}")
            assert len(param.value) <= 6000
            seen.config[param.key] = param.value
        for step, group in itertools.groupby(metrics, lambda metric: metric.step):
            seen.figures.append((step, {metric.key: metric.value for metric in group}))

    def log_metric(self, run_id: str, key: str, value: float, timestamp: int) -> None:
        self._seen(run_id).summary[key] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self._seen(run_id).status = status.lower()


class Mlflow(ModuleType):
    """mlflow."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.seen: dict[str, Seen] = {}
        self.MlflowClient = type(
            "Client", (MlflowClient,), {"server": self.seen, "experiments": {}}
        )
        self.entities = SimpleNamespace(
            Param=lambda key, value: SimpleNamespace(key=key, value=value),
            Metric=lambda key, value, timestamp, step: SimpleNamespace(
                key=key, value=value, timestamp=timestamp, step=step
            ),
        )


STAND_INS = {"wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow}


def install(monkeypatch: Any, name: str) -> Any:
    """Put the stand-in of a package in its place; the module."""
    module = STAND_INS[name]()
    monkeypatch.setitem(sys.modules, name, module)
    return module
