"""Progress display of the commands: bars on a terminal, occasional lines elsewhere."""

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

from cusa.screen.console import print_plain

# Seconds between lines of progress, if there is no terminal to show bars.
LOG_INTERVAL_S = 30.0
# Seconds, below which a rate is meaningless.
_SHORTEST_S = 1e-4


def progress(quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Show progress on stderr: bars on a terminal, elsewhere a plain line at most every 30 s.

    Tasks may have a field ``unit`` ("rows" if it is missing) and a field ``status`` of free text.

    Args:
        quiet: Whether to show nothing.
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
    """Shows named tasks of a progress display, each added with its first step.

    Args:
        progress_bar: The progress display.
        unit: Unit of the steps; ``None``: the last word of each task's name.
    """

    def __init__(self, progress_bar: Progress, unit: str | None = None) -> None:
        self._progress_bar = progress_bar
        self._unit = unit
        self._task_ids: dict[str, TaskID] = {}

    def complete(self, task_name: str, n_done: int, n_steps: int) -> None:
        """Show the number of steps done."""
        self._progress_bar.update(self._task_id(task_name, n_steps), completed=n_done)

    def advance(self, task_name: str, n_more: int, n_steps: int) -> None:
        """Show that more steps are done; once a task is complete, its name starts a new one."""
        task_id = self._task_ids.get(task_name)
        if task_id is not None and self._progress_bar.tasks[task_id].finished:
            del self._task_ids[task_name]
        self._progress_bar.advance(self._task_id(task_name, n_steps), n_more)

    def _task_id(self, task_name: str, n_steps: int) -> TaskID:
        if task_name not in self._task_ids:
            unit = self._unit or task_name.split()[-1]
            self._task_ids[task_name] = self._progress_bar.add_task(
                task_name, total=n_steps, unit=unit
            )
        return self._task_ids[task_name]


class LineProgress(Progress):
    """Reports tasks in plain lines for logs: one at the start, some in between, and a last one.

    Args:
        screen: Where the lines go.
        clock: Returns the time in seconds.
    """

    def __init__(self, screen: Console, clock: Callable[[], float]) -> None:
        # A disabled progress display draws nothing but still counts.
        super().__init__(console=screen, disable=True, get_time=clock)
        self._next_line_at = self._last_event_at = clock()
        # By task: when its first work began, and the work completed before that.
        self._started: dict[TaskID, tuple[float, float]] = {}
        # By task: the work that the latest line reported.
        self._reported: dict[TaskID, float] = {}
        self._is_silent = True

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        """Add a task; the first one is printed at once, as a sign of life."""
        task_id = super().add_task(*args, **kwargs)
        task = self._tasks[task_id]
        self._reported[task_id] = task.completed
        # Later tasks are printed once they have done some work.
        if self._is_silent:
            self._print(task.description)
        self._last_event_at = self.get_time()
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
            if task.completed > self._reported[task.id]:
                self._report(task, self._last_event_at)

    def _report_if_due(self, task: Task) -> None:
        current_time = self.get_time()
        if task.completed > self._reported[task.id]:
            # The task's first work began at the last event before it.
            start = self._last_event_at, self._reported[task.id]
            self._started.setdefault(task.id, start)
            if task.finished or current_time >= self._next_line_at:
                self._report(task, current_time)
                self._next_line_at = current_time + LOG_INTERVAL_S
        self._last_event_at = current_time

    def _report(self, task: Task, now: float) -> None:
        unit = task.fields.get("unit", "rows")
        of_total = "" if task.total is None else f" of {task.total:,.0f}"
        phrases = [f"{task.description}: {task.completed:,.0f}{of_total} {unit}"]

        start_time, completed_before = self._started[task.id]
        seconds = now - start_time
        if seconds > _SHORTEST_S:
            rate = (task.completed - completed_before) / seconds
            phrases.append(f"{_format_rate(rate)} {unit}/s")
            phrases.append(_format_time(task, seconds, rate))

        log_line = ", ".join(phrases)
        if status := task.fields.get("status"):
            log_line += f"; {status}"
        self._reported[task.id] = task.completed
        self._print(log_line)

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
    """Bars with their status on a line below, as a narrow terminal has no room beside them."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bars, then the status of each task."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if status := task.fields.get("status"):
                yield Text(f"  {status}", style="dim")
