"""Stage one over tars with Ray itself, started on this machine; few tests, as it starts slowly."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from cusa.data.errors import SettingError
from cusa.precompute.tars.tar_actor import TarActor
from tests.data.tars.tar_files import contents, write_tars
from tests.helpers import run_failure, run_ok

pytest.importorskip("ray")

N_TARS = 24
N_PAIRS = 2
PATIENCE_S = 120


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


def actors_of(process):
    """The actors among the processes that a driver has started."""
    actors = []
    for child in process.children(recursive=True):
        if TarActor.__name__ in " ".join(child.cmdline()):
            actors.append(child)
    return actors


def test_an_actor_that_is_killed_leaves_no_trace(tmp_path, teachers, expected, monkeypatch):
    monkeypatch.setattr("cusa.precompute.tars.ray_cluster.cpu_count", lambda: 1)
    folder = tmp_path / "set"
    killed = []
    inodes = {}

    def kill_an_actor():
        wait_for(lambda: has_pairs(folder))
        for path in folder.glob("pairs/[!.]*.h5"):
            inodes[path] = path.stat().st_ino
        for actor in actors_of(psutil.Process()):
            actor.kill()
            killed.append(actor)

    killer = threading.Thread(target=kill_an_actor)
    killer.start()
    run_ok("precompute", "--dataset", "tars", "--out", "set", *teachers, "--engine", "ray")
    killer.join()
    assert len(killed) == 1
    assert len(inodes) < N_TARS, "the actor was killed too late for this test"
    assert contents(folder) == expected
    made_again = [path for path, inode in inodes.items() if path.stat().st_ino != inode]
    assert len(made_again) <= 1
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    assert "raylet" not in names


def test_ctrl_c_ends_the_driver_and_ray(tmp_path, teachers, expected):
    """The signal goes to all processes of the terminal."""
    command = [sys.executable, "-m", "cusa.precompute", "--dataset", "tars", "--out", "set"]
    command += [*map(str, teachers), "--engine", "ray"]
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: has_pairs(tmp_path / "set"))
    processes = psutil.Process(driver.pid).children(recursive=True)
    os.killpg(driver.pid, signal.SIGINT)
    _, messages = driver.communicate(timeout=PATIENCE_S)
    errors = [line for line in messages.splitlines() if line.startswith("Error: ")]
    assert (driver.returncode, len(errors)) == (130, 1), messages
    assert "Traceback" not in messages
    _, running = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not running
    run_ok("precompute", "--dataset", "tars", "--out", "set", *teachers)
    assert contents(tmp_path / "set") == expected


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "nowhere.invalid:6379"])
def test_an_address_where_no_cluster_answers_is_refused(tmp_path, teachers, address):
    write_tars(tmp_path / "tars", 1, 1)
    options = ["--dataset", tmp_path / "tars", "--out", tmp_path / "set", *teachers]
    error = run_failure("precompute", *options, "--engine", "ray", "--ray-address", address)
    assert (type(error), error.name) == (SettingError, "ray_address")
    assert not (tmp_path / "set").exists()
