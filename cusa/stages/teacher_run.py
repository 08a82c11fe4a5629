"""What the stages that run teachers share: over a data set, and over WebDataset tars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cusa.data.environment import cpu_count
from cusa.data.errors import SettingError, Stopped, WorkerError
from cusa.stages.machine import pick_device

if TYPE_CHECKING:
    from cusa.precompute.processes import RunProcesses
    from cusa.precompute.run_options import RunOptions
    from cusa.precompute.run_record import RunRecord
    from cusa.precompute.teachers import TeacherRequest

Outcome = TypeVar("Outcome", covariant=True)
# Seconds that a plan runs each teacher.
PROBE_S = 3.0
MAX_DECODERS = 16
_RUN_OPTIONS = (
    "batch_size",
    "shard_rows",
    "shard_range",
    "dtype",
    "normalizer",
    "reuse",
    "pooling",
    "check_pictures",
)


class _Run(Protocol[Outcome]):
    """A run that is ready to go."""

    def go(self) -> Outcome:
        """Make all rows."""
        ...


@contextmanager
def recorded(progress: bool, leads: bool) -> Iterator[RunRecord]:
    """Keep what the run reports and, if ``progress`` is set, show it."""
    from cusa.precompute.run_record import RunRecord

    if not progress:
        yield RunRecord()
        return
    from cusa.screen.console import console
    from cusa.screen.precompute_progress import PrecomputeProgress
    from cusa.screen.progress import progress_display

    with progress_display(quiet=not leads) as progress_bar:
        yield PrecomputeProgress(progress_bar, console(quiet=not leads))


def parse_teachers(given: Mapping[str, Any]) -> list[TeacherRequest]:
    """Parse every teacher, and check that models of the hub are available."""
    from cusa.precompute.teachers.cross_modal import parse_teachers as parse_option

    requests = []
    for option in given.get("teacher", ()):
        requests += parse_option(option)
    if "pooling" in given and not any(request.kind == "vision" for request in requests):
        raise SettingError(
            "--pooling is for Hugging Face vision models, but no --teacher is one; leave it out",
            name="pooling",
        )
    for request in requests:
        request.require_hub()
    return requests


@dataclass(frozen=True)
class Hardware:
    """What a process of a run has to itself.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        cores: Its share of the cores.
        decoders: Processes that decode images, unless the user says how many.
    """

    device: str
    cores: int
    decoders: int


def own_hardware(
    given: Mapping[str, Any],
    processes: RunProcesses,
) -> Hardware:
    """Return this process's share of this machine.

    Raises:
        SettingError: If the user asks for a device that the machine does not have.
    """
    import torch

    device = pick_device(given.get("device", "auto"))
    if device == "cuda":
        # Each process of torchrun has its own GPU.
        device = f"cuda:{processes.local_rank % torch.cuda.device_count()}"
    cores = max(1, cpu_count() // processes.local_size)
    return Hardware(device, cores, min(cores, MAX_DECODERS))


def teacher_run_options(
    out: Path,
    given: Mapping[str, Any],
    hardware: Hardware,
) -> RunOptions:
    """Return the settings of a run from a stage's checked options."""
    from cusa.precompute.pipeline import PipelineOptions
    from cusa.precompute.run_options import RunOptions

    uses_cuda = hardware.device != "cpu"
    precision = given.get("precision", "auto")
    if precision == "auto":
        precision = "fp16" if uses_cuda else "fp32"
    pipeline = PipelineOptions(
        hardware.device,
        precision,
        workers=given.get("workers", hardware.decoders),
        # On a GPU, one thread launches a batch while the other fetches rows.
        encoders=2 if uses_cuda else hardware.cores,
        skip_errors=given.get("on_error", "fail") == "skip",
    )
    row_options = {name: given[name] for name in _RUN_OPTIONS if name in given}
    return RunOptions(out, pipeline, **row_options)


def run_to_end(run: _Run[Outcome], record: RunRecord) -> Outcome:
    """Make all rows; if the run is stopped, add to the error how far it got."""
    try:
        return run.go()
    except Stopped as stopped:
        raise stopped.with_progress(_how_to_go_on(record)) from None
    except WorkerError as error:
        raise error.reworded(f"{error}; {_how_to_go_on(record)}") from None


def _how_to_go_on(record: RunRecord) -> str:
    return f"{record.progress()}; run the same command again to go on"
