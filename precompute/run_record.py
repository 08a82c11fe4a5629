"""What a run reports, kept: notes, faults, and how far it got."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RowCount:
    """Rows of a teacher for a split.

    Attributes:
        before: Rows finished before this run.
        now: Rows made in this run.
        total: All rows.
    """

    before: int
    now: float
    total: int

    @property
    def finished(self) -> float:
        """Return the rows that are finished; of tars, parts count, too."""
        return self.before + self.now


class RunRecord:
    """Keeps the events of a run (:class:`cusa.precompute.run_options.RunReporter`).

    Attributes:
        notes: What the user should know.
        faults: Images and captions that cannot be used.
        counts: Rows by teacher and split.
        unit: What is counted.
    """

    def __init__(self) -> None:
        self.unit = "rows"
        self.notes: list[str] = []
        self.faults: list[str] = []
        self.counts: dict[tuple[str, str], RowCount] = {}

    def loading(self, teacher: str) -> None:
        """Ignore that a teacher's weights are being loaded."""

    def loaded(self) -> None:
        """Ignore that the weights are loaded."""

    def planned(
        self,
        teacher: str,
        split: str,
        n_rows: int,
        n_done: int,
    ) -> None:
        """Count the rows of a teacher for a split."""
        count = RowCount(before=n_done, now=0, total=n_rows)
        self.counts[teacher, split] = count

    def advanced(
        self,
        teacher: str,
        split: str,
        n_done: float,
        file: str,
    ) -> None:
        """Count the rows that all processes together have made in this run."""
        count = self.counts.get((teacher, split))
        if count is not None:
            count.now = n_done

    def note(self, text: str) -> None:
        """Keep something that the user should know."""
        self.notes.append(text)

    def fault(self, text: str) -> None:
        """Keep an image or a caption that cannot be used."""
        self.faults.append(text)

    def progress(self) -> str:
        """Describe how far the run got."""
        n_rows = 0
        n_finished = 0.0
        for count in self.counts.values():
            n_rows += count.total
            n_finished += count.finished
        if not n_rows:
            return f"no {self.unit} were encoded yet"
        n_whole = int(n_finished)
        return f"{n_whole:,} of {n_rows:,} {self.unit} are encoded; finished shards are kept"
