"""A run of stage one over WebDataset tars whose actors make the tars on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from cusa.data.errors import StoreError
from cusa.data.objects.folder import location_text
from cusa.data.tars.pairs import name_of_tar
from cusa.precompute.tars.run import TarRun
from cusa.precompute.tars.tar_actor import ActorTask, TarResult

# A network file system may list a file of another node so much later.
_LISTING_S = 90.0
_POLL_S = 0.5


class Cluster(Protocol):
    """Where actors make tars."""

    def results(
        self,
        tars: Sequence[Path],
        task: ActorTask,
        check_stop: Callable[[], None],
    ) -> Generator[TarResult, None, None]:
        """Yield what :class:`cusa.precompute.tars.tar_actor.TarActor` reports, in any order.

        Args:
            tars: The tars.
            task: What the actors are to do with them.
            check_stop: Called while waiting; raises to stop.

        Raises:
            WorkerError: If the cluster cannot finish.
        """
        ...


class ClusterRun(TarRun):
    """Makes the rows of teachers for the tars of a set on a cluster; the driver has the instance.

    Args:
        cluster: The cluster.
        *arguments: Those of :class:`cusa.precompute.tars.run.TarRun`.
    """

    def __init__(
        self,
        cluster: Cluster,
        *arguments: Any,
    ) -> None:
        super().__init__(*arguments)
        self._cluster = cluster
        self._noted: set[str] = set()

    def _make_missing(self) -> None:
        pending = [self._tars[number] for number in self._find_pending()]
        if not pending:
            # The tars may have moved; no teacher is loaded.
            self._record_origin({})
            return
        task = self._actor_task()
        made_tars: list[Path] = []
        self._progress.start()
        with closing(self._cluster.results(pending, task, self._check_stop)) as results:
            for result in results:
                self._note_once(result.notes)
                if result.error is not None:
                    raise result.error
                if not made_tars and result.sources:
                    self._record_origin(result.sources)
                if result.is_made:
                    made_tars.append(result.tar)
                self._progress.finish_tar(result.n_images)
        self._require_files(made_tars)
        # Of actors that were killed.
        self._sweep()

    def _actor_task(self) -> ActorTask:
        location = self._workplace.location
        return ActorTask(self._requests, self._options, self._policy, location)

    def _note_once(
        self,
        notes: Sequence[str],
    ) -> None:
        """Pass notes on; every actor notes how its teachers were loaded."""
        for note in notes:
            if note not in self._noted:
                self._noted.add(note)
                self._reporter.note(note)

    def _require_files(
        self,
        tars: Sequence[Path],
    ) -> None:
        """Wait until the files of tars are seen here.

        Raises:
            StoreError: If they are not, as in a folder that the nodes do not share.
        """
        deadline = time.monotonic() + _LISTING_S
        while unseen := self._unseen(tars):
            if time.monotonic() > deadline:
                location = self._workplace.location
                raise StoreError(
                    f"{location_text(location)} lacks the files of {len(unseen):,} tars here that "
                    "other nodes have made; pass a folder that all nodes share as --out, or a URL",
                    path=location,
                    name=name_of_tar(unseen[0]),
                )
            self._check_stop()
            time.sleep(_POLL_S)

    def _unseen(
        self,
        tars: Sequence[Path],
    ) -> list[Path]:
        self._workplace.list_again()
        unseen: list[Path] = []
        for tar in tars:
            if not self._workplace.is_finished(tar, self._teacher_names):
                unseen.append(tar)
        return unseen
