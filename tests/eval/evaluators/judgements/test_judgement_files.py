"""Files of human judgements: both forms, their faults, and the split that they are of."""

from pathlib import Path

import numpy as np
import pytest

from cusa.data.embeddings import SplitEmbeddings
from cusa.data.errors import DataError, FileFormatError
from cusa.data.record_split import RecordSplit
from cusa.data.records import Dataset, Record
from cusa.eval.evaluators.judgements.data import read_judgements
from cusa.eval.evaluators.judgements.matching import match_judgements, rows_in_split
from cusa.eval.evaluators.splits import EvaluatedSplit
from tests.helpers import Fault, fault_of

CROWD = (
    "a.jpg\ta.jpg#0\t1\t3\t0\na.jpg\tb.jpg#1\t0.333333333333333\t1\t2\nb.jpg\ta.jpg#0\t0.5\t2\t2\n"
)
EXPERTS = "a.jpg\ta.jpg#0\t4\t4\t4\na.jpg\tb.jpg#1\t1\t1\t1\nb.jpg\ta.jpg#0\t2\t3\t4\n"


def _written(tmp_path, text):
    path = tmp_path / "judgements.txt"
    path.write_text(text)
    return path


def test_the_share_of_yes(tmp_path):
    file = read_judgements(_written(tmp_path, CROWD))
    assert file.kind == "crowd"
    assert [pair.score for pair in file.pairs] == [1.0, 1 / 3, 0.5]
    assert [pair.is_positive for pair in file.pairs] == [True, False, False]  # a draw is no Yes
    assert file.pairs[1][:3] == ("a.jpg", "b.jpg", 1)


def test_the_experts_mean(tmp_path):
    file = read_judgements(_written(tmp_path, EXPERTS))
    assert file.kind == "experts"
    assert [pair.score for pair in file.pairs] == [4.0, 1.0, 3.0]
    assert [pair.is_positive for pair in file.pairs] == [True, False, True]


@pytest.mark.parametrize("text", [CROWD, EXPERTS])
def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path, text):
    plain = read_judgements(_written(tmp_path, text))
    other = read_judgements(_written(tmp_path, "\ufeff" + text.replace("\n", "\r\n") + "\r\n"))
    assert other.pairs == plain.pairs
    assert other.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    "row",
    [
        "b.jpg\tb.jpg#0\t1\t3",
        "b.jpg\tb.jpg#0\t1\t3\t0\t0",
        "b.jpg,b.jpg#0,1,3,0",
        "b.jpg\tb.jpg\t1\t3\t0",
        "b.jpg\tb.jpg#one\t1\t3\t0",
        "\tb.jpg#0\t1\t3\t0",
        "b.jpg\tb.jpg#0\tyes\t3\t0",
        "b.jpg\tb.jpg#0\tnan\t3\t0",
        "b.jpg\tb.jpg#0\t1.5\t3\t0",
        "b.jpg\tb.jpg#0\t-1\t3\t0",
        "b.jpg\tb.jpg#0\t1_0\t3\t0",
        "b.jpg\tb.jpg#0\t0\t0\t0",
        "b.jpg\tb.jpg#0\t1\t3\t-1",
        "b.jpg\tb.jpg#0\t1\t3.0\t0",
        "b.jpg\tb.jpg#0\t0.5\t3\t0",
        "b.jpg\tb.jpg#0\t3\t4\t2",
        "a.jpg\ta.jpg#0\t0\t0\t3",
    ],
)
def test_a_malformed_row_of_the_crowd_is_named(tmp_path, row):
    path = _written(tmp_path, CROWD + row + "\n")
    with pytest.raises(FileFormatError) as caught:
        read_judgements(path)
    assert (caught.value.path, caught.value.location) == (path, "line 4")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scores", ["0\t1\t1", "5\t4\t4", "1\t2", "1\t2\t2.5", "1\t3\t0"])
def test_a_malformed_row_of_the_experts_is_named(tmp_path, scores):
    path = _written(tmp_path, f"{EXPERTS}\nb.jpg\tb.jpg#0\t{scores}\n")
    with pytest.raises(FileFormatError) as caught:
        read_judgements(path)
    assert (caught.value.path, caught.value.location) == (path, "line 5")


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_judgements(tmp_path, text):
    path = _written(tmp_path, text)
    with pytest.raises(FileFormatError) as caught:
        read_judgements(path)
    assert caught.value.path == path


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FileFormatError):
        read_judgements(tmp_path / "none.txt")


def _split(*image_paths, captions=2):
    records = []
    for number, image_path in enumerate(image_paths):
        texts = tuple(f"caption {caption} of {image_path}" for caption in range(captions))
        ids = tuple(str(10 * number + caption) for caption in range(captions))
        records.append(Record(str(number), image_path, texts, ids))
    view = RecordSplit.from_dataset(Dataset("tiny", Path("/"), {"test": tuple(records)}), "test")
    nothing = np.zeros(0, np.int64)
    return EvaluatedSplit("tiny", view, Path("/"), nothing, nothing)


def _embeddings(images, captions, caption_image):
    nothing = {"cross": np.zeros((0, 1), np.float32)}
    return SplitEmbeddings(
        nothing, nothing, np.array(images), np.array(captions), np.array(caption_image)
    )


def _match(file, split, embeddings):
    return match_judgements(file, split, rows_in_split(file, split), embeddings)


def test_pairs_are_found_by_file_name_and_number(tmp_path):
    file = read_judgements(_written(tmp_path, CROWD))
    split = _split("x/b.jpg", "y/a.jpg")
    judged = _match(file, split, _embeddings([0, 1], [0, 1, 2, 3], [0, 0, 1, 1]))
    assert judged.images.tolist() == [1, 1, 0]
    assert judged.captions.tolist() == [2, 1, 2]
    assert judged.scores.tolist() == [1.0, 1 / 3, 0.5]
    assert judged.is_positive.tolist() == [True, False, False]
    assert judged.notes == ()


def test_pairs_without_an_embedding_or_in_no_split_are_left_out_and_said_to_be(tmp_path):
    elsewhere = "a.jpg\tb.jpg#2\t1\t1\t0\nc.jpg\ta.jpg#0\t1\t1\t0\na.jpg\tc.jpg#0\t1\t1\t0\n"
    file = read_judgements(_written(tmp_path, CROWD + elsewhere))
    embeddings = _embeddings([0, 1], [0, 2, 3], [0, 1, 1])  # the second caption of b.jpg is skipped
    judged = _match(file, _split("b.jpg", "a.jpg"), embeddings)
    assert judged.captions.tolist() == [1, 1]
    elsewhere_note, skipped_note = judged.notes
    assert elsewhere_note.startswith("3 of 6 pairs")
    assert "a.jpg with b.jpg#2" in elsewhere_note
    assert skipped_note.startswith("1 pairs")


def test_judgements_of_another_split_are_refused(tmp_path):
    file = read_judgements(_written(tmp_path, CROWD))
    with pytest.raises(DataError):
        _match(file, _split("other.jpg"), _embeddings([0], [0, 1], [0, 0]))


def test_a_name_of_several_images_is_refused(tmp_path):
    file = read_judgements(_written(tmp_path, CROWD))
    split = _split("x/a.jpg", "y/a.jpg", "b.jpg")
    with pytest.raises(DataError) as caught:
        _match(file, split, _embeddings([0, 1, 2], range(6), [0, 0, 1, 1, 2, 2]))
    assert fault_of(caught.value) == Fault(
        DataError, path=tmp_path / "judgements.txt", name="a.jpg"
    )
