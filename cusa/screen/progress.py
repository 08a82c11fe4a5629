"""Progress display of the commands: bars on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

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

from cusa.screen.line_progress import LineProgress, format_rate, unit_of


def progress_display(quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Make a progress display on stderr: bars on a terminal, elsewhere a line at most every 30 s.

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
        progress_bars: The progress display.
        unit: Unit of the steps; ``None``: the last word of each task's name.
    """

    def __init__(self, progress_bars: Progress, unit: str | None = None) -> None:
        self._progress_bars = progress_bars
        self._unit = unit
        self._task_ids: dict[str, TaskID] = {}

    def complete(self, task_name: str, n_done: int, n_steps: int) -> None:
        """Show the number of steps done."""
        task_id = self._task_id(task_name, n_steps)
        self._progress_bars.update(task_id, completed=n_done)

    def advance(self, task_name: str, n_more: int, n_steps: int) -> None:
        """Show that more steps are done; once a task is complete, its name starts a new one."""
        task_id = self._task_id(task_name, n_steps)
        if self._progress_bars.tasks[task_id].finished:
            del self._task_ids[task_name]
            task_id = self._task_id(task_name, n_steps)
        self._progress_bars.advance(task_id, n_more)

    def _task_id(self, task_name: str, n_steps: int) -> TaskID:
        if task_name not in self._task_ids:
            unit = self._unit or task_name.split()[-1]
            self._task_ids[task_name] = self._progress_bars.add_task(
                task_name, total=n_steps, unit=unit
            )
        return self._task_ids[task_name]


class BarProgress(Progress):
    """Bars with their status on a line below, as a narrow terminal has no room beside them."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bars, then the status of each task."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if status := task.fields.get("status"):
                yield Text(f"  {status}", style="dim")


class RateColumn(ProgressColumn):
    """Shows units per second."""

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing while it is unknown."""
        units_per_second = task.finished_speed or task.speed
        if not units_per_second:
            return Text("")
        return Text(f"{format_rate(units_per_second)} {unit_of(task)}/s")
