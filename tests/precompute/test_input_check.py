"""Faults of the data are found before a teacher is loaded."""

import json
import os
import time
from pathlib import Path

import pytest

from cusa.data.datasets import load_dataset
from cusa.data.errors import DataError
from cusa.data.input_check import check_captions, check_images
from cusa.data.records import Dataset, Record
from cusa.data.store.reader import EmbeddingStore
from cusa.precompute.input_check import check_inputs
from cusa.precompute.shard_plan import ShardTask
from cusa.precompute.teachers import TeacherRequest
from tests.helpers import (
    Fault,
    make_images,
    make_pairs,
    run,
    run_fault,
    run_ok,
    run_ranks,
)


def _args(manifest, teachers, out, *options):
    return ["--dataset", str(manifest), *teachers, "--out", str(out), *(str(m) for m in options)]


def _never_load(monkeypatch):
    def load(*_):
        raise AssertionError("a teacher was loaded")

    monkeypatch.setattr(TeacherRequest, "load", load)


@pytest.fixture
def spoiled(tmp_path):
    """Missing images 2 (train) and 9 (val), image 4 a folder, captions 1#0 and 10#1 empty."""
    manifest = make_pairs(tmp_path / "d")
    for number in (2, 4, 9):
        (tmp_path / "d" / f"{number:03d}.jpg").unlink()
    (tmp_path / "d" / "004.jpg").mkdir()
    text = manifest.read_text().replace("picture number 1, version 0", "...")
    manifest.write_text(text.replace("picture number 10, version 1", " \\n"))
    return manifest


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_all_faults_are_listed_before_anything_is_loaded(
    tmp_path, spoiled, teachers, monkeypatch, plan
):
    _never_load(monkeypatch)
    result = run("precompute", *_args(spoiled, teachers, tmp_path / "store.h5", *plan))
    assert result.exit_code == 1
    listed = [
        line.removeprefix("fault: ")
        for line in result.output.splitlines()
        if line.startswith("fault: ")
    ]
    folder = spoiled.parent
    assert listed == [
        f"{spoiled} line 5: image {folder / '002.jpg'} does not exist",
        f"{spoiled} line 9: image {folder / '004.jpg'} is a folder",
        f"{spoiled} line 19: image {folder / '009.jpg'} does not exist",
        f"{spoiled} line 3: caption id id1#0: caption '...' is empty once normalised; "
        "give it words or remove it",
        f"{spoiled} line 22: caption id id10#1: caption ' \\n' is empty once normalised; "
        "give it words or remove it",
    ]
    assert run_fault(
        "precompute", *_args(spoiled, teachers, tmp_path / "store.h5", *plan)
    ) == Fault(DataError, path=spoiled, location="line 5", name="id2")
    assert {path.name for path in tmp_path.iterdir()} == {"d"}


def test_the_error_names_the_first_fault(spoiled):
    dataset = load_dataset(spoiled)
    faults = check_images(dataset, {"train": [(0, 8)]})
    assert (faults.n_checked, faults.n_faults) == (8, 2)
    assert (faults.listed[0].path, faults.listed[0].location, faults.listed[0].name) == (
        spoiled,
        "line 5",
        "id2",
    )
    faults = check_captions(dataset, {"val": [(4, 6)]}, "albef")
    assert (faults.n_checked, faults.n_faults, faults.listed[0].name) == (2, 1, "id10#1")


def test_faults_to_be_skipped_are_counted(tmp_path, spoiled, teachers):
    out = tmp_path / "store.h5"
    text = run_ok("precompute", *_args(spoiled, teachers, out, "--on-error", "skip"))
    assert "note: missing images will be skipped: 3 of 12, such as: " in text
    assert "note: captions without words will be skipped: 2 of 24, such as: " in text
    store = EmbeddingStore(out)
    assert store.embeddings("vit", "train").skipped.tolist() == [2, 4]
    assert store.embeddings("words", "val").skipped.tolist() == [5]


def test_no_more_than_twenty_are_listed(tmp_path, teachers):
    lines = []
    for number, name in enumerate(make_images(tmp_path / "d", 30)):
        lines.append(json.dumps({"image": name, "caption": "!!", "image_id": f"id{number}"}))
    manifest = tmp_path / "d" / "pairs.jsonl"
    manifest.write_text("\n".join(lines))
    result = run("precompute", *_args(manifest, teachers, tmp_path / "store.h5"))
    assert result.output.count("fault: ") == 20
    assert "Error: 30 images and captions " in result.output


def test_what_is_finished_is_not_looked_at(tmp_path, teachers):
    """A store whose images have moved takes another text teacher, and a rerun changes nothing."""
    manifest, out = make_pairs(tmp_path / "d"), tmp_path / "store.h5"
    run_ok("precompute", *_args(manifest, teachers, out))
    for image in (tmp_path / "d").glob("*.jpg"):
        image.unlink()
    run_ok("precompute", *_args(manifest, teachers, out))
    run_ok("precompute", *_args(manifest, ["--teacher", "minilm", "--workers", "0"], out))
    assert set(EmbeddingStore(out).teachers) == {"vit", "words", "minilm"}
    next(out.parent.glob("store/vit/val-*.h5")).unlink()
    assert run_fault("precompute", *_args(manifest, teachers, out)) == Fault(
        DataError, path=manifest, location="line 17", name="id8"
    )


def test_a_wrong_image_root_is_said_to_be(tmp_path, teachers):
    manifest = make_pairs(tmp_path / "d")
    (tmp_path / "elsewhere").mkdir()
    for root in (tmp_path / "elsewhere", tmp_path / "nowhere"):
        for mode in ("fail", "skip"):
            args = _args(
                manifest, teachers, tmp_path / "s.h5", "--image-root", root, "--on-error", mode
            )
            assert run_fault("precompute", *args) == Fault(
                DataError, path=manifest, location="line 1", name="id0"
            )
    assert not (tmp_path / "s.h5").exists()


def test_names_with_brackets_are_no_markup(tmp_path, teachers):
    manifest = make_pairs(tmp_path / "[/d]")
    (tmp_path / "[/d]" / "002.jpg").unlink()
    text = run_ok("precompute", *_args(manifest, teachers, tmp_path / "s.h5", "--on-error", "skip"))
    assert "[/d]/002.jpg does not exist" in text


def test_files_are_looked_for_as_the_system_does(tmp_path):
    """Links to files count, links to nothing do not; absolute paths and folders of any size."""
    make_images(tmp_path / "many", 100)
    (tmp_path / "many" / "link.jpg").symlink_to("000.jpg")
    (tmp_path / "many" / "dangling.jpg").symlink_to("nothing.jpg")
    paths = [f"many/{number:03d}.jpg" for number in range(100)]
    paths += [
        "many/link.jpg",
        "many/dangling.jpg",
        str(tmp_path / "many" / "005.jpg"),
        "many/../many/006.jpg",
    ]
    paths += ["many/000.jpg/x.jpg", "nowhere/a.jpg", "many", "many/" + "x" * 300]
    records = tuple(Record(str(row), path, ("a",), (f"{row}#0",)) for row, path in enumerate(paths))
    dataset = Dataset("d", tmp_path, {"train": records})
    for chosen in (records, records[95:]):  # listed, and asked for one by one
        dataset = Dataset("d", tmp_path, {"train": chosen})
        faults = check_images(dataset, {"train": [(0, len(chosen))]})
        assert [int(fault.name) for fault in faults.listed] == [101, 104, 105, 106, 107]
        assert (faults.listed[0].path, faults.listed[0].location) == (None, "")


@pytest.mark.parametrize("name", ["albef", "none"])
def test_captions_are_checked_as_they_are_normalised(name):
    from cusa.data.captions import normalizer

    captions = [
        "a",
        "",
        " ",
        "...",
        "\n",
        "\t",
        "-x",
        "\u00a0",
        "é",
        "<person>",
        "(a)",
        "1",
        "\u200b",
        "  \n\n",
        "İ",
        "ß",
    ]
    records = tuple(
        Record(str(n), "x", (caption,), (str(n),)) for n, caption in enumerate(captions)
    )
    faults = check_captions(
        Dataset("d", Path(), {"val": records}), {"val": [(0, len(captions))]}, name
    )
    wrong = []
    for number, caption in enumerate(captions):
        try:
            normalizer(name)(caption)
        except ValueError:
            wrong.append(str(number))
    assert [fault.name for fault in faults.listed] == wrong
    assert len(wrong) >= 3


def test_a_hundred_thousand_images_take_seconds(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2000):
        os.close(os.open(folder / f"{number}.jpg", os.O_CREAT))
    captions = tuple(f"a picture of number {number}" for number in range(5))
    records = tuple(
        Record(
            str(row), f"images/{row % 2000}.jpg", captions, tuple(f"{row}#{c}" for c in range(5))
        )
        for row in range(100_000)
    )
    dataset = Dataset("d", tmp_path, {"train": records})
    began = time.process_time()
    assert check_images(dataset, {"train": [(0, 100_000)]}).n_faults == 0
    assert check_captions(dataset, {"train": [(0, 500_000)]}, "albef").n_faults == 0
    assert time.process_time() - began < 10


def test_all_processes_stop(tmp_path, spoiled, teachers):
    for plan in ([], ["--plan"]):
        args = _args(spoiled, teachers, tmp_path / "s" / "store.h5", *plan)
        completed = run_ranks(2, "precompute", *args)
        assert completed.returncode != 0
        assert "Error: 5 images and captions cannot be used" in completed.stderr
        assert completed.stdout.count("fault: ") == 5
        assert "Traceback" not in completed.stdout
        assert not (tmp_path / "s").exists()


def test_the_error_has_the_fields_of_the_first_fault(spoiled, tmp_path):
    dataset = load_dataset(spoiled)
    tasks = [
        ShardTask(tmp_path / "s.h5", "v", "train", 0, 8),
        ShardTask(tmp_path / "s.h5", "w", "val", 0, 8),
    ]
    listed = []
    with pytest.raises(DataError) as error:
        check_inputs(
            dataset,
            tasks,
            {"v": "image", "w": "text"},
            "albef",
            False,
            listed.append,
            listed.append,
        )
    assert (error.value.path, error.value.location, error.value.name) == (spoiled, "line 5", "id2")
    assert len(listed) == 3


@pytest.mark.parametrize(("normalizer", "n_notes"), [("albef", 1), ("none", 0)])
def test_cut_captions_are_counted(tmp_path, normalizer, n_notes):
    manifest = make_pairs(tmp_path / "d")
    text = manifest.read_text()
    long_caption = " ".join(["word"] * 65)
    manifest.write_text(text.replace("picture number 1, version 0", long_caption))
    dataset = load_dataset(manifest)
    faults = check_captions(dataset, {"train": [(0, 8)]}, normalizer)
    assert (faults.n_faults, faults.n_cut) == (0, n_notes)
    notes = []
    tasks = [ShardTask(tmp_path / "store.h5", "words", "train", 0, 8)]
    check_inputs(dataset, tasks, {"words": "text"}, normalizer, False, notes.append, notes.append)
    assert len(notes) == n_notes
