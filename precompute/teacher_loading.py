"""Loading of a run's teachers, the same in every process and consistent with finished rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cusa.data.errors import StoreError, TeacherError
from cusa.data.records import Dataset
from cusa.data.store.schema import TeacherSettings
from cusa.precompute.pictures import is_older, refuse_changed_pictures
from cusa.precompute.processes import RunProcesses
from cusa.precompute.run_options import RunOptions, RunReporter
from cusa.precompute.teachers import TeacherRequest
from cusa.precompute.teachers.base import FEATURE, FEATURES, Teacher


@dataclass(frozen=True)
class LoadedTeacher:
    """A loaded teacher and the settings of its rows.

    Attributes:
        teacher: The teacher.
        settings: Its settings, as the store records them.
    """

    teacher: Teacher
    settings: TeacherSettings

    @property
    def bytes_per_row(self) -> int:
        """Bytes of a stored row."""
        return self.settings.dim * np.dtype(self.settings.dtype).itemsize


@dataclass(frozen=True)
class TeacherLoader:
    """Loads the teachers of a run.

    Attributes:
        dataset: The data set.
        options: The run's settings.
        processes: The processes, which have to agree on how pictures are decoded.
        reporter: Receives the events of the run.
        check_stop: Called while waiting; raises to stop.
    """

    dataset: Dataset
    options: RunOptions
    processes: RunProcesses
    reporter: RunReporter
    check_stop: Callable[[], None]

    def load(self, request: TeacherRequest, finished: TeacherSettings | None) -> LoadedTeacher:
        """Load a teacher.

        Args:
            request: The teacher.
            finished: The settings of its finished rows, if there are any; only the leading process
                needs them.

        Raises:
            TeacherError: If it cannot be loaded, or is another one than in the leading process.
            CusaError: If its finished rows are from before pictures were turned upright, and may
                not be kept.
        """
        name = request.name
        options = self.options
        self.reporter.loading(name)
        teacher = request.load(options.pipeline.device, options.batch_size, options.pooling)
        feature = teacher.transform.get(FEATURE)
        if feature:
            self.reporter.note(f"{name}: {FEATURES[feature]} ({feature}) becomes the row")
        if teacher.modality == "image":
            decide = partial(self._decide_decoding, name, teacher, finished)
            decoding = self.processes.agree(f"decoding-{name}", decide, self.check_stop)
            teacher = replace(teacher, decoding=decoding)

        settings = teacher.settings(options.pipeline.precision, options.dtype, options.normalizer)
        leading = self.processes.agree(f"settings-{name}", settings.to_json, self.check_stop)
        differences = settings.differences(TeacherSettings.from_json(leading))
        if differences:
            message = f"teacher {name!r} is not the same in rank 0: {'; '.join(differences)}"
            raise TeacherError(message, name=name)
        self.reporter.loaded()
        if not self.processes.leads:
            self.check_stop()
        return LoadedTeacher(teacher, settings)

    def _decide_decoding(
        self,
        name: str,
        teacher: Teacher,
        finished: TeacherSettings | None,
    ) -> dict[str, str]:
        """Return the decoding to record: today's, or nothing, as for older rows that are kept."""
        if finished is None or not is_older(finished):
            return dict(teacher.decoding)

        if not self.options.check_pictures:
            out = self.options.out
            raise StoreError(
                f"{out}: the rows of teacher {name!r} were made before pictures were turned "
                "upright (EXIF orientation) and laid over white (transparency); pass "
                "--check-pictures to keep them if that affects no picture of the data set, or "
                "another --out",
                path=out,
                name=name,
            )
        refuse_changed_pictures(self.dataset, name, self.options.pipeline.skip_errors)
        self.reporter.note(
            f"{name}: no picture has an EXIF orientation or transparency; its rows are kept",
        )
        return {}
