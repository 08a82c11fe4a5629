"""How far a run over tars is, over all processes: tars, parts of them, and images per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cusa.data.tars.pairs import TarPairs
from cusa.precompute.processes import RunProcesses
from cusa.precompute.run_options import RunReporter

_BAR = ("tars", "done")
# The processes' counters are whole numbers, and a tar may take an hour.
_PARTS_OF_TAR = 1_000_000


class TarProgress:
    """Counts what the processes of a run have made, and reports it after each batch.

    Args:
        processes: The processes, which share the counters.
        reporter: Receives the progress.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        processes: RunProcesses,
        reporter: RunReporter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes
        self._reporter = reporter
        self._clock = clock
        self._began_s = 0.0
        self._n_tars = 0
        self._n_images = 0
        # Of the tars in the making.
        self._parts_counted = 0
        self._images_counted = 0

    def planned(
        self,
        n_tars: int,
        n_done: int,
    ) -> None:
        """Report the number of tars, and how many an earlier run has finished."""
        self._reporter.planned(*_BAR, n_tars, n_done)

    def start(self) -> None:
        """Start the clock, once the teachers are loaded."""
        self._began_s = self._clock()

    def begin(
        self,
        pairs: Sequence[TarPairs],
    ) -> None:
        """Begin with some tars, which go through the teachers together."""
        self._n_tars = len(pairs)
        self._n_images = sum(len(tar_pairs.records) for tar_pairs in pairs)
        self._parts_counted = 0
        self._images_counted = 0

    def reach(
        self,
        share: float,
    ) -> None:
        """Count a share of these tars as made, in [0, 1], less what was counted already."""
        n_parts = int(share * self._n_tars * _PARTS_OF_TAR) - self._parts_counted
        n_images = int(share * self._n_images) - self._images_counted
        self._parts_counted += n_parts
        self._images_counted += n_images
        self._report(n_parts, n_images)

    def finish_tar(self, n_images: int) -> None:
        """Count a tar as done, at once; of one that is left out, no images."""
        self._report(_PARTS_OF_TAR, n_images)

    def _report(
        self,
        n_parts: int,
        n_images: int,
    ) -> None:
        n_done = self._processes.add("tar-parts", n_parts) / _PARTS_OF_TAR
        images_made = self._processes.add("images", n_images)
        seconds = self._clock() - self._began_s
        status = ""
        if images_made and seconds:
            status = f"{images_made / seconds:,.3g} images/s"
        self._reporter.advanced(*_BAR, n_done, status)
