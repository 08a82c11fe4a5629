"""What the command lines share: one-line errors, progress bars, device choice. Nothing but a cli.py imports it."""

from __future__ import annotations

import errno
import functools
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

from cusa.data.errors import CusaError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, Task, TaskID

P = ParamSpec("P")
R = TypeVar("R")

LOG_INTERVAL_S = 30.0  # between lines of progress where no terminal shows bars
_SHORTEST_S = 1e-4  # below it, a rate says nothing


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a user's mistake, or the operating system's refusal, into one line on stderr and exit status 1."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        _escape_what_cannot_be_printed()
        try:
            return command(*args, **kwargs)
        except Stopped as stopped:
            progress = f": {stopped}" if str(stopped) else ""
            fail(
                f"stopped by {signal.Signals(stopped.signal).name}{progress}", 128 + stopped.signal
            )
        except CusaError as error:
            fail(" ".join(str(error).split("\n")))
        except PermissionError as error:
            fail(
                f"no permission for {error.filename or error}: choose another path, or change its permissions"
            )
        except OSError as error:
            full = (
                "; free some space, and run the command again"
                if error.errno == errno.ENOSPC
                else ""
            )
            fail(f"{error.strerror or error} {error.filename or ''}".strip() + full)
        except KeyboardInterrupt:
            fail("interrupted; what is finished is kept", 130)

    return wrapper


def _escape_what_cannot_be_printed() -> None:
    """Print characters that the output's encoding lacks as escapes, as stderr always does.

    Captions, ids and paths may hold any character; a log in ASCII must not end the run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Besides(click.Command):
    """A command with others beside it: ``cusa-train --seed 1`` is its own, ``cusa-train export`` another.

    Attributes:
        others: The other commands by name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.others: dict[str, click.Command] = {}

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The context of the command that the arguments ask for."""
        if args and args[0] in self.others:
            return self.others[args[0]].make_context(
                f"{info_name} {args[0]}", args[1:], parent, **extra
            )
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the others."""
        if not self.others:
            return
        with formatter.section("Other commands"):
            name = ctx.command_path
            formatter.write_dl(
                [(f"{name} {n}", c.get_short_help_str(120)) for n, c in self.others.items()]
            )


class Stopped(BaseException):
    """The user or the system asked the run to stop; carries the signal's number, and how far it got.

    No ``Exception``: while libraries are imported or set up, theirs must not catch it.
    """

    def __init__(self, number: int, progress: str = "") -> None:
        super().__init__(progress)
        self.signal = number


@contextmanager
def stop_signals() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and Ctrl-C wait until the work at hand is in a good place.

    Yields a function that raises :class:`Stopped` once one of them has come. Before it is called for the first time,
    while nothing is at hand yet, a signal raises :class:`Stopped` at once. A second Ctrl-C acts as it usually does, if
    it comes more than a second later; more SIGTERMs change nothing. (Launchers pass on what their processes got, too.)
    """
    came: list[int] = []
    first = 0.0
    at_work = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if not came:
            first = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - first > 1:
            restore()
            signal.raise_signal(number)
        came.append(number)
        if not at_work:
            raise Stopped(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def check() -> None:
        nonlocal at_work
        at_work = True
        if came:
            raise Stopped(came[0])

    for number in before:
        signal.signal(number, remember)
    try:
        yield check
    finally:
        restore()


def fail(message: str, status: int = 1) -> NoReturn:
    """Print ``Error: message`` on stderr and exit."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(status)


def console(quiet: bool = False) -> Console:
    """A rich console on stdout; wide enough for a table where the output is no terminal."""
    from rich.console import Console

    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None: a service without output
    return Console(quiet=quiet, width=None if is_terminal else 120)


class ProgressLines:
    """Reports tasks in plain lines, for logs: the first soon, then now and then, then the total.

    Args:
        write: Receives each line.
        clock: Returns the time in seconds.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write, self._clock = write, clock
        self._next_line_at = self._last_event_at = clock()
        self._started: dict[int, tuple[float, float]] = {}  # per task: time, and work done before
        self._reported: dict[int, float] = {}  # per task: work that the latest line reported
        self._is_silent = True

    def added(self, task: Task) -> None:
        """A task exists; the first one is named at once, so that the log shows a sign of life."""
        self._reported[task.id] = task.completed
        if self._is_silent:
            self._print(task.description)
        self._last_event_at = self._clock()

    def advanced(self, task: Task) -> None:
        """Some work is done: print a line if one is due or the task is finished."""
        now = self._clock()
        if task.completed > self._reported[task.id]:
            start = self._last_event_at, self._reported[task.id]
            self._started.setdefault(task.id, start)
            if task.finished or now >= self._next_line_at:
                self._report(task, now)
                self._next_line_at = now + LOG_INTERVAL_S
        self._last_event_at = now

    def stopped(self, tasks: Iterable[Task]) -> None:
        """No more work will be done: report what no line has reported yet."""
        for task in tasks:
            if task.completed > self._reported[task.id]:
                self._report(task, self._last_event_at)

    def _report(self, task: Task, now: float) -> None:
        unit, completed, total = task.fields.get("unit", "rows"), task.completed, task.total
        of_total = "" if total is None else f" of {total:,.0f}"
        words = [f"{task.description}: {completed:,.0f}{of_total} {unit}"]
        started_at, completed_before = self._started[task.id]
        seconds = now - started_at
        if seconds > _SHORTEST_S:
            rate = (completed - completed_before) / seconds
            words.append(f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s")
            if task.finished:
                words.append(f"took {_duration(seconds)}")
            elif total is None:
                words.append(f"{_duration(seconds)} so far")
            else:
                words.append(f"{_duration((total - completed) / rate)} left")
        self._reported[task.id] = completed
        status = task.fields.get("status")
        self._print(", ".join(words) + (f"; {status}" if status else ""))

    def _print(self, line: str) -> None:
        self._write(line)
        self._is_silent = False


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def progress(quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Show progress on stderr: bars on a terminal, elsewhere a plain line at most every 30 s.

    Tasks may have a field ``unit``, what they count (rows if it is missing), and a field
    ``status``, free text.

    Args:
        quiet: Show nothing.
        clock: Returns the time in seconds.
    """
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    return _bars(console, clock) if console.is_terminal else _lines(console, clock)


def _lines(console: Console, clock: Callable[[], float]) -> Progress:
    """Make a progress without bars that reports to :class:`ProgressLines`."""
    from rich.progress import Progress

    def write(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    lines = ProgressLines(write, clock)

    class LineProgress(Progress):
        """Passes on each change of a task."""

        def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
            task_id = super().add_task(*args, **kwargs)
            lines.added(self._tasks[task_id])
            return task_id

        def update(self, task_id: TaskID, **kwargs: Any) -> None:
            super().update(task_id, **kwargs)
            lines.advanced(self._tasks[task_id])

        def advance(self, task_id: TaskID, advance: float = 1) -> None:
            super().advance(task_id, advance)
            lines.advanced(self._tasks[task_id])

        def stop(self) -> None:
            super().stop()
            lines.stopped(self.tasks)

    return LineProgress(console=console, disable=True, get_time=clock)


def _bars(console: Console, clock: Callable[[], float]) -> Progress:
    """Make bars: description, bar, count and total, rate, time left; ``status`` below."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Units per second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {task.fields.get('unit', 'rows')}/s" if speed else "")

    class WithStatus(Progress):
        """Bars with a line of free text below the running one: beside it, a narrow terminal has no room."""

        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if status := task.fields.get("status"):
                    yield Text(f"  {status}", style="dim")

    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        RateColumn(),
    ]
    return WithStatus(*columns, TimeRemainingColumn(), console=console, get_time=clock)


def pick_device(name: str) -> str:
    """``"cpu"`` or ``"cuda"`` for ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises:
        CusaError: If ``"cuda"`` is asked for and there is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise CusaError(
            "--device cuda: no CUDA device is available to this torch; pass --device cpu or auto"
        )
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def cpu_count() -> int:
    """Cores that this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    )


def default_workers(inputs_are_stored: bool, sharing: int = 1) -> int:
    """Reading processes: none where inputs are rows of a store, else one per core, at most 8.

    Args:
        inputs_are_stored: Whether there is nothing to decode.
        sharing: Processes on this machine that share its cores.
    """
    return 0 if inputs_are_stored else max(1, min(cpu_count() // sharing, 8))


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars and advice off the screen; call it before they are imported."""
    quiet = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
