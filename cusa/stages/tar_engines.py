"""The engines of a run over WebDataset tars: this machine, or a cluster with Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cusa.data.errors import SettingError
from cusa.data.tars.manifest import MANIFEST
from cusa.stages.signals import stop_signals
from cusa.stages.teacher_run import MAX_DECODERS, Hardware, own_hardware, teacher_run_options

if TYPE_CHECKING:
    from cusa.precompute.processes import RunProcesses
    from cusa.precompute.run_record import RunRecord
    from cusa.precompute.tars.maker import TarPolicy
    from cusa.precompute.tars.ray_cluster import RayCluster
    from cusa.precompute.tars.run import TarRun
    from cusa.precompute.tars.workplace import Workplace
    from cusa.precompute.teachers import TeacherRequest


@dataclass(frozen=True)
class TarRunInputs:
    """What a run over tars is made from, on either engine.

    Attributes:
        given: The stage's checked options.
        tars: The tars.
        requests: The teachers.
        policy: What is done with the tars.
        workplace: The folder to make them in.
        processes: The processes of torchrun; on Ray, one.
        record: Receives the events of the run.
    """

    given: Mapping[str, Any]
    tars: Sequence[Path]
    requests: list[TeacherRequest]
    policy: TarPolicy
    workplace: Workplace
    processes: RunProcesses
    record: RunRecord


@contextmanager
def local_engine(inputs: TarRunInputs) -> Iterator[TarRun]:
    """Let this process, and the others of torchrun, make the rows.

    Raises:
        SettingError: If the user asks for a device that the machine does not have.
    """
    from cusa.precompute.tars.run import TarRun

    hardware = own_hardware(inputs.given, inputs.processes)
    with stop_signals() as check_stop:
        yield TarRun(
            inputs.tars,
            inputs.requests,
            teacher_run_options(inputs.workplace.folder / MANIFEST, inputs.given, hardware),
            inputs.policy,
            inputs.workplace,
            inputs.processes,
            inputs.record,
            check_stop,
        )


@contextmanager
def ray_engine(inputs: TarRunInputs) -> Iterator[TarRun]:
    """Let actors of Ray make the rows, on a cluster that is connected to until the context ends.

    Raises:
        SettingError: If Ray is not installed, or there is no such cluster.
    """
    from cusa.precompute.tars.cluster_run import ClusterRun
    from cusa.precompute.tars.ray_cluster import ray_cluster

    given = inputs.given
    # On a CPU, an actor has a core, or as many as it is to decode with.
    cores = max(1, given.get("workers", 1))
    # Ray sets a handler of SIGTERM of its own.
    with (
        ray_cluster(given.get("ray_address"), given.get("device", "auto"), cores) as cluster,
        stop_signals() as check_stop,
    ):
        inputs.record.note(str(cluster))
        yield ClusterRun(
            cluster,
            inputs.tars,
            list(map(_with_absolute_source, inputs.requests)),
            teacher_run_options(inputs.workplace.folder / MANIFEST, given, _hardware(cluster)),
            inputs.policy,
            inputs.workplace,
            inputs.processes,
            inputs.record,
            check_stop,
        )


def _hardware(cluster: RayCluster) -> Hardware:
    """Return what an actor has; a single core decodes in the process that encodes."""
    if cluster.device == "cpu":
        return Hardware("cpu", cluster.cores, cluster.cores - 1)
    # Ray shows an actor its own GPU alone.
    return Hardware("cuda:0", cluster.cores, min(cluster.cores, MAX_DECODERS))


def uses_ray_engine(
    given: Mapping[str, Any],
    processes: RunProcesses,
) -> bool:
    """Return whether Ray makes the tars.

    Raises:
        SettingError: If options do not go with the engine.
    """
    uses_ray = given.get("engine") == "ray"
    address = given.get("ray_address")
    if not uses_ray and address is not None:
        raise SettingError(
            f"--ray-address {address} is for --engine ray; pass that, too, or leave the address "
            "out",
            name="ray_address",
        )
    if address is not None and "://" in address:
        raise SettingError(
            f"--ray-address {address}: Ray Data needs a driver within the cluster; run the command "
            "on one of its nodes with --ray-address auto",
            name="ray_address",
        )
    if uses_ray and processes.size > 1:
        raise SettingError(
            f"--engine ray has one driver, but torchrun has started {processes.size} processes; "
            "run it without torchrun",
            name="engine",
        )
    return uses_ray


def _with_absolute_source(request: TeacherRequest) -> TeacherRequest:
    source = request.source
    if source is not None and os.path.exists(source):
        source = os.path.abspath(source)
    return replace(request, source=source)
