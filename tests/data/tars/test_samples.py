"""Samples of tars: as webdataset groups them, and what becomes of damaged tars."""

import gzip
import os
import random

import pytest
import webdataset

from cusa.data.errors import DataError, SettingError
from cusa.data.tars.pairs import caption_reader, read_pairs_of_tar
from cusa.data.tars.paths import are_tars, expand_tars, tars_in_range
from cusa.data.tars.samples import TarError, read_samples
from tests.data.tars.tar_files import jpeg, pair, write_tar, write_tars

ODD_NAMES = [
    ("a.JPG", jpeg(0)),
    ("a.txt", b"picture"),
    ("sub.dir/b.c.jpg", jpeg(1)),
    ("sub.dir/b.c.txt", b"a file of b with the extension c.txt"),
    ("noextension", b"?"),
    ("__about__.json", b"{}"),
    ("__meta__/x.txt", b"?"),
    ("x" * 180 + ".png", jpeg(2)),
    ("x" * 180 + ".txt", b"a long name"),
    ("grüße.webp", jpeg(3)),
    ("empty.jpg", b""),
]


def _of_webdataset(path):
    samples = webdataset.WebDataset(str(path), shardshuffle=False)
    return [(s["__key__"], {k: s[k] for k in s if not k.startswith("__")}) for s in samples]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's files
@pytest.mark.parametrize("members", [ODD_NAMES, pair(1) + pair(2), []])
def test_samples_are_those_of_webdataset(tmp_path, members):
    path = write_tar(tmp_path / "0.tar", members)
    content = path.read_bytes()
    contents = read_samples(path)
    assert contents.damage is None
    samples = []
    for sample in contents.samples:
        files = {}
        for extension, member in sample.members.items():
            files[extension] = content[member.offset : member.offset + member.size]
        samples.append((sample.key, files))
    assert samples == (_of_webdataset(path) if members else [])


@pytest.mark.parametrize("seed", range(20))
def test_a_cut_tar_keeps_its_whole_samples(tmp_path, seed):
    [path] = write_tars(tmp_path, 1, 5)
    whole = read_pairs_of_tar(path, "txt", False)
    captions = [sample.members["txt"] for sample in read_samples(path).samples]
    caption_ends = [caption.offset + caption.size for caption in captions]
    content = path.read_bytes()
    n_bytes = random.Random(seed).randrange(600, len(content) - 10_000)
    path.write_bytes(content[:n_bytes])
    with pytest.raises(TarError) as caught:
        read_pairs_of_tar(path, "txt", False)
    assert caught.value.path == path
    kept = read_pairs_of_tar(path, "txt", True)
    assert not kept.is_complete
    assert kept.records == whole.records[: len(kept.records)]
    assert len(kept.records) == sum(end <= n_bytes for end in caption_ends)


NO_TARS = {
    "empty": b"",
    "text": b"no tar at all" * 100,
    "zeros": b"\0" * 100,
    "compressed": gzip.compress(b"x" * 2_000),
}


@pytest.mark.parametrize("content", NO_TARS.values(), ids=NO_TARS)
def test_what_is_no_tar_is_refused(tmp_path, content):
    path = tmp_path / "0.tar"
    path.write_bytes(content)
    for may_be_damaged in (False, True):
        with pytest.raises(TarError) as caught:
            read_pairs_of_tar(path, "txt", may_be_damaged)
        assert caught.value.path == path


def _with_header(path, number, size=None, kind=None, times=1):
    """Change the size or type of a file in a tar, or repeat its header."""
    content = path.read_bytes()
    start = read_samples(path).samples[number].members["jpg"].offset - 512
    header = bytearray(content[start : start + 512])
    if size is not None:
        marker = b"\x80" if size >= 0 else b"\xff"
        header[124:136] = marker + (size % 256**11).to_bytes(11, "big")
    if kind is not None:
        header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(content[:start] + bytes(header) * times + content[start + 512 :])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "header",
    [
        {"size": -1024},
        {"size": 2**62},
        {"size": 2**80},
        {"size": 2**40, "kind": b"L"},
        {"size": 2**62, "kind": b"x"},
        {"size": 2**80, "kind": b"L"},
        {"size": -512, "kind": b"x"},
        {"size": 2**40, "kind": b"5"},
        {"kind": b"S"},
        {"size": 0, "kind": b"L", "times": 2_000},
    ],
    ids=str,
)
def test_a_header_that_lies_is_damage(tmp_path, header, number):
    [path] = write_tars(tmp_path, 1, 3)
    _with_header(path, number, **header)
    with pytest.raises(TarError) as caught:
        read_pairs_of_tar(path, "txt", False)
    assert caught.value.path == path


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / "0.tar")
    with pytest.raises(TarError) as caught:
        read_samples(tmp_path / "0.tar")
    assert caught.value.path == tmp_path / "0.tar"


def test_what_is_kept_of_a_tar_does_not_depend_on_its_place(tmp_path):
    members = [*pair(1), *pair(2), *pair(1)]
    places = [write_tar(tmp_path / name / "0.tar", members) for name in ("a", "b")]
    left_out = [read_pairs_of_tar(place, "txt", True).left_out for place in places]
    assert left_out[0] == left_out[1]


def test_a_missing_tar_is_refused(tmp_path):
    with pytest.raises(TarError):
        read_samples(tmp_path / "0.tar")


def test_noise_within_a_tar_is_damage(tmp_path):
    [path] = write_tars(tmp_path, 1, 3)
    content = bytearray(path.read_bytes())
    second = read_pairs_of_tar(path, "txt", False).image_offsets[1]
    content[second - 512 : second] = b"\x07" * 512
    path.write_bytes(content)
    with pytest.raises(TarError):
        read_pairs_of_tar(path, "txt", False)
    assert len(read_pairs_of_tar(path, "txt", True).records) == 1


@pytest.mark.parametrize(
    "members",
    [pair(1) + pair(2) + pair(1), [*pair(1), ("000001.txt", b"another"), *pair(2)]],
    ids=["a sample twice", "a file twice"],
)
def test_a_repeated_key_is_named_and_none_of_its_files_kept(tmp_path, members):
    path = write_tar(tmp_path / "0.tar", members)
    with pytest.raises(TarError) as caught:
        read_pairs_of_tar(path, "txt", False)
    assert caught.value.name == "000001"
    kept = read_pairs_of_tar(path, "txt", True)
    assert [record.image_id for record in kept.records] == ["0/000002"]
    assert [key for key, _ in kept.left_out] == ["000001"]


LEFT_OUT = {
    "no image": [("k.txt", b"words")],
    "no caption": [("k.jpg", jpeg(0))],
    "blank": [("k.jpg", jpeg(0)), ("k.txt", b" \n")],
    "not UTF-8": [("k.jpg", jpeg(0)), ("k.txt", b"\xff\xfe")],
    "a NUL": [("k.jpg", jpeg(0)), ("k.txt", b"a\0b")],
}


@pytest.mark.parametrize("members", LEFT_OUT.values(), ids=LEFT_OUT)
def test_a_sample_that_is_no_pair_is_left_out(tmp_path, members):
    path = write_tar(tmp_path / "0.tar", pair(1) + members + pair(2))
    pairs = read_pairs_of_tar(path, "txt", False)
    assert [record.image_id for record in pairs.records] == ["0/000001", "0/000002"]
    assert [key for key, _ in pairs.left_out] == ["k"]
    assert pairs.is_complete


def test_captions_of_json_may_be_several(tmp_path):
    path = write_tar(tmp_path / "0.tar", [*pair(7), ("k.jpg", jpeg(0)), ("k.json", b'{"all": 1}')])
    assert read_pairs_of_tar(path, "json:all", False).records[0].captions == (
        "picture number 7",
        "two",
    )
    [(key, _)] = read_pairs_of_tar(path, "json:all", False).left_out
    assert key == "k"


def test_a_caption_that_is_escaped_in_json_is_checked_as_others_are(tmp_path):
    nul = [("k.jpg", jpeg(0)), ("k.json", b'{"caption": "a\\u0000b"}')]
    path = write_tar(tmp_path / "0.tar", [*pair(1), *nul])
    [(key, _)] = read_pairs_of_tar(path, "json:caption", False).left_out
    assert key == "k"


@pytest.mark.parametrize("rule", ["", "json", "json:", "xml"])
def test_an_unknown_caption_rule_is_refused(rule):
    with pytest.raises(SettingError) as caught:
        caption_reader(rule)
    assert caught.value.name == "caption"


# --- paths


def test_patterns_name_tars(tmp_path):
    paths = write_tars(tmp_path / "set", 4, 1)
    assert expand_tars([f"{tmp_path}/set/{{00000..00003}}.tar"]) == paths
    assert expand_tars([f"{tmp_path}/set/*.tar"]) == paths
    assert expand_tars([f"{tmp_path}/set"]) == paths
    assert expand_tars([f"{tmp_path}/set/{{00003,00001}}.tar"]) == [paths[1], paths[3]]
    assert are_tars([f"{tmp_path}/set"])
    assert are_tars([str(paths[0]), f"{tmp_path}/set/{{0..3}}.tar"])
    assert not are_tars([str(tmp_path), str(paths[0])])
    assert not are_tars([])
    (tmp_path / "set" / "00000.parquet").touch()
    (tmp_path / "set" / "._00000.tar").touch()
    (tmp_path / "set" / "_tmp").mkdir()
    assert are_tars([f"{tmp_path}/set"])
    assert expand_tars([f"{tmp_path}/set"]) == paths
    (tmp_path / "set" / "a.JPG").touch()
    assert not are_tars([f"{tmp_path}/set"])


def test_pictures_beside_the_tar_that_they_came_in_are_no_tars(tmp_path):
    write_tars(tmp_path, 1, 1)
    (tmp_path / "Images").mkdir()
    assert not are_tars([str(tmp_path)])


def test_patterns_that_name_nothing_or_one_name_twice_are_refused(tmp_path):
    write_tars(tmp_path / "a", 1, 1)
    write_tars(tmp_path / "b", 1, 1)
    hidden = write_tar(tmp_path / ".hidden.tar", pair(1))
    (tmp_path / "none").mkdir()
    wrong = ([f"{tmp_path}/c*.tar"], [f"{tmp_path}/{{0..3.tar"], [f"{tmp_path}/none"])
    for datasets in (*wrong, [], [str(hidden)], [f"{tmp_path}/\udcff.tar"]):
        with pytest.raises(DataError):
            expand_tars(datasets)
    with pytest.raises(DataError) as caught:
        expand_tars([f"{tmp_path}/a", f"{tmp_path}/b"])
    assert caught.value.name == "00000"


def test_jobs_of_an_array_share_the_tars(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.tar" for number in range(10)]
    assert tars_in_range(paths, (2, 4)) == paths[2:4]
    assert tars_in_range(paths, None) == paths
    for wrong in ((3, 3), (0, 11), (4, 2)):
        with pytest.raises(DataError) as caught:
            tars_in_range(paths, wrong)
        assert caught.value.name == "tars"
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    for step in (1, 5):
        monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", str(step))
        monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", str(1 + 2 * step))
        shares = []
        for number in range(3):
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(1 + number * step))
            shares += tars_in_range(paths, None)
        assert shares == paths


@pytest.mark.parametrize("number", [1, 3, 7])
def test_an_array_with_gaps_is_refused(tmp_path, monkeypatch, number):
    """Such as the jobs that are sent again: their shares would be other ones."""
    array = {"COUNT": 3, "MIN": 1, "MAX": 7, "STEP": 1, "ID": number}
    for name, value in array.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    with pytest.raises(DataError) as caught:
        tars_in_range([tmp_path / "0.tar"], None)
    assert caught.value.name == "SLURM_ARRAY_TASK_ID"
