"""Progress of the command lines: bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cusa.cli.console import print_plain

# Between lines of progress where no terminal shows bars.
LOG_INTERVAL_S = 30.0
# Below it, a rate says nothing.
_SHORTEST_S = 1e-4


def progress(quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Show progress on stderr: bars on a terminal, elsewhere a plain line at most every 30 s.

    Tasks may have a field ``unit``, what they count (rows if it is missing), and a field
    ``status``, free text.

    Args:
        quiet: Show nothing.
        clock: Returns the time in seconds.
    """
    screen = Console(stderr=True, quiet=quiet)
    if not screen.is_terminal:
        return LineProgress(screen, clock)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    return BarProgress(*columns, console=screen, get_time=clock)


class StepTasks:
    """Shows named steps as tasks of a progress, each added when it is first heard of.

    Args:
        progress_bar: The progress.
        unit: What the steps count, or ``None`` for the last word of their names.
    """

    def __init__(self, progress_bar: Progress, unit: str | None = None) -> None:
        self._bar = progress_bar
        self._unit = unit
        self._task_ids: dict[str, TaskID] = {}

    def complete(self, task_name: str, n_done: int, n_steps: int) -> None:
        """Show that so many steps are done."""
        self._bar.update(self._task_id(task_name, n_steps), completed=n_done)

    def advance(self, task_name: str, n_more: int, n_steps: int) -> None:
        """Show that so many more steps are done; after the last, the name begins anew."""
        task_id = self._task_ids.get(task_name)
        if task_id is not None and self._bar.tasks[task_id].finished:
            del self._task_ids[task_name]
        self._bar.advance(self._task_id(task_name, n_steps), n_more)

    def _task_id(self, task_name: str, n_steps: int) -> TaskID:
        if task_name not in self._task_ids:
            unit = self._unit or task_name.split()[-1]
            self._task_ids[task_name] = self._bar.add_task(task_name, total=n_steps, unit=unit)
        return self._task_ids[task_name]


class LineProgress(Progress):
    """Reports tasks in plain lines, for logs: the first soon, then now and then, then the total.

    Args:
        screen: Where the lines go.
        clock: Returns the time in seconds.
    """

    def __init__(self, screen: Console, clock: Callable[[], float]) -> None:
        # Disabled, a progress draws nothing and still keeps count.
        super().__init__(console=screen, disable=True, get_time=clock)
        self._next_line_at = self._last_event_at = clock()
        # By task: when its first work began, and the work done before.
        self._started: dict[TaskID, tuple[float, float]] = {}
        # By task: the work that the latest line reported.
        self._reported: dict[TaskID, float] = {}
        self._is_silent = True

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        """Add a task; the first is named at once, so that the log shows a sign of life."""
        task_id = super().add_task(*args, **kwargs)
        task = self._tasks[task_id]
        self._reported[task_id] = task.completed
        # Later tasks are named when they have done something.
        if self._is_silent:
            self._print(task.description)
        self._last_event_at = self.get_time()
        return task_id

    def update(self, task_id: TaskID, *args: Any, **kwargs: Any) -> None:
        """Change a task."""
        super().update(task_id, *args, **kwargs)
        self._report_if_due(self._tasks[task_id])

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Add to what a task has done."""
        super().advance(task_id, advance)
        self._report_if_due(self._tasks[task_id])

    def stop(self) -> None:
        """Report what no line has reported yet; there will be no more."""
        super().stop()
        for task in self.tasks:
            if task.completed > self._reported[task.id]:
                self._report(task, self._last_event_at)

    def _report_if_due(self, task: Task) -> None:
        now = self.get_time()
        if task.completed > self._reported[task.id]:
            # The task began when the last thing before its first work happened.
            start = self._last_event_at, self._reported[task.id]
            self._started.setdefault(task.id, start)
            if task.finished or now >= self._next_line_at:
                self._report(task, now)
                self._next_line_at = now + LOG_INTERVAL_S
        self._last_event_at = now

    def _report(self, task: Task, now: float) -> None:
        unit = task.fields.get("unit", "rows")
        of_total = "" if task.total is None else f" of {task.total:,.0f}"
        words = [f"{task.description}: {task.completed:,.0f}{of_total} {unit}"]

        started_at, completed_before = self._started[task.id]
        seconds = now - started_at
        if seconds > _SHORTEST_S:
            rate = (task.completed - completed_before) / seconds
            words.append(f"{_format_rate(rate)} {unit}/s")
            words.append(_format_time(task, seconds, rate))

        line = ", ".join(words)
        if status := task.fields.get("status"):
            line += f"; {status}"
        self._reported[task.id] = task.completed
        self._print(line)

    def _print(self, line: str) -> None:
        print_plain(line, self.console)
        self._is_silent = False


def _format_rate(rate: float) -> str:
    if rate >= 10:
        return f"{rate:,.0f}"
    return f"{rate:.2g}"


def _format_time(task: Task, seconds: float, rate: float) -> str:
    if task.finished:
        return f"took {_duration(seconds)}"
    if task.total is None:
        return f"{_duration(seconds)} so far"
    seconds_left = (task.total - task.completed) / rate
    return f"{_duration(seconds_left)} left"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class RateColumn(ProgressColumn):
    """Shows units per second."""

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing while it is unknown."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:,.0f} {task.fields.get('unit', 'rows')}/s")


class BarProgress(Progress):
    """Bars with a line of free text below; beside them, a narrow terminal has no room."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bars, then the status of each task."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if status := task.fields.get("status"):
                yield Text(f"  {status}", style="dim")
