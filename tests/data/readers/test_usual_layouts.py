"""Data sets as people unpack them: where archives put the images, and what is refused there."""

import json

import numpy as np
import pytest

from cusa.data.datasets import load_dataset
from cusa.data.errors import DataError, FileFormatError


def _write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _captions(dataset):
    splits = dataset.splits.items()
    return {name: [record.captions for record in records] for name, records in splits}


def _has_images(dataset):
    records = [record for split in dataset.splits.values() for record in split]
    return all((dataset.image_root / record.image_path).is_file() for record in records)


@pytest.mark.parametrize(
    ("annotations", "image"),
    [
        ("Flickr8k_text/Flickr8k.token.txt", "Flicker8k_Dataset/a.jpg"),
        ("annotations/pairs.token", "images/a.jpg"),
        ("flickr30k_images/results.token", "flickr30k_images/flickr30k_images/a.jpg"),
    ],
)
def test_images_beside_the_folder_of_the_annotations(tmp_path, annotations, image, monkeypatch):
    path = _write(tmp_path / annotations, "a.jpg#0\tA dog .\n")
    _write(tmp_path / image)
    assert load_dataset(path).image_root == (tmp_path / image).parent
    monkeypatch.chdir(path.parent)
    assert _has_images(load_dataset(path.name))


def test_the_folder_that_kaggles_flickr30k_unpacks_to(tmp_path):
    table = "image_name| comment_number| comment\na.jpg| 0| A dog .\n"
    _write(tmp_path / "flickr30k_images" / "results.csv", table)
    _write(tmp_path / "flickr30k_images" / "flickr30k_images" / "a.jpg")
    for folder in (tmp_path, tmp_path / "flickr30k_images"):
        dataset = load_dataset(folder)
        assert _captions(dataset) == {"train": [("A dog .",)]}
        assert _has_images(dataset)


def test_an_imagefolder_whose_splits_are_below_data(tmp_path):
    for split, caption in (("train", "A dog"), ("validation", "A cat")):
        table = f"file_name,text\n{split}.jpg,{caption}\n"
        _write(tmp_path / "data" / split / "metadata.csv", table)
        _write(tmp_path / "data" / split / f"{split}.jpg")
    dataset = load_dataset(tmp_path)
    assert _captions(dataset) == {"train": [("A dog",)], "val": [("A cat",)]}
    assert _has_images(dataset)


def test_what_img2dataset_writes(tmp_path):
    """Folders of pictures with captions, and a table about each folder."""
    import pandas

    _write(tmp_path / "00000" / "000000000.jpg")
    _write(tmp_path / "00000" / "000000000.txt", "A dog")
    _write(tmp_path / "00000" / "000000000.json", '{"caption": "A dog", "url": "x"}')
    _write(tmp_path / "00000_stats.json", "{}")
    about = {"url": ["http://x/1.jpg"], "caption": ["A dog"], "key": ["000000000"]}
    pandas.DataFrame(about).to_parquet(tmp_path / "00000.parquet")
    dataset = load_dataset(tmp_path)
    assert _captions(dataset) == {"train": [("A dog",)]}
    assert len(dataset.notes) == 1
    assert "00000.parquet" in dataset.notes[0]


def test_a_list_of_captions_beside_an_image(tmp_path):
    _write(tmp_path / "a.jpg")
    path = _write(tmp_path / "a.json", '["A dog", "A cat"]')
    assert _captions(load_dataset(tmp_path)) == {"train": [("A dog", "A cat")]}
    path.write_text('["A dog", 3]')
    with pytest.raises(FileFormatError) as refused:
        load_dataset(tmp_path)
    assert refused.value.path == path


@pytest.mark.parametrize(
    "table",
    [
        "a.jpg,A dog\nb.jpg,A cat\n",
        'images/a.png\t"A dog"\n',
        "A dog\thttps://x.org/1\nA cat\thttps://x.org/2\n",
        "a.jpg\tb.jpg#2\t1\t1\t1\n",
        "a.jpg\n",
    ],
)
def test_a_table_without_the_names_of_columns(tmp_path, table):
    path = _write(tmp_path / "pairs.csv", table)
    with pytest.raises(FileFormatError) as refused:
        load_dataset(path)
    assert (refused.value.path, refused.value.location) == (path, "line 1")


@pytest.mark.parametrize("form", ["csv", "jsonl", "rows"])
def test_addresses_are_no_files(tmp_path, form):
    rows = [{"image": "a.jpg", "caption": "A dog"}, {"image": "http://x/b", "caption": "A cat"}]
    source, location = rows, "row 1"
    if form == "csv":
        source = _write(tmp_path / "a.csv", "image,caption\na.jpg,A dog\nhttp://x/b,A cat\n")
        location = "line 3"
    elif form == "jsonl":
        source = _write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        location = "line 2"
    with pytest.raises(FileFormatError) as refused:
        load_dataset(source)
    assert (refused.value.location, refused.value.name) == (location, "image")


def test_cocos_other_files_are_named_for_what_they_lack(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}]
    boxes = {"images": images, "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}]}
    path = _write(tmp_path / "instances_val2017.json", json.dumps(boxes))
    with pytest.raises(FileFormatError) as refused:
        load_dataset(path)
    assert (refused.value.location, refused.value.name) == ("annotations[0]", "caption")
    path = _write(tmp_path / "image_info_test2017.json", json.dumps({"images": images}))
    with pytest.raises(FileFormatError) as refused:
        load_dataset(path)
    assert refused.value.name == "columns"


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("00000.tar", "WebDataset"),
        ("pairs_of_mine.csv", "pairs_of_mine.csv"),
        ("a.jpg", "1 images"),
    ],
)
def test_a_folder_of_no_known_form_is_refused_with_what_it_holds(tmp_path, file, named):
    _write(tmp_path / file)
    with pytest.raises(DataError) as refused:
        load_dataset(tmp_path)
    assert refused.value.path == tmp_path
    assert named in refused.value.name


def test_a_saved_data_set_whose_offsets_lead_nowhere(tmp_path):
    """To follow them would crash the process."""
    import datasets

    columns = {"image": ["a.jpg", "b.jpg"], "caption": ["A dog.", "A little cat."]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    path = next((tmp_path / "saved").glob("*.arrow"))
    content = path.read_bytes()
    offsets = np.array([0, 6, 19], "<i4").tobytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, np.array([0, 6, 2**30], "<i4").tobytes()))
    with pytest.raises(FileFormatError) as refused:
        load_dataset(tmp_path / "saved")
    assert refused.value.path == tmp_path / "saved"
