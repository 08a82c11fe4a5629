"""Students trained on sets and tars of an object store, from copies of what comes next."""

import os
import signal
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch

from cusa.data.errors import ObjectError, SettingError, StoreError
from cusa.data.tars.cache import TarCache
from cusa.data.tars.samples import TarError
from cusa.data.tars.tar_set import TarSet
from cusa.data.worker_pool import WorkerPool
from cusa.train.saving.run_dir import load_run
from cusa.train.tars.inputs import tar_inputs
from cusa.train.tars.pairs import TarSetPairs
from cusa.train.tars.supply import TarSupply
from cusa.train.towers.processors import Processors
from cusa.train.trainer import Trainer
from tests.child_processes import status_at_end
from tests.data.tars.tar_files import write_set, write_tars
from tests.fork_server import fork_server
from tests.helpers import ADAPTER, Fault, fault_of, kill_at, make_tiny_clip, run_failure, run_ok
from tests.object_server import BUCKET, running_server
from tests.train.same_runs import assert_same_run
from tests.train.tars.test_tar_batches import TEACHERS, USED_TEACHERS, Greys

N_TARS = 5
N_PAIRS = 4
SET = f"s3://{BUCKET}/set"
TARS = f"s3://{BUCKET}/tars"
STEPS = ("--batch-size", 4, "--epochs", 2, "--checkpoint-steps", 2, "--set", "train.log_every=1")
# No copy stays that is not used, and one tar comes ahead.
SMALL = ("--set", "data.cache_gb=0", "--set", "data.window=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    write_set(folder / "set", write_tars(folder / "tars", N_TARS, N_PAIRS))
    make_tiny_clip(folder / "clip")
    return folder


@pytest.fixture
def server(monkeypatch, folder):
    with running_server() as (state, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        state.store("set/", folder / "set", "**/*.h5")
        state.store("tars/", folder / "tars", "*.tar")
        yield state


def _student(folder, name):
    if name == "adapter":
        return ADAPTER
    return ("--student", folder / "clip", "--image-root", TARS)


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    """The runs of both students on the same files on this machine."""
    runs = tmp_path_factory.mktemp("runs")
    command = ("train", "--embeddings", folder / "set", *STEPS, *SMALL, "--workers", 0)
    run_ok(*command, *ADAPTER, "--run-dir", runs / "adapter")
    run_ok(*command, "--student", folder / "clip", "--run-dir", runs / "clip")
    return runs


def _file_inputs():
    return tar_inputs({}, Processors(Greys(), Greys()), "none", TEACHERS)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_batches_are_those_of_the_files_on_this_machine(folder, server, workers):
    inputs = _file_inputs()
    local = TarSetPairs(TarSet(folder / "set"), inputs, USED_TEACHERS, 4)
    remote_set = TarSet(SET, Path(TARS))
    cache = TarCache(remote_set, None, 0, TEACHERS, needs_images=True)
    pairs = TarSetPairs(cache.files, inputs, USED_TEACHERS, 4)
    supply = TarSupply(pairs, remote_set.manifest.names, cache, 1)
    # Batches that lie across two tars, or three.
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    order = order.reshape(-1, 4).sort(0).values.numpy()
    with closing(supply), closing(WorkerPool(pairs, workers, "fork")) as pool:
        for _ in range(2):
            batches = list(supply.read(pool, order))
            assert len(batches) == len(order)
            for keys, batch in zip(order, batches, strict=True):
                expected = local[keys]
                assert batch.texts == expected.texts
                assert torch.equal(batch.images, expected.images)
                assert torch.equal(batch.teacher_image, expected.teacher_image)
                assert torch.equal(batch.teacher_text, expected.teacher_text)
                assert torch.equal(batch.image_ids, expected.image_ids)


def test_what_was_deleted_is_closed_when_another_tar_is_opened(folder, tmp_path):
    local = TarSet(folder / "set")
    cache = TarCache(local, tmp_path / "cache", 0, TEACHERS, needs_images=True)
    pairs = TarSetPairs(cache.files, _file_inputs(), USED_TEACHERS, N_TARS)
    for number, tar in enumerate(local.manifest.names):
        cache.bring(tar)
        pairs[[number * N_PAIRS]]
        cache.drop(tar)
    open_paths = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing
            open_paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    open_tars = [path for path in open_paths if path.startswith(str(tmp_path)) and ".tar" in path]
    assert open_tars == [str(cache.files.tar_path(local.manifest.names[-1]))]


@pytest.mark.parametrize(("name", "workers"), [("adapter", 0), ("adapter", 1), ("clip", 2)])
def test_a_run_is_that_on_the_files_of_this_machine(
    folder, server, expected, tmp_path, name, workers
):
    command = ("train", "--embeddings", f"{SET}/", *STEPS, *_student(folder, name))
    run_ok(*command, *SMALL, "--workers", workers, "--run-dir", tmp_path / "run")
    assert_same_run(expected / name, tmp_path / "run")
    assert load_run(tmp_path / "run")[0].data.embeddings == SET
    counts = server.counts("0000")
    n_files = {"adapter": 3, "clip": 4}[name]
    # Both epochs, and the first two pairs, by which memory is measured.
    assert set(counts) == {"GET"}
    assert n_files * N_TARS <= counts["GET"] <= n_files * (2 * N_TARS + 1)
    assert bool(server.counts("tars/")) == (name == "clip")
    assert server.counts("LIST") == server.counts("HEAD") == {}


def test_copies_are_kept_for_the_next_epoch_and_the_next_run(folder, server, tmp_path):
    command = ("train", "--embeddings", SET, *STEPS, *_student(folder, "clip"))
    command = (*command, "--set", f"data.cache={tmp_path / 'cache'}")
    run_ok(*command, "--run-dir", tmp_path / "run")
    assert server.counts("0000") == {"GET": 4 * N_TARS}
    run_ok(*command, *SMALL, "--run-dir", tmp_path / "another")
    assert server.counts("0000") == {"GET": 4 * N_TARS}
    assert not list((tmp_path / "cache").rglob("*.tar"))


def _train_and_die(environment, step, arguments):
    os.environ.update(environment)
    kill_at(Trainer, "_train_on", step, signal.SIGKILL)()
    run_ok("train", *arguments)


@pytest.mark.parametrize(("name", "step", "workers"), [("clip", 6, 1), ("adapter", 3, 0)])
def test_killed_a_resumed_run_equals_an_undisturbed_one(
    folder, server, expected, tmp_path, name, step, workers
):
    arguments = ("--embeddings", SET, *STEPS, *SMALL, *_student(folder, name))
    arguments = (*arguments, "--workers", workers, "--run-dir", tmp_path / "run")
    arguments = (*arguments, "--set", f"data.cache={tmp_path / 'cache'}")
    # obstore's threads do not survive a fork, and this process may have used some.
    texts = tuple(map(str, arguments))
    process = fork_server().Process(target=_train_and_die, args=(server.environment, step, texts))
    process.start()
    assert status_at_end(process) == -signal.SIGKILL
    run_ok("train", "--resume", "--run-dir", tmp_path / "run")
    assert_same_run(expected / name, tmp_path / "run")
    assert not list((tmp_path / "cache").rglob("*.h5"))


def test_a_store_that_goes_away_leaves_a_run_that_goes_on(folder, server, expected, tmp_path):
    def fail(method, key):
        server.failures["GET"] = 100 * (server.counts("pairs/")["GET"] > 3)

    server.on_request = fail
    command = ("train", "--embeddings", SET, *STEPS, *SMALL, *ADAPTER, "--workers", 1)
    error = run_failure(*command, "--run-dir", tmp_path / "run")
    assert isinstance(error, ObjectError)
    assert error.status == 503
    server.on_request = None
    server.failures.clear()
    run_ok("train", "--resume", "--run-dir", tmp_path / "run")
    assert_same_run(expected / "adapter", tmp_path / "run")


def test_a_tar_that_was_replaced_by_one_of_equal_length_is_named(folder, server, tmp_path):
    key = "tars/00003.tar"
    content = server.objects[key]
    server.objects[key] = content[:700] + b"x" + content[701:]
    command = ("train", "--embeddings", SET, *STEPS, *_student(folder, "clip"), "--workers", 0)
    error = run_failure(*command, "--run-dir", tmp_path / "run")
    assert fault_of(error) == Fault(TarError, Path(f"{TARS}/00003.tar"), name="00003")
    server.objects[key] = content
    run_ok("train", "--resume", "--run-dir", tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--embeddings", f"s3://{BUCKET}/nothing"), StoreError),
        (("--embeddings", "s3://another/set"), ObjectError),
        (("--set", "data.cache=/dev/null/cache"), SettingError),
        (("--set", f"data.cache=s3://{BUCKET}/cache"), SettingError),
        (("--set", "data.cache=''"), SettingError),
        (("--val-embeddings", SET), StoreError),
        (("--set", "data.cache_gb=-1"), SettingError),
        (("--patience", 1), SettingError),
        (("--image-encoder", "nobody"), StoreError),
        (("--report",), SettingError),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(folder, server, tmp_path, options, error):
    command = ("train", "--embeddings", SET, *STEPS, *ADAPTER, *options)
    failure = run_failure(*command, "--run-dir", tmp_path / "run")
    assert type(failure) is error
