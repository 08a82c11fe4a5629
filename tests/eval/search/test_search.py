"""Searching folders and lists: hits against a sort of all cosines, refused inputs, and the page."""

import json
import os
import re
import shutil
import threading
import warnings
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch
from PIL import Image

from cusa.data.errors import CusaError, DataError, EmbeddingsError, RunError
from cusa.data.image_folder import find_images
from cusa.eval.models.student import load_student
from cusa.eval.report.gallery import Item
from cusa.eval.search import index as index_module
from cusa.eval.search import index_folder
from cusa.eval.search.approximate import make_index
from cusa.eval.search.index import IndexOptions, build_index
from cusa.eval.search.index_folder import IndexSummary, Skipped, latest_index
from cusa.eval.search.search import Answer, Hit, answer, write_contact_sheet
from cusa.eval.search.search_index import SearchIndex
from cusa.eval.search.sources import read_texts
from cusa.train.build_student import build_student
from cusa.train.config_building import build_config
from cusa.train.saving.provenance import Provenance
from cusa.train.saving.student_folder import WEIGHTS_FILE, Origin, save_student
from tests.helpers import Fault, fault_of, make_images, make_tiny_clip, run_ok

TEXTS = [f"picture number {i} version {i * 7 % 13}" for i in range(30)]
SCRIPT = '<script>alert("1")</script> & <b>bold</b>'


def make_student(folder, clip, terms, seed=0):
    """A student with random heads, as a folder."""
    config = build_config({"student": {"name": str(clip)}, "loss": {"terms": terms}})
    torch.manual_seed(seed)
    student, towers = build_student(config.student)
    save_student(
        folder / WEIGHTS_FILE,
        student,
        Origin(config, Provenance("made-up", {}, {}, {}), 1, 1, {}, 1),
    )
    towers.save(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two students and a folder of images, some of them below it, some unreadable."""
    folder = tmp_path_factory.mktemp("search")
    clip = make_tiny_clip(folder / "clip")
    make_student(folder / "run", clip, ["contrastive", "csa", "usa"])
    make_student(folder / "plain", clip, ["contrastive"], seed=1)
    make_images(folder / "images", 12)
    make_images(folder / "images" / "b" / "c", 11, seed=1)
    (folder / "images" / "b" / "torn.jpg").write_bytes(
        (folder / "images" / "000.jpg").read_bytes()[:300]
    )
    (folder / "images" / "empty.png").touch()
    (folder / "texts.txt").write_text("\n".join([TEXTS[0], "", *TEXTS[1:], "  ", ""]))
    return folder


@pytest.fixture(scope="module")
def student(home):
    return load_student(home / "run", "cpu")


@pytest.fixture(scope="module")
def plain(home):
    return load_student(home / "plain", "cpu")


@pytest.fixture(scope="module")
def readable(home):
    return [p for p in find_images(home / "images") if p.name not in ("torn.jpg", "empty.png")]


@pytest.fixture(scope="module")
def images(home, student):
    """An index of images, made by several threads in uneven batches."""
    out = home / "indexes" / "images"
    build_index(student, home / "run", home / "images", out, IndexOptions(batch_size=4, workers=3))
    return SearchIndex(out)


@pytest.fixture(scope="module")
def texts(home, student):
    out = home / "indexes" / "texts"
    build_index(student, home / "run", home / "texts.txt", out, IndexOptions(batch_size=7))
    return SearchIndex(out)


def sorted_cosines(query, rows):
    """Every cosine, and the order of the rows by it."""
    cosines = rows.astype(np.float64) @ query.astype(np.float64)
    return cosines, np.argsort(-cosines, kind="stable")


def check_answer(got, query_row, rows, items, k):
    cosines, order = sorted_cosines(query_row, rows)
    assert [hit.item.text for hit in got.hits] == [items[i] for i in order[:k]]
    assert [hit.rank for hit in got.hits] == list(range(1, k + 1))
    np.testing.assert_allclose([hit.similarity for hit in got.hits], cosines[order[:k]], atol=2e-6)


# --- what is found


def test_each_query_is_answered_by_the_right_head(home, student, images, texts, readable):
    paths = [str(path) for path in readable]
    # Images one by one: neither threads nor batches may change what a row is of.
    by_image = {h: np.stack([student.encode_image(p, h) for p in paths]) for h in ("cross", "uni")}
    by_text = {h: student.encode_text(TEXTS, h) for h in ("cross", "uni")}
    photo, words = str(readable[5]), "picture number 3"

    got = answer(student, images, words, 7)
    assert (got.head, got.query) == ("cross", Item("text", words, None))
    check_answer(got, student.encode_text(words, "cross"), by_image["cross"], paths, 7)
    assert got.hits[0].item == Item("image", got.hits[0].item.text, Path(got.hits[0].item.text))

    got = answer(student, images, photo, 7)
    assert (got.head, got.query) == ("uni", Item("image", photo, Path(photo)))
    check_answer(got, by_image["uni"][5], by_image["uni"], paths, 7)

    got = answer(student, texts, photo, 7)
    assert got.head == "cross"
    check_answer(got, by_image["cross"][5], by_text["cross"], TEXTS, 7)

    got = answer(student, texts, words, 7)
    assert got.head == "uni"
    check_answer(got, student.encode_text(words, "uni"), by_text["uni"], TEXTS, 7)


def test_the_heads_differ_here(student, readable):
    """Else the test above could not tell one from the other."""
    orders = {
        h: sorted_cosines(*(r := student.encode_image(readable, h))[5:6], r)[1].tolist()
        for h in ("cross", "uni")
    }
    assert orders["cross"] != orders["uni"]


def test_without_usa_the_cross_head_answers_all(home, plain, readable, tmp_path):
    summary = build_index(plain, home / "plain", home / "images", tmp_path / "i")
    index = SearchIndex(tmp_path / "i")
    assert summary.uni_head == "cross"
    assert not (tmp_path / "i" / "uni.faiss").exists()
    got = answer(plain, index, str(readable[2]), 4)
    assert got.head == "cross"
    rows = plain.encode_image(readable, "cross")
    check_answer(got, rows[2], rows, [str(p) for p in readable], 4)
    with pytest.raises(ValueError, match="uni head"):
        index.search(rows[:1], "uni", 1)


def test_the_query_itself_is_kept_and_marked(
    home, student, images, texts, readable, tmp_path, monkeypatch
):
    link = tmp_path / "another-name.jpg"
    link.symlink_to(readable[3])
    shutil.copy(readable[3], tmp_path / "copy.jpg")
    for query in (str(readable[3]), str(link)):
        hits = answer(student, images, query, 5).hits
        assert [hit.is_query for hit in hits] == [True] + [False] * 4
        assert hits[0].item.image_path == readable[3]
        assert hits[0].similarity == pytest.approx(1, abs=1e-6)
    assert not any(
        hit.is_query for hit in answer(student, images, str(tmp_path / "copy.jpg"), 5).hits
    )
    assert not any(hit.is_query for hit in answer(student, texts, str(readable[3]), 5).hits)
    monkeypatch.chdir(readable[3].parent)
    assert answer(student, images, readable[3].name, 1).hits[0].is_query
    hits = answer(student, texts, f" {TEXTS[4]}\n", 30).hits
    assert [hit.item.text for hit in hits if hit.is_query] == [TEXTS[4]]


def test_more_hits_than_items(student, texts):
    assert len(answer(student, texts, "picture", 500).hits) == len(TEXTS)


def test_several_queries_at_once(student, images, readable):
    queries = student.encode_text(TEXTS[:5])
    similarities, positions = images.search(queries, "cross", 3)
    assert (similarities.dtype, positions.dtype, positions.shape) == (np.float32, np.int64, (5, 3))
    rows = student.encode_image(readable)
    for n, query in enumerate(queries):
        assert positions[n].tolist() == sorted_cosines(query, rows)[1][:3].tolist()
    for malformed in (queries[0], queries[:, 1:]):
        with pytest.raises(ValueError, match="24"):
            images.search(malformed, "cross", 3)
    with pytest.raises(ValueError, match="n_hits"):
        images.search(queries, "cross", 0)


@pytest.mark.parametrize(("kind", "name"), [("hnsw", "IndexHNSWFlat"), ("ivf", "IndexIVFFlat")])
def test_an_approximate_index_finds_nearly_the_same(
    home, student, images, readable, tmp_path, kind, name
):
    summary = build_index(
        student, home / "run", home / "images", tmp_path / "i", IndexOptions(kind=kind)
    )
    index = SearchIndex(tmp_path / "i")
    assert (index.summary.kind, type(index._index("uni")).__name__) == (kind, name)
    assert 95 < summary.recall_of_exact <= 100
    for query in ("picture number 3", str(readable[5])):
        exact, near = answer(student, images, query, 10), answer(student, index, query, 10)
        common = {hit.item.text for hit in exact.hits} & {hit.item.text for hit in near.hits}
        assert len(common) >= 8
        assert near.hits[0].similarity == pytest.approx(exact.hits[0].similarity, abs=1e-5)


# --- what is indexed


def test_images_of_a_folder(tmp_path):
    names = [
        "b.JPG",
        "a/z.png",
        "a/y/x.webp",
        "c.jpeg",
        ".hidden.jpg",
        ".cache/k.jpg",
        "notes.txt",
        "s.h5",
        "jpg",
        "p.pdf",
    ]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "l.bmp").touch()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "a" / "up").symlink_to(tmp_path / "in")
    names_found = [p.relative_to(tmp_path / "in").as_posix() for p in find_images(tmp_path / "in")]
    assert names_found == ["a/y/x.webp", "a/z.png", "b.JPG", "c.jpeg", "linked/l.bmp"]


def test_texts_of_a_file(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffone\r\n\r\n \t\nzwei \u2028 zwölf\n  three".encode())
    assert read_texts(path) == (["one", "zwei \u2028 zwölf", "three"], 2)


def test_what_is_no_source(home, student, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1"))
    (tmp_path / "rows.csv").write_text("a,b")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("no image")
    (tmp_path / "bad" / "b.jpg").touch()
    for name in ("nowhere", "blank.txt", "latin.txt", "rows.csv", "bad"):
        with pytest.raises(DataError) as refused:
            build_index(student, home / "run", tmp_path / name, tmp_path / "out")
        assert refused.value.path == tmp_path / name
    with pytest.raises(CusaError):
        build_index(student, home / "run", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(CusaError):
        find_images(tmp_path / "rows.csv")
    assert not (tmp_path / "out").exists()


def test_summary_and_progress(home, student, tmp_path, readable):
    progress = []
    options = IndexOptions(batch_size=4, workers=2)
    got = build_index(
        student,
        home / "run",
        home / "images",
        tmp_path / "i",
        options,
        lambda *a: progress.append(a),
    )
    assert got == SearchIndex(tmp_path / "i").summary
    assert (got.modality, got.kind, got.dim, got.count, got.uni_head) == (
        "image",
        "flat",
        24,
        23,
        "uni",
    )
    assert (got.student, got.source) == (str(home / "run"), str(home / "images"))
    assert {Path(s.item).name: s.reason for s in got.skipped}.keys() == {"torn.jpg", "empty.png"}
    assert "zero bytes" in next(s.reason for s in got.skipped if s.item.endswith("empty.png"))
    assert progress[-1] == (25, 25)
    n_done = [d for d, _ in progress]
    assert n_done == sorted(n_done)
    assert len(n_done) >= 7
    lines = (tmp_path / "i" / "items.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [str(p) for p in readable]
    assert {p.name for p in (tmp_path / "i").iterdir()} == {
        "index.json",
        "items.jsonl",
        "cross.faiss",
        "uni.faiss",
    }
    assert json.loads((tmp_path / "i" / "index.json").read_text())["format"] == "cusa-index"


def test_texts_that_cannot_be_encoded_are_skipped(home, student, tmp_path):
    (tmp_path / "t.txt").write_text(
        "picture 1\n?!\n\npicture 2\npicture 1\n"
    )  # nothing is left of ?! once normalised
    got = build_index(student, home / "run", tmp_path / "t.txt", tmp_path / "i")
    assert [s.item for s in got.skipped] == ["?!"]
    assert "empty once normalised" in got.skipped[0].reason
    assert (got.count, got.blank_lines) == (3, 1)
    index = SearchIndex(tmp_path / "i")
    assert [index.item(i) for i in range(3)] == ["picture 1", "picture 2", "picture 1"]
    hits = answer(student, index, "picture 1", 3).hits
    np.testing.assert_allclose([hit.similarity for hit in hits][:2], 1, atol=1e-6)
    assert [hit.is_query for hit in hits] == [True, True, False]


def test_an_image_that_only_the_student_refuses_is_skipped(home, tmp_path):
    """The others of its batch are not."""
    make_images(tmp_path / "in", 5)
    Image.new("RGB", (7, 7)).save(tmp_path / "in" / "002.jpg")
    student = load_student(home / "run", "cpu")
    rows = student.image_rows

    def picky(images, batch_size=64):
        if any(image.size == (7, 7) for image in images):
            raise ValueError("too small")
        return rows(images, batch_size)

    student.image_rows = picky
    got = build_index(student, home / "run", tmp_path / "in", tmp_path / "i")
    assert [(Path(s.item).name, s.reason) for s in got.skipped] == [("002.jpg", "too small")]
    assert got.count == 4


def test_few_images_are_held_decoded(home, student, tmp_path, monkeypatch):
    """Whatever the size of a batch; and rows stay with their images."""
    make_images(tmp_path / "in", 9)  # 48 x 36 pixels
    monkeypatch.setattr(index_module, "_MOST_PIXELS", 2 * 48 * 36)
    batch_sizes = []
    spied = SimpleNamespace(
        uni_head="uni",
        weights_sha256=student.weights_sha256,
        image_rows=lambda images, batch_size: (
            batch_sizes.append(len(images)) or student.image_rows(images)
        ),
    )
    build_index(spied, home / "run", tmp_path / "in", tmp_path / "i", IndexOptions(batch_size=7))
    assert batch_sizes == [1, 3, 3, 1, 2]
    index = SearchIndex(tmp_path / "i")
    for path in find_images(tmp_path / "in"):
        assert answer(student, index, str(path), 1).hits[0].is_query


def test_images_are_read_ahead_by_threads_but_not_all_of_them(home, student, tmp_path, monkeypatch):
    make_images(tmp_path / "in", 40)
    decoded, names = set(), set()
    load = index_module.load_image

    def spy(path):
        decoded.add(path)
        names.add(threading.current_thread().name)
        return load(path)

    ahead = []
    monkeypatch.setattr(index_module, "load_image", spy)
    threads, filters = torch.get_num_threads(), list(warnings.filters)
    torch.set_num_threads(threads + 1)  # other than what the threads set
    build_index(
        student,
        home / "run",
        tmp_path / "in",
        tmp_path / "i",
        IndexOptions(batch_size=2, workers=2),
        lambda done, total: ahead.append(len(decoded) - done),
    )
    assert threading.current_thread().name not in names
    assert max(ahead) <= 2 * 5  # two per batch; four batches wait, and one is taken
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert warnings.filters == filters


@pytest.mark.parametrize(("name", "value"), [("kind", "pq"), ("batch_size", 0), ("workers", 0)])
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        IndexOptions(**{name: value})


def test_errors_of_the_student_are_not_skipped(home, student, tmp_path):
    def out_of_memory(images, batch_size):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return student.image_rows(images)

    broken = SimpleNamespace(uni_head="uni", weights_sha256="", image_rows=out_of_memory)
    with pytest.raises(CusaError) as refused:
        build_index(broken, home / "run", home / "images", tmp_path / "i")
    assert refused.value.name == "batch_size"

    def refused(*_args, **_kwargs):
        raise EmbeddingsError("the image encoder has other weights")

    broken.image_rows = refused
    with pytest.raises(CusaError) as refused:
        build_index(broken, home / "run", home / "images", tmp_path / "i")
    assert fault_of(refused.value) == Fault(EmbeddingsError)

    broken.image_rows = lambda images, batch_size: {
        h: np.full((len(images), 4), np.nan) for h in ("cross", "uni")
    }
    with pytest.raises(EmbeddingsError) as refused:
        build_index(broken, home / "run", home / "images", tmp_path / "i")
    assert refused.value.name == "cross"
    assert not (tmp_path / "i").exists()


# --- folders


def _content(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_an_index_replaces_an_index_whole(home, student, tmp_path):
    out = tmp_path / "i"
    out.mkdir()  # an empty folder is no one's
    build_index(student, home / "run", home / "images", out)
    build_index(student, home / "run", home / "texts.txt", out)
    assert SearchIndex(out).summary.modality == "text"
    assert answer(student, SearchIndex(out), TEXTS[0], 1).hits[0].item.text == TEXTS[0]
    assert [p.name for p in tmp_path.iterdir()] == ["i"]


def test_an_index_of_another_version_is_replaced(home, student, tmp_path):
    build_index(student, home / "run", home / "texts.txt", tmp_path / "i")
    card = json.loads((tmp_path / "i" / "index.json").read_text())
    (tmp_path / "i" / "index.json").write_text(
        json.dumps({**card, "format_version": [1, 7], "more": 1})
    )
    assert SearchIndex(tmp_path / "i").summary.count == 30
    (tmp_path / "i" / "index.json").write_text(
        json.dumps({"format": "cusa-index", "format_version": [2, 0]})
    )
    build_index(student, home / "run", home / "texts.txt", tmp_path / "i")
    assert SearchIndex(tmp_path / "i").summary.count == 30


def test_a_linked_folder_stays_linked(home, student, tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "i").symlink_to(tmp_path / "big")
    for _ in range(2):
        build_index(student, home / "run", home / "texts.txt", tmp_path / "i")
        assert (tmp_path / "i").is_symlink()
        assert (tmp_path / "big" / "index.json").is_file()


def test_nothing_else_is_replaced(home, student, tmp_path):
    build_index(student, home / "run", home / "texts.txt", tmp_path / "mixed")
    (tmp_path / "mixed" / "thesis.tex").touch()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "index.json").write_text(
        '{"format": "other", "format_version": [1, 0]}'
    )
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "cross.faiss").touch()
    (tmp_path / "file").touch()
    before = _content(tmp_path)
    for name, refused_file in (
        ("mixed", ""),
        ("foreign", "index.json"),
        ("part", ""),
        ("file", ""),
    ):
        with pytest.raises(RunError) as refused:
            # Before anything is encoded: there is no student.
            build_index(None, home / "run", home / "images", tmp_path / name)
        assert refused.value.path == tmp_path / name / refused_file
    with pytest.raises(RunError) as refused:
        build_index(student, home / "run", home / "images", home / "images")
    assert refused.value.path == home / "images"
    assert _content(tmp_path) == before


@pytest.mark.parametrize("failing_step", ["encoding", "items", "faiss", "rename"])
def test_a_failure_leaves_the_old_index(home, student, tmp_path, monkeypatch, failing_step):
    out = tmp_path / "i"
    build_index(student, home / "run", home / "texts.txt", out)
    before = _content(tmp_path)

    def fail(*_args, **_kwargs):
        raise KeyboardInterrupt

    advance = fail if failing_step == "encoding" else lambda done, total: None
    expected = KeyboardInterrupt
    if failing_step == "items":
        monkeypatch.setattr(index_folder.json, "dumps", fail)
    elif failing_step == "faiss":
        write = index_folder.faiss.write_index

        def full_disk(index, path):
            write(index, path)
            raise RuntimeError("Error: 'ret == size' failed: write error: No space left on device")

        monkeypatch.setattr(index_folder.faiss, "write_index", full_disk)
        expected = CusaError
    elif failing_step == "rename":
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda s, t: fail() if s.suffix == ".tmp" else rename(s, t)
        )
    with pytest.raises(expected):
        build_index(student, home / "run", home / "images", out, IndexOptions(workers=2), advance)
    assert _content(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["i"]
    assert answer(student, SearchIndex(out), TEXTS[0], 1).hits[0].item.text == TEXTS[0]


def test_relative_paths_hold_after_a_move_of_the_working_directory(
    home, student, tmp_path, monkeypatch
):
    make_images(tmp_path / "in", 3)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = Path(os.path.relpath(home / "run"))
    build_index(student, run, Path("in"), Path("out/index"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    index = SearchIndex(tmp_path / "out" / "index")
    assert Path(index.summary.student).samefile(home / "run")
    assert index.summary.source == str(tmp_path / "in")
    got = answer(load_student(index.summary.student, "cpu"), index, "../in/001.jpg", 1)
    assert got.hits[0].is_query
    assert got.hits[0].item.image_path == tmp_path / "in" / "001.jpg"
    assert write_contact_sheet(Path("sheet.html"), got) == 0


def test_a_moved_student_is_known_by_its_weights(home, images, tmp_path):
    shutil.copytree(home / "run", tmp_path / "moved")
    assert answer(load_student(tmp_path / "moved", "cpu"), images, "picture", 1).hits


def test_another_student_is_refused(home, student, plain, images):
    with pytest.raises(RunError) as refused:
        answer(plain, images, "picture", student_name=str(home / "plain"))
    assert (refused.value.path, refused.value.name) == (images.folder, str(home / "plain"))
    assert refused.value.location == "weights_sha256"
    changed = load_student(home / "run", "cpu")
    with torch.no_grad():
        next(changed.student.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(RunError) as refused:
        answer(changed, images, "picture")
    assert refused.value.location == "weights_sha256"


def test_latest_index(tmp_path):
    with pytest.raises(RunError) as refused:
        latest_index(tmp_path)
    assert refused.value.path == tmp_path
    for n, name in enumerate(("group/a", "b", "c")):
        card = tmp_path / name / "index" / "index.json"
        card.parent.mkdir(parents=True)
        card.touch()
        os.utime(card, (100, 200 - n))
    (tmp_path / "index.json").touch()
    assert latest_index(tmp_path) == tmp_path / "group" / "a" / "index"


def test_damage_is_told(home, student, texts, tmp_path):
    def copy(name):
        return Path(shutil.copytree(texts.folder, tmp_path / name))

    def check_refused(name, file, location):
        with pytest.raises(RunError) as refused:
            answer(student, SearchIndex(tmp_path / name), "picture")
        assert (refused.value.path, refused.value.location) == (tmp_path / name / file, location)

    check_refused("nowhere", "", "")
    card = json.loads((texts.folder / "index.json").read_text())
    for name, content, location in (
        ("future", json.dumps({**card, "format_version": [2, 0]}), "format_version"),
        ("torn", '{"format": ', "line 1"),
        ("list", "[1]", ""),
        ("short", '{"format": "cusa-index", "format_version": [1, 0]}', "modality"),
    ):
        (copy(name) / "index.json").write_text(content)
        check_refused(name, "index.json", location)
    (copy("faiss") / "uni.faiss").write_bytes(b"torn")
    check_refused("faiss", "uni.faiss", "sha256")
    (copy("missing") / "uni.faiss").unlink()
    check_refused("missing", "uni.faiss", "")
    shutil.copy(home / "indexes" / "images" / "uni.faiss", copy("rows") / "uni.faiss")
    check_refused("rows", "uni.faiss", "sha256")
    # As earlier versions wrote it.
    without_sums = {**card, "format_version": [1, 0]}
    del without_sums["sha256"]
    (tmp_path / "rows" / "index.json").write_text(json.dumps(without_sums))
    check_refused("rows", "uni.faiss", "count")
    (copy("old") / "index.json").write_text(json.dumps(without_sums))
    assert answer(student, SearchIndex(tmp_path / "old"), "picture", 3).hits
    (copy("kind") / "index.json").write_text(json.dumps({**card, "kind": "hnsw"}))
    check_refused("kind", "uni.faiss", "kind")
    (copy("items") / "items.jsonl").write_text('"one"\n')
    check_refused("items", "items.jsonl", "count")
    (copy("no-items") / "items.jsonl").unlink()
    check_refused("no-items", "items.jsonl", "count")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("count", value) for value in (None, "30", 30.5, -1, [30])),
        *(("dim", value) for value in ("8", 0, {})),
        *(("skipped", value) for value in (3, [3], [{"item": "a"}], [{"item": 1, "reason": "b"}])),
        *(("modality", value) for value in ("sound", 1)),
        *(("uni_head", value) for value in ("other", None)),
        *(("sha256", value) for value in ([], {"cross.faiss": 1})),
        *(("recall_of_exact", value) for value in (-1, 100.5, "99")),
        ("weights_sha256", None),
        ("format_version", "1.0"),
        ("format_version", []),
    ],
)
def test_a_card_of_other_kinds_is_one_line(texts, tmp_path, field, value):
    card = json.loads((texts.folder / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**card, field: value}))
    with pytest.raises(RunError) as refused:
        SearchIndex(tmp_path)
    assert refused.value.path == tmp_path / "index.json"
    assert refused.value.location.startswith(field.split("_")[0]) or field in refused.value.location


def _not_finite(rows):
    index = faiss.IndexFlatIP(rows.shape[1])
    rows[3] = np.nan
    index.add(rows)
    return index


def _lists(rows):
    index = make_index(rows, "ivf")
    return index


def _foreign_positions(rows):
    index = _lists(rows)
    index.reset()
    index.add_with_ids(rows, np.arange(len(rows)) + 10**6)
    return index


def _not_trained(rows):
    index = _lists(rows)
    index.is_trained = False
    return index


@pytest.mark.parametrize(
    ("kind", "damaged", "location"),
    [
        ("flat", _not_finite, "rows"),
        ("ivf", _foreign_positions, "positions"),
        ("ivf", _not_trained, ""),
    ],
)
def test_what_only_a_search_finds_damaged_is_one_line(
    home, student, texts, tmp_path, kind, damaged, location
):
    """An index of an earlier version, without checksums, whose file FAISS reads."""
    folder = Path(shutil.copytree(texts.folder, tmp_path / "i"))
    card = json.loads((folder / "index.json").read_text())
    card |= {"kind": kind, "format_version": [1, 0]}
    del card["sha256"]
    (folder / "index.json").write_text(json.dumps(card))
    rows = student.text_rows(TEXTS)["uni"]
    faiss.write_index(damaged(rows), str(folder / "uni.faiss"))
    with pytest.raises(RunError) as refused:
        answer(student, SearchIndex(folder), "picture", len(TEXTS))
    assert (refused.value.path, refused.value.location) == (folder / "uni.faiss", location)
    assert "\n" not in str(refused.value)


def test_a_card_of_another_dimension_is_one_line(student, texts, tmp_path):
    folder = Path(shutil.copytree(texts.folder, tmp_path / "i"))
    card = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**card, "dim": 1000 * card["dim"]}))
    with pytest.raises(RunError) as refused:
        answer(student, SearchIndex(folder), "picture")
    assert (refused.value.path, refused.value.location) == (folder / "uni.faiss", "count")


def test_damaged_lines_of_items_are_left_out(home, student, texts, tmp_path):
    """The others keep their ranks, and the page and the screen say how many are missing."""
    whole_answer = answer(student, texts, "picture number 3", 5)
    folder = Path(shutil.copytree(texts.folder, tmp_path / "i"))
    lines = (folder / "items.jsonl").read_bytes().split(b"\n")
    positions = [TEXTS.index(hit.item.text) for hit in whole_answer.hits]
    for position, damage in zip(positions[1:4], (b'"pictu', b"\xff\x00", b"[1]"), strict=True):
        lines[position] = damage
    (folder / "items.jsonl").write_bytes(b"\n".join(lines))
    damaged_answer = answer(student, SearchIndex(folder), "picture number 3", 5)
    assert damaged_answer.hits == (whole_answer.hits[0], whole_answer.hits[4])
    assert damaged_answer.n_unnamed == 3
    write_contact_sheet(tmp_path / "page.html", damaged_answer)
    assert "3 more hits are left out" in " ".join((tmp_path / "page.html").read_text().split())
    output = run_ok(
        "eval", "search", "picture number 3", "-k", 5, "--index", folder, "--device", "cpu"
    )
    assert "note: 3 more hits have damaged lines in items.jsonl" in output


def test_queries_that_are_none(student, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("README").write_text("words")
    for query, name, path in (
        ("holiday/photo.JPG", "holiday/photo.JPG", None),
        ("README", "README", Path("README")),
        ("  ", "  ", None),
        ("?!", "caption", None),  # nothing is left of it once normalised
    ):
        with pytest.raises(DataError) as refused:
            answer(student, images, query)
        assert (refused.value.name, refused.value.path) == (name, path)
    assert (
        answer(student, images, "picture " * 2000, 1).query.image_path is None
    )  # too long for a file's name
    assert answer(student, images, "picture\0 1.2.3", 1).head == "cross"


# --- the page


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def _page(path):
    html = path.read_text()
    assert not re.search(r"https?://|\bsrc\s*=|@import|<link|<iframe", html)
    assert all(
        url.startswith("data:image/jpeg;base64,") for url in re.findall(r"url\(([^)]*)\)", html)
    )
    return html, Page(html)


def test_sheet_of_images(student, images, readable, tmp_path):
    got = answer(student, images, str(readable[-1]), 6)
    assert write_contact_sheet(tmp_path / "new" / "sheet.html", got) == 0
    html, page = _page(tmp_path / "new" / "sheet.html")
    assert html.count("data:image/jpeg;base64,") == 6  # the query is one of the hits
    text = " ".join(page.text.split())
    assert f"The 6 nearest of 23 images from {images.summary.source}, by the uni head" in text
    assert "2 images could not be read when the index was built" in text
    assert text.count("the query itself") == 1
    for hit in got.hits:
        assert f" {hit.rank}{hit.similarity:.3f} " in text  # two cells
        assert str(hit.item.image_path) in [attrs.get("title") for _, attrs in page.tags]
    assert "b/c/010.jpg" in text


def _answer(query, hits, modality, **changes):
    fields = {
        "modality": modality,
        "kind": "flat",
        "dim": 4,
        "count": 9,
        "uni_head": "uni",
        "student": "/runs/a",
    }
    fields |= {
        "weights_sha256": "0" * 64,
        "source": "/data/in",
        "skipped": (),
        "blank_lines": 0,
        **changes,
    }
    hits = tuple(Hit(item, n + 1, 0.5, False) for n, item in enumerate(hits))
    return Answer(query, "cross", hits, IndexSummary(**fields))


def test_sheet_is_inert_and_names_missing_images(tmp_path):
    missing_image = tmp_path / "a<img onerror=x>.jpg"
    changes = {
        "source": f"/data/{SCRIPT}",
        "student": "/runs/<script>",
        "skipped": (Skipped("a", "b"),),
        "kind": "hnsw",
    }
    sheet = _answer(
        Item("text", SCRIPT, None),
        [Item("image", str(missing_image), missing_image)],
        "image",
        **changes,
    )
    assert write_contact_sheet(tmp_path / "s.html", sheet) == 1
    _, page = _page(tmp_path / "s.html")
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    text = " ".join(page.text.split())
    assert text.count(SCRIPT) == 3  # title, query, source
    assert "a<img onerror=x>.jpg" in text
    assert "was built. 1 image shown here could not be read" in text
    assert "1 image could not be read when" in text
    assert "approximate (HNSW)" in text


def test_sheet_of_texts(tmp_path):
    make_images(tmp_path, 1)
    photo = tmp_path / "000.jpg"
    sheet = _answer(
        Item("image", str(photo), photo),
        [Item("text", SCRIPT, None), Item("text", "two", None)],
        "text",
    )
    assert write_contact_sheet(tmp_path / "s.html", sheet) == 0
    html, page = _page(tmp_path / "s.html")
    assert html.count("data:image/jpeg;base64,") == 1
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(SCRIPT) == 1
    assert "The 2 nearest of 9 texts" in " ".join(page.text.split())
    assert "approximate" not in page.text
