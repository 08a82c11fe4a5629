"""Items from worker processes: as they are, in order, whatever is killed, and without /dev/shm."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch

from cusa.data import worker_pool
from cusa.data.errors import ImageError, WorkerError
from cusa.data.worker_pool import WorkerPool
from tests.helpers import Fault, fault_of

PATIENCE_S = 20


class Readable:
    """Something of every kind for a number; picklable, for workers that are spawned."""

    def __getitem__(self, number):
        rng = np.random.default_rng(number)
        return {
            "number": number,
            "pixels": torch.from_numpy(rng.normal(size=(number % 3, 5, 70)).astype(np.float32)),
            "rows": rng.integers(0, 99, (4, 3))[:, ::2],
            "half": torch.arange(3, dtype=torch.bfloat16),
            "text": f"item {number}",
        }


def assert_items_are_those_of(items, numbers):
    for item, number in zip(items, numbers, strict=True):
        expected = Readable()[number]
        assert {name: type(value) for name, value in item.items()} == {
            n: type(v) for n, v in expected.items()
        }
        assert (item["number"], item["text"]) == (number, f"item {number}")
        assert torch.equal(item["pixels"], expected["pixels"])
        assert torch.equal(item["half"], expected["half"])
        np.testing.assert_array_equal(item["rows"], expected["rows"])
        item["pixels"] += 1  # a consumer may write into what it is given
        item["rows"] += 1


@pytest.mark.parametrize(
    ("workers", "start_method"), [(0, None), (1, "fork"), (4, "fork"), (2, "spawn")]
)
def test_items_come_in_order_and_as_they_are(workers, start_method):
    with closing(WorkerPool(Readable(), workers, start_method)) as pool:
        for count in (0, 1, 3, 23):
            assert_items_are_those_of(pool.read(range(count)), range(count))
        assert len(pool.process_ids) == workers


def _no_memory(*_arguments):
    raise OSError("as where the system has none")


@pytest.mark.parametrize("missing", ["memfd_create", "posix_fallocate"])
def test_without_shared_memory_items_come_through_the_connection(monkeypatch, missing):
    monkeypatch.setattr(os, missing, _no_memory)  # and so in the workers, which are forked
    with closing(WorkerPool(Readable(), 3, "fork")) as pool:
        assert_items_are_those_of(pool.read(range(11)), range(11))


def test_large_questions_and_large_answers_do_not_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(os, "memfd_create", _no_memory)

    class Echo:
        def __getitem__(self, key):
            return key

    keys = [np.full(1_000_000, number) for number in range(6)]
    with closing(WorkerPool(Echo(), 1, "fork")) as pool:
        assert [int(item[-1]) for item in pool.read(keys)] == list(range(6))


def test_keys_are_taken_as_late_as_reading_ahead_allows():
    taken = []

    def keys():
        for number in range(20):
            taken.append(number)
            yield number

    with closing(WorkerPool(Readable(), 2, "fork")) as pool:
        items = pool.read(keys())
        next(items)
        assert taken == [
            0,
            1,
            2,
            3,
            4,
        ]  # two per worker, and another one for the one that was given out
        assert_items_are_those_of(items, range(1, 20))


def test_what_was_read_ahead_for_an_epoch_broken_off_is_not_given_to_the_next():
    with closing(WorkerPool(Readable(), 2, "fork")) as pool:
        items = pool.read(range(10))
        next(items)
        items.close()
        assert_items_are_those_of(pool.read(range(50, 60)), range(50, 60))


class UnpicklableError(Exception):
    def __init__(self, one, two):
        super().__init__(one)


class Faulty:
    def __getitem__(self, number):
        if number == 2:
            raise ImageError("image 2 is none", path="2.jpg", name="2")
        if number == 3:
            raise KeyError("a bug")
        if number == 4:
            raise UnpicklableError("strange", 2)
        return number


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_comes_as_it_was_in_its_items_place(workers):
    with closing(WorkerPool(Faulty(), workers, "fork")) as pool:
        read = []
        with pytest.raises(ImageError) as raised:
            read.extend(iter(pool.read(range(5))))
        assert fault_of(raised.value) == Fault(ImageError, path="2.jpg", name="2")
        assert (raised.value.path, raised.value.name) == ("2.jpg", "2")
        with pytest.raises(KeyError, match="a bug") as raised:
            next(pool.read([3]))
        if workers:
            assert "in __getitem__" in raised.value.__notes__[0]
        with pytest.raises(RuntimeError if workers else UnpicklableError, match="strange"):
            next(pool.read([4]))
        assert list(pool.read([0, 1])) == [0, 1]


# --- kills


class Slow:
    """Arrays of 400 kB, some milliseconds each."""

    def __getitem__(self, number):
        time.sleep(0.003)
        return np.full(100_000, number, np.float32)


def kill_this_process(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGKILL)


def at_the_start(monkeypatch):
    monkeypatch.setattr(worker_pool, "_serve", kill_this_process)


def in_the_middle_of_an_item(monkeypatch):
    monkeypatch.setattr(Slow, "__getitem__", kill_this_process)


def between_an_item_and_its_memory(monkeypatch):
    monkeypatch.setattr(socket, "send_fds", kill_this_process)


def in_the_middle_of_a_message(monkeypatch):
    def torn(connection, view):
        os.write(connection.fileno(), len(view).to_bytes(4, "big") + bytes(view)[:1000])
        kill_this_process()

    monkeypatch.setattr(os, "memfd_create", _no_memory)
    monkeypatch.setattr(Connection, "send_bytes", torn)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    "moment",
    [
        at_the_start,
        in_the_middle_of_an_item,
        between_an_item_and_its_memory,
        in_the_middle_of_a_message,
    ],
)
def test_a_worker_that_is_killed_is_an_error_whenever_that_is(monkeypatch, moment, workers):
    moment(monkeypatch)
    with closing(WorkerPool(Slow(), workers, "fork")) as pool:
        with pytest.raises(WorkerError) as raised:
            list(pool.read(range(20)))
        assert raised.value.name.startswith("process ")
        assert pool.process_ids == []
    monkeypatch.undo()
    with closing(pool):
        assert [int(item[0]) for item in pool.read(range(9))] == list(range(9))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_what_was_read_before_a_kill_is_still_received(monkeypatch, workers):
    """Whichever comes first, the kill or the request that follows an item."""
    plain = Slow.__getitem__

    def read(self, number):
        return kill_this_process() if number == 7 else plain(self, number)

    monkeypatch.setattr(Slow, "__getitem__", read)
    for pause in (0, 0.01):
        received = []
        with closing(WorkerPool(Slow(), workers, "fork")) as pool, pytest.raises(WorkerError):
            for item in pool.read(range(20)):
                received.append(int(item[0]))
                time.sleep(pause)
        assert received == list(range(7))


@pytest.mark.parametrize("workers", [1, 4])
def test_no_moment_is_one_at_which_the_others_wait(workers):
    """Killed after a random time, of all those that starting and ten items take."""
    rng = np.random.default_rng(workers)
    for seconds in rng.uniform(0, 0.02, 12):
        with closing(WorkerPool(Slow(), workers, "fork")) as pool:
            items = pool.read(range(1000))
            next(items)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                next(items)
            os.kill(rng.choice(pool.process_ids), signal.SIGKILL)
            with pytest.raises(WorkerError):
                list(items)


def test_a_worker_that_ends_by_itself_is_named_with_its_status(monkeypatch):
    monkeypatch.setattr(Slow, "__getitem__", lambda *_: os._exit(3))
    with (
        closing(WorkerPool(Slow(), 1, "fork")) as pool,
        pytest.raises(WorkerError) as refused,
    ):
        next(pool.read([0]))
    assert refused.value.name.startswith("process ")


# --- the end


def is_running(process_id):
    try:
        with open(f"/proc/{process_id}/stat", encoding="utf-8") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_all_end(process_ids):
    deadline = time.monotonic() + PATIENCE_S
    while any(map(is_running, process_ids)):
        assert time.monotonic() < deadline, "workers outlive the process that they read for"
        time.sleep(0.02)


def test_workers_leave_signals_to_the_process_that_reads_and_end_with_close():
    with closing(WorkerPool(Slow(), 3, "fork")) as pool:
        items = pool.read(range(12))
        next(items)
        process_ids = pool.process_ids
        for process_id in process_ids:
            os.kill(process_id, signal.SIGTERM)
            os.kill(process_id, signal.SIGINT)
        assert len(list(items)) == 11
    assert pool.process_ids == []
    assert_all_end(process_ids)


PARENT = """
import os, signal, sys
from tests.data.test_worker_pool import Slow
from cusa.data.worker_pool import WorkerPool
pools = [WorkerPool(Slow(), 2, start) for start in ("fork", sys.argv[1])]
reading = [pool.read(range(1000)) for pool in pools]
for items in reading:
    next(items)
print(*(number for pool in pools for number in pool.process_ids), flush=True)
{end}
"""


KILL, RAISE = "os.kill(os.getpid(), signal.SIGKILL)", "raise KeyError('nobody closes the pools')"


@pytest.mark.parametrize(
    ("end", "start_method"), [(KILL, "fork"), (KILL, "spawn"), (RAISE, "fork")]
)
def test_workers_end_with_the_process_that_reads_however_it_ends(end, start_method):
    command = [sys.executable, "-c", PARENT.format(end=end), start_method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (-signal.SIGKILL if end is KILL else 1), done.stderr
    process_ids = [int(number) for number in done.stdout.split()]
    assert len(process_ids) == 4
    assert_all_end(process_ids)
    assert "Process" not in done.stderr  # no worker tells of a broken pipe
