"""The teachers of a run: loaded the same in every process, and decoding as finished rows did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cusa.data.errors import TeacherError
from cusa.data.records import Dataset
from cusa.data.store.index import Index
from cusa.data.store.schema import TeacherSettings
from cusa.precompute.pictures import is_older, older_rows, refuse_changed_pictures
from cusa.precompute.processes import RunProcesses
from cusa.precompute.run_options import RunOptions, RunReporter
from cusa.precompute.shard_plan import ShardTask, stored_settings
from cusa.precompute.teachers import TeacherRequest
from cusa.precompute.teachers.base import FEATURE, FEATURES, Teacher


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher in memory.

    Attributes:
        teacher: The teacher.
        settings: What the store records of it.
    """

    teacher: Teacher
    settings: TeacherSettings

    @property
    def bytes_per_row(self) -> int:
        """Bytes of a stored row."""
        return self.settings.dim * np.dtype(self.settings.dtype).itemsize


class TeacherLoader:
    """Loads the teachers of a run.

    Args:
        dataset: The data set.
        options: The run's settings.
        processes: The processes, which have to agree on how pictures are decoded.
        reporter: Told what happens.
        check_stop: Called while waiting; raises to stop.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: RunOptions,
        processes: RunProcesses,
        reporter: RunReporter,
        check_stop: Callable[[], None],
    ) -> None:
        self._dataset = dataset
        self._options = options
        self._processes = processes
        self._reporter = reporter
        self._check_stop = check_stop

    def load_all(
        self,
        requests: Sequence[TeacherRequest],
        index: Index | None,
        tasks: Sequence[ShardTask],
    ) -> dict[str, LoadedTeacher]:
        """Load all teachers that have shards, before any is run: what is missing shows at once.

        Args:
            requests: The teachers.
            index: As :meth:`load` takes it.
            tasks: The planned shards.

        Returns:
            The loaded teachers, by name.

        Raises:
            CusaError: As :meth:`load`.
        """
        needed = {task.teacher for task in tasks}
        loaded: dict[str, LoadedTeacher] = {}
        for request in requests:
            if request.name in needed:
                loaded[request.name] = self.load(request, index, tasks)
        return loaded

    def load(
        self,
        request: TeacherRequest,
        index: Index | None,
        tasks: Sequence[ShardTask],
    ) -> LoadedTeacher:
        """Load a teacher.

        Args:
            request: The teacher.
            index: The store's index, if there is one; only the leading process needs it.
            tasks: The planned shards.

        Raises:
            TeacherError: If it cannot be loaded, or is not the same in the leading process.
            CusaError: If its finished rows are of a time when pictures were decoded otherwise.
        """
        options = self._options
        self._reporter.loading(request.name)
        teacher = request.load(options.pipeline.device, options.batch_size, options.pooling)
        feature = teacher.transform.get(FEATURE)
        if feature:
            self._reporter.note(f"{request.name}: {FEATURES[feature]} ({feature}) becomes the row")
        if teacher.modality == "image":
            teacher = self._with_agreed_decoding(request.name, teacher, index, tasks)

        settings = self._settings_of(teacher)
        self._refuse_other_than_leading(request.name, settings)
        self._reporter.loaded()
        if not self._processes.leads:
            self._check_stop()
        return LoadedTeacher(teacher, settings)

    def _settings_of(self, teacher: Teacher) -> TeacherSettings:
        options = self._options
        return teacher.settings(options.pipeline.precision, options.dtype, options.normalizer)

    def _refuse_other_than_leading(
        self,
        name: str,
        settings: TeacherSettings,
    ) -> None:
        leading = self._processes.agree(f"settings-{name}", settings.to_json, self._check_stop)
        differences = settings.differences(TeacherSettings.from_json(leading))
        if differences:
            message = f"teacher {name!r} is not the same in rank 0: {'; '.join(differences)}"
            raise TeacherError(message, name=name)

    def _with_agreed_decoding(
        self,
        name: str,
        teacher: Teacher,
        index: Index | None,
        tasks: Sequence[ShardTask],
    ) -> Teacher:
        """Return the teacher decoding pictures as its finished rows have it, in every process."""
        decoding = self._processes.agree(
            f"decoding-{name}",
            lambda: self._decide_decoding(name, teacher, stored_settings(name, index, tasks)),
            self._check_stop,
        )
        return replace(teacher, decoding=decoding)

    def _decide_decoding(
        self,
        name: str,
        teacher: Teacher,
        finished: TeacherSettings | None,
    ) -> dict[str, str]:
        """Return how the settings say that pictures are decoded: as today, or as older rows do."""
        if finished is None or not is_older(finished):
            return dict(teacher.decoding)

        if not self._options.check_pictures:
            raise older_rows(self._options.out, name)
        refuse_changed_pictures(self._dataset, name, self._options.pipeline.skip_errors)
        self._reporter.note(
            f"{name}: no picture has an EXIF orientation or transparency; its rows are kept"
        )
        return {}
