"""Stage one over WebDataset tars as a function."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from cusa.data.errors import DataError, SettingError
from cusa.data.objects.folder import absolute_location, location_text, require_writable
from cusa.data.tars.paths import expand_tars, tars_in_range
from cusa.stages.arguments import checked, with_options
from cusa.stages.kinds import as_names
from cusa.stages.options import TarOptions
from cusa.stages.tar_engines import (
    TarRunInputs,
    local_engine,
    ray_engine,
    uses_ray_engine,
)
from cusa.stages.teacher_run import (
    PROBE_S,
    parse_teachers,
    recorded,
    run_to_end,
)
from cusa.train.settings import shown

if TYPE_CHECKING:
    from cusa.data.tars.manifest import Manifest
    from cusa.precompute.processes import RunProcesses
    from cusa.precompute.run_record import RunRecord
    from cusa.precompute.tars.maker import TarPolicy
    from cusa.precompute.tars.plan import SetEstimate
    from cusa.precompute.tars.run import TarRun
    from cusa.precompute.tars.workplace import Workplace
    from cusa.precompute.teachers import TeacherRequest


@dataclass(frozen=True)
class PrecomputedTars:
    """A set of tars with the rows that were made for it; as a path, it is the folder of the set.

    Attributes:
        folder: The folder of the set; of an object store, its URL as a path.
        manifest: Its manifest; ``None`` if other jobs make other tars, or in a process that does
            not write it.
        notes: What the user should know about the tars and the teachers.
        leads: Whether this process is the one that reports; of several, only one is.
    """

    folder: Path
    manifest: Manifest | None
    notes: tuple[str, ...] = ()
    leads: bool = True

    def __fspath__(self) -> str:
        """Return the folder, or its URL, for whatever takes a path."""
        return location_text(self.folder)


@with_options(TarOptions)
def precompute_tars(
    dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    progress: bool = False,
    **options: Unpack[TarOptions],
) -> PrecomputedTars:
    """Run the teachers once over WebDataset tars, and write a file of rows for each tar.

    Call it again to go on after an interruption, or to add tars or a teacher. Several runs may work
    on one set at a time.

    Args:
        dataset: Tars as img2dataset writes them, or Parquet files with the bytes of images: paths
            with ``{00000..01242}``, ``*`` and ``?``, or folders of tars; on this machine or, as
            ``s3://BUCKET/...``, in object stores; as ``hf://datasets/OWNER/NAME/...``,
            on the hub.
        progress: Whether to show notes and progress, as ``cusa-precompute`` does.
        **options: The other flags of ``cusa-precompute`` that apply to tars.

    Raises:
        DataError: If there are no such tars.
        TarError: If a tar is damaged, or was changed since its rows were made.
        CusaError: If an option, an item or a teacher cannot be used.
        KeyboardInterrupt: On Ctrl-C; the message says how far the run got.
    """
    with _prepared(dataset, options, progress) as stage:
        manifest = run_to_end(stage.run, stage.record)
    notes = tuple(stage.record.notes)
    return PrecomputedTars(stage.folder, manifest, notes, stage.processes.leads)


@dataclass(frozen=True)
class TarPlan:
    """What a run over tars would take.

    Attributes:
        estimate: The tars, and the work of each teacher.
        folder: The folder of the set; of an object store, its URL as a path.
        processes: The number of processes.
        leads: Whether this process is the one that reports.
    """

    estimate: SetEstimate
    folder: Path
    processes: int
    leads: bool


def plan_tars(
    dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    progress: bool = False,
    **options: Unpack[TarOptions],
) -> TarPlan:
    """Read a few tars and try the teachers on them; estimate what a run would take.

    Nothing is written into the set.

    Args:
        dataset: As :func:`precompute_tars` takes it.
        progress: As :func:`precompute_tars` takes it.
        **options: As :func:`precompute_tars` takes them.

    Raises:
        CusaError: As :func:`precompute_tars` raises it.
    """
    with _prepared(dataset, options, progress, plans=True) as stage:
        estimate = stage.run.estimate(PROBE_S)
    return TarPlan(estimate, stage.folder, stage.processes.size, stage.processes.leads)


@dataclass(frozen=True)
class _Stage:
    """A run over tars that is ready to go."""

    run: TarRun
    folder: Path
    processes: RunProcesses
    record: RunRecord


@contextmanager
def _prepared(
    dataset: Any,
    options: Mapping[str, Any],
    progress: bool,
    plans: bool = False,
) -> Iterator[_Stage]:
    """Look for the tars and parse the teachers; within the context, progress is shown.

    A plan measures this process, whatever the engine.
    """
    from cusa.precompute.processes import connect
    from cusa.precompute.tars.workplace import open_workplace

    given = checked(TarOptions, options)
    tars = expand_tars(_tar_names(dataset))
    chosen_tars = tars_in_range(tars, given.get("tars"))
    policy = _policy(given, tars)
    folder = _set_folder(tars, given)
    processes = connect()
    uses_ray = uses_ray_engine(given, processes)
    engine = local_engine
    location = folder
    if uses_ray and not plans:
        engine = ray_engine
        location = Path(absolute_location(folder))
        # Other nodes have other folders to work in.
        chosen_tars = [Path(absolute_location(tar)) for tar in chosen_tars]
    with (
        open_workplace(location) as workplace,
        recorded(progress, processes.leads) as record,
    ):
        record.unit = "tars"
        requests = _all_requests(parse_teachers(given), workplace, chosen_tars, processes)
        inputs = TarRunInputs(given, chosen_tars, requests, policy, workplace, processes, record)
        with engine(inputs) as run:
            yield _Stage(run, folder, processes, record)


def _tar_names(dataset: Any) -> tuple[str, ...]:
    """Return the names of tars, their patterns and folders."""
    try:
        return as_names(dataset)
    except ValueError:
        raise DataError(
            f"{shown(dataset)} names no tars; pass paths such as "
            "'set/{00000..00999}.tar', or folders of tars",
            name="dataset",
        ) from None


def _policy(given: Mapping[str, Any], tars: Sequence[Path]) -> TarPolicy:
    """Return what is done with the tars; a wrong caption rule is refused."""
    from cusa.data.tars.parquet import caption_rule_of
    from cusa.data.tars.paths import common_folder, is_share
    from cusa.precompute.tars.maker import TarPolicy

    caption_rule = caption_rule_of(tars, given.get("caption"))
    on_tar = given.get("on_tar", "fail")
    return TarPolicy(caption_rule, on_tar, is_share(given.get("tars")), common_folder(tars))


def _set_folder(tars: Sequence[Path], given: Mapping[str, Any]) -> Path:
    """Return the folder of the set.

    Raises:
        SettingError: If it is a file, or named like the index of a store.
        ObjectError: If it is on the hub, which is only read.
    """
    data_root: Path = given.get("data_root", Path("data"))
    folder: Path = given.get("out", data_root / f"{tars[0].resolve().parent.name}_teachers")
    if folder.suffix == ".h5" or folder.is_file():
        raise SettingError(
            f"--out {folder}: the rows of tars go to a folder, a file for each tar; pass a folder, "
            f"such as {folder.with_suffix('')}",
            path=folder,
            name="out",
        )
    require_writable(folder)
    return folder


def _all_requests(
    requests: list[TeacherRequest],
    workplace: Workplace,
    tars: Sequence[Path],
    processes: RunProcesses,
) -> list[TeacherRequest]:
    """Add a default teacher for each modality that has none, here or in the set.

    A default teacher that has rows of some tars, but not of all, is one of a run that goes on.

    Raises:
        SettingError: If a teacher has the name of the folder of the pairs.
    """
    from cusa.data.tars.manifest_building import stored_modalities
    from cusa.data.tars.set_files import PAIRS_FOLDER
    from cusa.precompute.processes import announced_failure
    from cusa.precompute.teachers import DEFAULTS, complete

    if any(request.name == PAIRS_FOLDER for request in requests):
        message = f"teacher {PAIRS_FOLDER!r}: this is a folder of the set; pass another NAME=PATH"
        raise SettingError(message, name="teacher")

    def modalities_with_teacher() -> list[str]:
        modalities: list[str] = []
        for teacher, modality in stored_modalities(workplace.folder).items():
            is_whole = all(workplace.has_rows(tar, teacher) for tar in tars)
            if teacher != DEFAULTS[modality] or is_whole:
                modalities.append(modality)
        return modalities

    with announced_failure(processes):
        workplace.fetch_samples()
        # The leading process may have made rows before another one looks.
        modalities = processes.agree("modalities", modalities_with_teacher, lambda: None)
        all_requests = complete(requests, modalities)
        for default_request in all_requests[len(requests) :]:
            default_request.require_hub()
    return all_requests
