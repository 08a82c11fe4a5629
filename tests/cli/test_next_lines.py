"""Every "next:" line that a command prints runs as printed: split, index, environment, quoting."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from cusa.cli.precompute import main as precompute_line
from cusa.data.datasets import KNOWN_SIZES
from cusa.data.records import Dataset
from cusa.precompute.next_step import merging_command, training_command
from cusa.stages.precompute_tars import PrecomputedTars
from cusa.train.commands import evaluation_command, resume_command
from tests.helpers import (
    ADAPTER,
    add_teacher,
    make_pairs,
    make_store,
    records,
    run_ok,
    settings,
    unit_rows,
)

SHORT = ("--batch-size", 16, "--epochs", 1)


def _next(output):
    (line,) = (line for line in output.splitlines() if line.startswith("next"))
    return line.partition(": ")[2]


def _run_line(line, *more):
    """Run a printed line in this process; its output."""
    program, *arguments = shlex.split(line)
    assert shutil.which(program)
    return run_ok(Path(program).name.removeprefix("cusa-"), *arguments, *more)


def _train(index, run_dir, *more):
    return run_ok("train", "--embeddings", index, "--run-dir", run_dir, *ADAPTER, *SHORT, *more)


@pytest.mark.parametrize(
    ("sizes", "split"),
    [
        ({"train": 40, "val": 10, "test": 8}, None),  # the default
        ({"train": 40, "val": 10}, "val"),
        ({"train": 40, "extra": 6}, "extra"),
        ({"train": 40}, "train"),
    ],
)
def test_training_names_a_split_that_exists(tmp_path, sizes, split):
    index = make_store(tmp_path / "store", sizes=sizes)
    line = _next(_train(index, tmp_path / "a run, its folder"))
    expected = [
        "--run",
        str(tmp_path / "a run, its folder"),
        *(["--split", split] if split else []),
    ]
    assert shlex.split(line)[1:] == expected
    _run_line(line, "--bootstrap", 10)
    assert (tmp_path / "a run, its folder" / "eval" / "metrics.json").exists()


@pytest.mark.parametrize("leads", [True, False])
def test_a_share_of_tars_names_the_next_command_once(tmp_path, monkeypatch, capsys, leads):
    finished_set = PrecomputedTars(tmp_path / "a set", None, leads=leads)
    stage = "cusa.stages.precompute_tars.precompute_tars"
    monkeypatch.setattr(stage, lambda **_: finished_set)
    precompute_line(["--dataset", "0.tar", "--tars", "0:1"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == leads
    for line in lines:
        command = shlex.split(line.partition(": ")[2])
        assert command[1:] == ["index", str(tmp_path / "a set")]


def test_a_line_runs_in_a_shell(tmp_path):
    index = make_store(tmp_path / "it's a store")
    line = _next(_train(index, tmp_path / "runs; rm -rf $HOME"))
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_a_split_without_rows_of_the_adapters_encoders_is_not_named(tmp_path):
    index = make_store(tmp_path / "store", sizes={"train": 40, "val": 10})
    dataset = Dataset(
        "made-up", tmp_path, {split: records(split, n) for split, n in (("train", 40), ("test", 8))}
    )
    rows = {split: unit_rows(n, 4, 0) for split, n in (("train", 40), ("test", 8))}
    add_teacher(index, dataset, "another", settings("image", 4), rows)
    more = ("--image-encoder", "vision", "--image-teacher", "vision")
    assert shlex.split(_next(_train(index, tmp_path / "run", *more)))[-2:] == ["--split", "val"]


def test_a_part_of_a_known_test_split_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN_SIZES, "made-up", {"test": 5000})
    line = _next(_train(make_store(tmp_path / "store"), tmp_path / "run"))
    assert line.endswith("--allow-partial")
    _run_line(line, "--bootstrap", 10)


def test_a_sweep_names_all_of_its_runs(tmp_path):
    index = make_store(tmp_path / "store", sizes={"train": 40, "val": 10})
    line = _next(_train(index, tmp_path / "my sweep", "--sweep", "seed=0,1"))
    assert shlex.split(line).count("--run") == 2
    _run_line(line, "--bootstrap", 10)
    assert (tmp_path / "my sweep" / "seed-1" / "eval" / "metrics.json").exists()


def test_precompute_goes_on_to_training_and_the_index_to_a_search(tmp_path, monkeypatch):
    """From pairs to hits, each command as it was printed; only the student is a small one."""
    monkeypatch.chdir(tmp_path)
    manifest = make_pairs(Path("my data"), n=10)
    out = run_ok(
        "precompute",
        "--dataset",
        manifest,
        "--teacher",
        "efficientnet-lite0",
        "--teacher",
        "minilm",
    )
    line = _next(out)
    out = _run_line(line, *ADAPTER, *SHORT, "--run-dir", "runs/x")
    _run_line(_next(out), "--bootstrap", 10)
    line = _next(run_ok("eval", "index", "my data", "--out", "an index"))
    assert "000.jpg" in _run_line(line)
    assert Path("search.html").exists()


def test_of_several_teachers_one_is_named(tmp_path):
    index = make_store(tmp_path / "store")
    dataset = Dataset(
        "made-up", tmp_path, {split: records(split, n) for split, n in (("train", 40), ("val", 10))}
    )
    rows = {"train": unit_rows(80, 4, 0), "val": unit_rows(20, 4, 1)}
    assert shlex.split(training_command(index, ["vision", "words"]))[1:] == [
        "--embeddings",
        str(index),
    ]
    add_teacher(index, dataset, "third", settings("text", 4), rows)
    command = training_command(index, ["third"])
    assert shlex.split(command)[3:] == ["--text-teacher", "third"]
    _run_line(command, *ADAPTER, *SHORT, "--text-encoder", "words", "--run-dir", tmp_path / "run")
    assert shlex.split(training_command(index, ["words"]))[3:] == ["--text-teacher", "words"]


def test_no_training_is_named_where_there_is_nothing_to_train_on(tmp_path):
    assert training_command(make_store(tmp_path / "a", sizes={"val": 10}), []) == ""
    dataset = Dataset("made-up", tmp_path, {"train": records("train", 10)})
    add_teacher(
        tmp_path / "b.h5", dataset, "vision", settings("image", 4), {"train": unit_rows(10, 4, 0)}
    )
    assert training_command(tmp_path / "b.h5", ["vision"]) == ""


def test_no_training_is_named_on_a_single_pair(tmp_path):
    dataset = Dataset("made-up", tmp_path, {"train": records("train", 1, captions=1)})
    for name, modality in (("vision", "image"), ("words", "text")):
        teacher_settings = settings(modality, 4)
        rows = {"train": unit_rows(1, 4, 0)}
        add_teacher(tmp_path / "a.h5", dataset, name, teacher_settings, rows)
    assert training_command(tmp_path / "a.h5", ["vision", "words"]) == ""


def test_the_demos_student_is_given_rows_of_both_its_splits(tmp_path):
    splits = {"train": records("train", 8), "val": records("val", 4)}
    dataset = Dataset("demo", tmp_path, splits)
    index = tmp_path / "demo.h5"
    both_splits = {"train": unit_rows(8, 4, 0), "val": unit_rows(4, 4, 1)}
    add_teacher(index, dataset, "vision", settings("image", 4), both_splits)
    words = {"train": unit_rows(16, 4, 2), "val": unit_rows(8, 4, 3)}
    add_teacher(index, dataset, "words", settings("text", 4), words)
    only_train = {"train": unit_rows(8, 4, 4)}
    add_teacher(index, dataset, "newest", settings("image", 4), only_train)
    command = shlex.split(training_command(index, ["newest"]))
    assert command[3:] == ["--image-teacher", "vision", "--image-encoder", "vision"]


def test_parts_are_merged_by_the_shells_own_pattern(tmp_path):
    command = merging_command(tmp_path / "my store.h5")
    assert command.endswith(
        f"cusa-store merge '{tmp_path}/my store.h5' '{tmp_path}/my store'.part-*.h5"
    )


def test_resuming_names_the_launcher_and_as_many_processes(monkeypatch):
    def arguments(processes):
        return shlex.split(resume_command(Path("my run"), processes))[1:]

    assert arguments(1) == ["--resume", "--run-dir", "my run"]
    assert arguments(2) == [
        "--nproc-per-node",
        "2",
        "-m",
        "cusa.train",
        "--resume",
        "--run-dir",
        "my run",
    ]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("MASTER_ADDR", "node0")
    assert arguments(8)[:6] == [
        "--nnodes",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "node0:29500",
    ]


def test_the_command_of_a_run_whose_validation_split_is_another(tmp_path):
    index = make_store(tmp_path / "store", sizes={"train": 40, "dev": 10, "more": 4})
    _train(index, tmp_path / "run", "--set", "data.val_split=dev")
    command = evaluation_command([tmp_path / "run"])
    assert shlex.split(command)[-2:] == ["--split", "dev"]
