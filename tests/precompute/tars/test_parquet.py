"""Parquet files with the bytes of images as units of a set."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from cusa.data.errors import CusaError, DataError, SettingError
from cusa.data.tars.parquet import read_pairs_of_unit
from cusa.data.tars.samples import TarError
from cusa.data.tars.tar_set import TarSet
from cusa.precompute.tars.parquet_images import images_of
from tests.data.tars.parquet_files import rows_of, write_parquet
from tests.data.tars.tar_files import jpeg, write_tars
from tests.helpers import ADAPTER, make_tiny_clip, run_failure, run_ok

N_FILES = 3
N_PAIRS = 5
RULE = "parquet:caption"


@pytest.fixture
def files(tmp_path):
    paths = []
    for number in range(N_FILES):
        rows = rows_of(range(number * N_PAIRS, (number + 1) * N_PAIRS))
        paths.append(write_parquet(tmp_path / "files" / f"{number:05d}.parquet", rows))
    return paths


def test_rows_are_those_of_the_same_pairs_in_tars(tmp_path, files, teachers):
    write_tars(tmp_path / "tars", N_FILES, N_PAIRS)
    options = [*teachers, "--batch-size", 2, "--out"]
    run_ok("precompute", "--dataset", tmp_path / "tars", *options, tmp_path / "of_tars")
    run_ok("precompute", "--dataset", f"{tmp_path}/files/*.parquet", *options, tmp_path / "set")
    of_tars, tar_set = TarSet(tmp_path / "of_tars"), TarSet(tmp_path / "set")
    for name in tar_set.manifest.names:
        for teacher in ("vit", "words"):
            rows = tar_set.rows(teacher, name)
            np.testing.assert_array_equal(rows, of_tars.rows(teacher, name))
    assert tar_set.tar_path("00001") == files[1]
    assert tar_set.pairs("00001").images == ("0", "1", "2", "3", "4")
    assert "files are whole" in run_ok("store", "verify", tmp_path / "set")
    assert f"3 tars in {tmp_path}/files, captions {RULE}" in run_ok(
        "store", "info", tmp_path / "set"
    )
    models = [option for option in teachers if "=" in option]
    for model in models:
        run_ok("store", "audit", tmp_path / "set", "--teacher", model, "--device", "cpu")


def test_an_adapter_trains_on_the_rows_and_a_student_of_pictures_is_refused(
    tmp_path, files, teachers
):
    folder = tmp_path / "set"
    run_ok("precompute", "--dataset", f"{tmp_path}/files/*.parquet", *teachers, "--out", folder)
    options = ["--embeddings", folder, "--batch-size", 4, "--steps", 2, "--workers", 0]
    options += ["--set", "optim.warmup_steps=0", "--run-dir", tmp_path / "run"]
    error = run_failure("train", *options, "--student", make_tiny_clip(tmp_path / "clip"))
    assert isinstance(error, SettingError)
    assert (error.name, error.path) == ("student", folder)
    run_ok("train", *options, *ADAPTER)


def test_pairs_are_those_of_the_rows(tmp_path, files):
    pairs = read_pairs_of_unit(files[1], RULE, False)
    assert [record.image_id for record in pairs.records] == [
        f"00001/{number:06d}" for number in range(5, 10)
    ]
    assert pairs.sha256 == hashlib.sha256(files[1].read_bytes()).hexdigest()
    images = images_of([pairs])
    # In any order, across row groups.
    for row in (0, 4, 3, 1, 1, 2, 0):
        assert images.read("00001", row) == jpeg(5 + row)
    assert images.path("00001", 3) == tmp_path / "files" / "00001.parquet" / "3"
    write_parquet(files[1], rows_of(range(5)))
    with pytest.raises(TarError) as caught:
        images_of([pairs]).read("00001", 0)
    assert caught.value.path == files[1]


def test_pictures_as_hugging_face_writes_them_and_rows_without_keys(tmp_path):
    rows = []
    for number in range(4):
        image = {"bytes": jpeg(number), "path": f"{number}.jpg"}
        rows.append({"image": image, "texts": [f"one {number}", "two"], "thumbnail": b"x"})
    path = write_parquet(tmp_path / "a.parquet", rows)
    pairs = read_pairs_of_unit(path, "parquet:texts", False)
    assert [record.image_id for record in pairs.records] == [f"a/{row:09d}" for row in range(4)]
    assert pairs.records[2].captions == ("one 2", "two")
    assert images_of([pairs]).read("a", 3) == jpeg(3)


def test_pictures_are_of_the_column_with_their_name(tmp_path):
    """pyarrow reads the columns of names that begin with ``jpg.``, too."""
    table = pa.table({"jpg.url": ["here"], "jpg": pa.array([jpeg(0)], pa.binary_view())})
    table = table.append_column("caption", pa.array(["a"]))
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(table, path)
    pairs = read_pairs_of_unit(path, RULE, False)
    assert images_of([pairs]).read("a", 0) == jpeg(0)


# --- what is left out, and what is damaged


def test_rows_that_are_no_pairs_are_left_out(tmp_path):
    good = rows_of(range(6))
    good[1]["jpg"] = None
    good[2]["caption"] = None
    good[3]["caption"] = "  "
    good[4]["jpg"] = b""
    pairs = read_pairs_of_unit(write_parquet(tmp_path / "a.parquet", good), RULE, False)
    assert [record.image_id for record in pairs.records] == ["a/000000", "a/000005"]
    assert [key for key, _ in pairs.left_out] == ["000001", "000002", "000003", "000004"]
    assert images_of([pairs]).read("a", 1) == jpeg(5)


def test_a_key_twice_is_damage_and_both_rows_are_left_out(tmp_path):
    rows = rows_of([3, 3, 0, 1, 0, 2])
    rows[0]["jpg"] = None
    path = write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(TarError) as caught:
        read_pairs_of_unit(path, RULE, False)
    assert (caught.value.path, caught.value.name) == (path, "000003")
    pairs = read_pairs_of_unit(path, RULE, True)
    assert [record.image_id for record in pairs.records] == ["a/000001", "a/000002"]
    assert [key for key, _ in pairs.left_out] == ["000003", "000000"]
    assert not pairs.is_complete


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "noise", "cut", "no footer"])
def test_a_file_that_is_not_whole_is_named(tmp_path, kind):
    path = write_parquet(tmp_path / "a.parquet", rows_of(range(5)))
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    contents = {
        "empty": b"",
        "noise": bytes(range(256)) * 9,
        "cut": content[: len(content) // 2],
        "no footer": content[:-4],
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    for may_be_damaged in (False, True):
        with pytest.raises(TarError) as caught:
            read_pairs_of_unit(path, RULE, may_be_damaged)
        assert caught.value.path == path


def test_of_a_file_with_a_damaged_page_the_rows_before_it_are_kept(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", rows_of(range(6)))
    content = bytearray(path.read_bytes())
    place = content.index(jpeg(4)[:64])
    content[place - 60 : place] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(TarError) as caught:
        read_pairs_of_unit(path, RULE, False)
    assert caught.value.path == path
    pairs = read_pairs_of_unit(path, RULE, True)
    assert not pairs.is_complete
    assert len(pairs.records) < 6


def test_columns_that_are_not_there_are_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", rows_of(range(2)))
    with pytest.raises(SettingError) as caught:
        read_pairs_of_unit(path, "parquet:words", True)
    assert (caught.value.name, caught.value.path) == ("caption", path)
    write_parquet(path, [{"image": b"a", "caption": 5}])
    with pytest.raises(SettingError) as caught:
        read_pairs_of_unit(path, RULE, True)
    assert (caught.value.name, caught.value.path) == ("caption", path)
    paths_alone = [{"image": "a.jpg", "caption": "a"}]
    several = [{"left": b"a", "right": b"b", "caption": "a"}]
    for rows in (paths_alone, several):
        with pytest.raises(DataError) as caught:
            read_pairs_of_unit(write_parquet(path, rows), RULE, True)
        assert type(caught.value) is DataError
        assert caught.value.name == "image"


def test_captions_that_are_no_unicode_are_damage(tmp_path):
    texts = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
    )
    table = pa.table({"jpg": [jpeg(0)], "caption": texts})
    path = write_parquet(tmp_path / "a.parquet", [{"key": "0"}])
    pa.parquet.write_table(table, path)
    with pytest.raises(TarError) as caught:
        read_pairs_of_unit(path, RULE, False)
    assert caught.value.path == path


# --- the command line


@pytest.mark.parametrize(
    ("options", "kind", "name"),
    [
        (["--caption", "txt"], SettingError, "caption"),
        (["--caption", "parquet:"], SettingError, "caption"),
        (["--caption", "parquet:words", "--on-tar", "skip"], SettingError, "caption"),
        (["--dataset", "more.tar"], DataError, "dataset"),
    ],
)
def test_options_that_do_not_go_with_parquet_are_refused(
    tmp_path, files, teachers, options, kind, name
):
    dataset = ["--dataset", f"{tmp_path}/files/{{00000..00002}}.parquet"]
    error = run_failure("precompute", *dataset, *teachers, *options, "--out", tmp_path / "set")
    assert isinstance(error, kind)
    assert error.name == name
    assert not list((tmp_path / "set").glob("*/*.h5"))


def test_tars_have_no_columns(tmp_path, teachers):
    write_tars(tmp_path / "tars", 1, 1)
    dataset = ["--dataset", tmp_path / "tars", "--out", tmp_path / "set", *teachers]
    error = run_failure("precompute", *dataset, "--caption", RULE)
    assert isinstance(error, CusaError)
    assert error.name == "caption"
