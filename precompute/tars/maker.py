"""The making of tars' rows and pairs, whoever hands the tars out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cusa.data.objects.folder import location_text
from cusa.data.records import Dataset
from cusa.data.tars.pair_files import write_pairs
from cusa.data.tars.pairs import TarPairs, name_of_tar
from cusa.data.tars.parquet import read_pairs_of_unit
from cusa.data.tars.samples import TarError
from cusa.precompute.index_entries import absolute_source
from cusa.precompute.pipeline import encode_shards
from cusa.precompute.processes import RunProcesses
from cusa.precompute.run_options import RunOptions, RunReporter
from cusa.precompute.shard_plan import finished_shards
from cusa.precompute.tars import stored
from cusa.precompute.tars.block import TarBlock
from cusa.precompute.tars.workplace import Workplace
from cusa.precompute.teacher_loading import LoadedTeacher, TeacherLoader
from cusa.precompute.teachers import TeacherRequest

OnTar = Literal["fail", "skip", "keep"]


@dataclass(frozen=True)
class TarPolicy:
    """What a run over tars does with them.

    Attributes:
        caption_rule: Where captions are: ``"txt"``, ``"json:FIELD"`` or ``"parquet:COLUMN"``.
        on_tar: On a damaged tar: stop, skip it, or keep its whole samples.
        is_share: Whether other jobs make other tars of the set, so that no manifest is written.
        image_root: The folder of all tars of the set, absolute; empty if they are in several.
    """

    caption_rule: str
    on_tar: OnTar
    is_share: bool
    image_root: str


class TarMaker:
    """Makes the rows and the pairs of tars; loads the teachers once, when it is created.

    Everything that it writes depends on the tar alone: two makers of one tar write equal bytes.

    Args:
        requests: The teachers.
        options: The run's settings; ``out`` is the manifest.
        policy: What is done with the tars.
        workplace: The folder to make them in; ``out`` is in it.
        processes: The processes, which have to agree on the teachers' settings.
        reporter: Receives notes, and the loading of teachers.
        check_stop: Called after each batch and while waiting; raises to stop.

    Attributes:
        teachers: The loaded teachers by name.

    Raises:
        CusaError: If a teacher cannot be loaded, or the folder holds rows that it made with other
            settings.
    """

    def __init__(
        self,
        requests: Sequence[TeacherRequest],
        options: RunOptions,
        policy: TarPolicy,
        workplace: Workplace,
        processes: RunProcesses,
        reporter: RunReporter,
        check_stop: Callable[[], None],
    ) -> None:
        self._options = options
        self._policy = policy
        self._workplace = workplace
        self._reporter = reporter
        self._check_stop = check_stop
        self._folder = options.out.parent
        self.teachers: dict[str, LoadedTeacher] = {}
        dataset = Dataset(self._folder.name, self._folder, {})
        loader = TeacherLoader(dataset, options, processes, reporter, check_stop)
        for request in requests:
            stored_settings = stored.settings_of_teacher(self._folder, request.name)
            loaded = loader.load(request, stored_settings)
            if stored_settings is not None:
                stored.require_settings(self._folder, request.name, loaded, stored_settings)
            self.teachers[request.name] = loaded

    @property
    def sources(self) -> dict[str, str]:
        """Return where each teacher was loaded from, by its name."""
        sources: dict[str, str] = {}
        for teacher_name, loaded in self.teachers.items():
            sources[teacher_name] = absolute_source(loaded.teacher.source)
        return sources

    @property
    def _teacher_names(self) -> list[str]:
        return list(self.teachers)

    def read(
        self,
        tar: Path,
    ) -> TarPairs | None:
        """Read the pairs of a tar; ``None`` if it is damaged and left out.

        Args:
            tar: Its path, or its URL as a path.

        Raises:
            TarError: If the tar is damaged and ``on_tar`` is ``"fail"``, or was changed since its
                rows were made.
            ObjectError: If an object store does not give it.
        """
        on_tar = self._policy.on_tar
        try:
            with self._workplace.errors_named():
                tar_path = self._workplace.fetch(tar, self._teacher_names)
                tar_pairs = read_pairs_of_unit(
                    tar_path, self._policy.caption_rule, on_tar == "keep"
                )
        except TarError as error:
            if on_tar == "fail":
                advice = "--on-tar skip would leave it out, --on-tar keep its damaged part"
                raise error.reworded(f"{error} ({advice})") from None
            self._reporter.note(f"{error}; the tar is left out")
            self._workplace.drop(name_of_tar(tar), self._teacher_names)
            return None
        if not tar_pairs.is_complete:
            n_pairs = len(tar_pairs.records)
            tar_text = location_text(tar)
            self._reporter.note(f"{tar_text} is damaged; its {n_pairs:,} whole samples are kept")
        stored.require_unchanged_tar(self._folder, tar_pairs)
        return tar_pairs

    def make(
        self,
        pairs: Sequence[TarPairs],
        on_share: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Make the missing rows of some tars, which go through the teachers together.

        Args:
            pairs: The pairs of each tar; a tar's file of pairs is written after its rows.
            on_share: Called after each batch with the share of the rows that are made, in [0, 1].

        Raises:
            CusaError: If rows were made with other settings, or an item or a teacher fails.
        """
        block = TarBlock(self._options.out, pairs)
        n_rows = 0
        for teacher_name, loaded in self.teachers.items():
            tasks = block.tasks(teacher_name, loaded.settings.modality)
            n_rows += sum(task.n_rows for task in tasks)
        n_made = 0

        def count_rows(n_new: int) -> None:
            nonlocal n_made
            n_made += n_new
            on_share(n_made / max(1, n_rows))
            self._check_stop()

        for teacher_name in self.teachers:
            self._make_rows(teacher_name, block, count_rows)
        for tar_pairs in pairs:
            write_pairs(self._folder, tar_pairs)
            self._workplace.deliver(tar_pairs.name, self._teacher_names)

    def _make_rows(
        self,
        teacher_name: str,
        block: TarBlock,
        count_rows: Callable[[int], None],
    ) -> None:
        """Make the missing rows of a teacher for some tars."""
        loaded = self.teachers[teacher_name]
        settings = loaded.settings
        header_of = block.header_maker(settings)
        tasks = block.tasks(teacher_name, settings.modality)
        redo_skipped = not self._options.pipeline.skip_errors
        finished, _ = finished_shards(tasks, header_of, redo_skipped, {})
        if settings.modality == "image":
            finished = stored.without_replaced_tars(finished, block)
        count_rows(sum(task.n_rows for task in finished))
        encode_shards(
            loaded.teacher,
            settings.normalizer,
            header_of,
            (task for task in tasks if task not in finished),
            block.dataset,
            self._options.pipeline,
            lambda _, n_encoded: count_rows(n_encoded),
            images=block.images,
        )
