"""Folders of an object store: whole files, retries, errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from cusa.data.errors import ObjectError
from cusa.data.objects.folder import is_remote, open_folder, split_file
from cusa.data.objects.remote import ObjectInfo
from tests.object_server import BUCKET, running_server

NAMES = ["a.h5", "pairs/a b.h5", "pairs/a+b.h5", "pairs/é日 %20#?.h5", "pairs/deep/x&y=z.h5"]
SCHEMES = ["s3", "gs", "az"]
MEGABYTE = bytes(1_000_000)


@pytest.fixture
def server(monkeypatch):
    with running_server() as (state, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield state


@pytest.fixture(params=SCHEMES)
def folder(request, server):
    return open_folder(f"{request.param}://{BUCKET}/a set+é/")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"rows")
    return path


def fetched(folder, name, tmp_path):
    target = tmp_path / "fetched" / "file"
    folder.fetch(name, target)
    assert not list(target.parent.glob(".*"))
    return target.read_bytes()


def failure(action):
    with pytest.raises(ObjectError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_created_once_and_fetched(folder, source, tmp_path, name):
    assert folder.create(name, source)
    source.write_bytes(b"others")
    assert not folder.create(name, source)
    assert fetched(folder, name, tmp_path) == b"rows"
    folder.replace(name, source)
    assert fetched(folder, name, tmp_path) == b"others"
    assert list(folder.list()) == [ObjectInfo(name, 6)]


def test_what_is_listed(folder, source):
    for name in NAMES:
        folder.create(name, source)
    listed = sorted(entry.name for entry in folder.list())
    assert listed == sorted(NAMES)


def test_a_file_that_is_missing(folder, tmp_path):
    error = failure(lambda: folder.fetch("pairs/a.h5", tmp_path / "target"))
    assert (error.location, error.name, error.status) == (str(folder), "pairs/a.h5", 404)
    assert vars(error.reworded("other")) == vars(error)
    assert not list(tmp_path.glob("*target*"))


@pytest.mark.parametrize("location", ["s3://b/p/", "gs://b/p", "az://b/p", Path("s3://b/p")])
def test_locations_of_an_object_store(location):
    assert is_remote(location)
    assert split_file(f"{location}/x.tar") == (
        str(location).replace(":/b", "://b").rstrip("/"),
        "x.tar",
    )


@pytest.mark.parametrize(
    "location", ["s3", "set/s3://x", "hf:owner/name", "C:/x", "/x", "a b", "note:"]
)
def test_paths_of_this_machine(location):
    assert not is_remote(location)


@pytest.mark.parametrize(
    "location", ["s3://", "s3:", "s3:///x", "S3:/b/x", "http:/h/x", "s4://bucket/x", "/x"]
)
def test_locations_that_are_none(location):
    assert failure(lambda: open_folder(location)).location == location


def test_one_request_for_each_file_and_page(server, folder, source, tmp_path):
    source.write_bytes(20 * MEGABYTE)  # more than obstore puts in one part of an upload
    server.page = 2
    for name in "abcde":
        folder.create(name, source)
    assert fetched(folder, "a", tmp_path) == 20 * MEGABYTE
    assert len(list(folder.list())) == 5
    assert server.counts() == {"PUT": 5, "GET": 1, "LIST": 3}


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_store_is_asked_once_more(server, folder, source, tmp_path, status):
    server.status = status
    server.failures.update(["PUT", "GET", "LIST"])
    assert folder.create("a", source)
    assert fetched(folder, "a", tmp_path) == b"rows"
    assert list(folder.list()) == [ObjectInfo("a", 4)]
    assert server.counts() == {"PUT": 2, "GET": 2, "LIST": 2}


def test_a_store_that_stays_busy_is_given_up(server, tmp_path):
    server.failures["GET"] = 100
    error = failure(lambda: open_folder(f"s3://{BUCKET}/set").fetch("a", tmp_path / "target"))
    assert (error.name, error.status) == ("a", 503)
    assert server.counts()["GET"] == 5


def test_transfers_that_break_off(server, source, tmp_path):
    source.write_bytes(MEGABYTE)
    folder = open_folder(f"s3://{BUCKET}/set")
    server.cut_puts = server.cut_gets = 1
    assert folder.create("a", source)
    assert fetched(folder, "a", tmp_path) == MEGABYTE
    server.cut_puts = server.cut_gets = 100
    assert failure(lambda: folder.create("b", source)).status is None
    assert failure(lambda: folder.fetch("a", tmp_path / "target")).status is None
    assert list(server.objects) == ["set/a"]
    assert not list(tmp_path.glob("*target*"))


def test_a_killed_upload_is_invisible(server, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(20 * MEGABYTE)
    server.latency = 60  # the server does not read the body while it waits
    code = (
        "from pathlib import Path; from cusa.data.objects.folder import open_folder; import sys; "
        "open_folder(sys.argv[1]).create('a', Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, f"s3://{BUCKET}/set", str(source)]
    process = subprocess.Popen(command)
    while not server.log:
        assert process.poll() is None
    process.kill()
    process.wait()
    server.latency = 0
    folder = open_folder(f"s3://{BUCKET}/set")
    assert not list(folder.list())
    assert folder.create("a", source)


@pytest.mark.parametrize(
    ("variables", "location", "status"),
    [
        ({}, "s3://another-bucket/set", 404),
        ({}, "gs://another-bucket/set", 404),
        ({}, "az://another-bucket/set", 404),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, f"s3://{BUCKET}/set", 403),
        ({"GOOGLE_BEARER_TOKEN": "wrong"}, f"gs://{BUCKET}/set", 403),
        ({"AZURE_STORAGE_TOKEN": "wrong"}, f"az://{BUCKET}/set", 403),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, f"s3://{BUCKET}/set", None),
        ({"AWS_ENDPOINT_URL": "http://no-such-host.invalid"}, f"s3://{BUCKET}/set", None),
    ],
)
def test_stores_that_cannot_be_used(
    server, monkeypatch, source, tmp_path, variables, location, status
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    folder = open_folder(location)
    for action in (
        lambda: list(folder.list()),
        lambda: folder.create("a", source),
        lambda: folder.fetch("a", tmp_path / "target"),
    ):
        error = failure(action)
        assert (error.location, error.status) == (location, status)
        # A set in a bucket that is missing is none that is yet to be made.
        assert not error.is_missing


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("GOOGLE_BASE_URL", "nonsense"),
        ("GOOGLE_BEARER_TOKEN", "a\n"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "a\n"),
        ("AZURE_STORAGE_TOKEN", "a\nb"),
        ("AWS_ENDPOINT_URL", "nonsense"),
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000"),
        ("AWS_ENDPOINT_URL", "http://"),
        ("AWS_ENDPOINT_URL", "http://["),
        ("AWS_ENDPOINT_URL", "http://host:99999"),
        ("AWS_ENDPOINT_URL", "http://host\n"),
        ("AWS_ACCESS_KEY_ID", "as read from a file\n"),
        ("AWS_SESSION_TOKEN", "a\nb"),
        ("AWS_REGION", "é"),
    ],
)
def test_settings_that_are_none(server, monkeypatch, variable, setting):
    """obstore would end with a traceback of Rust's, and an exception that nobody catches."""
    monkeypatch.setenv(variable, setting)
    names = []
    for scheme in SCHEMES:
        try:
            open_folder(f"{scheme}://{BUCKET}/set")
        except ObjectError as error:
            names.append(error.name)
    # Other stores than the variable's own do not mind.
    assert names == [variable]


@pytest.mark.parametrize(
    ("variable", "setting", "location", "name"),
    [
        ("AZURE_STORAGE_ENDPOINT", "nonsense", "az://container/set", "AZURE_*"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "not base64!", "az://container/set", "AZURE_*"),
        ("AZURE_STORAGE_USE_EMULATOR", "maybe", "az://container/set", "AZURE_*"),
        ("GOOGLE_SERVICE_ACCOUNT", "/no/such/file.json", "gs://bucket/set", "GOOGLE_*"),
        ("GOOGLE_SERVICE_ACCOUNT_KEY", "{}", "gs://bucket/set", "GOOGLE_*"),
    ],
)
def test_settings_that_obstore_refuses(server, monkeypatch, variable, setting, location, name):
    monkeypatch.delenv("AZURE_STORAGE_TOKEN")
    monkeypatch.setenv(variable, setting)
    error = failure(lambda: open_folder(location))
    assert (error.location, error.name) == (location, name)


def test_a_bucket_that_is_none(server):
    error = failure(lambda: open_folder("s3://a bucket/set"))
    assert (error.location, error.name) == ("s3://a bucket/set", "a bucket")


def test_a_fault_of_obstore_is_one_line(folder, source, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(*_, **__):
        raise PanicException("called `Result::unwrap()`")

    monkeypatch.setattr("obstore.put", panic)
    assert failure(lambda: folder.replace("a.h5", source)).name == "a.h5"


def test_no_credentials(server, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # Where a machine of the cloud would answer.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9/169.254.")
    error = failure(lambda: list(open_folder(f"s3://{BUCKET}/set").list()))
    assert (error.name, error.status) == ("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", None)


@pytest.mark.parametrize("name", ["../a", "a//b", "a\nb"])
def test_names_that_are_none(server, source, name):
    folder = open_folder(f"s3://{BUCKET}/set")
    assert failure(lambda: folder.create(name, source)).name == name


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert failure(lambda: open_folder("s3://bucket/set")).location == "s3://bucket/set"


def test_azure_without_an_account(monkeypatch):
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.delenv(name, raising=False)
    error = failure(lambda: open_folder("az://container/set"))
    assert error.name == "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"


def test_obstore_is_imported_only_for_an_object_store(tmp_path):
    code = (
        "import sys; from cusa.data.tars.set_files import SetFiles; SetFiles(sys.argv[1]); "
        "assert 'obstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
