"""Stage one over tars of an object store, into one: rows, requests, kills, refusals."""

import os
import signal
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import cusa
from cusa.data.errors import DataError, ObjectError, SettingError, StoreError
from cusa.data.files import _sweep_scratch_folders
from cusa.data.tars.parquet import read_pairs_of_unit
from cusa.data.tars.samples import TarError
from cusa.precompute.tars.parquet_images import images_of
from cusa.precompute.tars.workplace import open_workplace
from tests.child_processes import status_at_end
from tests.data.tars.parquet_files import rows_of, write_parquet
from tests.data.tars.tar_files import files_of_tars, write_tars
from tests.fork_server import fork_server
from tests.helpers import run, run_failure, run_ok
from tests.object_server import BUCKET, running_server

N_TARS = 4
N_PAIRS = 3
SET = f"s3://{BUCKET}/a set+é"
TARS = f"s3://{BUCKET}/cc"
PATTERN = f"{TARS}/{{00000..{N_TARS - 1:05d}}}.tar"
# What the commands import when they run, for seconds.
FILES_OF_TAR = 3  # pairs and the rows of two teachers


@pytest.fixture
def tars(tmp_path):
    return write_tars(tmp_path / "tars", N_TARS, N_PAIRS)


@pytest.fixture
def server(monkeypatch, tmp_path, tars):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with running_server() as (state, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for path in tars:
            state.objects[f"cc/{path.name}"] = path.read_bytes()
        yield state
    assert not list(scratch.glob("cusa-*"))


@pytest.fixture
def expected(tmp_path, tars, teachers):
    """The files of a set that was made on this machine, but for the manifest."""
    folder = tmp_path / "local_set"
    run_ok("precompute", "--dataset", tmp_path / "tars", "--out", folder, *teachers)
    return files_of_tars(folder)


def stored(server, prefix="a set+é/"):
    return {
        key.removeprefix(prefix): content
        for key, content in server.objects.items()
        if key.startswith(prefix) and key.endswith(".h5") and not key.endswith("/set.h5")
    }


def test_rows_are_those_of_a_local_set(server, expected, tmp_path, teachers):
    output = run_ok("precompute", "--dataset", PATTERN, "--out", SET, *teachers)
    assert f"set: {SET}" in output
    assert stored(server) == expected
    assert server.counts("cc/") == {"GET": N_TARS}
    counts = server.counts()
    # Each file is read once more for the manifest. The set's origin and an earlier manifest are
    # looked for at first, and the origin once more for the manifest.
    assert counts["GET"] == N_TARS * (1 + FILES_OF_TAR) + 3
    assert counts["PUT"] == N_TARS * FILES_OF_TAR + 2
    assert set(counts) == {"GET", "PUT", "LIST"}
    for tar in range(N_TARS):
        puts = [key for method, key in server.log if method == "PUT" and f"{tar:05d}" in key]
        assert puts[-1] == f"a set+é/pairs/{tar:05d}.h5"

    assert "files are whole" in run_ok("store", "verify", SET, "--processes", 2)
    assert SET in run_ok("store", "index", SET)
    assert f"{SET}: {N_TARS} tars in {TARS}" in run_ok("store", "info", SET)
    assert stored(server) == expected
    opened = cusa.TarSet(SET)
    assert len(opened.pairs("00001").keys) == N_PAIRS
    local = cusa.TarSet(tmp_path / "local_set")
    np.testing.assert_array_equal(opened.rows("vit", "00001"), local.rows("vit", "00001"))
    assert opened.fingerprint("train") == local.fingerprint("train")
    assert opened.manifest.image_root == "s3://bucket/cc"


def test_parquet_files_of_a_store_make_the_set_of_those_on_this_machine(server, tmp_path, teachers):
    rows = rows_of(range(N_PAIRS))
    file = write_parquet(tmp_path / "files" / "00000.parquet", rows)
    server.objects["pq/00000.parquet"] = file.read_bytes()
    pattern = f"{tmp_path}/files/*.parquet"
    url = f"s3://{BUCKET}/pq/{{00000..00000}}.parquet"
    run_ok("precompute", "--dataset", pattern, "--out", tmp_path / "set", *teachers)
    run_ok("precompute", "--dataset", url, "--out", SET, *teachers)
    assert stored(server) == files_of_tars(tmp_path / "set")


def test_a_picture_of_a_parquet_file_is_named_by_its_url(server, tmp_path):
    file = write_parquet(tmp_path / "00000.parquet", rows_of(range(N_PAIRS)))
    server.objects["pq/00000.parquet"] = file.read_bytes()
    url = f"s3://{BUCKET}/pq/00000.parquet"
    with pytest.raises(TarError) as caught, open_workplace(Path(SET)) as workplace:
        pairs = read_pairs_of_unit(workplace.fetch(Path(url), ()), "parquet:caption", False)
        raise TarError("a broken picture", path=images_of([pairs]).path("00000", 1))
    assert caught.value.path == Path(f"{url}/1")


def test_a_set_is_audited(server, teachers):
    run_ok("precompute", "--dataset", PATTERN, "--out", SET, *teachers)
    output = run_ok("store", "audit", SET)
    assert output.count(" 00002 ") == 2
    server.objects["cc/00002.tar"] = server.objects["cc/00001.tar"]
    changed = run_failure("store", "audit", SET)
    assert isinstance(changed, TarError)
    assert changed.path == Path(f"{TARS}/00002.tar")
    del server.objects["cc/00002.tar"]
    missing = run_failure("store", "audit", SET)
    assert isinstance(missing, TarError)
    assert missing.path == Path(f"{TARS}/00002.tar")


@pytest.mark.parametrize("out", ["s3://", "S3://bucket/set", "http://host/set"])
def test_a_url_that_is_none_makes_no_folder_of_its_name(tmp_path, tars, teachers, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    failure = run_failure("precompute", "--dataset", tmp_path / "tars", "--out", out, *teachers)
    assert isinstance(failure, ObjectError)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("place", ["tars", "set"])
def test_one_side_on_this_machine(server, expected, tmp_path, tars, teachers, place):
    dataset = [f"{TARS}/", tmp_path / "tars"][place == "tars"]
    out = [tmp_path / "mixed", SET][place == "tars"]
    run_ok("precompute", "--dataset", dataset, "--out", out, *teachers)
    if place == "tars":
        made = stored(server)
    else:
        made = files_of_tars(out)
    assert made == expected
    assert all(path.exists() for path in tars)


def test_tars_of_both_places_and_of_a_page_each(server, expected, tars, teachers):
    server.page = 1
    server.objects["cc/notes.json"] = b"{}"
    server.objects["cc/sub/00009.tar"] = b"of a subfolder"
    datasets = ["--dataset", f"{TARS}/0000[12].tar", "--dataset", tars[0], "--dataset", tars[3]]
    run_ok("precompute", *datasets, "--out", SET, *teachers)
    assert stored(server) == expected


def test_what_is_finished_is_not_fetched(server, expected, teachers):
    command = ("precompute", "--dataset", PATTERN, "--out", SET, *teachers)
    run_ok(*command)
    # Of one tar, the pairs are missing, of another one the rows.
    del server.objects["a set+é/pairs/00001.h5"]
    del server.objects["a set+é/vit/00002.h5"]
    server.log.clear()
    run_ok(*command)
    assert stored(server) == expected
    assert server.counts("cc/") == {"GET": 2}
    assert server.counts("words/00002") == {"GET": 2}  # and for the manifest
    assert server.counts()["PUT"] == 3


def test_another_run_may_be_faster(server, expected, teachers):
    """The other run's files appear after this one has looked."""

    def finish(method, key):
        if method == "GET" and key == "cc/00001.tar":
            for name, content in expected.items():
                server.objects.setdefault(f"a set+é/{name}", content)

    server.on_request = finish
    run_ok("precompute", "--dataset", PATTERN, "--out", SET, *teachers)
    assert stored(server) == expected


@pytest.mark.parametrize("folder", ["vit", "pairs"])
def test_another_runs_files_are_not_replaced(server, teachers, folder):
    name = f"{folder}/00001.h5"

    def create(method, key):
        if method == "GET" and key == "cc/00001.tar":
            server.objects[f"a set+é/{name}"] = b"of others"

    server.on_request = create
    error = run_failure("precompute", "--dataset", PATTERN, "--out", SET, *teachers)
    assert isinstance(error, StoreError)
    assert error.name == name
    assert server.objects[f"a set+é/{name}"] == b"of others"


def test_damaged_rows_are_made_again(server, expected, teachers):
    command = ("precompute", "--dataset", PATTERN, "--out", SET, *teachers)
    run_ok(*command)
    key = "a set+é/vit/00002.h5"
    server.objects[key] = server.objects[key][:-1] + b"x"
    error = run_failure("store", "index", SET)
    assert error.path == Path(SET) / "vit" / "00002.h5"
    assert run("store", "verify", SET).output.startswith(f"{SET}/vit/00002.h5: ")
    assert isinstance(run_failure("store", "verify", "--repair", SET), SettingError)
    del server.objects["a set+é/pairs/00002.h5"]
    run_ok(*command)
    assert stored(server) == expected


def test_a_tar_that_was_replaced_is_refused(server, teachers):
    command = ("precompute", "--dataset", PATTERN, "--out", SET, *teachers)
    run_ok(*command)
    del server.objects["a set+é/vit/00002.h5"]
    server.objects["cc/00002.tar"] = server.objects["cc/00001.tar"]
    error = run_failure(*command)
    assert isinstance(error, TarError)
    assert error.name == "00002"


def test_tars_that_are_damaged_or_missing(server, teachers):
    server.objects["cc/00001.tar"] = server.objects["cc/00001.tar"][:3000]
    del server.objects["cc/00002.tar"]
    command = ("precompute", "--dataset", PATTERN, "--out", SET, *teachers)
    error = run_failure(*command)
    assert isinstance(error, TarError)
    assert error.path == Path(f"{TARS}/00001.tar")
    output = run_ok(*command, "--on-tar", "skip")
    assert f"{TARS}/00001.tar" in output
    assert f"{TARS}/00002.tar" in output
    names = sorted(name for name in stored(server) if name.startswith("pairs/"))
    assert names == ["pairs/00000.h5", "pairs/00003.h5"]


def test_a_store_that_fails_is_no_missing_tar(server, teachers):
    def fail(method, key):
        server.failures["GET"] = 100 * key.endswith("00002.tar")

    server.on_request = fail
    command = ("precompute", "--dataset", PATTERN, "--out", SET, *teachers, "--on-tar", "skip")
    error = run_failure(*command)
    assert isinstance(error, ObjectError)
    assert (error.name, error.status) == ("00002.tar", 503)
    server.on_request = None
    server.failures.clear()
    run_ok(*command)


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [
        (f"s3://{BUCKET}/nothing/", DataError),
        (f"s3://{BUCKET}/cc/1*.tar", DataError),
        ("s3://another/cc/", ObjectError),
        ("s3://another/cc/00000.tar", ObjectError),
        ("ftp://host/00000.tar", ObjectError),
    ],
)
def test_tars_that_cannot_be_named(server, teachers, dataset, kind):
    error = run_failure("precompute", "--dataset", dataset, "--out", SET, *teachers)
    assert type(error) is kind
    assert not stored(server)


def test_sets_that_are_not_there(server):
    for command in (["verify"], ["index"]):
        assert isinstance(run_failure("store", *command, SET), StoreError)
    with pytest.raises(StoreError):
        cusa.TarSet(SET)
    with pytest.raises(ObjectError):
        cusa.TarSet("s3://another/set")


def test_another_caption_rule_is_refused(server, teachers):
    command = ("precompute", "--dataset", f"{TARS}/0000[01].tar", "--out", SET, *teachers)
    run_ok(*command)
    error = run_failure(*command, "--dataset", PATTERN, "--caption", "json:caption")
    assert error.name == "caption"
    assert error.path == Path(SET)


def _run_in(environment, *command):
    """Run a command with all variables of another process."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    run_ok(*command)


# The name is short: a forkserver's socket is in the test's folder, and its path has 108 characters
# at most.
def test_kills(server, expected, tmp_path, teachers, monkeypatch):
    """The server kills the run amid its uploads."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    command = ("precompute", "--dataset", PATTERN, "--out", SET, *map(str, teachers))
    requests = Counter()

    def kill(method, key):
        requests[method] += 1
        if requests["PUT"] == 5:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    server.on_request = kill
    # The forkserver may have been started by another test, with its environment.
    process = fork_server().Process(target=_run_in, args=(dict(os.environ), *command))
    process.start()
    assert status_at_end(process) == -signal.SIGKILL
    for name, content in stored(server).items():
        assert content == expected[name]
    server.on_request = None
    _sweep_scratch_folders.cache_clear()
    run_ok(*command)
    assert stored(server) == expected
