"""The house style, measured: each room reads as easily as the codebases that it learned from."""

import textwrap
from dataclasses import asdict
from pathlib import Path

import pytest

import cusa
from tests.style import Counts, Style, count, count_files, style_of

ROOT = Path(cusa.__file__).parent.parent
TOP_ROOMS = ("cusa", "data", "precompute", "train", "eval")
# No figure may be greater than this, but for the length of names, which may not be less.
LIMITS = Style(
    tokens=7.5,
    comprehensions=20,
    conditionals=15,
    long_lines=0,
    vague_names=0.5,
    name_length=7,
    long_functions=3,
)
MAX_FILE_LINES = 300
# Files that are longer, and why they are not cut.
LONG_FILES = {
    "eval/evaluate.py": "the steps of one evaluation",
    "eval/evaluators/retrieval/coco.py": "reading COCO's test and ranking it",
    "eval/evaluators/sts/layouts.py": "a reader for each layout",
    "precompute/run.py": "the steps of one run",
    "train/loss/config.py": "the settings of one class",
    "train/loss/cusa_loss.py": "one class",
    "train/loss/tiled.py": "one sweep, forward and backward",
    "train/saving/run_dir.py": "the files of a run",
}


def _rooms():
    for top_room in TOP_ROOMS:
        for init_file in sorted((ROOT / top_room).rglob("__init__.py")):
            yield init_file.parent


def _name(room):
    return room.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("room", _rooms(), ids=_name)
def test_a_room_reads_easily(room):
    counts = count_files(room.glob("*.py"))
    assert counts.code_lines
    figures = asdict(style_of(counts))
    limits = asdict(LIMITS)
    least_name_length = limits.pop("name_length")
    assert figures.pop("name_length") >= least_name_length
    too_great = {name: figure for name, figure in figures.items() if figure > limits[name]}
    assert not too_great


def test_long_files_have_a_reason():
    long_files = set()
    for room in _rooms():
        for path in room.glob("*.py"):
            if len(path.read_text(encoding="utf-8").splitlines()) > MAX_FILE_LINES:
                long_files.add(path.relative_to(ROOT).as_posix())
    assert long_files == set(LONG_FILES)


def test_what_is_counted():
    source = '''
        """A docstring
        of two lines, where [x for x in "y"] does not count."""

        # A comment.
        def total(numbers, /, *, start=0):
            found = [number if number else 1 for number in numbers]
            return sum(found, start)
    '''
    assert count(textwrap.dedent(source)) == Counts(
        lines=8,
        code_lines=3,
        tokens=14 + 12 + 8,
        comprehensions=1,
        conditionals=1,
        functions=1,
        names=4,
        vague_names=1,
        letters=len("numbers" + "start" + "found" + "number"),
    )


def test_the_counts_of_files_add_up(tmp_path):
    source = "def f(a):\n" + "    a += 1\n" * 40 + f"    return {'a' * 90}\n"
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(source)
    counts = count_files(sorted(tmp_path.glob("*.py")))
    assert (counts.lines, counts.functions, counts.long_functions, counts.long_lines) == (
        84,
        2,
        2,
        2,
    )
    assert style_of(counts).long_functions == 100
    assert style_of(Counts()).tokens == 0
