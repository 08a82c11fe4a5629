"""Several processes, signals, kills and full disks: real processes, and bytes compared."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import CLIPConfig, CLIPModel

import cusa
from cusa.data import worker_messages, worker_pool
from cusa.data.errors import LockedError, SettingError, StoreError
from cusa.data.files import atomic_file
from cusa.data.store.reader import EmbeddingStore
from cusa.precompute.reading import ImageReader
from cusa.precompute.teachers import TeacherRequest
from cusa.precompute.teachers.base import Teacher
from tests.fork_server import run_script
from tests.helpers import (
    Fault,
    ForkedCommand,
    make_images,
    make_pairs,
    make_tiny_clip,
    make_tiny_vit,
    run,
    run_error,
    run_failure,
    run_fault,
    run_ok,
    run_ranks,
)

ROOT = Path(cusa.__file__).parent.parent


@pytest.fixture(scope="module")
def teachers(teachers):
    """Of batches of two."""
    return [*teachers, "--batch-size", "2"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("data") / "d", n=24, n_val=6)


@pytest.fixture(scope="module")
def expected_contents(tmp_path_factory, manifest, teachers):
    """The bytes of an undisturbed run in one process, shards of 5 rows."""
    out = tmp_path_factory.mktemp("whole") / "store.h5"
    run_ok("precompute", *_args(manifest, teachers, out))
    return contents(out.parent)


def _args(manifest, teachers, out, *options):
    return [
        "--dataset",
        str(manifest),
        *teachers,
        "--shard-rows",
        "5",
        "--out",
        str(out),
        *(str(m) for m in options),
    ]


def contents(folder):
    """Every file but the lock."""
    return {
        p.relative_to(folder): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def torchrun(n, args, **env):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(n),
        "-m",
        "cusa.precompute",
        *args,
    ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **env},
        timeout=120,
    )


def test_two_ranks_give_the_bytes_of_one_process(tmp_path, manifest, teachers, expected_contents):
    completed = torchrun(2, _args(manifest, teachers, tmp_path / "s" / "store.h5"))
    assert completed.returncode == 0, completed.stderr
    assert contents(tmp_path / "s") == expected_contents
    assert completed.stdout.count("store: ") == 1  # one rank reports
    assert "vit: train 18, val 6 rows x 32, 0 skipped" in completed.stdout


def test_a_rank_that_fails_stops_the_others_and_a_rerun_completes(tmp_path, teachers):
    manifest, out = make_pairs(tmp_path / "d", n=24, n_val=6), tmp_path / "s" / "store.h5"
    (tmp_path / "d" / "013.jpg").write_bytes(b"no image")
    completed = run_ranks(2, "precompute", *_args(manifest, teachers, out))
    assert completed.returncode != 0
    assert "013.jpg is not an image" in completed.stderr
    assert "--on-error skip" in completed.stderr
    assert not out.exists()
    make_images(tmp_path / "d", 24)
    run_ok("precompute", *_args(manifest, teachers, out))
    one = tmp_path / "one" / "store.h5"
    run_ok("precompute", *_args(manifest, teachers, one))
    assert contents(out.parent / "store") == contents(one.parent / "store")


def test_more_ranks_than_shards(tmp_path, manifest, teachers):
    args = [
        "--dataset",
        str(manifest),
        *teachers,
        "--splits",
        "val",
        "--out",
    ]  # one shard of each teacher
    completed = run_ranks(3, "precompute", *args, tmp_path / "three" / "store.h5")
    assert completed.returncode == 0, completed.stderr
    run_ok("precompute", *args, tmp_path / "one" / "store.h5")
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


def test_ranks_with_different_weights_are_refused(tmp_path, manifest, teachers):
    """Another machine with another copy of a model."""

    def patch():
        if os.environ["RANK"] == "1":
            plain = Teacher.settings
            Teacher.settings = lambda *args: replace(plain(*args), weights_sha256="1" * 64)

    args = _args(manifest, teachers, tmp_path / "store.h5")
    completed = run_ranks(2, "precompute", *args, patch=patch)
    assert completed.returncode != 0
    assert "teacher 'vit' is not the same in rank 0: weights_sha256 ('1111" in completed.stderr


def test_processes_that_cannot_meet(tmp_path, manifest, teachers, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = run_failure("precompute", *_args(manifest, teachers, tmp_path / "store.h5"))
    assert error.name == "WORLD_SIZE"


def test_a_job_of_an_array_leaves_the_texts_that_another_is_writing(tmp_path, manifest, teachers):
    out = tmp_path / "s" / "store.h5"
    command = ["precompute", *_args(manifest, teachers, out), "--shard-range"]
    run_ok(*command, "0:1")
    (texts,) = out.parent.glob("store.part-texts-*.h5")
    with atomic_file(texts) as temporary:
        temporary.write_bytes(texts.read_bytes())
        run_ok(*command, "1:2")


def test_parts_of_an_array_of_jobs_merge_into_the_bytes_of_one_process(
    tmp_path, manifest, teachers, expected_contents
):
    out = tmp_path / "s" / "store.h5"
    n_shards = sum(len(p.parts) > 1 for p in expected_contents)
    bounds = [0, 3, 9, n_shards]
    for a, b in ((3, 9), (9, n_shards), (0, 3)):  # in any order
        text = run_ok("precompute", *_args(manifest, teachers, out, "--shard-range", f"{a}:{b}"))
        assert f"store.part-{a}-{b}-" in text.replace("\n", "")
    assert not out.exists()
    parts = [next(out.parent.glob(f"store.part-{a}-{b}-*.h5")) for a, b in pairwise(bounds)]
    assert isinstance(run_failure("store", "merge", out, *parts[:2]), StoreError)
    assert not out.exists()
    run_ok("store", "merge", out, *parts)
    (texts,) = out.parent.glob("store.part-texts-*.h5")
    for path in (*parts, texts):
        path.unlink()
    assert contents(out.parent) == expected_contents
    error = run_failure(
        "precompute", *_args(manifest, teachers, out, "--shard-range", f"0:{n_shards + 1}")
    )
    assert (type(error), error.name) == (SettingError, "shard_range")
    for wrong in ("3", "a:b", "-1:2"):
        assert "is not A:B" in _usage_error(
            "precompute", *_args(manifest, teachers, out, "--shard-range", wrong)
        )
    assert run_fault(
        "precompute", *_args(manifest, teachers, out, "--shard-range", "3:3")
    ) == Fault(SettingError, name="shard_range")


def _usage_error(command, *args):
    from tests.helpers import run

    result = run(command, *args)
    assert result.exit_code == 2, result.output
    return result.output


def _slow(args, pause=0.1, prepare=lambda: None):
    """Begin the command, with a pause before each batch, so that there is time to disturb it."""
    plain = Teacher.rows

    def rows(self, *arguments):
        time.sleep(pause)
        return plain(self, *arguments)

    def patch():
        Teacher.rows = rows
        prepare()

    return ForkedCommand("precompute", *args, patch=patch)


def _wait_for(there):
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def _wait_for_shard(out):
    _wait_for(lambda: list(out.parent.rglob("vit/*.h5")))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_batch_and_says_how_to_go_on(
    tmp_path, manifest, teachers, expected_contents, number
):
    out = tmp_path / "s" / "store.h5"
    process = _slow(_args(manifest, teachers, out))
    _wait_for_shard(out)
    process.send_signal(number)
    done = process.wait()
    errors = done.stderr
    assert done.returncode == 128 + number, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"Error: stopped by {number.name}: ")
    assert (
        "of 72 rows are encoded; finished shards are kept; run the same command again to go on"
        in last
    )
    assert "Traceback" not in errors
    assert not list(out.parent.rglob("*.tmp"))
    modified_times = {p: p.stat().st_mtime_ns for p in out.parent.rglob("vit/*.h5")}
    assert modified_times
    run_ok("precompute", *_args(manifest, teachers, out))
    assert contents(out.parent) == expected_contents
    assert {p: p.stat().st_mtime_ns for p in modified_times} == modified_times  # not made again


def test_a_signal_to_the_whole_group_is_not_the_workers_business(tmp_path, manifest, teachers):
    out = tmp_path / "s" / "store.h5"
    args = _args(manifest, teachers, out, "--workers", 2)
    process = _slow(args, pause=0.2, prepare=os.setsid)
    _wait_for_shard(out)
    os.killpg(process.pid, signal.SIGTERM)
    done = process.wait()
    errors = done.stderr
    assert done.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert "stopped by SIGTERM" in errors


def _killed_at_the_start(monkeypatch):
    monkeypatch.setattr(worker_pool, "_serve", _kill_this_process)


def _killed_while_reading_the_eighth_batch(monkeypatch):
    plain = ImageReader.__getitem__

    def read(self, place):
        return _kill_this_process() if place[1][0] == 12 else plain(self, place)

    monkeypatch.setattr(ImageReader, "__getitem__", read)


def _killed_while_handing_over_a_batch(monkeypatch):
    monkeypatch.setattr(worker_messages.socket, "send_fds", _kill_this_process)


def _kill_this_process(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("kill", "n_shards"),
    [
        (_killed_at_the_start, 0),
        (_killed_while_reading_the_eighth_batch, 1),
        (_killed_while_handing_over_a_batch, 0),
    ],
)
def test_a_killed_worker_stops_the_run_which_goes_on(
    tmp_path, monkeypatch, manifest, teachers, expected_contents, kill, n_shards, workers
):
    """Batches of two images, shards of five rows.

    The eighth batch is of the third shard, and the second is still being encoded.
    """
    monkeypatch.setattr(
        "cusa.stages.teacher_run.cpu_count", lambda: 2
    )  # and so two threads that encode
    out = tmp_path / "s" / "store.h5"
    args = _args(manifest, teachers, out, "--workers", workers)
    with monkeypatch.context() as patch:
        kill(patch)
        line = run_error("precompute", *args)
    assert re.search(
        r"worker process \d+ was killed by SIGKILL, possibly because memory ran out; pass fewer",
        line,
    )
    assert line.endswith(
        "rows are encoded; finished shards are kept; run the same command again to go on"
    )
    modified_times = {path: path.stat().st_mtime_ns for path in out.parent.rglob("vit/*.h5")}
    assert len(modified_times) == n_shards
    run_ok("precompute", *args)
    assert contents(out.parent) == expected_contents
    assert {path: path.stat().st_mtime_ns for path in modified_times} == modified_times


def _may_mount():
    try:
        return (
            subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode
            == 0
        )
    except FileNotFoundError:
        return False


@pytest.mark.skipif(
    not _may_mount(), reason="needs the right to mount: root, and unshare of util-linux"
)
def test_a_small_shm_is_enough_for_every_reader(tmp_path, manifest, teachers):
    """1 MiB of /dev/shm, as containers have it, and batches larger than that."""
    model, store, run_dir = make_tiny_clip(tmp_path / "clip"), tmp_path / "s.h5", tmp_path / "run"
    processor = model / "preprocessor_config.json"
    large = {"size": {"shortest_edge": 320}, "crop_size": {"height": 320, "width": 320}}
    processor.write_text(json.dumps(json.loads(processor.read_text()) | large))
    config = json.loads((model / "config.json").read_text())
    config["vision_config"]["image_size"] = 320
    config["vision_config"]["patch_size"] = 160
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").unlink()
    CLIPModel(CLIPConfig.from_pretrained(model)).save_pretrained(model)
    commands = [
        [
            "precompute",
            "--dataset",
            manifest,
            "--teacher",
            f"clip={model}",
            *teachers[2:4],
            "--out",
            store,
        ],
        ["train", "--embeddings", store, "--student", model, "--run-dir", run_dir, "--epochs", "1"],
        ["eval", "--run", run_dir, "--split", "val", "--bootstrap", "0"],
    ]
    code = "from tests.helpers import COMMANDS\n"
    for command in commands:
        arguments = [*map(str, command[1:]), "--workers", "2", "--batch-size", "6"]
        code += f"COMMANDS[{command[0]!r}].main({arguments!r}, standalone_mode=False)\n"
    small_shm = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    completed = subprocess.run(
        ["unshare", "-m", "sh", "-c", small_shm, "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr


def test_a_part_may_have_only_skipped_rows(tmp_path, teachers):
    manifest, out = make_pairs(tmp_path / "d", n=24, n_val=6), tmp_path / "s" / "store.h5"
    for i in range(5):
        (tmp_path / "d" / f"{i:03d}.jpg").unlink()
    args = _args(manifest, teachers, out, "--on-error", "skip")
    for part in ("0:1", "1:17"):
        run_ok("precompute", *args, "--shard-range", part)
    run_ok("store", "merge", out, *out.parent.glob("store.part-*.h5"))
    assert EmbeddingStore(out).embeddings("vit", "train").skipped.tolist() == [0, 1, 2, 3, 4]


def test_parts_of_other_teachers_do_not_replace_each_other(tmp_path, manifest, teachers):
    out = tmp_path / "s" / "store.h5"
    run_ok("precompute", *_args(manifest, teachers, out))
    vit = teachers[1].partition("=")[2]
    for name in ("second", "third"):
        run_ok(
            "precompute",
            "--dataset",
            manifest,
            "--teacher",
            f"{name}={vit}",
            "--workers",
            0,
            "--out",
            out,
            "--shard-range",
            "0:2",
        )
    run_ok("store", "merge", out, *out.parent.glob("store.part-*.h5"))
    assert set(EmbeddingStore(out).teachers) == {"vit", "words", "second", "third"}


def test_a_signal_while_a_teacher_is_loaded_acts_at_once(tmp_path, manifest, teachers):
    out = tmp_path / "s" / "store.h5"

    def patch():
        TeacherRequest.load = lambda *_: time.sleep(60)

    process = ForkedCommand("precompute", *_args(manifest, teachers, out), patch=patch)
    _wait_for((out.with_suffix("") / ".lock").exists)
    process.send_signal(signal.SIGTERM)
    done = process.wait()
    errors = done.stderr
    assert done.returncode == 128 + signal.SIGTERM, errors
    assert (
        "Error: stopped by SIGTERM: no rows were encoded yet; run the same command again" in errors
    )


def test_a_second_run_on_the_same_store_stops(tmp_path, manifest, teachers, expected_contents):
    out = tmp_path / "s" / "store.h5"
    first = _slow(_args(manifest, teachers, out), pause=0.3)
    _wait_for_shard(out)
    for options in ((), ("--shard-range", "0:2")):
        error = run_failure("precompute", *_args(manifest, teachers, out, *options))
        assert (type(error), error.path) == (LockedError, out.with_suffix(""))
        assert error.name.startswith(f"process {first.pid} on ")
    first.send_signal(signal.SIGKILL)
    first.wait()
    run_ok("precompute", *_args(manifest, teachers, out))  # nothing to clean by hand
    assert contents(out.parent) == expected_contents


def test_a_full_disk_loses_nothing(tmp_path, manifest, teachers, expected_contents, monkeypatch):
    """The operating system's refusal, made up; benchmarks/damage.py fills a real one."""
    out = tmp_path / "s" / "store.h5"
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) > 9:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    error = run_failure("precompute", *_args(manifest, teachers, out))
    assert isinstance(error, StoreError)
    assert error.path.is_relative_to(out.with_suffix(""))
    assert not out.exists()
    assert not list(out.parent.rglob("*.tmp"))
    assert 0 < len(list(out.parent.rglob("*.h5"))) < len(expected_contents)
    monkeypatch.setattr("os.fsync", fsync)
    run_ok("precompute", *_args(manifest, teachers, out))
    assert contents(out.parent) == expected_contents


def test_a_note_tells_that_the_disk_is_too_small(tmp_path, manifest, teachers, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    text = run_ok("precompute", *_args(manifest, teachers, tmp_path / "store.h5"))
    assert "0.0 GB will be written" in text


@pytest.mark.parametrize(("ranks", "kills", "least_phases"), [(1, 6, 3), (2, 3, 2)])
def test_killed_anywhere_a_rerun_gives_the_same_bytes(ranks, kills, least_phases):
    """The short form of benchmarks/crash.py; where a kill meets a run depends on the time, too."""
    options = ["--kills", kills, "--ranks", ranks, "--seed", 1]
    completed = run_script(ROOT / "benchmarks" / "crash.py", *options, cwd=ROOT)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    results = json.loads(completed.stdout[completed.stdout.index("{") :])
    assert results["identical"] == results["kills"] == kills
    assert len(results["phases"]) >= least_phases


def test_adding_a_teacher_touches_no_row_of_another(tmp_path, manifest, teachers):
    out = tmp_path / "store.h5"
    run_ok("precompute", *_args(manifest, teachers, out))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("store/*/*.h5")}
    vit = teachers[1].partition("=")[2]
    run_ok(
        "precompute",
        "--dataset",
        manifest,
        "--teacher",
        f"third={vit}",
        "--workers",
        0,
        "--out",
        out,
    )
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before
    assert set(EmbeddingStore(out).teachers) == {"vit", "words", "third"}


def test_another_shard_length_is_refused_and_the_stores_own_is_kept(
    tmp_path, manifest, teachers, expected_contents
):
    out = tmp_path / "s" / "store.h5"
    args = _args(manifest, teachers, out)
    run_ok("precompute", *args)
    without = [a for a in args if a not in ("--shard-rows", "5")]
    run_ok("precompute", *without)
    assert contents(out.parent) == expected_contents
    error = run_failure("precompute", *without, "--shard-rows", 7)
    assert (type(error), error.name) == (StoreError, "vit")
    assert error.path is not None
    assert error.path.is_relative_to(out.with_suffix(""))


def test_shards_of_another_length_replace_lost_ones(tmp_path, manifest, teachers):
    out = tmp_path / "store.h5"
    args = _args(manifest, teachers, out)
    run_ok("precompute", *args)
    for shard in tmp_path.rglob("store/*/*.h5"):
        shard.unlink()
    run_ok("precompute", *(a if a != "5" else "7" for a in args))
    assert "files are whole" in run_ok("store", "verify", out)
    assert EmbeddingStore(out).embeddings("vit", "train").n_shards == 3


def test_a_foreign_file_as_out_is_left_alone(tmp_path, manifest, teachers):
    for content in (b"hello", b"\x89HDF\r\n\x1a\n" + bytes(600), b""):
        out = tmp_path / "foreign.h5"
        out.write_bytes(content)
        error = run_failure("precompute", *_args(manifest, teachers, out))
        assert (type(error), error.path) == (StoreError, out)
        assert out.read_bytes() == content
    out.unlink()
    out.mkdir()
    assert run_failure("precompute", *_args(manifest, teachers, out)).path == out


def test_plan_prints_and_writes_nothing(tmp_path, manifest, teachers, monkeypatch):
    monkeypatch.setattr("cusa.stages.precompute.PROBE_S", 0.05)
    out = tmp_path / "s" / "store.h5"
    text = run_ok("precompute", *_args(manifest, teachers, out, "--plan"))
    assert "6 (0:6)" in text  # 18 + 6 images in shards of 5
    assert "11 (6:17)" in text  # 36 + 12 captions
    assert "saved per training epoch" in text
    assert "on 36 pairs" in text
    assert not out.parent.exists()


def test_audit_finds_rows_that_the_teacher_does_not_give(tmp_path, manifest, teachers):
    from cusa.data.store.index import read_index, write_index
    from cusa.data.store.shards import read_shard, write_shard

    out = tmp_path / "store.h5"
    run_ok("precompute", *_args(manifest, teachers, out))
    text = run_ok("store", "audit", out, "--sample", 10)
    assert text.count("1.000000") >= 8
    # Two rows of a shard swapped, everything sealed again: only the teacher can tell.
    index = read_index(out)
    entry = index.teachers["words"]
    info = entry.shards["val"][1]
    header, _ = read_shard(tmp_path, info.file)
    rows = EmbeddingStore(out).embeddings("words", "val").gather(range(info.start, info.stop))
    swapped = write_shard(tmp_path, info.file, header, rows[[1, 0, *range(2, len(rows))]], [])
    shards = tuple(swapped if s == info else s for s in entry.shards["val"])
    changed = replace(entry, shards={**entry.shards, "val": shards})
    write_index(out, replace(index, teachers={**index.teachers, "words": changed}))
    assert "files are whole" in run_ok("store", "verify", out)
    output = run("store", "audit", out, "--sample", 100, "--teacher", "words")
    assert (output.exit_code, output.stdout.count("WRONG")) == (1, 1)
    other_vit = make_tiny_vit(tmp_path / "other")
    config = json.loads((other_vit / "preprocessor_config.json").read_text())
    (other_vit / "preprocessor_config.json").write_text(
        json.dumps({**config, "image_mean": [0.1, 0.9, 0.1]})
    )
    run_error("store", "audit", out, "--teacher", f"vit={other_vit}")
    error = run_failure("store", "audit", out, "--teacher", "nope")
    assert (type(error), error.path, error.name) == (StoreError, out, "nope")
