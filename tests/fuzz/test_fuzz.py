"""A few cases of every target, and that the harness tells every kind of fault."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from cusa.data.errors import DataError
from tests.fork_server import run_script
from tests.fuzz.harness import ONE_LINE, RIGHT, Limits, Target, mutated, run_target
from tests.fuzz.mutations import truncate
from tests.fuzz.targets import all_targets

_CASES = 300
ROOT = Path(__file__).parents[2]


def test_a_few_mutations_of_every_kind_of_file(tmp_path):
    """In a process of its own, as by hand: it forks, and this one has threads."""
    arguments = ["--cases", _CASES, "--seed", 1, "--jobs", 2]
    arguments += ["--out", tmp_path / "fuzz.json", "--keep", tmp_path / "kept"]
    done = run_script("tests.fuzz", *arguments, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    results = json.loads((tmp_path / "fuzz.json").read_text())
    assert set(results["targets"]) == set(all_targets())
    assert results["totals"][RIGHT] > 0
    assert results["totals"][ONE_LINE] > 0
    assert results["totals"][RIGHT] + results["totals"][ONE_LINE] == results["cases"] >= _CASES / 2


def _target(read, agrees=lambda valid, value, path: valid == value):
    """A file of three words; what ``read`` does with a shorter one is the test's."""

    def make(folder):
        path = folder / "words.txt"
        path.write_text("one two three")
        return path

    def read_all(path):
        text = path.read_text()
        return text if text == "one two three" else read(text)

    return Target("planted", make, (truncate,), read_all, agrees)


def _refuse(text):
    raise DataError(f"{text!r} is too short")


def _raise(text):
    raise KeyError(text)


def _wait(text):
    time.sleep(60)


def _take_memory(text):
    """More than a block that this process has freed could serve, whatever ran in it before."""
    return len(bytes(1 << 40))


def _die(text):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (_refuse, "one_line"),
        (_raise, "traceback"),
        (_wait, "hang"),
        (_take_memory, "memory"),
        (_die, "crash"),
        (lambda text: text, "silent_difference"),
    ],
)
def test_faults_are_told_and_the_cases_after_them_taken(tmp_path, read, kind):
    seconds = 0.5 if kind == "hang" else 30.0
    limits = Limits(seconds=seconds, extra_memory=32 << 20)
    tally = run_target(_target(read), range(6), 0, tmp_path, limits=limits)
    assert tally.counts.total() == 6
    assert tally.counts[kind] >= 5  # a file cut behind its end is whole
    assert tally.counts[kind] + tally.counts[RIGHT] == 6
    is_fault = kind != ONE_LINE
    assert len(tally.faults) == (tally.counts[kind] if is_fault else 0)
    for outcome, kept in zip(tally.faults, tally.kept, strict=True):
        assert outcome.kind == kind
        assert "one two three".startswith((kept / "words.txt").read_text())


@pytest.mark.parametrize("message", ["", " \n"])
def test_an_error_without_a_word_is_a_fault(tmp_path, message):
    def refuse(text):
        raise DataError(message)

    tally = run_target(_target(refuse), range(4), 0, tmp_path)
    assert tally.counts["traceback"] >= 3


def test_a_case_is_the_same_whenever_it_is_made(tmp_path):
    target = all_targets()["annotations/coco"]
    content = target.make(tmp_path).read_bytes()
    cases = [mutated(target, content, 3, case) for case in range(30)]
    assert cases == [mutated(target, content, 3, case) for case in range(30)]
    assert len(set(cases)) > 25
    assert cases != [mutated(target, content, 4, case) for case in range(30)]


def test_one_case_is_run_by_its_number(tmp_path):
    done = run_script("tests.fuzz", "--only", "ids/json", "--case", 7, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "1 cases" in done.stdout


def test_a_script_that_does_not_end_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    with pytest.raises(AssertionError, match="begun"):
        run_script(script, cwd=tmp_path, timeout_s=1)
    assert not multiprocessing.active_children()
