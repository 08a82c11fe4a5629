import json

import pytest

from cusa.data.datasets import KNOWN_SIZES, load_dataset
from cusa.data.errors import CusaError
from cusa.data.records import Record, caption_rows, fingerprint


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
                "sentences": [{"raw": text, "sentid": 10 * cocoid + i} for i, text in enumerate(texts)],
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
    assert caption_rows(dataset.splits["train"]).tolist() == [0, 0, 1]
    assert dataset.notes[0] == "coco train has 2 images, the Karpathy split has 113,287"  # by path, too


def test_karpathy_flickr_has_no_ids_of_its_own(tmp_path):
    content = {"dataset": "flickr30k", "images": [{"filename": "1.jpg", "split": "val", "sentences": [{"raw": "a"}]}]}
    dataset = load_dataset([_write(tmp_path / "f.json", content)])
    assert dataset.splits["val"] == (Record("1.jpg", "1.jpg", ("a",), ("1.jpg#0",)),)


@pytest.mark.parametrize("folder", ["", "annotations"])
def test_named_data_set_reports_unexpected_sizes(tmp_path, folder):
    _write(tmp_path / "coco" / folder / "dataset_coco.json", _karpathy((7, "train", ["a"]), (3, "test", ["d"])))
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
    assert dataset.splits["train"] == (Record("coco_1", "t/1.jpg", ("a", "b"), ("coco_1#0", "coco_1#1")),)
    assert dataset.splits["val"] == (Record("v/2.jpg", "v/2.jpg", ("c", "d"), ("v/2.jpg#0", "v/2.jpg#1")),)
    assert dataset.image_root == tmp_path / "img"


def test_flat_json_and_an_explicit_split(tmp_path):
    rows = [{"image_path": "images/1.jpg", "caption": "a", "image_id": 5}]
    nameless = [{"image_path": "1.jpg", "caption": "a", "image_id": None}]
    assert load_dataset([_write(tmp_path / "val.json", nameless)]).splits["val"][0].image_id == "1.jpg"
    dataset = load_dataset([f"test={_write(tmp_path / 'pairs.json', rows)}"])
    assert dataset.splits == {"test": (Record("5", "images/1.jpg", ("a",), ("5#0",)),)}


def test_manifests(tmp_path):
    jsonl = (
        '{"image": "1.jpg", "caption": "a"}\n\n{"image": "1.jpg", "caption": "b"}\n'
        '{"image": "2.jpg", "caption": "c", "split": "validation"}\n'
    )
    csv = (
        'image,caption,image_id,split\n0.jpg,one\u2028line\x0b,z,test\n1.jpg,"a, ""quoted""",x,train\n'
        '1.jpg,"two\nlines",x,train\n2.jpg,c,y,val\n'
    )
    one = load_dataset([_write(tmp_path / "a.jsonl", jsonl)])
    two = load_dataset([_write(tmp_path / "b.csv", csv)])
    assert one.name == "a"
    assert one.splits["train"][0].captions == ("a", "b")
    assert one.splits["val"][0].image_id == "2.jpg"
    assert two.splits["train"] == (Record("x", "1.jpg", ('a, "quoted"', "two\nlines"), ("x#0", "x#1")),)
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
    assert len({fingerprint(r) for r in [(base,), *others]}) == 7
    assert fingerprint((base,)) == fingerprint((Record("i", "p", ("a", "b"), ("1", "2")),))


def test_limit_cuts_images_and_keeps_their_captions(tmp_path):
    dataset = load_dataset([_write(tmp_path / "x.json", _karpathy((7, "train", ["a", "b"]), (9, "train", ["c"])))])
    assert [r.image_id for r in dataset.limited(1).splits["train"]] == ["7"]
    with pytest.raises(CusaError, match="no split 'val'; it has: train"):
        dataset.select(["val"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '{"images": [', "not valid json"),
        ("x.json", '{"a": 1}', "neither Karpathy's form"),
        ("x.json", _karpathy((1, "later", ["a"])), "unknown split 'later'; legal: train, val, test"),
        ("x.json", {"images": [{"filename": "a.jpg", "split": "train"}]}, "no list 'sentences'"),
        ("x.json", {"images": [{"split": "train", "sentences": []}]}, "'filename' must be a text"),
        ("x.json", {"images": []}, "holds no image-caption pair"),
        ("x.json", _karpathy((1, "train", [])), "has no caption"),
        ("x.json", _karpathy((1, "train", ["a"]), (1, "val", ["b"])), "used twice"),
        ("pairs.json", [{"image": "a.jpg", "caption": "b"}], "tells no split; pass --dataset train="),
        ("train.json", [{"image": "a.jpg", "caption": 5}], "'caption' must be a text"),
        ("train.json", [["a.jpg", "b"]], "expected an object"),
        (
            "train.json",
            [{"image": "a.jpg", "caption": "b", "image_id": 1}, {"image": "c.jpg", "caption": "d", "image_id": 1}],
            "stands for two files, a.jpg and c.jpg",
        ),
        ("x.jsonl", '{"image": "a.jpg", "caption": "b"}\n{oops', "line 2 is not valid json"),
        ("x.jsonl", '{"image": "a.jpg"}', "'caption' must be a text"),
        ("x.csv", "picture,caption\na.jpg,b\n", "lacks image"),
        ("x.csv", "", "lacks caption, image"),
        ("x.csv", "image,caption\na.jpg,a dog, running fast\n", "line 2: not as many fields as the header"),
        ("x.csv", 'image,caption\na.jpg,"abc\nb.jpg,d\n', "not valid csv"),
        ("x.jsonl", '{"image": "a.jpg", "caption": "\\ud83d"}', "lone surrogate"),
        ("x.parquet", "", "legal: .json, .jsonl, .csv"),
        ("x.jsonl", "", "holds no image-caption pair"),
    ],
)
def test_bad_annotations(tmp_path, name, content, message):
    with pytest.raises(CusaError, match=message) as error:
        load_dataset([_write(tmp_path / name, content)])
    assert "\n" not in str(error.value)


def test_missing_files(tmp_path):
    with pytest.raises(CusaError, match=r"nope.json does not exist"):
        load_dataset([str(tmp_path / "nope.json")])
    with pytest.raises(CusaError, match=r"put Karpathy's dataset_coco.json"):
        load_dataset(["coco"], data_root=tmp_path)
    with pytest.raises(CusaError, match="is a folder"):
        load_dataset([str(tmp_path)])
    (tmp_path / "latin.csv").write_bytes(b"image,caption\na.jpg,caf\xe9\n")
    with pytest.raises(CusaError, match="not UTF-8"):
        load_dataset([str(tmp_path / "latin.csv")])
