"""A run of stage one over WebDataset tars: each tar gets its rows, then its file of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cusa.data.files import sweep_dead
from cusa.data.records import Dataset
from cusa.data.store.schema import file_name
from cusa.data.tars.manifest import Manifest, write_manifest
from cusa.data.tars.manifest_building import SetOrigin, build_manifest
from cusa.data.tars.pair_files import PAIRS_FOLDER, pairs_path, write_pairs
from cusa.data.tars.pairs import TarPairs, name_of_tar, read_pairs_of_tar
from cusa.data.tars.paths import common_folder
from cusa.data.tars.samples import TarError
from cusa.precompute.index_entries import absolute_source
from cusa.precompute.pipeline import encode_shards
from cusa.precompute.processes import RunProcesses, announced_failure
from cusa.precompute.run_options import RunOptions, RunReporter
from cusa.precompute.shard_plan import finished_shards
from cusa.precompute.tars import stored
from cusa.precompute.tars.block import TarBlock, TarTask
from cusa.precompute.teacher_loading import LoadedTeacher, TeacherLoader
from cusa.precompute.teachers import TeacherRequest

OnTar = Literal["fail", "skip", "keep"]
# Images in one pass over the teachers. Small tars are put together up to that, as starting a
# teacher's threads and worker processes takes longer than such a tar.
BLOCK_IMAGES = 4_096
_BAR = ("tars", "done")


@dataclass(frozen=True)
class TarPolicy:
    """What a run over tars does with them.

    Attributes:
        caption_rule: Where captions are: ``"txt"`` or ``"json:FIELD"``.
        on_tar: On a damaged tar: stop, skip it, or keep its whole samples.
        is_share: Whether other jobs make other tars of the set, so that no manifest is written.
    """

    caption_rule: str
    on_tar: OnTar
    is_share: bool


@dataclass(frozen=True)
class TarOutcome:
    """The result of a run over tars.

    Attributes:
        manifest: The manifest written; ``None`` if another process or a later command writes it.
        n_skipped: How many damaged tars this process left out.
    """

    manifest: Manifest | None
    n_skipped: int


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
        processes: RunProcesses,
        reporter: RunReporter,
        check_stop: Callable[[], None],
    ) -> None:
        self._tars = tars
        self._requests = requests
        self._options = options
        self._policy = policy
        self._processes = processes
        self._reporter = reporter
        self._check_stop = check_stop
        self._folder = options.out.parent
        self._teachers: dict[str, LoadedTeacher] = {}
        self._n_skipped = 0

    def go(self) -> TarOutcome:
        """Make what is missing, and write the manifest.

        Raises:
            TarError: If a tar is damaged and ``on_tar`` is ``"fail"``, or was changed since its
                rows were made.
            CusaError: If the folder holds other settings, or an item or a teacher fails.
        """
        with announced_failure(self._processes):
            self._load_teachers()
            numbers = self._processes.agree("pending", self._find_pending, self._check_stop)
            for block in self._blocks([self._tars[number] for number in numbers]):
                self._make(block)
            return self._finish()

    # --- before tars are read

    def _load_teachers(self) -> None:
        """Load the teachers; refuse one whose finished rows were made with other settings."""
        dataset = Dataset(self._folder.name, self._folder, {})
        loader = TeacherLoader(
            dataset,
            self._options,
            self._processes,
            self._reporter,
            self._check_stop,
        )
        for request in self._requests:
            stored_settings = stored.settings_of_teacher(self._folder, request.name)
            loaded = loader.load(request, stored_settings)
            if stored_settings is not None:
                stored.require_settings(self._folder, request.name, loaded, stored_settings)
            self._teachers[request.name] = loaded

    def _find_pending(self) -> list[int]:
        """Return the numbers of the tars that are not finished; only the leading process looks.

        Raises:
            StoreError: If captions of finished tars were read by another rule.
        """
        stored.require_caption_rule(self._folder, self._policy.caption_rule)
        folders = ["", PAIRS_FOLDER, *map(file_name, self._teachers)]
        sweep_dead([self._folder / folder for folder in folders])
        pending: list[int] = []
        for number, tar_path in enumerate(self._tars):
            if not self._is_finished(tar_path):
                pending.append(number)
        n_tars = len(self._tars)
        self._reporter.planned(*_BAR, n_tars, n_tars - len(pending))
        return pending

    def _is_finished(
        self,
        tar_path: Path,
    ) -> bool:
        paths = [pairs_path(self._folder, name_of_tar(tar_path))]
        for teacher_name in self._teachers:
            paths.append(self._folder / self._shard_file(teacher_name, tar_path))
        return all(map(Path.exists, paths))

    def _shard_file(
        self,
        teacher_name: str,
        tar_path: Path,
    ) -> str:
        return TarTask(self._options.out, teacher_name, name_of_tar(tar_path), 0, 0).file

    # --- making rows

    def _blocks(
        self,
        pending: Sequence[Path],
    ) -> Iterator[TarBlock]:
        """Claim tars, and yield the pairs of some at a time."""
        claimed: list[TarPairs] = []
        n_images = 0
        while (number := self._processes.claim("next-tar")) < len(pending):
            tar_pairs = self._read(pending[number])
            if tar_pairs is None:
                continue
            claimed.append(tar_pairs)
            n_images += len(tar_pairs.records)
            if n_images >= BLOCK_IMAGES:
                yield TarBlock(self._options.out, claimed)
                claimed = []
                n_images = 0
        if claimed:
            yield TarBlock(self._options.out, claimed)

    def _read(
        self,
        tar_path: Path,
    ) -> TarPairs | None:
        """Read the pairs of a tar; ``None`` if it is damaged and left out."""
        on_tar = self._policy.on_tar
        try:
            tar_pairs = read_pairs_of_tar(tar_path, self._policy.caption_rule, on_tar == "keep")
        except TarError as error:
            if on_tar == "fail":
                advice = "--on-tar skip would leave it out, --on-tar keep its damaged part"
                raise error.reworded(f"{error} ({advice})") from None
            self._reporter.note(f"{error}; the tar is left out")
            self._n_skipped += 1
            self._advance()
            return None
        if not tar_pairs.is_complete:
            n_pairs = len(tar_pairs.records)
            self._reporter.note(f"{tar_path} is damaged; its {n_pairs:,} whole samples are kept")
        stored.require_unchanged_tar(self._folder, tar_pairs)
        return tar_pairs

    def _make(
        self,
        block: TarBlock,
    ) -> None:
        """Make the missing rows of some tars, then write their pairs."""
        redo_skipped = not self._options.pipeline.skip_errors
        for teacher_name, loaded in self._teachers.items():
            settings = loaded.settings
            header_of = block.header_maker(settings)
            tasks = block.tasks(teacher_name, settings.modality)
            finished, _ = finished_shards(tasks, header_of, redo_skipped, {})
            if settings.modality == "image":
                finished = stored.without_replaced_tars(finished, block)
            encode_shards(
                loaded.teacher,
                settings.normalizer,
                header_of,
                (task for task in tasks if task not in finished),
                block.dataset,
                self._options.pipeline,
                lambda task, n_rows: self._check_stop(),
                images=block.images,
            )
        for tar_pairs in block.pairs:
            write_pairs(self._folder, tar_pairs)
            self._advance()

    def _advance(self) -> None:
        """Count a tar that this process is done with, and report those of all processes."""
        n_done = self._processes.add("tars", 1)
        self._reporter.advanced(*_BAR, n_done, "")

    # --- afterwards

    def _finish(self) -> TarOutcome:
        """Wait for all processes, and let the leading one write the manifest."""
        if not self._processes.leads:
            self._processes.tell(f"done-{self._processes.rank}", True)
            return TarOutcome(None, self._n_skipped)
        for rank in range(1, self._processes.size):
            self._processes.hear(f"done-{rank}", self._check_stop)
        if self._policy.is_share:
            return TarOutcome(None, self._n_skipped)
        sources: dict[str, str] = {}
        for teacher_name, loaded in self._teachers.items():
            sources[teacher_name] = absolute_source(loaded.teacher.source)
        recorded = SetOrigin.recorded(self._folder)
        origin = recorded.updated(common_folder(self._tars), sources)
        manifest = build_manifest(self._folder, origin)
        write_manifest(self._folder, manifest)
        return TarOutcome(manifest, self._n_skipped)
