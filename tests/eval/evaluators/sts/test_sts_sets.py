"""Readers of STS data, on made-up sentences in the true formats and numbers."""

from pathlib import Path

import numpy as np
import pytest

from cusa.data.errors import CusaError, DataError, FileFormatError
from cusa.eval.evaluators.sts.data import find_sts_tasks
from cusa.eval.evaluators.sts.tasks import TASKS, NoStsDataError
from tests.helpers import Fault, fault_of

FILES = {"train": "train", "dev": "trial", "test": "test_annotated"}
GLUE_HEADER = (
    "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
)


def _pair(subset, i):
    """Both sentences and the score of pair i."""
    return f'{subset} "{i}', f"the other {i}", f"{i % 26 / 5:g}"


def _write(path, lines, newline="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{newline}" for line in lines).encode())


def _write_year(folder, name, prefix="STS", extra="", gap=0):
    """Subsets of one year; ``gap`` unannotated pairs, with lines that need no two columns, after
    each annotated one.
    """
    for subset, n in TASKS[name].items():
        lines, scores = [], []
        for i in range(n):
            first, second, score = _pair(subset, i)
            lines += [f"{first}\t{second}{extra}", *["left out"] * gap]
            scores += [score, *[""] * gap]
        _write(folder / f"{prefix}.input.{subset}.txt", lines)
        _write(folder / f"{prefix}.gs.{subset}.txt", scores)


def _benchmark_lines(split, extra=""):
    for i in range(TASKS["STSBenchmark"][split]):
        first, second, score = _pair(split, i)
        ending = extra if i % 2 else ""
        yield f"main-news\tMSRpar\t2012test\t{i:04d}\t{score}\t{first}\t{second}{ending}"


def _write_sick(folder, newline="\n"):
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    for split, n in TASKS["SICKRelatedness"].items():
        rows = (
            f"{i}\t{a}\t{b}\t{score}\tNEUTRAL"
            for i in range(n)
            for a, b, score in [_pair(split, i)]
        )
        _write(folder / f"SICK_{FILES[split]}.txt", [header, *rows], newline)


def _check(task):
    """All pairs of a complete task, as written."""
    assert [s.name for s in task.subsets] == list(TASKS[task.name])
    assert task.headline == ("all" if task.name[3:].isdigit() else "test")
    for subset in task.subsets:
        n = TASKS[task.name][subset.name]
        first, second, gold = zip(*(_pair(subset.name, i) for i in range(n)), strict=True)
        assert (subset.first, subset.second) == (first, second)
        np.testing.assert_array_equal(subset.gold, np.array([float(g) for g in gold]))


def _fault(folder, **options):
    with pytest.raises(CusaError) as error:
        find_sts_tasks(folder, **options)
    return fault_of(error.value)


def test_published_counts():
    """SemEval's papers: pairs of each year and of the benchmarks."""
    sums = {name: sum(subsets.values()) for name, subsets in TASKS.items()}
    assert sums == {
        "STS12": 3108,
        "STS13": 1500,
        "STS14": 3750,
        "STS15": 3000,
        "STS16": 1186,
        "STSBenchmark": 8628,
        "SICKRelatedness": 9927,
    }


def test_the_layout_of_senteval(tmp_path):
    for name in list(TASKS)[:5]:
        _write_year(
            tmp_path / "downstream/STS" / f"{name}-en-test",
            name,
            gap=3 if name in ("STS15", "STS16") else 0,
        )
    _write(
        tmp_path / "downstream/STS/STS12-en-test/STS.gs.ALL.txt", ["1"]
    )  # these two are distributed as well
    _write(tmp_path / "downstream/STS/STS13-en-test/STS.gs.SMT.txt", ["1"])
    for split in TASKS["STSBenchmark"]:
        lines = _benchmark_lines(split, "\thttp://one\thttp://two")
        _write(tmp_path / f"downstream/STS/STSBenchmark/sts-{split}.csv", lines)
    _write_sick(tmp_path / "downstream/SICK", "\r\n")
    _write(tmp_path / "downstream/MRPC/train.tsv", ["Quality\tString", "1\ta"])
    tasks = find_sts_tasks(tmp_path)
    assert [t.name for t in tasks] == list(TASKS)
    for task in tasks:
        _check(task)
        assert task.notes == ()


@pytest.mark.parametrize(
    ("name", "folder", "prefix", "extra"),
    [
        ("STS12", "test-gold", "STS", ""),
        ("STS13", "test-gs", "STS", ""),
        ("STS14", "sts-en-test-gs-2014", "STS", ""),
        ("STS15", "test_evaluation_task2a", "STS", ""),
        (
            "STS16",
            "sts2016-english-with-gs-v1.0",
            "STS2016",
            "\tStackExchange: 1\tStackExchange: 2",
        ),
    ],
)
def test_the_folders_of_semeval(tmp_path, name, folder, prefix, extra):
    _write_year(tmp_path / folder, name, prefix, extra)
    (task,) = find_sts_tasks(tmp_path / folder)
    assert task.name == name
    _check(task)


def test_training_pairs_and_other_languages_are_no_tasks(tmp_path):
    _write_year(tmp_path / "STS2012-en-test/test-gold", "STS12")
    _write(tmp_path / "STS2012-en-train/train/STS.input.MSRpar.txt", ["a\tb"])
    _write(tmp_path / "STS2014-es-test/STS.input.wikipedia.txt", ["a\tb"])
    (task,) = find_sts_tasks(tmp_path)
    _check(task)


def test_subsets_that_several_years_have(tmp_path):
    place = tmp_path / "some"
    for kind, line in (("input", "a\tb"), ("gs", "1")):
        _write(place / f"STS.{kind}.headlines.txt", [line])
    assert _fault(tmp_path, allow_partial=True) == Fault(DataError, path=place)
    place.rename(tmp_path / "STS2015")
    (task,) = find_sts_tasks(tmp_path, allow_partial=True)
    assert task.name == "STS15"
    assert task.notes[:2] == (
        "answers-forums (375 pairs) is missing",
        "answers-students (750 pairs) is missing",
    )
    assert task.notes[3] == "headlines has 1 pairs instead of 750"


def test_glue(tmp_path):
    for split in ("train", "dev"):
        rows = (_pair(split, i) for i in range(TASKS["STSBenchmark"][split]))
        lines = (
            f"{i}\tg\tf\t2012\t{i}\tnone\tnone\t{a}\t{b}\t{score}"
            for i, (a, b, score) in enumerate(rows)
        )
        _write(tmp_path / f"STS-B/{split}.tsv", [GLUE_HEADER, *lines])
    _write(
        tmp_path / "STS-B/test.tsv",
        [GLUE_HEADER.removesuffix("\tscore"), "0\tg\tf\t2012\t0\tnone\tnone\ta\tb"],
    )
    folder = tmp_path / "STS-B"
    assert _fault(tmp_path) == Fault(DataError, path=folder, name="STSBenchmark")
    (task,) = find_sts_tasks(tmp_path, allow_partial=True)
    assert [(s.name, len(s.gold)) for s in task.subsets] == [("train", 5749), ("dev", 1500)]
    assert task.subsets[1].first[7] == 'dev "7'
    assert task.notes == ("test (1379 pairs) is missing",)
    for split in TASKS["STSBenchmark"]:
        _write(tmp_path / f"STS-B/original/sts-{split}.tsv", _benchmark_lines(split))
    (whole,) = find_sts_tasks(tmp_path)
    _check(whole)


@pytest.mark.parametrize(
    ("file_name", "text"),
    [
        ("test.csv", 'score,Sentence2,SENTENCE1\n2.5,"one, two","said ""no"""\n5,b,a\n'),
        (
            "validation.csv",
            ',sentence1,sentence2,score\n0,"said ""no""","one, two",2.5\n\n1,a,b,5.0\n',
        ),
        (
            "sts-test.csv",
            '\ufeffsentence1,sentence2,score\r\n"said ""no""","one, two",2.5\r\na,b,5\r\n',
        ),
        ("stsb-en-test.csv", '"said ""no""","one, two",2.5\na,b,5.0\n'),
        ("test.tsv", 'sentence1\tsentence2\tscore\nsaid "no"\tone, two\t2.5\na\tb\t5\n'),
    ],
)
def test_tables_of_the_benchmark(tmp_path, file_name, text):
    (tmp_path / file_name).write_bytes(text.encode())
    (task,) = find_sts_tasks(tmp_path, allow_partial=True)
    (subset,) = task.subsets
    assert subset.name == ("dev" if "validation" in file_name else "test")
    assert (subset.first, subset.second) == (('said "no"', "a"), ("one, two", "b"))
    assert subset.gold.tolist() == [2.5, 5.0]


def test_other_languages_are_not_the_benchmark(tmp_path):
    _write(tmp_path / "stsb-de-test.csv", ["a,b,1"])
    assert _fault(tmp_path) == Fault(NoStsDataError, path=tmp_path)


def test_sentences_are_lines_of_the_file_only(tmp_path):
    """U+2028 and U+0085 break lines for str.splitlines, not in these files."""
    _write(
        tmp_path / "sts-test.csv",
        ["g\tf\ty\t0\t1\tone\u2028half\t two\x85half ", "g\tf\ty\t1\t2\tc\td"],
    )
    (task,) = find_sts_tasks(tmp_path, allow_partial=True)
    assert task.subsets[0].first == ("one\u2028half", "c")
    assert task.subsets[0].second == ("two\x85half", "d")


def test_extra_subsets_are_left_out_with_a_note(tmp_path):
    _write_year(tmp_path, "STS13")
    _write(tmp_path / "STS.input.SMT.txt", ["a\tb"])
    (task,) = find_sts_tasks(tmp_path)
    _check(task)
    assert task.notes == ("left out, as in the published figures: SMT",)


def test_wrong_counts_are_refused(tmp_path):
    _write_year(tmp_path, "STS16")
    (tmp_path / "STS.input.plagiarism.txt").unlink()
    scores = tmp_path / "STS.gs.headlines.txt"
    scores.write_text(scores.read_text().replace("0.4\n", "\n", 1))
    assert _fault(tmp_path) == Fault(DataError, path=tmp_path, name="STS16")
    (task,) = find_sts_tasks(tmp_path, allow_partial=True)
    assert task.notes == (
        "headlines has 248 pairs instead of 249",
        "plagiarism (230 pairs) is missing",
    )


def test_a_task_in_two_places(tmp_path):
    _write_year(tmp_path / "a", "STS13")
    _write_year(tmp_path / "b", "STS13")
    (task,) = find_sts_tasks(tmp_path)
    _check(task)
    scores = tmp_path / "b/STS.gs.FNWN.txt"
    scores.write_text(scores.read_text().replace("0.2", "0.3", 1))
    assert _fault(tmp_path) == Fault(DataError, path=tmp_path / "b", name="STS13")
    (tmp_path / "b/STS.input.OnWN.txt").unlink()  # now only one is complete
    assert find_sts_tasks(tmp_path)[0].fingerprint == task.fingerprint


def test_a_fingerprint_is_of_sentences_and_gold(tmp_path):
    _write_year(tmp_path, "STS13")
    prints = [find_sts_tasks(tmp_path)[0].fingerprint]
    for name, old, new in (
        ("STS.gs.OnWN.txt", "0.2", "0.3"),
        ("STS.input.OnWN.txt", "other 3", "other three"),
    ):
        path = tmp_path / name
        path.write_text(path.read_text().replace(old, new, 1))
        prints.append(find_sts_tasks(tmp_path)[0].fingerprint)
    assert len(set(prints)) == 3
    assert all(len(p) == 64 for p in prints)


@pytest.mark.parametrize(
    ("file_name", "line", "location"),
    [
        (
            "STS.input.FNWN.txt",
            "one\ttwo\tthree",
            "line 3",
        ),
        ("STS.input.FNWN.txt", "one", "line 3"),
        ("STS.input.FNWN.txt", "\ttwo", "line 3"),
        ("STS.gs.FNWN.txt", "high", "line 3"),
        ("STS.gs.FNWN.txt", "5.1", "line 3"),
        ("STS.gs.FNWN.txt", "nan", "line 3"),
        ("STS.gs.FNWN.txt", "1\n1", ""),
        ("STS.input.FNWN.txt", None, "line 3"),
    ],
)
def test_malformed_lines_of_a_year(tmp_path, file_name, line, location):
    _write_year(tmp_path, "STS13")
    path = tmp_path / file_name
    lines = path.read_bytes().split(b"\n")
    lines[2] = b"caf\xe9\tlatin-1" if line is None else line.encode()
    path.write_bytes(b"\n".join(lines))
    fault = _fault(tmp_path, allow_partial=True)
    assert (fault.kind, fault.location) == (FileFormatError, location)
    # A difference in lengths is one of two files.
    assert fault.path == path or not location


@pytest.mark.parametrize(
    ("file_name", "text", "location"),
    [
        (
            "sts-test.csv",
            "g\tf\ty\t0\t1\ta\tb\tsource\n",
            "line 1",
        ),
        ("sts-test.csv", "g\tf\ty\t0\t1\ta\tb\ng\tf\ty\t0\t\ta\tb\n", "line 2"),
        ("sts-dev.csv", "sentence1,sentence2\na,b\n", "line 1"),
        (
            "dev.tsv",
            "sentence1\tsentence2\tscore\na\tb\n",
            "line 2",
        ),
        (
            "dev.csv",
            "sentence1,sentence2,score\na,b,1\na, b, c,1\n",
            "line 3",
        ),
        ("dev.csv", 'sentence1,sentence2,score\n"a,b,1\n', "line 2"),
        (
            "dev.csv",
            "sentence1,sentence1,sentence2,score\na,b,c,1\n",
            "line 1",
        ),
        ("dev.csv", "sentence1,sentence2,score\n" + '"a,b,1\nc,d,2\n', "line 3"),
        (
            "dev.csv",
            "sentence1,sentence2,score\na,b," + "1" * 200_000,
            "line 2",
        ),
        ("dev.tsv", "sentence1\tsentence2\tscore\na\tb\t1e999\n", "line 2"),
        ("SICK_trial.txt", "1\ta\tb\t2\tNEUTRAL\n", "line 1"),
        (
            "SICK_trial.txt",
            "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\ta\tb\t-1\n",
            "line 2",
        ),
    ],
)
def test_malformed_tables(tmp_path, file_name, text, location):
    (tmp_path / file_name).write_text(text)
    fault = Fault(FileFormatError, path=tmp_path / file_name, location=location)
    assert _fault(tmp_path, allow_partial=True) == fault


def test_missing_files(tmp_path):
    _write(tmp_path / "file.txt", ["a"])
    for folder in (tmp_path / "nowhere", tmp_path / "file.txt", tmp_path):
        assert _fault(folder) == Fault(NoStsDataError, path=folder)
    _write_year(tmp_path, "STS13")
    Path(tmp_path / "STS.gs.OnWN.txt").unlink()
    assert _fault(tmp_path) == Fault(FileFormatError, path=tmp_path / "STS.gs.OnWN.txt")


def test_two_files_of_one_split(tmp_path):
    for name in ("sts-test.csv", "sts-test.tsv"):
        _write(tmp_path / name, ["g\tf\ty\t0\t1\ta\tb"])
    fault = Fault(DataError, path=tmp_path / "sts-test.tsv", name="STSBenchmark")
    assert _fault(tmp_path, allow_partial=True) == fault


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"\xff\xfe" * 50, b'"' * 20_001, b"x" * 300_000, b"a,b\n1,2\n"]
)
@pytest.mark.parametrize("name", ["train.csv", "test.tsv"])
def test_tables_of_other_data_sets_are_no_fault(tmp_path, name, content):
    """Any data set may have a train.csv."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NoStsDataError):
        find_sts_tasks(tmp_path)


def test_a_quoted_header_with_commas_is_a_header(tmp_path):
    rows = [f'"a, {i}","b ""{i}""",{i % 5},"x, y"' for i in range(4)]
    _write(tmp_path / "test.csv", ['sentence1,sentence2,score,"more, and more"', *rows])
    [task] = find_sts_tasks(tmp_path, allow_partial=True)
    assert task.subsets[0].first == ("a, 0", "a, 1", "a, 2", "a, 3")
    assert task.subsets[0].second[1] == 'b "1"'
