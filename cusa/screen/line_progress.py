"""Progress in plain lines, where there is no terminal to show bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import Progress, Task, TaskID

from cusa.screen.console import print_plain

# Seconds from one line of progress to the next.
LOG_INTERVAL_S = 30.0
# Seconds, below which a rate is meaningless.
_SHORTEST_S = 1e-4


@dataclass
class _Logged:
    """What lines have said of a task.

    Attributes:
        completed_before: The work completed before the display.
        completed: The completed work that the latest line reported.
        start_time: When the first work of the display began, in seconds; ``None`` until it is done.
    """

    completed_before: float
    completed: float
    start_time: float | None = None


class LineProgress(Progress):
    """Reports tasks in plain lines for logs: one at the start, some in between, and a last one.

    Args:
        screen: Where the lines go.
        clock: Returns the time in seconds.
    """

    def __init__(self, screen: Console, clock: Callable[[], float]) -> None:
        # A disabled progress display draws nothing but still counts.
        super().__init__(console=screen, disable=True, get_time=clock)
        current_time = clock()
        self._next_line_time = current_time
        self._last_event_time = current_time
        self._logged: dict[TaskID, _Logged] = {}
        self._is_silent = True

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        """Add a task; the first one is printed at once, as a sign of life."""
        task_id = super().add_task(*args, **kwargs)
        task = self._tasks[task_id]
        self._logged[task_id] = _Logged(task.completed, task.completed)
        # Later tasks are printed once they have done some work.
        if self._is_silent:
            self._print(task.description)
        self._last_event_time = self.get_time()
        return task_id

    def update(self, task_id: TaskID, *args: Any, **kwargs: Any) -> None:
        """Update a task."""
        super().update(task_id, *args, **kwargs)
        self._report_if_due(self._tasks[task_id])

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Add to the completed work of a task."""
        super().advance(task_id, advance)
        self._report_if_due(self._tasks[task_id])

    def stop(self) -> None:
        """Report the work that no line has reported yet, and end the display."""
        super().stop()
        for task in self.tasks:
            if task.completed > self._logged[task.id].completed:
                self._report(task, self._last_event_time)

    def _report_if_due(self, task: Task) -> None:
        current_time = self.get_time()
        logged = self._logged[task.id]
        if task.completed > logged.completed:
            if logged.start_time is None:
                # The task's first work began at the last event before it.
                logged.start_time = self._last_event_time
            if task.finished or current_time >= self._next_line_time:
                self._report(task, current_time)
                self._next_line_time = current_time + LOG_INTERVAL_S
        self._last_event_time = current_time

    def _report(self, task: Task, current_time: float) -> None:
        logged = self._logged[task.id]
        assert logged.start_time is not None, "there is work to report"
        seconds = current_time - logged.start_time
        n_completed = task.completed - logged.completed_before
        logged.completed = task.completed
        self._print(_log_line(task, n_completed, seconds))

    def _print(self, log_line: str) -> None:
        print_plain(log_line, self.console)
        self._is_silent = False


def unit_of(task: Task) -> str:
    """Return the unit of a task's work."""
    return task.fields.get("unit", "rows")


def _log_line(task: Task, n_completed: float, seconds: float) -> str:
    """Describe how far a task is.

    Args:
        task: The task.
        n_completed: The work of this display.
        seconds: How long it took.
    """
    unit = unit_of(task)
    # Of a tar in the making, a part may be done.
    completed = f"{int(task.completed):,}"
    if task.total is not None:
        completed += f" of {task.total:,.0f}"
    log_line = f"{task.description}: {completed} {unit}"
    if seconds > _SHORTEST_S:
        rate = n_completed / seconds
        log_line += f", {format_rate(rate)} {unit}/s, {_format_time(task, seconds, rate)}"
    if status := task.fields.get("status"):
        log_line += f"; {status}"
    return log_line


def format_rate(rate: float) -> str:
    """Format work per second, which may be far less than one."""
    if rate >= 10:
        return f"{rate:,.0f}"
    return f"{rate:.2g}"


def _format_time(task: Task, seconds: float, rate: float) -> str:
    if task.finished:
        return f"took {_format_duration(seconds)}"
    if task.total is None:
        return f"{_format_duration(seconds)} so far"
    seconds_left = (task.total - task.completed) / rate
    return f"{_format_duration(seconds_left)} left"


def _format_duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
