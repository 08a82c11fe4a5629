"""Stage one over tars on a cluster: a stand-in for Ray, whose actors may be lost."""

import errno
import itertools
import os
import pickle
import sys
import tempfile
from collections import Counter
from contextlib import chdir, contextmanager
from types import SimpleNamespace

import pytest

import cusa
from cusa.data.errors import SettingError, StoreError, WorkerError
from cusa.data.tars.manifest import MANIFEST
from cusa.data.tars.origin import ORIGIN, SetOrigin
from cusa.data.tars.samples import TarError
from cusa.precompute.tars import cluster_run, maker, ray_cluster, tar_actor
from tests.data.tars.tar_files import contents, write_tars
from tests.helpers import make_tiny_clip, run, run_failure, run_ok
from tests.object_server import BUCKET, running_server

N_TARS = 4
N_PAIRS = 3


class Lost(BaseException):
    """Ends an actor, as SIGKILL does."""


class StandIn:
    """Two actors in this process; what they get and give is pickled, and their folder another."""

    device = "cpu"
    cores = 1

    def __init__(self, folder):
        self.folder = folder
        self.attempts = Counter()

    def __str__(self):
        return "a stand-in for Ray"

    def _count(self, tar):
        self.attempts[tar] += 1
        return self.attempts[tar]

    def _new_actor(self, task):
        return tar_actor.TarActor(pickle.loads(pickle.dumps(task)), self._count)

    def results(self, tars, task, check_stop):
        actors = [self._new_actor(task), self._new_actor(task)]
        for number, tar in enumerate(reversed(tars)):
            check_stop()
            row = None
            while row is None:
                with chdir(self.folder):
                    try:
                        row = actors[number % 2]({tar_actor.TAR: [str(tar)]})
                    except Lost:
                        actors[number % 2] = self._new_actor(task)
            yield pickle.loads(pickle.dumps(row[tar_actor.RESULT][0]))


@pytest.fixture
def tars(tmp_path):
    return write_tars(tmp_path / "tars", N_TARS, N_PAIRS)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    stand_in = StandIn(folder)

    @contextmanager
    def connected(address, device, cores):
        assert (address, device, cores) == ("auto", "auto", 1)
        yield stand_in

    monkeypatch.setattr("cusa.precompute.tars.ray_cluster.ray_cluster", connected)
    monkeypatch.chdir(tmp_path)
    return stand_in


@pytest.fixture
def command(tars, teachers):
    options = ["--dataset", "tars", "--batch-size", 2, *teachers]
    return ["precompute", *options, "--engine", "ray", "--ray-address", "auto"]


@pytest.fixture
def expected(tmp_path, tars, teachers, cluster):
    """The files that the local engine makes."""
    run_ok("precompute", "--dataset", "tars", "--batch-size", 2, "--out", "local", *teachers)
    return contents(tmp_path / "local")


def test_files_are_those_of_the_local_engine(tmp_path, command, cluster, expected):
    output = run_ok(*command, "--out", "set")
    assert "set: set\n" in output
    assert "a stand-in for Ray" in output
    # Both actors have loaded it.
    assert output.count("note: vit: ") == 1
    assert contents(tmp_path / "set") == expected
    assert set(cluster.attempts.values()) == {1}


def test_both_halves_of_a_cross_modal_teacher_are_made_by_actors(tmp_path, tars, cluster):
    make_tiny_clip(tmp_path / "clip")
    args = ("--dataset", "tars", "--batch-size", 2, "--teacher", "clip:clip", "--out")
    run_ok("precompute", *args, "local")
    run_ok("precompute", *args, "set", "--engine", "ray", "--ray-address", "auto")
    assert contents(tmp_path / "set") == contents(tmp_path / "local")
    assert (tmp_path / "set" / "clip-text" / "00003.h5").is_file()


def test_a_manifest_is_made_of_finished_tars(tmp_path, command, cluster, expected):
    """No actor is needed for it."""
    run_ok(*command, "--out", "set")
    (tmp_path / "set" / MANIFEST).unlink()
    output = run_ok(*command, "--out", "set")
    assert contents(tmp_path / "set") == expected
    assert "of 4 tars" not in output
    assert cluster.attempts.total() == N_TARS


def test_a_finished_set_learns_where_its_tars_were_moved(tmp_path, command, cluster, expected):
    run_ok(*command, "--out", "set")
    (tmp_path / "tars").rename(tmp_path / "moved")
    options = ["moved" if option == "tars" else option for option in command]
    run_ok(*options, "--out", "set")
    assert SetOrigin.recorded("set").image_root == str(tmp_path / "moved")
    assert SetOrigin.recorded("set").sources == SetOrigin.recorded("local").sources
    assert cluster.attempts.total() == N_TARS


def test_a_share_of_the_tars_has_no_manifest(tmp_path, command, cluster, expected):
    run_ok(*command, "--out", "set", "--tars", "1:3")
    chosen = ("00001.h5", "00002.h5", ORIGIN)
    assert contents(tmp_path / "set").keys() == {name for name in expected if name.endswith(chosen)}


@pytest.mark.parametrize("n_renamings", [1, 2, 5, 6])
def test_the_tar_of_a_lost_actor_is_made_again(
    tmp_path, command, cluster, expected, monkeypatch, n_renamings
):
    """Wherever the actor is lost; its temporary files do not stay."""
    renamings = itertools.count(1)
    replace_file = os.replace

    def replace_or_die(source, target):
        if next(renamings) == n_renamings:
            target.with_name(".left.00000000.tmp").touch()
            raise Lost
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", replace_or_die)
    run_ok(*command, "--out", "set")
    assert contents(tmp_path / "set") == expected
    assert sorted(cluster.attempts.values()) == [1, 1, 1, 2]


def test_a_tar_that_ends_every_actor_stops_the_run(
    tmp_path, command, cluster, expected, monkeypatch, tars
):
    read_pairs = maker.read_pairs_of_unit

    def read_or_die(tar_path, *options):
        if tar_path == tars[1]:
            raise Lost
        return read_pairs(tar_path, *options)

    monkeypatch.setattr(maker, "read_pairs_of_unit", read_or_die)
    error = run_failure(*command, "--out", "set")
    assert (type(error), error.path, error.name) == (WorkerError, tars[1], "00001")
    assert cluster.attempts[tars[1]] == tar_actor.MAX_ATTEMPTS + 1
    # The tars before it are kept.
    finished = contents(tmp_path / "set")
    assert len(finished) == 2 * 3 + len([ORIGIN])
    assert finished.items() <= expected.items()


def test_errors_of_actors_are_those_of_the_local_engine(
    tmp_path, command, cluster, expected, tars, teachers
):
    tars[2].write_bytes(b"no tar")
    error = run_failure(*command, "--out", "set")
    local = run_failure("precompute", "--dataset", "tars", "--out", "again", *teachers)
    assert (type(error), error.path, error.name) == (TarError, tars[2], local.name)
    output = run_ok(*command, "--out", "set", "--on-tar", "skip")
    assert f"{tars[2]}" in output
    assert cusa.TarSet("set").manifest.names == ("00000", "00001", "00003")
    error = run_failure(*command, "--out", "set", "--dtype", "float32")
    assert (type(error), error.name) == (StoreError, "vit")


def test_a_full_disk_of_a_node_is_one_line(command, cluster, monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "/node/set/pairs/00003.h5")

    monkeypatch.setattr(maker, "write_pairs", write)
    result = run(*command, "--out", "set")
    assert result.exit_code == 1
    assert result.output.count("/node/set/pairs/00003.h5") == 1


def test_a_folder_that_nodes_do_not_share_is_refused(command, cluster, monkeypatch, tars):
    monkeypatch.setattr(cluster_run, "_LISTING_S", 0)

    def results(tars, task, check_stop):
        yield from [tar_actor.TarResult(tar, is_made=True) for tar in tars]

    cluster.results = results
    error = run_failure(*command, "--out", "set")
    assert (type(error), error.name) == (StoreError, "00000")


def test_files_may_be_listed_late(tmp_path, command, cluster, expected, monkeypatch):
    """As network file systems do."""
    monkeypatch.setattr(cluster_run, "_POLL_S", 0)
    n_looks = itertools.count()
    unseen = cluster_run.ClusterRun._unseen

    def unseen_at_first(self, tars):
        if next(n_looks) < 2:
            return tars
        return unseen(self, tars)

    monkeypatch.setattr(cluster_run.ClusterRun, "_unseen", unseen_at_first)
    run_ok(*command, "--out", "set")
    assert contents(tmp_path / "set") == expected


def test_tars_and_set_in_an_object_store(tmp_path, cluster, command, expected, tars, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with running_server() as (state, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for path in tars:
            state.objects[f"cc/{path.name}"] = path.read_bytes()
        command[2] = f"s3://{BUCKET}/cc/"
        run_ok(*command, "--out", f"s3://{BUCKET}/set")
        for name, content in expected.items():
            assert name in (MANIFEST, ORIGIN) or state.objects[f"set/{name}"] == content
        assert cusa.TarSet(f"s3://{BUCKET}/set").manifest.n_tars == N_TARS
        assert state.counts("cc/")["GET"] == N_TARS
    assert not list(scratch.glob("cusa-*"))


# --- options


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--ray-address", "auto"], "ray_address"),
        (["--engine", "local", "--ray-address", "auto"], "ray_address"),
        (["--engine", "ray", "--ray-address", "ray://head:10001"], "ray_address"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, tars, teachers, options, name):
    given = ["--dataset", tmp_path / "tars", "--out", tmp_path / "set", *teachers, *options]
    error = run_failure("precompute", *given)
    assert (type(error), error.name) == (SettingError, name)
    assert not (tmp_path / "set").exists()


def test_the_engine_is_for_tars_alone(tmp_path):
    error = run_failure("precompute", "--dataset", "demo", "--engine", "ray")
    assert error.name == "engine"


def test_torchrun_does_not_go_with_ray(tmp_path, tars, monkeypatch):
    from cusa.precompute import processes

    two = processes.RunProcesses(0, 2, 0, 2, processes.dist.HashStore())
    monkeypatch.setattr(processes, "connect", lambda: two)
    with pytest.raises(SettingError) as caught:
        cusa.precompute_tars(tmp_path / "tars", out=tmp_path / "set", engine="ray")
    assert caught.value.name == "engine"


def test_without_ray_the_error_says_how_to_install_it(tmp_path, tars, teachers, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    given = ["--dataset", tmp_path / "tars", "--out", tmp_path / "set", *teachers]
    error = run_failure("precompute", *given, "--engine", "ray")
    assert (type(error), error.name) == (SettingError, "engine")


# --- room for actors


def _nodes(*resources):
    """Ray with a node that has gone, and others with some resources."""
    nodes = [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    nodes += [{"Alive": True, "Resources": node} for node in resources]
    return SimpleNamespace(nodes=lambda: nodes)


@pytest.mark.parametrize(
    ("device", "cores", "nodes", "expected_room"),
    [
        ("auto", 1, [{"CPU": 4.0}, {"CPU": 2.0}], ("cpu", 1, 6)),
        ("auto", 3, [{"CPU": 4.0}, {"CPU": 2.0}], ("cpu", 3, 1)),
        ("auto", 1, [{"CPU": 32.0, "GPU": 4.0}, {"CPU": 99.0}], ("cuda", 8, 4)),
        ("cuda", 1, [{"CPU": 2.0, "GPU": 4.0}], ("cuda", 1, 4)),
        ("cpu", 2, [{"CPU": 8.0, "GPU": 4.0}, {}], ("cpu", 2, 4)),
    ],
)
def test_an_actor_for_each_gpu_or_some_cores(device, cores, nodes, expected_room):
    cluster = ray_cluster._with_room(_nodes(*nodes), device, cores)
    assert (cluster.device, cluster.cores, cluster.n_actors) == expected_room


@pytest.mark.parametrize(
    ("device", "cores", "nodes"),
    [("cuda", 1, [{"CPU": 4.0}]), ("cpu", 3, [{"CPU": 2.0}, {"CPU": 2.0}]), ("auto", 1, [{}])],
)
def test_a_cluster_without_room_is_refused(device, cores, nodes):
    """Ray would wait for a node that has it."""
    with pytest.raises(SettingError) as caught:
        ray_cluster._with_room(_nodes(*nodes), device, cores)
    assert caught.value.name == "device"
