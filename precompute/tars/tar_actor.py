"""What an actor of a cluster does: makes tars, one at a time, and reports each to the driver."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cusa.data.errors import CusaError, WorkerError
from cusa.data.objects.folder import location_text
from cusa.data.tars.manifest import MANIFEST
from cusa.data.tars.pairs import name_of_tar
from cusa.precompute.processes import connect
from cusa.precompute.run_options import RunOptions
from cusa.precompute.run_record import RunRecord
from cusa.precompute.tars.maker import TarMaker, TarPolicy
from cusa.precompute.tars.workplace import open_workplace
from cusa.precompute.teachers import TeacherRequest

# A tar that ends every actor, as one that takes too much memory does, would keep a run busy for
# ever.
MAX_ATTEMPTS = 5
# Columns of the rows that actors get and give.
TAR = "tar"
RESULT = "result"


@dataclass(frozen=True)
class ActorTask:
    """What every actor of a run is to do with its tars.

    Attributes:
        requests: The teachers.
        options: The run's settings.
        policy: What is done with the tars.
        location: Path or URL of the folder of the set; a path is absolute.
    """

    requests: Sequence[TeacherRequest]
    options: RunOptions
    policy: TarPolicy
    location: Path


@dataclass(frozen=True)
class TarResult:
    """What an actor reports of a tar.

    Attributes:
        tar: The tar.
        is_made: Whether its rows and pairs are in the set now; if not, it was left out.
        n_images: Number of its images.
        notes: What the user should know.
        sources: Where each teacher was loaded from, by its name.
        error: Why the run has to stop, or ``None``.
    """

    tar: Path
    is_made: bool = False
    n_images: int = 0
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    error: CusaError | OSError | None = None


class TarActor:
    """Makes tars; the teachers are loaded with the first one.

    Args:
        task: What to do.
        count_attempt: Counts the attempts at a tar by all actors, this one included.
    """

    def __init__(
        self,
        task: ActorTask,
        count_attempt: Callable[[Path], int],
    ) -> None:
        self._task = task
        self._count_attempt = count_attempt
        self._record = RunRecord()
        # Copies of an object store's files are dropped when the actor is.
        self._closing = ExitStack()
        weakref.finalize(self, self._closing.close)
        opening = open_workplace(task.location)
        self._workplace = self._closing.enter_context(opening)
        self._maker: TarMaker | None = None

    def __call__(
        self,
        batch: Mapping[str, Any],
    ) -> dict[str, list[TarResult]]:
        """Make the tar of a batch of one row, and return the result in one, as Ray Data wants."""
        result = self.make(Path(str(batch[TAR][0])))
        return {RESULT: [result]}

    def make(
        self,
        tar: Path,
    ) -> TarResult:
        """Make the rows and the pairs of a tar; what stops the run is in the result."""
        self._record.notes.clear()
        # As an exception, Ray would wrap an error in its own.
        try:
            with self._workplace.errors_named():
                self._require_few_attempts(tar)
                maker = self._load_maker()
                tar_pairs = maker.read(tar)
                if tar_pairs is not None:
                    maker.make([tar_pairs])
        except (CusaError, OSError) as error:
            return TarResult(tar, notes=tuple(self._record.notes), error=error)
        n_images = len(tar_pairs.records) if tar_pairs else 0
        notes = tuple(self._record.notes)
        return TarResult(tar, tar_pairs is not None, n_images, notes, maker.sources)

    def _require_few_attempts(
        self,
        tar: Path,
    ) -> None:
        """Refuse a tar that has ended several actors.

        Raises:
            WorkerError: If it has.
        """
        if self._count_attempt(tar) > MAX_ATTEMPTS:
            raise WorkerError(
                f"{location_text(tar)}: {MAX_ATTEMPTS} actors ended while they had it, as when "
                "memory runs out; give them more, or pass a smaller --batch-size",
                path=tar,
                name=name_of_tar(tar),
            )

    def _load_maker(self) -> TarMaker:
        if self._maker is None:
            self._workplace.fetch_samples()
            self._maker = TarMaker(
                self._task.requests,
                replace(self._task.options, out=self._workplace.folder / MANIFEST),
                self._task.policy,
                self._workplace,
                connect(),
                self._record,
                lambda: None,
            )
        return self._maker
