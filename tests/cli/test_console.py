import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cusa.cli.console import one_line_errors
from cusa.data.shell import shell_command
from cusa.screen.progress import progress_display
from tests.helpers import make_pairs, make_tiny_vit, run_ok


def test_a_printed_command_runs_where_the_environment_is_not_active(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    printed = shell_command("cusa-store", "info", "my store.h5")
    assert shlex.split(printed) == [
        str(Path(sys.executable).parent / "cusa-store"),
        "info",
        "my store.h5",
    ]
    assert subprocess.run([shlex.split(printed)[0], "--help"], capture_output=True).returncode == 0


def test_a_printed_command_is_short_where_the_environment_is_active(monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert shell_command("cusa-eval", "--run", Path("runs/a")) == "cusa-eval --run runs/a"


@pytest.mark.parametrize("place", ["missing/file", "file/within", "."])
def test_a_refusal_of_the_system_is_one_line_that_names_the_path(tmp_path, capsys, place):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        one_line_errors(open)(tmp_path / place)
    assert stopped.value.code == 1
    line, end = capsys.readouterr().err.split("\n")
    assert str(tmp_path / place) in line
    assert not end


_PRINTING = """
from cusa.cli.console import one_line_errors
from cusa.screen.console import console
one_line_errors(lambda: console().print("caf\\u00e9"))()
"""


def test_what_the_encoding_of_a_log_lacks_is_printed_as_its_escape():
    environment = {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", _PRINTING], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout) == (0, "caf\\xe9\n"), done.stderr


def test_a_service_without_output_runs():
    closed = [shlex.join([sys.executable, "-c", _PRINTING]) + " >&-"]
    done = subprocess.run(["sh", "-c", *closed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def _lines(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""  # which is for what a command answers
    return captured.err.splitlines()


def test_where_no_terminal_is_a_line_says_how_far_it_is_soon_then_every_half_minute_then_in_total(
    capsys,
):
    clock = Clock()
    with progress_display(clock=clock) as bar:
        task = bar.add_task("minilm train", total=4000, completed=1000)
        assert _lines(capsys) == ["minilm train"]
        for rows in range(1010, 4001, 10):  # 10 rows in half a second
            clock.now += 0.5
            bar.update(task, completed=rows, status="x.h5" if rows < 4000 else "")
        assert _lines(capsys) == [
            "minilm train: 1,010 of 4,000 rows, 20 rows/s, 0:02:30 left; x.h5",
            "minilm train: 1,610 of 4,000 rows, 20 rows/s, 0:02:00 left; x.h5",
            "minilm train: 2,210 of 4,000 rows, 20 rows/s, 0:01:30 left; x.h5",
            "minilm train: 2,810 of 4,000 rows, 20 rows/s, 0:01:00 left; x.h5",
            "minilm train: 3,410 of 4,000 rows, 20 rows/s, 0:00:30 left; x.h5",
            "minilm train: 4,000 of 4,000 rows, 20 rows/s, took 0:02:30",
        ]
    assert _lines(capsys) == []


def test_the_rate_is_that_of_the_task_and_not_of_those_before_it(capsys):
    clock = Clock()
    with progress_display(clock=clock) as bar:
        first, second = (
            bar.add_task(name, total=100, unit="items") for name in ("first", "second")
        )
        clock.now += 3600
        bar.advance(first, 100)
        clock.now += 1
        bar.advance(second, 0.5)
        clock.now += 1
        bar.advance(second, 0.25)
        clock.now += 2
    assert _lines(capsys) == [
        "first",
        "first: 100 of 100 items, 0.028 items/s, took 1:00:00",
        "second: 0 of 100 items, 0.38 items/s, 0:04:25 left",
    ]


def test_a_task_whose_end_is_unknown_says_what_is_done(capsys):
    clock = Clock()
    with progress_display(clock=clock) as bar:
        loading = bar.add_task("unicom: loading", total=None)
        bar.remove_task(loading)
        index = bar.add_task("index", total=None, unit="items")
        clock.now += 2
        bar.update(index, completed=50)
        clock.now += 2
        bar.update(index, completed=100, total=200)
        bar.console.print("a note in between")
    assert _lines(capsys) == [
        "unicom: loading",
        "index: 50 items, 25 items/s, 0:00:02 so far",
        "a note in between",
        "index: 100 of 200 items, 25 items/s, 0:00:04 left",
    ]


def test_a_quiet_process_shows_nothing(capsys):
    with progress_display(quiet=True) as bar:
        bar.advance(bar.add_task("rows", total=2), 2)
    assert _lines(capsys) == []


def test_a_terminal_has_bars(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_display() as bar:
        bar.update(bar.add_task("rows", total=2), completed=2, status="a status")
    text = capsys.readouterr().err
    assert "━━━" in text
    assert "a status" in text
    assert "took" not in text


@pytest.mark.parametrize("command", ["precompute", "train", "eval", "index", "inspect"])
def test_every_command_says_in_its_log_how_far_it_is(small_run, command):
    """Rows, rate and total; what the commands answer comes besides."""
    store, run_dir, images = small_run
    folder = images.parent
    commands = {
        "precompute": [
            "precompute",
            *("--dataset", images / "pairs.jsonl", "--splits", "val"),
            *("--teacher", f"vit={folder / 'vit'}", "--teacher", "minilm"),
            *("--out", folder / "again.h5", "--workers", 0),
        ],
        "train": [
            "train",
            *("--embeddings", store, "--student", "adapter", "--epochs", 2, "--batch-size", 4),
            *("--run-dir", run_dir.with_name("second")),
        ],
        "eval": ["eval", "--run", run_dir, "--split", "val", "--bootstrap", 0],
        "index": ["eval", "index", images, "--run", run_dir, "--out", folder / "index"],
        "inspect": [
            "store",
            *("inspect", store, "--batches", 3, "--batch-size", 4, "--out", folder / "x.html"),
        ],
    }
    lines = {
        "precompute": [
            r"vit val: 4 of 4 rows, [\d,.]+ rows/s, took 0:00:\d\d",
            r"minilm val: 8 of 8 rows, [\d,.]+ rows/s, took 0:00:\d\d",
        ],
        "train": [
            r"epoch 1/2: 1 of 8 steps, [\d.]+ steps/s, \d:\d\d:\d\d left; "
            r"contrastive [\d.]+ csa .*",
            r"epoch 2/2: 8 of 8 steps, [\d.]+ steps/s, took 0:00:\d\d; contrastive .*",
        ],
        "eval": [
            r"images: 4 of 4 images(, [\d,.]+ images/s, took 0:00:00)?",
            r"captions: 8 of 8 captions(, [\d,.]+ captions/s, took 0:00:00)?",
        ],
        "index": [r"index: 12 of 12 items, [\d,.]+ items/s, took 0:00:\d\d"],
        "inspect": [r"batches: 3 of 3 steps, [\d,.]+ steps/s, took 0:00:00"],
    }
    log = run_ok(*commands[command]).splitlines()
    for line in lines[command]:
        assert len([told for told in log if re.fullmatch(line, told)]) == 1, log


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A store, an adapter's run on it, and the folder of its images."""
    folder = tmp_path_factory.mktemp("logs")
    manifest, vit = make_pairs(folder / "images"), make_tiny_vit(folder / "vit")
    store, run_dir = folder / "store.h5", folder / "run"
    run_ok(
        "precompute",
        "--dataset",
        manifest,
        "--teacher",
        f"vit={vit}",
        "--teacher",
        "minilm",
        "--out",
        store,
    )
    run_ok("train", "--embeddings", store, "--student", "adapter", "--epochs", 1, "--batch-size", 4,
           "--run-dir", run_dir)  # fmt: skip
    return store, run_dir, folder / "images"
