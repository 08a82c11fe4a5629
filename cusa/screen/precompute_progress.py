"""The progress of ``cusa-precompute``."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, TaskID

from cusa.precompute.run_record import RunRecord
from cusa.screen.console import print_labelled


class PrecomputeProgress(RunRecord):
    """Shows a run as progress bars, and keeps what it reports.

    Args:
        progress_bars: The progress display.
        screen: Where notes are printed.
    """

    def __init__(self, progress_bars: Progress, screen: Console) -> None:
        super().__init__()
        self._progress_bars = progress_bars
        self._screen = screen
        # The bars of rows, by teacher and split.
        self._row_bars: dict[tuple[str, str], TaskID] = {}
        self._loading_bar: TaskID | None = None

    def loading(self, teacher: str) -> None:
        """Show that a teacher's weights are being loaded."""
        description = f"{teacher}: loading"
        self._loading_bar = self._progress_bars.add_task(description, total=None)

    def loaded(self) -> None:
        """Show that the weights are loaded."""
        if self._loading_bar is not None:
            self._progress_bars.remove_task(self._loading_bar)
            self._loading_bar = None

    def planned(
        self,
        teacher: str,
        split: str,
        n_rows: int,
        n_done: int,
    ) -> None:
        """Add a bar for the rows of a teacher for a split."""
        super().planned(teacher, split, n_rows, n_done)
        self._row_bars[teacher, split] = self._progress_bars.add_task(
            f"{teacher} {split}",
            total=n_rows,
            completed=n_done,
            unit=self.unit,
        )

    def advanced(
        self,
        teacher: str,
        split: str,
        n_done: float,
        file: str,
    ) -> None:
        """Show the rows that all processes together have made in this run."""
        super().advanced(teacher, split, n_done, file)
        row_bar = self._row_bars.get((teacher, split))
        if row_bar is None:
            return
        row_count = self.counts[teacher, split]
        status = file
        if row_count.finished >= row_count.total:
            # After the last row, there is no current shard to show.
            status = ""
        self._progress_bars.update(row_bar, completed=row_count.finished, status=status)

    def note(self, text: str) -> None:
        """Print something that the user should know."""
        super().note(text)
        print_labelled(self._screen, "[yellow]note:[/]", text)

    def fault(self, text: str) -> None:
        """Print an image or a caption that cannot be used."""
        super().fault(text)
        print_labelled(self._screen, "[red]fault:[/]", text)
