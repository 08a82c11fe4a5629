"""The progress of ``cusa-precompute``."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from cusa.precompute.run_record import RunRecord


class BarReporter(RunRecord):
    """Shows a run as progress bars, and keeps what it reports.

    Args:
        progress_bar: The progress.
        screen: Where notes are printed.
    """

    def __init__(self, progress_bar: Progress, screen: Console) -> None:
        super().__init__()
        self._progress_bar = progress_bar
        self._screen = screen
        self._task_ids: dict[tuple[str, str], TaskID] = {}
        self._loading: TaskID | None = None

    def loading(self, teacher: str) -> None:
        """Show that a teacher's weights are being loaded."""
        self._loading = self._progress_bar.add_task(f"{teacher}: loading", total=None)

    def loaded(self) -> None:
        """Show that the weights are loaded."""
        if self._loading is not None:
            self._progress_bar.remove_task(self._loading)
            self._loading = None

    def planned(self, teacher: str, split: str, n_rows: int, n_done: int) -> None:
        """Add a bar for the rows of a teacher for a split."""
        super().planned(teacher, split, n_rows, n_done)
        description = f"{teacher} {split}"
        task_id = self._progress_bar.add_task(
            description, total=n_rows, completed=n_done, unit=self.unit
        )
        self._task_ids[teacher, split] = task_id

    def advanced(self, teacher: str, split: str, n_done: int, file: str) -> None:
        """Show the rows that all processes together have made in this run."""
        super().advanced(teacher, split, n_done, file)
        task_id = self._task_ids.get((teacher, split))
        if task_id is None:
            return
        count = self.counts[teacher, split]
        n_completed = count.before + count.now
        # After the last row, there is no current shard to show.
        status = file if n_completed < count.total else ""
        self._progress_bar.update(task_id, completed=n_completed, status=status)

    def note(self, text: str) -> None:
        """Print something that the user should know."""
        super().note(text)
        print_labelled(self._screen, "[yellow]note:[/]", text)

    def fault(self, text: str) -> None:
        """Print an image or a caption that cannot be used."""
        super().fault(text)
        print_labelled(self._screen, "[red]fault:[/]", text)


def print_labelled(screen: Console, label: str, message: str) -> None:
    """Print a label, which may have markup, and a message, whose brackets are kept."""
    screen.print(f"{label} {escape(message)}", highlight=False, soft_wrap=True)
