"""Stage one over tars with Ray itself, started on this machine; few tests, as it starts slowly.

Ray's drivers are processes of their own: the threads that one leaves would be in the tests' process
whenever a later test forks it.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cusa.data.errors import SettingError
from cusa.precompute.tars import ray_cluster
from cusa.precompute.tars.tar_actor import TarActor
from tests.child_processes import PATIENCE_S
from tests.data.tars.tar_files import contents, write_tars
from tests.helpers import ForkedCommand, run_failure, run_ok

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray")

N_TARS = 24
N_PAIRS = 2


@pytest.fixture
def expected(tmp_path, teachers, monkeypatch):
    """The files that the local engine makes."""
    write_tars(tmp_path / "tars", N_TARS, N_PAIRS)
    monkeypatch.chdir(tmp_path)
    run_ok("precompute", "--dataset", "tars", "--out", "local", *teachers)
    return contents(tmp_path / "local")


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_pairs(folder):
    return any(folder.glob("pairs/[!.]*.h5"))


def assert_all_end(processes):
    _, running = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not running


def test_an_actor_that_is_killed_leaves_no_trace(tmp_path, teachers, expected):
    def have_one_core():
        ray_cluster.cpu_count = lambda: 1

    folder = tmp_path / "set"
    options = ("--dataset", "tars", "--out", "set", *teachers, "--engine", "ray")
    driver = ForkedCommand("precompute", *options, patch=have_one_core)
    wait_for(lambda: has_pairs(folder))
    inodes = {path: path.stat().st_ino for path in folder.glob("pairs/[!.]*.h5")}
    processes = psutil.Process(driver.pid).children(recursive=True)
    actors = [process for process in processes if TarActor.__name__ in " ".join(process.cmdline())]
    assert len(actors) == 1
    actors[0].kill()
    done = driver.wait()
    assert done.returncode == 0, done.stderr
    assert len(inodes) < N_TARS, "the actor was killed too late for this test"
    assert contents(folder) == expected
    made_again = [path for path, inode in inodes.items() if path.stat().st_ino != inode]
    assert len(made_again) <= 1
    assert_all_end(processes)


def test_ctrl_c_ends_the_driver_and_ray(tmp_path, teachers, expected):
    """The signal goes to all processes of the terminal."""
    command = [sys.executable, "-m", "cusa.precompute", "--dataset", "tars", "--out", "set"]
    command += [*map(str, teachers), "--engine", "ray"]
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for(lambda: has_pairs(tmp_path / "set"))
        processes = psutil.Process(driver.pid).children(recursive=True)
        os.killpg(driver.pid, signal.SIGINT)
        _, messages = driver.communicate(timeout=PATIENCE_S)
    finally:
        driver.kill()  # it goes on if the test has failed by now
    errors = [line for line in messages.splitlines() if line.startswith("Error: ")]
    assert (driver.returncode, len(errors)) == (130, 1), messages
    assert "Traceback" not in messages
    assert_all_end(processes)
    run_ok("precompute", "--dataset", "tars", "--out", "set", *teachers)
    assert contents(tmp_path / "set") == expected


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "nowhere.invalid:6379"])
def test_an_address_where_no_cluster_answers_is_refused(tmp_path, teachers, address):
    write_tars(tmp_path / "tars", 1, 1)
    options = ["--dataset", tmp_path / "tars", "--out", tmp_path / "set", *teachers]
    error = run_failure("precompute", *options, "--engine", "ray", "--ray-address", address)
    assert (type(error), error.name) == (SettingError, "ray_address")
    assert not (tmp_path / "set").exists()
