"""Every form of data that people have is read alike."""

import hashlib
import json
import os
import shutil

import pandas
import pytest

from cusa.data.datasets import load_dataset
from cusa.data.errors import DataError, FileFormatError
from cusa.data.readers.columns import ColumnNames
from tests.data.readers.forms import (
    FILE_FORMS,
    MEMORY_FORMS,
    N_CAPTIONS,
    N_IMAGES,
    captions_by_name,
    make_pairs,
)


def _contents(dataset):
    """Checksum of the picture and captions of each record of the train split."""
    assert set(dataset.splits) == {"train"}
    contents = []
    for record in dataset.splits["train"]:
        picture = (dataset.image_root / record.image_path).read_bytes()
        contents.append((hashlib.sha256(picture).hexdigest(), record.captions))
    return contents


@pytest.fixture(scope="module")
def expected_contents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    contents = []
    for name, captions in captions_by_name(make_pairs(folder)).items():
        picture = (folder / name).read_bytes()
        contents.append((hashlib.sha256(picture).hexdigest(), tuple(captions)))
    assert len(contents) == N_IMAGES
    assert len({caption for _, captions in contents for caption in captions}) == (
        N_IMAGES * N_CAPTIONS
    )
    return contents


@pytest.mark.parametrize("form", FILE_FORMS)
def test_forms_of_files_and_folders(tmp_path, form, expected_contents):
    path = FILE_FORMS[form](tmp_path)
    dataset = load_dataset(path, data_root=tmp_path / "data")
    assert _contents(dataset) == expected_contents
    assert not dataset.notes


@pytest.mark.parametrize("form", MEMORY_FORMS)
def test_rows_in_memory(tmp_path, form, expected_contents):
    rows = MEMORY_FORMS[form](tmp_path)
    assert _contents(load_dataset(rows, data_root=tmp_path / "data")) == expected_contents


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _records(dataset):
    """Split, path, id and captions of each record."""
    return [
        (split, record.image_path, record.image_id, record.captions)
        for split, records in dataset.splits.items()
        for record in records
    ]


# Columns


def test_columns_are_chosen_by_name(tmp_path):
    table = "Photo;Key;Part;Words;caption\na.jpg;7;dev;A dog;x\nb.jpg;8;test;A cat;y\n"
    path = _write(tmp_path / "mine.csv", table)
    columns = ColumnNames(image="photo", caption="Words", image_id="KEY", split="Part")
    assert _records(load_dataset(path, columns=columns)) == [
        ("val", "a.jpg", "7", ("A dog",)),
        ("test", "b.jpg", "8", ("A cat",)),
    ]


@pytest.mark.parametrize(
    ("header", "columns", "name"),
    [
        ("image,words", ColumnNames(split="part"), "caption_column"),
        ("photo,caption", ColumnNames(split="part"), "image_column"),
        ("image,caption", ColumnNames(image="photo"), "image_column"),
        ("image,caption", ColumnNames(caption="words"), "caption_column"),
        ("image,caption", ColumnNames(split="part"), "split_column"),
        ("image,caption", ColumnNames(image_id="key"), "id_column"),
        ("filename,filepath,caption", ColumnNames(), "image_column"),
        ("image,text,title", ColumnNames(), "caption_column"),
        ("picture,words", ColumnNames(), "columns"),
        ("url,caption", ColumnNames(), "columns"),
    ],
)
def test_a_column_that_is_missing_or_could_be_several_is_named(tmp_path, header, columns, name):
    cells = ",".join("a.jpg" for _ in header.split(","))
    path = _write(tmp_path / "mine.csv", f"{header}\n{cells}\n")
    with pytest.raises(FileFormatError) as caught:
        load_dataset(path, columns=columns)
    assert (caught.value.path, caught.value.name) == (path, name)


FORMS_WITHOUT_COLUMNS = ["karpathy", "coco-captions", "flickr-tokens", "sidecars-txt"]


@pytest.mark.parametrize("form", FORMS_WITHOUT_COLUMNS)
@pytest.mark.parametrize("column", ["image", "caption", "image_id", "split"])
def test_names_of_columns_are_refused_for_forms_that_have_none(tmp_path, form, column):
    path = FILE_FORMS[form](tmp_path)
    columns = ColumnNames(**{column: "mine"})
    with pytest.raises(FileFormatError) as caught:
        load_dataset(path, columns=columns)
    option = f"{column.removeprefix('image_')}_column"
    assert (caught.value.path, caught.value.name) == (path, option)
    with pytest.raises(FileFormatError) as caught:
        load_dataset(load_dataset(path), columns=columns)
    assert caught.value.name == option


def test_captions_in_json_files_have_a_field_that_can_be_named(tmp_path):
    _write(tmp_path / "a.json", '{"words": "A dog", "caption": "no"}')
    (tmp_path / "a.jpg").touch()
    dataset = load_dataset(tmp_path, columns=ColumnNames(caption="words"))
    assert dataset.splits["train"][0].captions == ("A dog",)


def test_the_first_of_the_usual_names_wins_over_the_others(tmp_path):
    path = _write(tmp_path / "x.csv", "file_name,image,text,caption\nb.jpg,a.jpg,no,A dog\n")
    assert _records(load_dataset(path)) == [("train", "a.jpg", "a.jpg", ("A dog",))]


def test_an_image_may_have_fewer_captions_than_there_are_columns(tmp_path):
    lines = ["image,caption_10,caption_2,caption_1", "a.jpg,ten,two,one", "b.jpg,,two,", "c.jpg,,,"]
    path = _write(tmp_path / "x.csv", "\n".join(lines[:3]))
    records = load_dataset(path).splits["train"]
    assert [record.captions for record in records] == [("one", "two", "ten"), ("two",)]
    path = _write(tmp_path / "x.csv", "\n".join(lines))
    with pytest.raises(DataError) as caught:
        load_dataset(path)
    assert (caught.value.location, caught.value.name) == ("line 4", "c.jpg")


# First bytes


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x1f\x8b\x08 and more", "a gzip archive"),
        (b"PK\x03\x04 and more", "a zip archive (or a spreadsheet)"),
        (b"\0" * 257 + b"ustar", "a tar archive"),
        (b"\xff\xd8\xff\xe0 and more", "a JPEG picture"),
        (b"RIFF\0\0\0\0WEBP", "a WebP picture"),
        ("image,caption\n".encode("utf-16"), "UTF-16 text"),
        ("image,caption\n".encode("utf-32"), "UTF-32 text"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x80\x04\x95 and more", "a pickle"),
        (b"ARROW1\0\0", "an Arrow file"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
    ],
)
def test_other_files_are_named_by_their_first_bytes(tmp_path, content, kind):
    path = tmp_path / "pairs.csv"
    # A hole of a terabyte behind: it is not read whole.
    with path.open("wb") as file:
        file.write(content)
        file.truncate(1 << 40)
    with pytest.raises(FileFormatError) as caught:
        load_dataset(path)
    assert (caught.value.path, caught.value.name) == (path, kind)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.csv", "url,words\n"),
        ("train.json", '[{"a": 1}, '),
        ("pairs.jsonl", '{"a": 1}\n{"a": 2}\n'),
    ],
)
def test_text_of_no_known_form_is_refused_before_it_is_read_whole(tmp_path, name, content):
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(content.encode().ljust(1 << 17))
        file.truncate(1 << 40)
    with pytest.raises(FileFormatError) as caught:
        load_dataset(path)
    assert (caught.value.path, caught.value.name) == (path, "columns")


def test_first_lines_that_are_longer_than_the_first_bytes(tmp_path):
    caption = "a " * 70_000
    path = _write(tmp_path / "x.jsonl", json.dumps({"caption": caption, "image": "a.jpg"}) + "\n")
    assert load_dataset(path).splits["train"][0].captions == (caption,)
    path = _write(tmp_path / "train.json", json.dumps([{"caption": caption, "image": "a.jpg"}]))
    assert load_dataset(path).splits["train"][0].captions == (caption,)


# Splits


def test_an_imagefolder_has_a_folder_for_each_split(tmp_path):
    for split in ("train", "validation", "test"):
        _write(tmp_path / split / "metadata.csv", "file_name,text\na.jpg,A dog\n")
        (tmp_path / split / "a.jpg").touch()
    dataset = load_dataset(tmp_path)
    assert dataset.image_root == tmp_path
    assert _records(dataset) == [
        ("train", "train/a.jpg", "train/a.jpg", ("A dog",)),
        ("val", "validation/a.jpg", "validation/a.jpg", ("A dog",)),
        ("test", "test/a.jpg", "test/a.jpg", ("A dog",)),
    ]


def test_images_with_captions_beside_them_are_of_the_split_of_their_folder(tmp_path):
    for place in ("train/x/a", "val/a", "a"):
        _write(tmp_path / f"{place}.txt", "A dog\n\nA cat \r\n")
        (tmp_path / f"{place}.jpg").touch()
    assert _records(load_dataset(tmp_path)) == [
        ("train", "a.jpg", "a.jpg", ("A dog", "A cat")),
        ("train", "train/x/a.jpg", "train/x/a.jpg", ("A dog", "A cat")),
        ("val", "val/a.jpg", "val/a.jpg", ("A dog", "A cat")),
    ]
    dataset = load_dataset(f"test={tmp_path}")
    assert set(dataset.splits) == {"test"}


def test_images_without_captions_beside_them_are_named(tmp_path):
    _write(tmp_path / "a.txt", "A dog")
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    assert caught.value.path == tmp_path / "b.jpg"


def _write_tokens(folder):
    lines = [f"{name}.jpg#{number}\t{name} {number}" for name in "abcd" for number in range(2)]
    return _write(folder / "Flickr8k.token.txt", "\n".join(lines))


def test_flickr_has_its_splits_in_lists_beside_the_captions(tmp_path):
    path = _write_tokens(tmp_path)
    _write(tmp_path / "Flickr_8k.trainImages.txt", "a.jpg\nnone.jpg\n")
    _write(tmp_path / "Flickr_8k.devImages.txt", "c.jpg\n")
    _write(tmp_path / "Flickr_8k.testImages.txt", "b.jpg\n")
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    dataset = load_dataset(path)
    assert _records(dataset) == [
        ("train", "a.jpg", "a.jpg", ("a 0", "a 1")),
        ("val", "c.jpg", "c.jpg", ("c 0", "c 1")),
        ("test", "b.jpg", "b.jpg", ("b 0", "b 1")),
    ]
    assert dataset.splits["train"][0].caption_ids == ("a.jpg#0", "a.jpg#1")
    # Of images in no list, of listed ones without captions, and of the three splits' sizes.
    assert len(dataset.notes) == 5
    assert _records(load_dataset(tmp_path)) == _records(dataset)

    with pytest.raises(FileFormatError) as caught:
        _write(tmp_path / "Flickr_8k.testImages.txt", "b.jpg\nc.jpg\n")
        load_dataset(path)
    assert caught.value.location == "line 2"
    assert caught.value.name == "c.jpg"


def test_flickr_without_lists_is_one_split(tmp_path):
    assert set(load_dataset(_write_tokens(tmp_path)).splits) == {"train"}
    assert set(load_dataset(f"test={_write_tokens(tmp_path)}").splits) == {"test"}


def test_a_line_that_is_no_token_is_named(tmp_path):
    path = _write(tmp_path / "x.token", "a.jpg#0\tA dog\n\nb.jpg A cat\n")
    with pytest.raises(FileFormatError) as caught:
        load_dataset(path)
    assert (caught.value.path, caught.value.location) == (path, "line 3")


# Folders, the hub, and named data sets


def test_of_several_forms_in_a_folder_the_one_with_splits_is_read(tmp_path):
    images = [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": "A dog"}]}]
    _write(tmp_path / "dataset_x.json", json.dumps({"images": images}))
    _write(tmp_path / "captions.csv", "image,caption\nb.jpg,A cat\n")
    dataset = load_dataset(tmp_path)
    assert _records(dataset) == [("val", "a.jpg", "a.jpg", ("A dog",))]
    assert len(dataset.notes) == 1
    assert "captions.csv" in dataset.notes[0]


def test_images_may_lie_in_a_folder_beside_the_annotations(tmp_path):
    path = _write(tmp_path / "captions.txt", "image,caption\na.jpg,A dog\n")
    _write(tmp_path / "Images" / "a.jpg", "")
    assert load_dataset(path).image_root == tmp_path / "Images"
    assert load_dataset(tmp_path).image_root == tmp_path / "Images"


def test_a_folder_of_pictures_is_walked_once(tmp_path, monkeypatch):
    _write(tmp_path / "train" / "a.jpg", "")
    _write(tmp_path / "train" / "a.txt", "A dog\n")
    walked = []
    walk = os.walk
    monkeypatch.setattr(
        "os.walk", lambda top, **options: walked.append(top) or walk(top, **options)
    )
    assert _records(load_dataset(tmp_path)) == [("train", "train/a.jpg", "train/a.jpg", ("A dog",))]
    assert walked == [tmp_path]


def test_the_splits_of_a_hub_repository(tmp_path, capfd):
    """A folder stands for the repository: the package takes it as one."""
    for split in ("train", "test"):
        make_pairs(tmp_path / split)
        content = (tmp_path / split / "000 a.jpg").read_bytes()
        row = {"image": {"bytes": content, "path": "a.jpg"}, "text": f"The {split} dog"}
        pandas.DataFrame([row]).to_parquet(tmp_path / f"{split}.parquet")
        shutil.rmtree(tmp_path / split)
    dataset = load_dataset(f"hf:{tmp_path}", data_root=tmp_path / "data")
    captions = {split: records[0].captions for split, records in dataset.splits.items()}
    assert captions == {"train": ("The train dog",), "test": ("The test dog",)}
    assert (dataset.image_root / dataset.splits["test"][0].image_path).is_file()
    dataset = load_dataset(f"hf:{tmp_path}:test", image_root=tmp_path / "pictures")
    assert set(dataset.splits) == {"test"}
    assert dataset.image_root == tmp_path / "pictures"
    with pytest.raises(DataError) as caught:
        load_dataset(f"hf:{tmp_path}:nope")
    assert caught.value.name == f"{tmp_path}:nope"
    assert capfd.readouterr() == ("", "")


def test_pictures_of_one_name_are_told_apart_by_their_content(tmp_path):
    make_pairs(tmp_path)
    first, second = [(tmp_path / name).read_bytes() for name in ("000 a.jpg", "001#b.jpg")]
    rows = [("image.jpg", first), ("image.jpg", second), ("image.jpg", first), (None, second)]
    entries = []
    for number, (path, content) in enumerate(rows):
        entries.append({"image": {"bytes": content, "path": path}, "text": f"caption {number}"})
    pandas.DataFrame(entries).to_parquet(tmp_path / "x.parquet")
    records = load_dataset(tmp_path / "x.parquet", data_root=tmp_path).splits["train"]
    captions = [record.captions for record in records]
    assert captions == [("caption 0", "caption 2"), ("caption 1",), ("caption 3",)]
    assert records[1].image_path == records[2].image_path
    assert records[0].image_id == "train/image.jpg"


def test_flickr8k_by_name(tmp_path):
    folder = tmp_path / "flickr8k"
    with pytest.raises(DataError) as caught:
        load_dataset("flickr8k", data_root=tmp_path)
    assert caught.value.path == folder / "dataset_flickr8k.json"
    (folder / "Flickr8k_text").mkdir(parents=True)
    _write_tokens(folder / "Flickr8k_text")
    _write(folder / "Flicker8k_Dataset" / "a.jpg", "")
    dataset = load_dataset("flickr8k", data_root=tmp_path)
    assert dataset.name == "flickr8k"
    assert dataset.image_root == folder / "Flicker8k_Dataset"
    assert len(dataset.notes) == 3


@pytest.mark.parametrize("rows", [[{"image": "a.jpg"}], [{"image": "a.jpg", "caption": 5}]])
def test_faults_of_rows_in_memory_are_named(rows):
    with pytest.raises(FileFormatError) as caught:
        load_dataset(rows)
    assert str(caught.value.path) == "rows"


def test_missing_values_of_a_frame_are_none(tmp_path):
    frame = pandas.DataFrame(
        {"image": ["a.jpg", "b.jpg"], "caption": ["A dog", "A cat"], "image_id": [3, None]}
    )
    ids = [record.image_id for record in load_dataset(frame).splits["train"]]
    assert ids == ["3", "b.jpg"]
