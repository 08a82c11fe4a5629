"""Ray as the cluster of a run: an actor of Ray Data on each device makes tars, a tar a row.

Ray is imported here alone, and only when it is connected to. It starts lost actors again, also on
other nodes, and gives their tars to them.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cusa.data.environment import cpu_count
from cusa.data.errors import SettingError, WorkerError, first_line
from cusa.precompute.tars.attempts import AttemptCounter, Attempts
from cusa.precompute.tars.tar_actor import RESULT, TAR, ActorTask, TarActor, TarResult

_INSTALL = "pip install 'cusa[ray]', or pip install 'ray[data]'"
# Tars beyond this number share tasks of Ray, whose driver holds some kB for each task.
_MAX_TASKS = 10_000
# A tar that is made and one that waits.
_TARS_OF_ACTOR = 2
# Ray Data holds this much memory ready for the results of a task; those of a tar are some kB.
_RESULT_BYTES = 1 << 20
# Of the Ray of this machine: its smallest, as nothing but results is stored.
_OBJECT_STORE_BYTES = 80 << 20
_POLL_S = 0.1
_ANSWER_S = 10.0
_STDERR = 2  # its file descriptor
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what a later version will do; it warns otherwise
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Left while it is read from in a thread, Ray would start again by itself.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # It would report to its makers that it is used.
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class RayCluster:
    """A cluster of Ray that this process is connected to.

    Attributes:
        ray: The module.
        device: ``"cpu"`` or ``"cuda"``: what an actor has one of.
        cores: Cores of an actor.
        n_actors: How many actors have room now.
    """

    ray: Any
    device: str
    cores: int
    n_actors: int

    def __str__(self) -> str:
        """Say how many actors have room, and on what."""
        room = "a GPU"
        if self.device == "cpu":
            room = f"{self.cores} core{'s' * (self.cores != 1)}"
        plural = "s" * (self.n_actors != 1)
        return f"Ray has room for {self.n_actors} actor{plural}, {room} each"

    def results(
        self,
        tars: Sequence[Path],
        task: ActorTask,
        check_stop: Callable[[], None],
    ) -> Generator[TarResult, None, None]:
        """Yield what actors report of tars, as :class:`cusa.precompute.tars.cluster_run.Cluster`.

        Raises:
            WorkerError: If Ray cannot finish.
        """
        rows = self._rows(tars, task)
        received: queue.Queue[Any] = queue.Queue()
        is_stopping = threading.Event()

        def receive() -> None:
            try:
                for row in rows.iter_rows():
                    received.put(row[RESULT])
                    if is_stopping.is_set():
                        return
                received.put(None)
            except Exception as error:
                received.put(error)

        # Ray waits for rows without looking at signals.
        threading.Thread(target=receive, daemon=True).start()
        try:
            while (result := _wait_for_result(received, check_stop)) is not None:
                if isinstance(result, Exception):
                    raise _one_line_error(result) from result
                yield result
        finally:
            is_stopping.set()

    def _rows(
        self,
        tars: Sequence[Path],
        task: ActorTask,
    ) -> Any:
        """Return Ray's data set of the results."""
        data = self.ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = _RESULT_BYTES
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        n_tars = len(tars)
        tar_rows = data.from_items(
            [{TAR: str(tar)} for tar in tars],
            override_num_blocks=min(n_tars, _MAX_TASKS),
        )
        # At the least one, so that those without tars make room for lost ones that have some; at
        # the most one for each tar, as the cluster may grow.
        actors = data.ActorPoolStrategy(
            min_size=1,
            initial_size=min(n_tars, self.n_actors),
            max_size=n_tars,
            max_tasks_in_flight_per_actor=_TARS_OF_ACTOR,
        )
        room = {"num_cpus": self.cores}
        if self.device == "cuda":
            room = {"num_gpus": 1}
        return tar_rows.map_batches(
            TarActor,
            fn_constructor_args=(task, self._attempt_counter()),
            batch_size=1,
            compute=actors,
            **room,
        )

    def _attempt_counter(self) -> AttemptCounter:
        """Start the counter on the driver's node, which the run cannot outlive."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        driver_node = self.ray.get_runtime_context().get_node_id()
        counter_class = self.ray.remote(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(driver_node, soft=False),
        )(Attempts)
        return AttemptCounter(counter_class.remote())


def _wait_for_result(
    received: queue.Queue[Any],
    check_stop: Callable[[], None],
) -> Any:
    """Return a result, the error that ended the run, or ``None`` after the last result."""
    while True:
        check_stop()
        try:
            return received.get(timeout=_POLL_S)
        except queue.Empty:
            continue


def _one_line_error(error: Exception) -> WorkerError:
    """Return an error of Ray, or a fault of an actor, in one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    message = f"the run on Ray stopped ({type(cause).__name__}: {first_line(cause)})"
    return WorkerError(message, name="ray")


@contextmanager
def ray_cluster(
    address: str | None,
    device: str,
    cores: int,
) -> Iterator[RayCluster]:
    """Connect to a cluster of Ray, or start one on this machine; leave or stop it at the end.

    Args:
        address: ``"auto"`` or ``"HOST:PORT"``; ``None``: that of ``RAY_ADDRESS``, or a Ray of this
            machine alone.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        cores: Cores of an actor on a CPU.

    Raises:
        SettingError: If Ray is not installed, no cluster answers at the address, or it has no room
            for an actor.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        import ray
        import ray.data  # also as an attribute of ray
    except ImportError as error:
        raise SettingError(
            f"--engine ray: Ray cannot be imported ({first_line(error)}); {_INSTALL}", name="engine"
        ) from None
    if ray.is_initialized():
        # The connection of the user's own program stays open.
        yield _with_room(ray, device, cores)
        return
    _connect(ray, address or os.environ.get("RAY_ADDRESS") or "local")
    try:
        yield _with_room(ray, device, cores)
    finally:
        ray.shutdown()


def _connect(
    ray: Any,
    address: str,
) -> None:
    settings: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if address == "local":
        settings["num_cpus"] = cpu_count()
        settings["include_dashboard"] = False
        settings["object_store_memory"] = _OBJECT_STORE_BYTES
    try:
        _require_answer(address)
        with _native_messages_dropped():
            ray.init(address, **settings)
    except Exception as error:
        # Ray's own errors, OSError of a socket, ValueError of a port.
        raise SettingError(
            f"--ray-address {address}: no cluster of Ray answers ({first_line(error)}); on a node "
            "of a cluster, pass auto; without the option, Ray is started on this machine alone",
            name="ray_address",
        ) from None


def _require_answer(address: str) -> None:
    """Raise an error if nothing answers at HOST:PORT; Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()


@contextmanager
def _native_messages_dropped() -> Iterator[None]:
    """Drop what Ray's C++ part says when it starts: that it will say little, as it is told."""
    stderr = os.dup(_STDERR)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), _STDERR)
    try:
        yield
    finally:
        os.dup2(stderr, _STDERR)
        os.close(stderr)


def _with_room(
    ray: Any,
    device: str,
    cores: int,
) -> RayCluster:
    """Count the actors that the cluster has room for.

    Raises:
        SettingError: If there is none.
    """
    resources_of_nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus_of_nodes = [int(resources.get("GPU", 0)) for resources in resources_of_nodes]
    cpus_of_nodes = [int(resources.get("CPU", 0)) for resources in resources_of_nodes]
    n_gpus = sum(gpus_of_nodes)
    if device == "auto":
        device = "cuda" if n_gpus else "cpu"
    n_actors = n_gpus
    if device == "cpu":
        n_actors = sum(cpus // cores for cpus in cpus_of_nodes)
    if not n_actors:
        wanted = "a GPU" if device == "cuda" else f"{cores} CPUs"
        raise SettingError(
            f"no node of the cluster of Ray has {wanted} for an actor: {n_gpus} GPUs and "
            f"{sum(cpus_of_nodes)} CPUs in all; pass another --device or fewer --workers",
            name="device",
        )
    if device == "cuda":
        room_of_nodes = zip(cpus_of_nodes, gpus_of_nodes, strict=True)
        cores = min(max(1, cpus // gpus) for cpus, gpus in room_of_nodes if gpus)
    return RayCluster(ray, device, cores, n_actors)
