"""A run of stage one over WebDataset tars: each tar gets its rows, then its file of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cusa.data.files import sweep_dead
from cusa.data.store.schema import file_name
from cusa.data.tars.manifest import Manifest, write_manifest
from cusa.data.tars.manifest_building import build_manifest
from cusa.data.tars.origin import record_origin
from cusa.data.tars.pairs import TarPairs
from cusa.data.tars.set_files import PAIRS_FOLDER
from cusa.precompute.processes import RunProcesses, announced_failure
from cusa.precompute.run_options import RunOptions, RunReporter
from cusa.precompute.tars import stored
from cusa.precompute.tars.maker import TarMaker, TarPolicy
from cusa.precompute.tars.plan import SetEstimate, estimate_tars
from cusa.precompute.tars.progress import TarProgress
from cusa.precompute.tars.workplace import Workplace
from cusa.precompute.teachers import TeacherRequest

# Images in one pass over the teachers. Small tars are put together up to that, as starting a
# teacher's threads and worker processes takes longer than such a tar.
BLOCK_IMAGES = 4_096


class TarRun:
    """Makes the rows of teachers for the tars of a set; every process of a run has an instance.

    Each process claims tars one by one. A tar is finished once its file of pairs exists, which is
    written after its rows. Everything that is written depends on the tar alone: two runs on one set
    write equal bytes, so that they need no lock.

    Args:
        tars: The tars.
        requests: The teachers.
        options: The run's settings; ``out`` is the manifest.
        policy: What is done with the tars.
        workplace: The folder to make them in; ``out`` is in it.
        processes: The processes.
        reporter: Receives the events of the run.
        check_stop: Called after each batch and while waiting; raises to stop.
    """

    def __init__(
        self,
        tars: Sequence[Path],
        requests: Sequence[TeacherRequest],
        options: RunOptions,
        policy: TarPolicy,
        workplace: Workplace,
        processes: RunProcesses,
        reporter: RunReporter,
        check_stop: Callable[[], None],
    ) -> None:
        self._tars = tars
        self._requests = requests
        self._options = options
        self._policy = policy
        self._workplace = workplace
        self._processes = processes
        self._reporter = reporter
        self._check_stop = check_stop
        self._folder = options.out.parent
        self._progress = TarProgress(processes, reporter)

    def go(self) -> Manifest | None:
        """Make what is missing, and write the manifest.

        Returns:
            The manifest; ``None`` if another process or a later command writes it.

        Raises:
            TarError: If a tar is damaged and ``on_tar`` is ``"fail"``, or was changed since its
                rows were made.
            CusaError: If the folder holds other settings, or an item or a teacher fails.
        """
        with announced_failure(self._processes):
            self._make_missing()
            return self._finish()

    def _make_missing(self) -> None:
        """Make the rows of tars that are not finished."""
        maker = self._load_teachers()
        numbers = self._processes.agree("pending", self._find_pending, self._check_stop)
        if self._processes.leads:
            # Before anything is made, so that whatever is finished can be trained on in place.
            self._record_origin(maker.sources)
        self._make([self._tars[number] for number in numbers], maker)

    def estimate(
        self,
        seconds: float,
    ) -> SetEstimate:
        """Read a few tars, and run each teacher for some seconds; nothing is written.

        Args:
            seconds: Duration of the measurement of each of a teacher's two rates.

        Raises:
            CusaError: As :meth:`go` raises it.
        """
        with announced_failure(self._processes):
            stored.require_caption_rule(self._folder, self._policy.caption_rule)
            maker = self._load_teachers()
            pipeline = self._options.pipeline
            return estimate_tars(self._tars, maker, self._workplace, pipeline, seconds)

    def _load_teachers(self) -> TarMaker:
        return TarMaker(
            self._requests,
            self._options,
            self._policy,
            self._workplace,
            self._processes,
            self._reporter,
            self._check_stop,
        )

    def _record_origin(
        self,
        sources: Mapping[str, str],
    ) -> None:
        """Let the set say where its tars are, and where each teacher was loaded from."""
        record_origin(self._workplace.location, self._policy.image_root, sources)

    def _find_pending(self) -> list[int]:
        """Return the numbers of the tars that are not finished; only the leading process looks.

        Raises:
            StoreError: If captions of finished tars were read by another rule.
        """
        stored.require_caption_rule(self._folder, self._policy.caption_rule)
        self._sweep()
        pending: list[int] = []
        self._workplace.list_again()
        for number, tar in enumerate(self._tars):
            if not self._workplace.is_finished(tar, self._teacher_names):
                pending.append(number)
        n_tars = len(self._tars)
        self._progress.planned(n_tars, n_tars - len(pending))
        return pending

    def _sweep(self) -> None:
        """Remove what killed processes left behind."""
        folders = ["", PAIRS_FOLDER, *map(file_name, self._teacher_names)]
        sweep_dead([self._folder / folder for folder in folders])

    @property
    def _teacher_names(self) -> list[str]:
        return [request.name for request in self._requests]

    def _make(
        self,
        pending: Sequence[Path],
        maker: TarMaker,
    ) -> None:
        """Claim tars, and make their rows, some tars at a time."""
        self._progress.start()
        claimed: list[TarPairs] = []
        n_images = 0
        while (number := self._processes.claim("next-tar")) < len(pending):
            tar_pairs = maker.read(pending[number])
            if tar_pairs is None:
                self._progress.finish_tar(n_images=0)
                continue
            claimed.append(tar_pairs)
            n_images += len(tar_pairs.records)
            if n_images >= BLOCK_IMAGES:
                self._make_block(claimed, maker)
                claimed = []
                n_images = 0
        if claimed:
            self._make_block(claimed, maker)

    def _make_block(
        self,
        pairs: Sequence[TarPairs],
        maker: TarMaker,
    ) -> None:
        self._progress.begin(pairs)
        maker.make(pairs, self._progress.reach)
        self._progress.reach(1)

    def _finish(self) -> Manifest | None:
        """Wait for all processes, and let the leading one write the manifest."""
        if not self._processes.leads:
            self._processes.tell(f"done-{self._processes.rank}", True)
            return None
        for rank in range(1, self._processes.size):
            self._processes.hear(f"done-{rank}", self._check_stop)
        if self._policy.is_share:
            return None
        location = self._workplace.location
        manifest = build_manifest(location)
        write_manifest(location, manifest)
        return manifest
