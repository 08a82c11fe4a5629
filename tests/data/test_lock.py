import contextlib
import errno
import fcntl
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from cusa.data.errors import CusaError, LockedError
from cusa.data.files import FolderLock, atomic_file, sweep
from cusa.data.store.schema import shard_folder
from cusa.data.store.verify import verify
from tests.helpers import make_store, run_failure, run_ok, unit_rows

_OTHER = """
import json, sys
from pathlib import Path
from cusa.data.errors import CusaError
from cusa.data.files import FolderLock
lock = FolderLock(Path(sys.argv[1]), json.loads(sys.argv[2]))
try:
    lock.take()
except CusaError as error:
    print(f"refused: {error}", flush=True)
else:
    if "share" in sys.argv:
        lock.share()
    print("has it", flush=True)
    for line in sys.stdin:
        lock.share()
        print("shares it", flush=True)
"""


@contextlib.contextmanager
def _other(folder, names=None, *steps):
    """Another process that asks for the lock, keeps it while the block runs, and has an answer."""
    command = [sys.executable, "-c", _OTHER, str(folder), json.dumps(names), *steps]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.answer = process.stdout.readline().strip()
        try:
            yield process
        finally:
            process.kill()


def _asked(folder, names=None):
    """What another process is answered that asks for the lock."""
    with _other(folder, names) as process:
        return process.answer


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    with _other(tmp_path) as first:
        assert first.answer == "has it"
        with pytest.raises(LockedError) as caught:
            FolderLock(tmp_path).take()
        assert caught.value.path == tmp_path
        assert caught.value.name.startswith(f"process {first.pid} on ")
        first.stdin.close()
        assert first.wait() == 0
        with FolderLock(tmp_path) as lock:
            assert lock.held
            assert _asked(tmp_path).startswith("refused: another run is working on")
    assert _asked(tmp_path) == "has it"


def test_runs_of_other_shards_do_not_collide(tmp_path):
    with _other(tmp_path, ["a", "b"]) as first, _other(tmp_path, ["c"]) as second:
        assert (first.answer, second.answer) == ("has it", "has it")
        with FolderLock(tmp_path, ["d", "e"]):
            assert _asked(tmp_path, ["f"]) == "has it"
            for names in (["a"], ["c", "f"], ["e"], None):
                assert _asked(tmp_path, names).startswith("refused"), names


def test_a_run_of_some_shards_is_refused_while_one_has_all(tmp_path):
    with _other(tmp_path):
        with pytest.raises(LockedError):
            FolderLock(tmp_path, ["a"]).take()
    with _other(tmp_path, ["a"]):
        with pytest.raises(LockedError):
            FolderLock(tmp_path).take()


def test_a_refused_lock_keeps_nothing(tmp_path):
    with _other(tmp_path, ["b"]):
        lock = FolderLock(tmp_path, ["a", "b"])
        with pytest.raises(CusaError):
            lock.take()
        assert _asked(tmp_path, ["a"]) == "has it"


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_processes_of_one_run_share_the_lock(tmp_path, names):
    lock = FolderLock(tmp_path, names)
    with _other(tmp_path, names) as first:
        assert first.answer == "has it"
        with pytest.raises(CusaError):  # not before it is shared
            lock.join()
        first.stdin.write("share\n")
        first.stdin.flush()
        assert first.stdout.readline() == "shares it\n"
        lock.join()
        assert _asked(tmp_path, names).startswith("refused")
    assert _asked(tmp_path, names).startswith("refused")  # the first has ended, this one goes on
    lock.release()
    assert _asked(tmp_path, names) == "has it"


@pytest.mark.parametrize("steps", [(), ("share",)])
def test_a_killed_run_leaves_nothing_to_clean(tmp_path, steps):
    with _other(tmp_path, None, *steps) as first:
        assert first.answer == "has it"
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
    with FolderLock(tmp_path) as lock:
        assert lock.held
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, number):
    def lockf(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    lock = FolderLock(tmp_path)
    with lock:
        lock.share()
    assert not lock.held


def test_other_errors_of_the_file_system_are_not_hidden(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    lock = FolderLock(tmp_path)
    with pytest.raises(OSError, match="Input/output error"):
        lock.take()
    lock.release()


def test_the_store_commands_stay_off_a_store_in_use(tmp_path):
    index = make_store(tmp_path / "s", {"train": 16}, dim=4)
    other = make_store(tmp_path / "o", {"val": 5}, dim=4)
    np.save(tmp_path / "x.npy", unit_rows(16, 4, 0))
    (tmp_path / "x.txt").write_text("".join(f"train{i}\n" for i in range(16)))
    given = (
        tmp_path / "x.npy",
        "--ids",
        tmp_path / "x.txt",
        "--teacher",
        "new",
        "--split",
        "train",
    )
    shard = shard_folder(index) / "vision" / "train-000000007-000000014.h5"
    with _other(shard_folder(index), ["vision/train-000000000-000000007.h5"]):
        before = index.read_bytes()
        for arguments in (("merge", index, other), ("import", index, *given)):
            error = run_failure("store", *arguments)
            assert (type(error), error.path) == (LockedError, tmp_path / "s/store")
        assert run_ok("store", "verify", index) == "9 files are whole\n"
        assert index.read_bytes() == before
        content = shard.read_bytes()
        shard.write_bytes(b"")
        assert isinstance(run_failure("store", "verify", index, "--repair"), LockedError)
        assert shard.read_bytes() == b""
        shard.write_bytes(content)
    run_ok("store", "import", index, *given)
    run_ok("store", "merge", index, other)
    assert verify(index)[1] == []


def _left(path):
    """What a process that was killed while writing this file leaves."""
    path.parent.mkdir(exist_ok=True)
    with contextlib.suppress(KeyError), atomic_file(path) as temporary:
        temporary.write_text("half")
        temporary.rename(kept := temporary.with_name("kept"))
        raise KeyError
    return kept.rename(temporary)


def test_sweep_removes_what_is_left_of_the_named_files_alone(tmp_path):
    ours = [
        tmp_path / "vision" / "train-0.h5",
        tmp_path / "words" / "train-7.h5",
        tmp_path / "store.h5",
    ]
    gone = [_left(path) for path in (*ours, ours[0])]
    others = [
        _left(tmp_path / "vision" / "train-7.h5"),  # another job may be writing these two
        _left(tmp_path / "words" / "train-0.h5"),
        _left(tmp_path / "elsewhere" / "train-0.h5"),
        _left(tmp_path / "store.h5.part"),
        *ours,
        tmp_path / "vision" / "train-0.h5.damaged",
        tmp_path / "vision" / "train-0.h5.tmp",
        tmp_path / "vision" / ".notes.tmp",
        tmp_path / "vision" / ".lock",
    ]
    for path in others:
        path.write_text("whole")
    assert all(path.exists() for path in gone)
    sweep(ours)
    assert not any(path.exists() for path in gone)
    assert all(path.read_text() == "whole" for path in others)


def test_sweep_leaves_what_another_run_is_writing(tmp_path):
    shared_path = tmp_path / "store.part-texts-0.h5"
    dead = _left(shared_path)
    with atomic_file(shared_path) as temporary:
        sweep([], shared_paths=[shared_path])
        assert temporary.exists()
        assert not dead.exists()


def test_a_lock_file_of_other_bytes_is_still_a_lock(tmp_path):
    with _other(tmp_path) as first:
        assert first.answer == "has it"
        (tmp_path / ".lock").write_bytes(b"\xff\xfe on\0")
        with pytest.raises(CusaError) as raised:
            FolderLock(tmp_path).take()
        assert raised.value.path == tmp_path
