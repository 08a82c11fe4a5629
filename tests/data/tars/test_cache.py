"""Copies of a set's files: verified on arrival, shared, bounded, and never half."""

import errno
import multiprocessing
import os
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from cusa.data.errors import ObjectError, SettingError, StoreError
from cusa.data.objects.folder import LocalFolder
from cusa.data.tars.cache import TarCache
from cusa.data.tars.open_tar import OpenTar
from cusa.data.tars.samples import TarError
from cusa.data.tars.tar_set import TarSet
from tests.child_processes import status_at_end
from tests.data.tars.tar_files import write_set, write_tars
from tests.fork_server import fork_server
from tests.helpers import fault_of
from tests.object_server import BUCKET, running_server

N_TARS = 4
N_PAIRS = 3
TEACHERS = ("eyes", "words")
SET = f"s3://{BUCKET}/a set+é"
TARS = f"s3://{BUCKET}/cc"
FILES = ("pairs/00002.h5", "eyes/00002.h5", "words/00002.h5", "00002.tar")
PLENTY = 10**9


@pytest.fixture
def local(tmp_path):
    return write_set(tmp_path / "set", write_tars(tmp_path / "tars", N_TARS, N_PAIRS))


@pytest.fixture
def server(monkeypatch, tmp_path, local):
    with running_server() as (state, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        state.store("a set+é/", tmp_path / "set", "**/*.h5")
        state.store("cc/", tmp_path / "tars", "*.tar")
        yield state


@pytest.fixture
def remote(server):
    return TarSet(SET, Path(TARS))


def cache_of(tar_set, folder, n_bytes_kept=PLENTY, teachers=TEACHERS, needs_images=True):
    return TarCache(tar_set, folder, n_bytes_kept, teachers, needs_images)


def copies(folder):
    """The files of a cache, without locks and folders of files that arrive."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")


def assert_copies_equal(cache, local, tar):
    copy = OpenTar(cache.files, tar, TEACHERS, reads_images=True)
    expected = OpenTar(local, tar, TEACHERS, reads_images=True)
    for row in range(N_PAIRS):
        assert copy.image(row) == expected.image(row)
    for teacher in TEACHERS:
        np.testing.assert_array_equal(copy.rows(teacher), expected.rows(teacher))
    assert list(copy.captions) == list(expected.captions)


@pytest.fixture(params=["in an object store", "on this machine"])
def tar_set(request, local):
    if request.param == "on this machine":
        return local
    return request.getfixturevalue("remote")


def test_copies_are_the_files_and_are_fetched_once(tmp_path, local, remote, server):
    server.log.clear()
    for _ in range(2):
        cache = cache_of(remote, tmp_path / "cache")
        for tar in remote.manifest.names:
            cache.bring(tar)
            assert_copies_equal(cache, local, tar)
            cache.drop(tar)
        cache.close()
    assert server.counts() == {"GET": 4 * N_TARS}
    assert server.counts("cc/") == {"GET": N_TARS}


def test_only_what_is_needed_is_fetched(tmp_path, remote, server):
    server.log.clear()
    cache_of(remote, tmp_path / "cache", teachers=("words",), needs_images=False).bring("00001")
    assert [key for _, key in server.log] == ["a set+é/pairs/00001.h5", "a set+é/words/00001.h5"]
    # The others are added to it.
    cache_of(remote, tmp_path / "cache").bring("00001")
    assert [key for _, key in server.log[2:]] == ["a set+é/eyes/00001.h5", "cc/00001.tar"]


def test_a_temporary_folder_goes_with_the_cache(remote):
    cache = cache_of(remote, None)
    cache.bring("00001")
    folder = cache.files.path
    assert copies(folder)
    cache.close()
    assert not folder.exists()


def test_copies_that_are_not_used_make_room(tmp_path, tar_set):
    cache = cache_of(tar_set, tmp_path / "cache", n_bytes_kept=0)
    cache.bring("00000")
    cache.bring("00001")
    cache.drop("00000")
    cache.bring("00002")
    tars = {path.name for path in copies(tmp_path / "cache") if path.suffix == ".tar"}
    assert tars == {"00001.tar", "00002.tar"}
    cache.close()
    assert not copies(tmp_path / "cache")


def test_the_oldest_copies_go_first(tmp_path, local):
    cache = cache_of(local, tmp_path / "cache")
    for tar in ("00002", "00000", "00001"):
        cache.bring(tar)
    for tar in ("00001", "00002", "00000"):
        cache.drop(tar)
    of_two_tars = 2 * sum(path.stat().st_size for path in copies(cache.files.entry_path("00000")))
    cache_of(local, tmp_path / "cache", n_bytes_kept=of_two_tars).close()
    tars = {path.name for path in copies(tmp_path / "cache") if path.suffix == ".tar"}
    assert tars == {"00002.tar", "00000.tar"}


def test_copies_of_another_user_stay(tmp_path, local, monkeypatch):
    folder = tmp_path / "cache"
    others = cache_of(local, folder)
    others.bring("00000")
    others.drop("00000")
    their_entry = others.files.entry_path("00000")
    open_file = os.open

    def open_or_refuse(path, *arguments, **options):
        if their_entry in Path(path).parents:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_or_refuse)
    cache = cache_of(local, folder, n_bytes_kept=0)
    cache.bring("00001")
    cache.close()
    assert {path.parent.name for path in copies(folder) if path.suffix == ".tar"} == {
        their_entry.name
    }


def test_other_files_in_the_folder_stay(tmp_path, local):
    folder = tmp_path / "cache"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "a.jpg").write_bytes(b"a picture")
    (folder / ("0" * 32)).mkdir()
    cache = cache_of(local, folder, n_bytes_kept=0)
    cache.bring("00000")
    cache.close()
    assert (folder / "photos" / "a.jpg").exists()
    assert (folder / ("0" * 32)).exists()


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_named_on_arrival(tmp_path, remote, server, name):
    key = f"cc/{name}" if name.endswith(".tar") else f"a set+é/{name}"
    content = server.objects[key]
    server.objects[key] = content[:-1] + bytes([content[-1] ^ 1])
    cache = cache_of(remote, tmp_path / "cache")
    cache.bring("00001")
    n_copies = len(copies(tmp_path / "cache"))
    with pytest.raises((StoreError, TarError)) as caught:
        cache.bring("00002")
    fault = fault_of(caught.value)
    assert fault.path == Path(f"s3://{BUCKET}/{key}")
    assert len(copies(tmp_path / "cache")) == n_copies + FILES.index(name)
    server.objects[key] = content
    cache.bring("00002")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(tmp_path, tar_set, request, name):
    is_tar = name.endswith(".tar")
    folder = tar_set.image_root if is_tar else tar_set.path
    if isinstance(tar_set.files.remote, type(None)):
        (folder / name).unlink()
    else:
        server = request.getfixturevalue("server")
        del server.objects[f"{'cc' if is_tar else 'a set+é'}/{name}"]
    with pytest.raises((StoreError, TarError, ObjectError)) as caught:
        cache_of(tar_set, tmp_path / "cache").bring("00002")
    assert isinstance(caught.value, TarError) == is_tar
    if isinstance(caught.value, ObjectError):
        assert caught.value.name == name
    else:
        assert (caught.value.path, caught.value.name) == (folder / name, "00002")


def test_a_damaged_copy_is_fetched_again(tmp_path, tar_set, local):
    cache = cache_of(tar_set, tmp_path / "cache")
    cache.bring("00002")
    for path in copies(tmp_path / "cache"):
        path.write_bytes(path.read_bytes()[:-1])
    cache.drop("00002")
    cache.bring("00002")
    assert_copies_equal(cache, local, "00002")


def test_errors_on_copies_name_the_files_of_the_set(tmp_path, remote):
    cache = cache_of(remote, tmp_path / "cache")
    for path, location in [
        (cache.files.tar_path("00002") / "a.jpg", f"{TARS}/00002.tar/a.jpg"),
        (cache.files.pairs_path("00002"), f"{SET}/pairs/00002.h5"),
        (cache.files.rows_path("eyes", "00002"), f"{SET}/eyes/00002.h5"),
    ]:
        error = cache.files.elsewhere(StoreError(f"{path} is odd", path=path), "00002")
        assert str(error) == f"{location} is odd"
        assert error.path == Path(location)


def test_a_busy_store_is_asked_again_and_one_that_fails_is_named(tmp_path, remote, server):
    cache = cache_of(remote, tmp_path / "cache")
    server.log.clear()
    server.failures["GET"] = 1
    cache.bring("00001")
    assert server.counts() == {"GET": 5}
    server.failures["GET"] = 100
    server.log.clear()
    with pytest.raises(ObjectError) as caught:
        cache.bring("00002")
    assert caught.value.name == "pairs/00002.h5"
    assert server.counts()["GET"] < 8
    server.failures.clear()
    cache.bring("00002")


def _fail_to_copy(monkeypatch, errors):
    plain = LocalFolder.fetch

    def fetch(self, name, target):
        if errors:
            raise OSError(errors.pop(), "of the disk")
        plain(self, name, target)

    monkeypatch.setattr(LocalFolder, "fetch", fetch)


def test_a_full_disk_costs_the_copies_that_are_not_used(tmp_path, local, monkeypatch):
    cache = cache_of(local, tmp_path / "cache")
    for tar in ("00000", "00001"):
        cache.bring(tar)
    cache.drop("00000")
    _fail_to_copy(monkeypatch, [errno.ENOSPC])
    cache.bring("00002")
    tars = {path.name for path in copies(tmp_path / "cache") if path.suffix == ".tar"}
    assert tars == {"00001.tar", "00002.tar"}


@pytest.mark.parametrize(
    ("errors", "name"), [([errno.ENOSPC] * 2, "data.cache"), ([errno.EIO], "00002")]
)
def test_a_disk_that_fails_is_named(tmp_path, local, monkeypatch, errors, name):
    _fail_to_copy(monkeypatch, errors)
    cache = cache_of(local, tmp_path / "cache")
    with pytest.raises(StoreError) as caught:
        cache.bring("00002")
    assert (caught.value.path, caught.value.name) == (tmp_path / "cache", name)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, local):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingError) as caught:
        cache_of(local, tmp_path / "file" / "cache")
    assert caught.value.name == "data.cache"


def test_of_those_that_share_a_folder_one_fetches(tmp_path, remote, server):
    server.latency = 0.05
    server.log.clear()
    caches = [cache_of(remote, tmp_path / "cache", n_bytes_kept=0) for _ in range(4)]
    threads = [threading.Thread(target=cache.bring, args=("00001",)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.counts() == {"GET": 4}
    # What one of them uses stays.
    for cache in caches[1:]:
        cache.close()
    assert len(copies(tmp_path / "cache")) == 4
    caches[0].close()
    assert not copies(tmp_path / "cache")


def test_a_forked_process_keeps_no_copy(tmp_path, local):
    cache = cache_of(local, tmp_path / "cache", n_bytes_kept=0)
    cache.bring("00001")
    child = multiprocessing.get_context("fork").Process(target=signal.pause)
    child.start()
    try:
        cache.close()
        assert not copies(tmp_path / "cache")
    finally:
        status_at_end(child, patience_s=0)


def _bring(environment, folder):
    os.environ.update(environment)
    cache_of(TarSet(SET, Path(TARS)), folder).bring("00001")


@pytest.mark.parametrize("name", ["pairs/00001.h5", "words/00001.h5", "cc/00001.tar"])
def test_killed_amid_a_download_nothing_half_is_trusted(tmp_path, local, server, monkeypatch, name):
    """The server kills the process when half of a file is sent."""

    def kill(method, key):
        if key.endswith(name):
            server.cut_gets = 1
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    server.on_request = kill
    arguments = (server.environment, tmp_path / "cache")
    process = fork_server().Process(target=_bring, args=arguments)
    process.start()
    assert status_at_end(process) == -signal.SIGKILL
    server.on_request = None
    server.cut_gets = 0
    half_file = next((tmp_path / "cache").glob("*")) / "arriving" / "of a killed process"
    half_file.parent.mkdir(exist_ok=True)
    half_file.write_bytes(b"half")
    cache = cache_of(TarSet(SET, Path(TARS)), tmp_path / "cache")
    cache.bring("00001")
    assert_copies_equal(cache, local, "00001")
    assert not half_file.exists()
    assert len(copies(tmp_path / "cache")) == 4
    shutil.rmtree(tmp_path / "cache")
