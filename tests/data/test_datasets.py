import json
import os
import time
from itertools import chain

import pytest

from cusa.data.datasets import KNOWN_SIZES, load_dataset
from cusa.data.errors import CusaError, DataError, FileFormatError
from cusa.data.record import Record
from cusa.data.record_columns import Records
from cusa.data.records import entry_location


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def _karpathy(*images, dataset="coco"):
    return {
        "dataset": dataset,
        "images": [
            {
                "filepath": "val2014",
                "filename": f"{cocoid}.jpg",
                "cocoid": cocoid,
                "split": split,
                "sentences": [
                    {"raw": text, "sentid": 10 * cocoid + i} for i, text in enumerate(texts)
                ],
            }
            for cocoid, split, texts in images
        ],
    }


def test_karpathy_restval_joins_train(tmp_path):
    content = _karpathy((7, "train", ["a", "b"]), (9, "restval", ["c"]), (3, "test", ["d"]))
    dataset = load_dataset([_write(tmp_path / "x.json", content)])
    assert dataset.name == "coco"
    assert dataset.image_root == tmp_path
    assert list(dataset.splits) == ["train", "test"]
    assert dataset.splits["train"] == (
        Record("7", "val2014/7.jpg", ("a", "b"), ("70", "71")),
        Record("9", "val2014/9.jpg", ("c",), ("90",)),
    )
    assert dataset.splits["train"].caption_image.tolist() == [0, 0, 1]
    assert (
        dataset.notes[0] == "coco train has 2 images, the Karpathy split has 113,287"
    )  # by path, too


def test_karpathy_flickr_has_no_ids_of_its_own(tmp_path):
    content = {
        "dataset": "flickr30k",
        "images": [{"filename": "1.jpg", "split": "val", "sentences": [{"raw": "a"}]}],
    }
    dataset = load_dataset([_write(tmp_path / "f.json", content)])
    assert dataset.splits["val"] == (Record("1.jpg", "1.jpg", ("a",), ("1.jpg#0",)),)


@pytest.mark.parametrize("folder", ["", "annotations"])
def test_named_data_set_reports_unexpected_sizes(tmp_path, folder):
    _write(
        tmp_path / "coco" / folder / "dataset_coco.json",
        _karpathy((7, "train", ["a"]), (3, "test", ["d"])),
    )
    (tmp_path / "coco" / "images" / "val2014").mkdir(parents=True)
    (tmp_path / "coco" / "images" / "val2014" / "7.jpg").touch()
    dataset = load_dataset(["coco"], data_root=tmp_path)
    assert dataset.image_root == tmp_path / "coco" / "images"
    assert dataset.notes[0] == "coco train has 1 images, the Karpathy split has 113,287"
    assert len(dataset.notes) == 3
    assert KNOWN_SIZES["flickr30k"] == {"train": 29_000, "val": 1_000, "test": 1_000}


def test_albef_files_of_one_split_each(tmp_path):
    train = [{"image": "t/1.jpg", "caption": "a", "image_id": "coco_1"}]
    train.append({"image": "t/1.jpg", "caption": "b", "image_id": "coco_1"})
    val = [{"image": "v/2.jpg", "caption": ["c", "d"]}]
    sources = [_write(tmp_path / "x_train.json", train), _write(tmp_path / "x_val.json", val)]
    dataset = load_dataset(sources, image_root=tmp_path / "img")
    assert dataset.splits["train"] == (
        Record("coco_1", "t/1.jpg", ("a", "b"), ("coco_1#0", "coco_1#1")),
    )
    assert dataset.splits["val"] == (
        Record("v/2.jpg", "v/2.jpg", ("c", "d"), ("v/2.jpg#0", "v/2.jpg#1")),
    )
    assert dataset.image_root == tmp_path / "img"


def test_flat_json_and_an_explicit_split(tmp_path):
    rows = [{"image_path": "images/1.jpg", "caption": "a", "image_id": 5}]
    nameless = [{"image_path": "1.jpg", "caption": "a", "image_id": None}]
    assert (
        load_dataset([_write(tmp_path / "val.json", nameless)]).splits["val"][0].image_id == "1.jpg"
    )
    dataset = load_dataset([f"test={_write(tmp_path / 'pairs.json', rows)}"])
    assert dataset.splits == {"test": (Record("5", "images/1.jpg", ("a",), ("5#0",)),)}


def test_manifests(tmp_path):
    jsonl = (
        '{"image": "1.jpg", "caption": "a"}\n\n{"image": "1.jpg", "caption": "b"}\n'
        '{"image": "2.jpg", "caption": "c", "split": "validation"}\n'
    )
    csv = (
        "image,caption,image_id,split\n0.jpg,one\u2028line\x0b,z,test\n"
        '1.jpg,"a, ""quoted""",x,train\n'
        '1.jpg,"two\nlines",x,train\n2.jpg,c,y,val\n'
    )
    one = load_dataset([_write(tmp_path / "a.jsonl", jsonl)])
    two = load_dataset([_write(tmp_path / "b.csv", csv)])
    assert one.name == "a"
    assert one.splits["train"][0].captions == ("a", "b")
    assert one.splits["val"][0].image_id == "2.jpg"
    assert two.splits["train"] == (
        Record("x", "1.jpg", ('a, "quoted"', "two\nlines"), ("x#0", "x#1")),
    )
    assert two.splits["val"][0].image_id == "y"
    assert two.splits["test"][0].captions == ("one\u2028line\x0b",)


def test_fingerprint_depends_on_every_part():
    base = Record("i", "p", ("a", "b"), ("1", "2"))
    others = [
        (Record("j", "p", ("a", "b"), ("1", "2")),),
        (Record("i", "q", ("a", "b"), ("1", "2")),),
        (Record("i", "p", ("a", "c"), ("1", "2")),),
        (Record("i", "p", ("a", "b"), ("1", "3")),),
        (Record("i", "p", ("a",), ("1",)), Record("b", "2", (), ())),
        (base, base),
    ]
    assert len({Records.from_records(r).fingerprint for r in [(base,), *others]}) == 7
    again = Record("i", "p", ("a", "b"), ("1", "2"))
    assert Records.from_records([base]).fingerprint == Records.from_records([again]).fingerprint


def test_limit_cuts_images_and_keeps_their_captions(tmp_path):
    dataset = load_dataset(
        [_write(tmp_path / "x.json", _karpathy((7, "train", ["a", "b"]), (9, "train", ["c"])))]
    )
    assert [r.image_id for r in dataset.limited(1).splits["train"]] == ["7"]
    with pytest.raises(DataError) as caught:
        dataset.select(["val"])
    assert caught.value.name == "val"


@pytest.mark.parametrize(
    ("name", "content", "location", "field"),
    [
        ("x.json", '{"images": [', "line 1", ""),
        ("x.json", '{"a": 1}', "", "columns"),
        ("x.json", {"images": [{"filename": "a.jpg", "split": "train"}]}, "images[0]", "sentences"),
        ("x.json", {"images": [{"split": "train", "sentences": []}]}, "images[0]", "filename"),
        ("x.json", {"images": ["a.jpg"]}, "images[0]", ""),
        (
            "x.json",
            {"images": [{"filename": "a.jpg", "sentences": ["b"]}]},
            "images[0].sentences[0]",
            "",
        ),
        ("x.json", {"images": [], "dataset": "../up"}, "", "dataset"),
        ("x.json", {"images": [], "dataset": 5}, "", "dataset"),
        ("train.json", [{"image": "a.jpg", "caption": 5}], "entry 0", "caption"),
        ("train.json", [{"image": "a.jpg", "caption": ["a", None]}], "entry 0", "caption"),
        ("train.json", [["a.jpg", "b"]], "entry 0", ""),
        ("train.json", [{"image": ["a.jpg"], "caption": "b"}], "entry 0", "image"),
        ("x.jsonl", '{"image": "a.jpg", "caption": "b"}\n{oops', "line 2", ""),
        ("x.jsonl", '{"image": "a.jpg"}', "", "columns"),
        ("x.jsonl", '{"image": "a", "caption": "b"}\n{"image": "c"}', "line 2", "caption"),
        ("x.jsonl", '{"image": "a.jpg", "caption": "\\ud83d"}', "line 1", ""),
        ("x.jsonl", '{"image": "a.jpg", "caption": "x\\u0000y"}', "line 1", "caption"),
        ("x.jsonl", '{"image": "a\\u0000.jpg", "caption": "x"}', "line 1", "image"),
        (
            "x.jsonl",
            '{"image": "a.jpg", "caption": "b", "image_id": 1' + "0" * 5000 + "}",
            "line 1",
            "",
        ),
        (
            "x.jsonl",
            '{"image": "a.jpg", "caption": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "line 1",
            "",
        ),
        ("x.csv", "picture,caption\na.jpg,b\n", "", "columns"),
        ("x.csv", "image,words\na.jpg,b\n", "", "columns"),
        ("x.csv", "image,caption,caption\na.jpg,b,c\n", "line 1", ""),
        ("x.csv", "image,caption\na.jpg,a dog, running fast\n", "line 2", ""),
        ("x.csv", 'image,caption\na.jpg,"two\nlines"\nb.jpg,a,b\n', "line 4", ""),
        ("x.csv", 'image,caption\na.jpg,"abc\nb.jpg,d\n', "line 2", ""),
        ("x.csv", "image,caption\na.jpg,b\nb.jpg,x\0y\n", "line 3", ""),
        ("x.csv", f"image,caption\na.jpg,b\nb.jpg,{'x' * 200_000}\n", "line 3", ""),
        ("x.csv", "image,caption\n,b\n", "line 2", "image"),
        ("x.parquet", "PAR1", "", ""),
    ],
)
def test_malformed_files_are_named_with_the_place_and_the_field(
    tmp_path, name, content, location, field
):
    path = _write(tmp_path / name, content)
    with pytest.raises(FileFormatError) as error:
        load_dataset(path)
    assert (str(error.value.path), error.value.location, error.value.name) == (
        path,
        location,
        field,
    )
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("name", "content", "location", "culprit"),
    [
        ("x.json", _karpathy((1, "later", ["a"])), "images[0]", "later"),
        ("x.json", {"images": []}, "", ""),
        ("x.json", _karpathy((1, "train", [])), "images[0]", "1"),
        ("x.json", _karpathy((1, "train", ["a"]), (1, "val", ["b"])), "images[1]", "1"),
        ("pairs.json", [{"image": "a.jpg", "caption": "b"}], "", "split"),
        (
            "train.json",
            [
                {"image": "a", "caption": "b", "image_id": 1},
                {"image": "c", "caption": "d", "image_id": 1},
            ],
            "entry 1",
            "1",
        ),
        ("x.jsonl", "", "", ""),
        ("x.csv", "", "", ""),
        ("x.csv", "image,caption\n", "", ""),
    ],
)  # fmt: skip
def test_data_that_cannot_be_joined_are_named(tmp_path, name, content, location, culprit):
    path = _write(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        load_dataset(path)
    assert (str(error.value.path), error.value.location, error.value.name) == (
        path,
        location,
        culprit,
    )
    assert "\n" not in str(error.value)


def test_caption_ids_are_unique_over_all_files(tmp_path):
    one, two = _karpathy((1, "train", ["a"])), _karpathy((2, "val", ["b"]))
    two["images"][0]["sentences"][0]["sentid"] = 10  # that of the other file's caption
    paths = [_write(tmp_path / "one.json", one), _write(tmp_path / "two.json", two)]
    with pytest.raises(DataError) as error:
        load_dataset(paths)
    assert (str(error.value.path), error.value.location, error.value.name) == (
        paths[1],
        "images[0]",
        "10",
    )


@pytest.mark.parametrize(
    ("written", "image_id"),
    [
        ('"007"', "007"),
        ("12", "12"),
        ("3.0", "3"),
        ("-0.0", "0"),
        ("null", "a.jpg"),
        ('""', "a.jpg"),
        ("1e15", "1" + "0" * 15),
    ],
)
def test_ids_are_texts_and_whole_numbers(tmp_path, written, image_id):
    line = f'{{"image": "a.jpg", "caption": "b", "image_id": {written}}}'
    assert load_dataset(_write(tmp_path / "x.jsonl", line)).splits["train"][0].image_id == image_id


@pytest.mark.parametrize("written", ["1.5", "true", "false", "[1]", '{"$oid": "5f"}', "1e16"])
def test_other_ids_are_refused(tmp_path, written):
    line = f'{{"image": "a.jpg", "caption": "b", "image_id": {written}}}'
    with pytest.raises(FileFormatError) as error:
        load_dataset(_write(tmp_path / "x.jsonl", line))
    assert (error.value.location, error.value.name) == ("line 1", "image_id")
    content = _karpathy((1, "train", ["a"]))
    content["images"][0]["sentences"][0]["sentid"] = json.loads(written)
    with pytest.raises(FileFormatError) as error:
        load_dataset(_write(tmp_path / "x.json", content))
    assert (error.value.location, error.value.name) == ("images[0].sentences[0]", "sentid")


def test_the_ends_of_csv_cells_are_dropped(tmp_path):
    """Spreadsheets leave line breaks in quoted cells, people spaces after commas."""
    content = (
        'image, caption ,image_id,split\r\n"a.jpg\n","a dog\n","x\n", train \r\n\r\n'
        ' b.jpg, "a,\tb",y,val\r\n'
    )
    dataset = load_dataset(_write(tmp_path / "x.csv", content))
    assert dataset.splits["train"] == (Record("x", "a.jpg", ("a dog",), ("x#0",)),)
    assert dataset.splits["val"] == (Record("y", "b.jpg", ("a,\tb",), ("y#0",)),)


def test_a_csv_file_may_have_columns_without_a_name(tmp_path):
    pandas = ",image,caption,image_id,\n0,a.jpg,x,3.0,\n1,b.jpg,y,,\n"
    assert [
        record.image_id
        for record in load_dataset(_write(tmp_path / "x.csv", pandas)).splits["train"]
    ] == [
        "3.0",  # a text, as all cells of CSV
        "b.jpg",
    ]


def test_a_form_is_recognised_by_what_a_file_holds(tmp_path):
    want = (
        Record("a.jpg", "a.jpg", ("b",), ("a.jpg#0",)),
        Record("c.jpg", "c.jpg", ("d",), ("c.jpg#0",)),
    )
    lines = '{"image": "a.jpg", "caption": "b"}\n{"image": "c.jpg", "caption": "d"}\n'
    for name in ("x.jsonl", "x.json", "x.txt", "x"):
        assert load_dataset(_write(tmp_path / name, lines)).splits == {"train": want}, name
    listed = [{"image": "a.jpg", "caption": "b"}, {"image": "c.jpg", "caption": "d"}]
    for name in ("train.json", "train.jsonl", "train.txt"):
        assert load_dataset(_write(tmp_path / name, json.dumps(listed, indent=1))).splits == {
            "train": want
        }, name
    for name in ("captions.txt", "x.csv"):
        content = "\ufeffimage,caption\na.jpg,b\nc.jpg,d\n"
        assert load_dataset(_write(tmp_path / name, content)).splits == {"train": want}, name
    one = load_dataset(_write(tmp_path / "one.jsonl", '{"image": "a.jpg", "caption": "b"}'))
    assert one.splits == {"train": want[:1]}


def _coco(*annotations, **image):
    images = [
        {"id": 139, "file_name": "000139.jpg", **image},
        {"id": 285, "file_name": "000285.jpg"},
    ]
    listed = [
        dict(zip(("image_id", "id", "caption"), values, strict=True)) for values in annotations
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": listed}


def test_cocos_own_captions(tmp_path):
    content = _coco((285, 7, "a bear"), (139, 5, "a room"), (285, 6, "a brown bear"))
    dataset = load_dataset(_write(tmp_path / "captions_val2017.json", content))
    assert dataset.splits == {
        "val": (
            Record("285", "000285.jpg", ("a bear", "a brown bear"), ("7", "6")),
            Record("139", "000139.jpg", ("a room",), ("5",)),
        )
    }
    assert (
        entry_location(dataset.files, dataset.splits["val"][0].positions[1])[1] == "annotations[2]"
    )
    assert load_dataset(f"test={tmp_path / 'captions_val2017.json'}").splits.keys() == {"test"}


def test_cocos_own_captions_find_their_images_as_the_archives_unpack_them(tmp_path):
    url = "http://images.cocodataset.org/val2017/000139.jpg"
    path = _write(
        tmp_path / "annotations" / "captions_val2017.json",
        _coco((139, 5, "a"), (285, 6, "b"), coco_url=url),
    )
    assert load_dataset(path).splits["val"][0].image_path == "000139.jpg"  # nothing is there yet
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "000139.jpg").touch()
    for root in (None, tmp_path):
        dataset = load_dataset(path, image_root=root)
        assert [record.image_path for record in dataset.splits["val"]] == [
            "val2017/000139.jpg",
            "val2017/000285.jpg",
        ]
        assert dataset.image_root == tmp_path
    assert (
        load_dataset(path, image_root=tmp_path / "val2017").splits["val"][0].image_path
        == "000139.jpg"
    )


@pytest.mark.parametrize(
    ("content", "location", "name"),
    [
        (_coco((139, 5, "a"), (1, 6, "b")), "annotations[1]", "image_id"),
        (_coco((139, 5, "a"), (None, 6, "b")), "annotations[1]", "image_id"),
        (_coco((139, 5, "a")), "", "285"),
        (_coco((139, 5, "a"), (285, 6, "b"), id=285), "images[1]", "id"),
        (_coco((139, 5, "a"), (285, 6, "b"), id=None), "images[0]", "id"),
        (
            {**_coco(), "annotations": [{"bbox": [0, 0, 1, 1], "image_id": 139}]},
            "annotations[0]",
            "caption",
        ),
    ],
)
def test_malformed_captions_of_coco(tmp_path, content, location, name):
    with pytest.raises(FileFormatError) as error:
        load_dataset(_write(tmp_path / "captions_val2017.json", content))
    assert (error.value.location, error.value.name) == (location, name)


@pytest.mark.parametrize(
    ("folder", "split"), [("photos", "train"), ("validation", "val"), ("test", "test")]
)
def test_imagefolder(tmp_path, folder, split):
    lines = '{"file_name": "0.jpg", "text": "a dog"}\n{"file_name": "sub/1.jpg", "text": "a cat"}\n'
    want = {split: (Record("0.jpg", "0.jpg", ("a dog",), ("0.jpg#0",)),
                    Record("sub/1.jpg", "sub/1.jpg", ("a cat",), ("sub/1.jpg#0",)))}  # fmt: skip
    assert load_dataset(_write(tmp_path / folder / "metadata.jsonl", lines)).splits == want
    table = "file_name,text\n0.jpg,a dog\nsub/1.jpg,a cat\n"
    assert load_dataset(_write(tmp_path / folder / "metadata.csv", table)).splits == want


def test_a_data_set_is_given_as_a_text_a_path_or_several(tmp_path):
    path = tmp_path / "x_train.json"
    _write(path, [{"image": "a.jpg", "caption": "b"}])
    want = load_dataset([str(path)])
    for sources in (str(path), path, [path], (str(path),)):
        assert load_dataset(sources).splits == want.splits
    both = load_dataset(
        [path, f"val={_write(tmp_path / 'y.json', [{'image': 'c.jpg', 'caption': 'd'}])}"]
    )
    assert list(both.splits) == ["train", "val"]
    assert "train: 1 images, val: 1 images" in repr(both)
    with pytest.raises(DataError):
        load_dataset([])


def test_records_know_where_they_stand(tmp_path):
    _write(tmp_path / "a.csv", 'image,caption\n1.jpg,"two\nlines"\n2.jpg,x\n\n1.jpg,y\n')
    _write(tmp_path / "b.jsonl", '\n{"image": "3.jpg", "caption": "z", "split": "val"}\n')
    dataset = load_dataset([tmp_path / "a.csv", tmp_path / "b.jsonl"])
    places = {}
    for records_of_split in dataset.splits.values():
        for record in records_of_split:
            places[record.image_id] = [
                entry_location(dataset.files, position) for position in record.positions
            ]
    assert places == {
        "1.jpg": [(tmp_path / "a.csv", "line 2"), (tmp_path / "a.csv", "line 6")],
        "2.jpg": [(tmp_path / "a.csv", "line 4")],
        "3.jpg": [(tmp_path / "b.jsonl", "line 2")],
    }


def test_many_captions_of_one_image_take_no_longer(tmp_path):
    """A list copied for each of them would be 25 GB of copying."""
    lines = "".join(f'{{"image": "a.jpg", "caption": "{number}"}}\n' for number in range(80_000))
    began = time.process_time()
    assert (
        len(load_dataset(_write(tmp_path / "x.jsonl", lines)).splits["train"][0].captions) == 80_000
    )
    assert time.process_time() - began < 10


def test_missing_files(tmp_path):
    with pytest.raises(DataError) as caught:
        load_dataset([str(tmp_path / "nope.json")])
    assert caught.value.path == tmp_path / "nope.json"
    with pytest.raises(DataError) as caught:
        load_dataset(["coco"], data_root=tmp_path)
    assert caught.value.path == tmp_path / "coco" / "dataset_coco.json"
    assert caught.value.name == "coco"
    with pytest.raises(DataError) as caught:
        load_dataset([str(tmp_path)])
    assert caught.value.path == tmp_path
    (tmp_path / "latin.csv").write_bytes(b"image,caption\na.jpg,caf\xe9\n")
    with pytest.raises(FileFormatError) as caught:
        load_dataset([str(tmp_path / "latin.csv")])
    assert (caught.value.path, caught.value.location) == (tmp_path / "latin.csv", "byte 23")
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / "wide.csv").write_bytes("image,caption\na.jpg,b\n".encode(encoding))
        with pytest.raises(FileFormatError) as caught:
            load_dataset(tmp_path / "wide.csv")
        assert caught.value.path == tmp_path / "wide.csv"
    with pytest.raises(DataError) as caught:
        load_dataset(os.fsdecode(b"caf\xe9.csv"))
    assert caught.value.name == "dataset"


ODD_VALUES = [
    None,
    True,
    0,
    -1,
    1.5,
    10**4000,
    "",
    " ",
    "a\0b",
    "é",
    "x" * 100_000,
    [],
    ["a"],
    [None],
    [["a"]],
    {},
    {"a": 1},
    [{}],
    [{"raw": 5}],
    [{"raw": "x", "sentid": []}],
]
FORMS = {
    "karpathy.json": _karpathy((1, "train", ["a"])),
    "captions_train.json": _coco((139, 5, "a"), (285, 6, "b"), coco_url="http://x/y/z.jpg"),
    "train.json": [{"image": "a.jpg", "caption": "b", "image_id": 1, "image_path": "c.jpg"}],
    "pairs.jsonl": {"image": "a.jpg", "caption": "b", "image_id": 1, "split": "val"},
    "metadata.jsonl": {"file_name": "a.jpg", "text": "b", "image_id": 1, "split": "val"},
}


def _places(content, path=()):
    """Every value within parsed JSON, by the keys that lead to it."""
    yield path
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in items:
        yield from _places(value, (*path, key))


def _replaced(content, path, value):
    if not path:
        return value
    copy = content.copy()
    copy[path[0]] = _replaced(content[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("name", FORMS)
def test_any_value_in_any_place_is_read_or_refused(tmp_path, name):
    errors = []
    for place in _places(FORMS[name]):
        for value in ODD_VALUES:
            _write(tmp_path / name, json.dumps(_replaced(FORMS[name], place, value)))
            try:
                dataset = load_dataset(tmp_path / name)
            except CusaError as error:
                errors.append(error)
            else:
                records = chain.from_iterable(dataset.splits.values())
                assert Records.from_records(records).fingerprint
    assert len(errors) > 40
    assert {error.path for error in errors} == {tmp_path / name}
    assert not [str(error) for error in errors if "\n" in str(error)]
    assert max(len(str(error)) for error in errors) < 1000 + 4 * len(str(tmp_path))
