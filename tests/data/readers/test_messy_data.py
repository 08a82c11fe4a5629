"""Messy data of each form: read as it is meant, noted, or refused; never another row in silence."""

import json
import os

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from cusa.data.datasets import load_dataset
from cusa.data.errors import DataError, FileFormatError
from cusa.data.readers.columns import ColumnNames


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return path


def _picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "JPEG")
    return path


def _parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def _captions(dataset):
    records = [record for split in dataset.splits.values() for record in split]
    return {record.image_id: record.captions for record in records}


# Tables


def test_a_header_longer_than_the_first_bytes(tmp_path):
    names = ",".join(f'"column {number}"' for number in range(20_000))
    path = _write(tmp_path / "x.csv", f"{names},image,caption\n{',' * 20_000}a.jpg,A dog\n")
    assert _captions(load_dataset(path)) == {"a.jpg": ("A dog",)}


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.txt"])
def test_json_lines_whose_first_is_longer_than_the_first_bytes(tmp_path, name):
    lines = []
    for image, caption in (("a.jpg", "a " * 70_000), ("b.jpg", "b")):
        lines.append(json.dumps({"image": image, "caption": caption}))
    path = _write(tmp_path / name, "\n".join(lines))
    assert list(_captions(load_dataset(path))) == ["a.jpg", "b.jpg"]


def test_a_header_in_latin_1(tmp_path):
    path = _write(tmp_path / "x.csv", "image,légende\na.jpg,A dog\n".encode("latin-1"))
    with pytest.raises(FileFormatError) as caught:
        load_dataset(path)
    assert (caught.value.path, caught.value.location) == (path, "byte 7")


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Image,image,caption,x", "image_column"),
        ("image,Caption,caption,x", "caption_column"),
        ("image,caption,Split,SPLIT", "split_column"),
        ("image,caption,image_id,Image ID", "id_column"),
        ("image,x,caption_1,Caption 1", "caption_column"),
    ],
)
def test_two_columns_of_one_name(tmp_path, header, name):
    path = _write(tmp_path / "x.csv", f"{header}\na,b,train,test\n")
    with pytest.raises(FileFormatError) as caught:
        load_dataset(path)
    assert (caught.value.path, caught.value.name) == (path, name)


def test_of_two_columns_of_one_name_the_user_says_which(tmp_path):
    path = _write(tmp_path / "x.csv", "Image,image,caption\na.jpg,b.jpg,A dog\n")
    for column, image_id in (("Image", "a.jpg"), ("image", "b.jpg")):
        dataset = load_dataset(path, columns=ColumnNames(image=column))
        assert list(_captions(dataset)) == [image_id]


def test_splits_in_any_case(tmp_path):
    path = _write(tmp_path / "x.csv", "image,caption,split\na,x,Train\nb,y,VALIDATION\n")
    assert set(load_dataset(path).splits) == {"train", "val"}


def test_a_list_whose_first_entry_has_no_split(tmp_path):
    entries = [{"image": "a", "caption": "x"}, {"image": "b", "caption": "y", "split": "test"}]
    path = _write(tmp_path / "x_train.json", json.dumps(entries))
    dataset = load_dataset(path)
    assert [record.image_id for record in dataset.splits["test"]] == ["b"]


# Sources


@pytest.mark.parametrize(
    ("sources", "name"),
    [
        ("", "dataset"),
        ("train=", "dataset"),
        ("hf:", "dataset"),
        (["coco", "flickr8k"], "dataset"),
        (["hf:a/b", "x.csv"], "dataset"),
        (3, "int"),
        (None, "NoneType"),
        ([3], "int"),
        (b"x.csv", "bytes"),
        ({"image": ["a"], "caption": ["b"]}, "dict"),
        ([("a.jpg", "b")], "tuple"),
        (np.array([["a.jpg", "b"]]), "ndarray"),
        (pandas.Series(["a"]), "Series"),
        (pyarrow.table({"image": ["a"], "caption": ["b"]}), "Table"),
        (datasets.DatasetDict(), "DatasetDict"),
    ],
)
def test_what_is_no_data_set(sources, name):
    with pytest.raises(DataError) as caught:
        load_dataset(sources)
    assert caught.value.name == name


def test_a_name_that_is_too_long_for_a_path():
    with pytest.raises(DataError) as caught:
        load_dataset("x" * 5000)
    assert str(caught.value.path) == "x" * 5000


# Parquet


def test_parquet_paths_in_a_dictionary(tmp_path):
    images = pyarrow.array(["a.jpg", "a.jpg"]).dictionary_encode()
    _picture(tmp_path / "a.jpg")
    dataset = load_dataset(_parquet(tmp_path / "x.parquet", image=images, caption=["x", "y"]))
    assert (dataset.image_root, _captions(dataset)) == (tmp_path, {"a.jpg": ("x", "y")})


def test_parquet_columns_that_nobody_asks_for(tmp_path):
    # A time that Python has no type for.
    times = pyarrow.array([1 << 62], pyarrow.timestamp("us"))
    path = _parquet(tmp_path / "x.parquet", image=["a.jpg"], caption=["x"], time=times)
    assert _captions(load_dataset(path)) == {"a.jpg": ("x",)}


def test_parquet_columns_of_one_name(tmp_path):
    path = tmp_path / "x.parquet"
    columns = [pyarrow.array(["a.jpg"]), pyarrow.array(["b.jpg"]), pyarrow.array(["x"])]
    table = pyarrow.Table.from_arrays(columns, names=["image", "image", "caption"])
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(FileFormatError) as caught:
        load_dataset(path)
    assert (caught.value.path, caught.value.name) == (path, "image_column")


@pytest.mark.parametrize(
    "image", [{"bytes": b"x", "path": 3}, {"bytes": "x", "path": "a"}, {"bytes": [1], "path": "a"}]
)
def test_parquet_pictures_of_other_types(tmp_path, image):
    path = _parquet(tmp_path / "x.parquet", image=pyarrow.array([image]), caption=["x"])
    with pytest.raises(FileFormatError) as caught:
        load_dataset(path, data_root=tmp_path / "data")
    assert (caught.value.location, caught.value.name) == ("row 0", "image")


# Folders


def test_captions_with_suffixes_in_capitals(tmp_path):
    for name, text in (("a.TXT", "A dog"), ("b.Caption", "A cat"), ("c.JSON", '{"Text": "x"}')):
        _write(tmp_path / name, text)
        _picture(tmp_path / f"{name[0]}.JPG")
    expected = {"a.JPG": ("A dog",), "b.JPG": ("A cat",), "c.JPG": ("x",)}
    assert _captions(load_dataset(tmp_path)) == expected


def test_captions_without_an_image_are_noted(tmp_path):
    _picture(tmp_path / "a.jpg")
    for name in ("a.txt", "b.txt"):
        _write(tmp_path / name, "A dog")
    (note,) = load_dataset(tmp_path).notes
    assert "b.txt" in note
    assert "a.txt" not in note


def test_captions_in_utf_16_without_a_mark(tmp_path):
    _picture(tmp_path / "a.jpg")
    path = _write(tmp_path / "a.txt", "A dog".encode("utf-16-le"))
    with pytest.raises(FileFormatError) as caught:
        load_dataset(tmp_path)
    assert (caught.value.path, caught.value.location) == (path, "line 1")


def test_an_image_whose_name_is_not_utf_8(tmp_path):
    path = _picture(tmp_path / os.fsdecode(b"\xff.jpg"))
    _write(path.with_suffix(".txt"), "A dog")
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    assert caught.value.path == path


def test_metadata_that_is_not_read_is_noted(tmp_path):
    table = "file_name,text\na.jpg,A dog\n"
    for name in ("metadata.csv", "metadata.jsonl", "test/metadata.csv"):
        _write(tmp_path / name, '{"file_name": "a.jpg", "text": "A cat"}\n')
    _write(tmp_path / "test/metadata.csv", table)
    (note,) = load_dataset(tmp_path).notes
    assert note.endswith("metadata.csv, test/metadata.csv")


def test_a_split_without_metadata_is_noted(tmp_path):
    _write(tmp_path / "train/metadata.csv", "file_name,text\na.jpg,A dog\n")
    (tmp_path / "Test").mkdir()
    (note,) = load_dataset(tmp_path).notes
    assert note.startswith(str(tmp_path / "Test"))


def test_a_saved_data_set_of_paths(tmp_path):
    columns = {"image": ["a.jpg"], "caption": ["A dog"]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    _picture(tmp_path / "saved/a.jpg")
    dataset = load_dataset(tmp_path / "saved")
    assert (dataset.image_root, _captions(dataset)) == (tmp_path / "saved", {"a.jpg": ("A dog",)})


# Rows in memory


@pytest.mark.parametrize(
    "row",
    [
        {"image": np.str_("a"), "caption": "x", "image_id": np.int64(3)},
        {"image": "a", "caption": ("x",), "image_id": 3.0},
        {"image": "a", "caption": np.array(["x"]), "image_id": np.float64(3)},
    ],
)
def test_values_of_numpy(row):
    for rows in ([row], pandas.DataFrame([row])):
        assert _captions(load_dataset(rows)) == {"3": ("x",)}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_formats_of_datasets(kind):
    columns = {"image": ["a"], "caption": ["x"], "image_id": [3]}
    rows = datasets.Dataset.from_dict(columns).with_format(kind)
    assert _captions(load_dataset(rows)) == {"3": ("x",)}


def test_a_row_of_datasets_that_cannot_be_read():
    def transform(batch):
        raise RuntimeError("no")

    rows = datasets.Dataset.from_dict({"image": ["a"], "caption": ["x"]})
    with pytest.raises(FileFormatError) as caught:
        load_dataset(rows.with_transform(transform))
    assert caught.value.location == "row 0"


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([{1: "a", "caption": "x"}], "columns"),
        (pandas.DataFrame([["a", "x"]]), "columns"),
        (
            pandas.DataFrame([["a", "x", "y"]], columns=["image", "text", "text"]),
            "caption_column",
        ),
        ([{"image": "a", "caption": "\ud800"}], "caption"),
    ],
)
def test_rows_that_cannot_be_pairs(rows, name):
    with pytest.raises(FileFormatError) as caught:
        load_dataset(rows)
    assert caught.value.name == name


def test_a_later_row_without_names():
    with pytest.raises(FileFormatError) as caught:
        load_dataset([{"image": "a", "caption": "x"}, {1: "b"}])
    assert (caught.value.location, caught.value.name) == ("row 1", "image")
