"""Files of ours that are whole HDF5 under a checksum that holds, and say what makes no sense."""

import os
import shutil
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest

from cusa.data.errors import SettingError, StoreError
from cusa.data.records import Dataset, Truth
from cusa.data.store.checksum import (
    BLOCK,
    SHARD_FORMAT,
    ChecksumError,
    ReplacedError,
    read_seal,
)
from cusa.data.store.index import read_index
from cusa.data.store.reader import EmbeddingStore
from cusa.data.store.shards import read_picture_digests, read_shard
from cusa.data.store.verify import verify
from tests.helpers import (
    Fault,
    add_teacher,
    change_sealed,
    make_store,
    records,
    run_error,
    run_fault,
    settings,
    unit_rows,
)

INDEX_DATASETS = [
    *(
        f"splits/train/{column}/{part}"
        for column in ("image_ids", "captions")
        for part in ("bytes", "offsets")
    ),
    "splits/train/caption_image",
    *(f"splits/train/truth/{name}" for name in ("image_labels", "indptr", "indices")),
    *(
        f"teachers/vision/train/shards/{name}"
        for name in ("bounds", "offsets", "files/offsets", "sha256/bytes")
    ),
    "teachers/vision/train/skipped",
]
INDEX_GROUPS = [
    "splits",
    "splits/train",
    "splits/train/captions",
    "splits/train/truth",
    "teachers",
    "teachers/vision",
    "teachers/vision/train",
    "teachers/vision/train/shards",
    "teachers/vision/train/shards/files",
]
INDEX_ATTRIBUTES = [
    ("/", "dataset"),
    ("/", "image_root"),
    ("splits/train", "fingerprint"),
    ("teachers/vision", "settings"),
    ("teachers/vision", "source"),
    ("teachers/vision", "version.numpy"),
]


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    owners = np.repeat(np.arange(16), 2)
    truth = {"train": Truth(np.arange(16) // 2, np.arange(33), owners)}
    dataset = Dataset(
        "made-up", folder, {"train": records("train", 16), "val": records("val", 5)}, truth
    )
    images = {"train": unit_rows(16, 4, 0), "val": unit_rows(5, 4, 1)}
    add_teacher(
        folder / "store.h5", dataset, "vision", settings("image", 4), images, skipped=[3, 4]
    )
    words = {"train": unit_rows(32, 4, 2)}
    add_teacher(folder / "store.h5", dataset, "words", settings("text", 4), words, shard_rows=16)
    return folder / "store.h5"


@pytest.fixture
def index(whole_store, tmp_path):
    return shutil.copytree(whole_store.parent, tmp_path / "s") / whole_store.name


def read_everything(index):
    """All that a reader of a store can ask for, in comparable form."""
    store = EmbeddingStore(index)
    answers = [store.dataset, str(store.image_root), store.sources, store.versions]
    for split in store.splits.values():
        columns = split.image_ids, split.image_paths, split.caption_ids, split.captions
        answers += [[*column[:]] for column in columns]
        answers += [split.fingerprint, split.caption_image.tolist()]
        answers += (
            [] if split.truth is None else [array.tolist() for array in vars(split.truth).values()]
        )
    for teacher in store.teachers:
        answers.append(store.teachers[teacher].to_json())
        for split in store.splits_of(teacher):
            rows = store.embeddings(teacher, split)
            answers += [rows.skipped.tolist(), np.asarray(rows).tobytes()]
    return answers


def assert_refused(index, name=None):
    """By every reader, in one line that names the file."""
    with pytest.raises(StoreError) as error:
        read_everything(index)
    assert error.value.path == index
    assert name is None or name in error.value.name
    assert "\n" not in str(error.value)
    with pytest.raises(StoreError):
        read_index(index)
    assert verify(index)[1][0].path == index


def _delete(file, name):
    del file[name]


def _as_group(file, name):
    del file[name]
    file.create_group(name)


def _as_soft_link(file, name):
    file.move(name, "elsewhere")
    file[name] = h5py.SoftLink("/elsewhere")


def _as_external_link(file, name):
    with h5py.File(Path(file.filename).with_name("foreign.h5"), "w") as foreign:
        file.copy(name, foreign, name="x")
    del file[name]
    file[name] = h5py.ExternalLink("foreign.h5", "/x")


def _as_text(file, name):
    del file[name]
    file[name] = "text"


def _as_floats(file, name):
    values = file[name][...]
    del file[name]
    file[name] = values.astype("<f4")


def _as_big_endian(file, name):
    values = file[name][...]
    del file[name]
    swapped = values.dtype.newbyteorder(">")
    file.create_dataset(name, data=values.astype(">i2" if swapped == values.dtype else swapped))


def _as_one_more_dimension(file, name):
    values = file[name][...]
    del file[name]
    file[name] = values[None]


def _as_chunks(file, name):
    values = file[name][...]
    del file[name]
    chunks = tuple(max(1, length) for length in values.shape)
    file.create_dataset(
        name, data=values, chunks=chunks, maxshape=(None,) * values.ndim, compression="gzip"
    )


def _as_32_tebibytes(file, name):
    """Claimed and never written: an array of that size must not be asked for."""
    dtype, n_dimensions = file[name].dtype, file[name].ndim
    del file[name]
    file.create_dataset(name, shape=(1 << 42, 2)[:n_dimensions], dtype=dtype)


def _as_nothing(file, name):
    dtype, n_dimensions = file[name].dtype, file[name].ndim
    del file[name]
    file.create_dataset(name, shape=(0, 2)[:n_dimensions], dtype=dtype)


def _shorter(file, name):
    values = file[name][:-1]
    del file[name]
    file[name] = values


def _negative(file, name):
    file[name][0] = -1


def _huge(file, name):
    file[name][-1] = 1 << 62


OF_DATASETS = [
    _delete,
    _as_group,
    _as_soft_link,
    _as_external_link,
    _as_text,
    _as_floats,
    _as_big_endian,
    _as_one_more_dimension,
    _as_chunks,
    _as_32_tebibytes,
]


@pytest.mark.parametrize("change", OF_DATASETS)
@pytest.mark.parametrize("name", INDEX_DATASETS)
def test_datasets_of_another_kind(index, name, change):
    change_sealed(index, lambda file: change(file, name))
    assert_refused(index, name)


@pytest.mark.parametrize("change", [_as_nothing, _shorter, _negative, _huge])
@pytest.mark.parametrize("name", [name for name in INDEX_DATASETS if not name.endswith("bytes")])
def test_datasets_of_other_numbers(index, name, change):
    """Refused, or what was stored; never other rows."""
    harmless = name.endswith("image_labels") and change in (
        _negative,
        _huge,
    )  # any number is a label
    harmless |= name.endswith("skipped") and change in (_as_nothing, _shorter)  # the shards tell
    before = read_everything(index)
    change_sealed(index, lambda file: change(file, name))
    if harmless:
        assert len(read_everything(index)) == len(before)
    elif name.endswith("shards/offsets"):  # of shards, it is the shards that tell
        with pytest.raises(StoreError):
            read_everything(index)
    else:
        assert_refused(index)


@pytest.mark.parametrize(
    "command",
    ["info", "verify", "merge", "export", "inspect", "audit", "import", "import-runs"],
)
@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_what_is_no_store_is_one_line_in_every_command(tmp_path, command, content):
    foreign, rows = tmp_path / "foreign.h5", tmp_path / "rows.npy"
    foreign.write_bytes(content)
    np.save(rows, np.ones((1, 4), np.float32))
    (tmp_path / "ids.json").write_text('["a"]')
    arguments = {
        "merge": (tmp_path / "out.h5", foreign),
        "export": (foreign, tmp_path / "out.npy", "--teacher", "vision", "--split", "train"),
        "import": (
            foreign,
            rows,
            "--ids",
            tmp_path / "ids.json",
            "--teacher",
            "x",
            "--split",
            "train",
        ),
        "import-runs": (foreign, tmp_path / "run", "--cross-teacher", "x"),
    }
    assert run_fault("store", command, *arguments.get(command, (foreign,))) == Fault(
        StoreError, path=foreign
    )
    assert foreign.read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"foreign.h5", "rows.npy", "ids.json"}


def test_a_merged_store_has_the_name_of_one(index, tmp_path):
    for name in ("out", "out.hdf5"):
        fault = Fault(SettingError, path=tmp_path / name)
        assert run_fault("store", "merge", tmp_path / name, index) == fault
        assert not (tmp_path / name).exists()
        arguments = (
            tmp_path / name,
            tmp_path / "x.npy",
            "--ids",
            tmp_path / "x.json",
            "--teacher",
            "t",
            "--split",
            "train",
        )
        assert run_fault("store", "import", *arguments) == fault


@pytest.mark.parametrize("rows", [[3, 3], [5, 2], [-1], [16], [1 << 62]])
def test_skipped_rows_ascend_within_the_split(index, rows):
    name = "teachers/vision/train/skipped"

    def skip(file):
        del file[name]
        file.create_dataset(name, data=np.asarray(rows, "<i8"))

    change_sealed(index, skip)
    assert_refused(index, name)


@pytest.mark.parametrize("change", [_delete, _as_text, _as_soft_link, _as_external_link])
@pytest.mark.parametrize("name", INDEX_GROUPS)
def test_groups_of_another_kind(index, name, change):
    before = read_everything(index)
    change_sealed(index, lambda file: change(file, name))
    if name == "splits/train/truth" and change is _delete:  # it may be missing
        assert len(read_everything(index)) == len(before) - 3
    elif name in ("teachers/vision", "teachers/vision/train") and change is _delete:
        assert len(read_everything(index)) < len(before)
    else:
        assert_refused(index)


@pytest.mark.parametrize(
    "value",
    [None, 5, 1.5, True, np.zeros(3), h5py.Empty("f"), np.bytes_(b"\xff\xfe"), np.bytes_(b"a\0b")],
    ids=repr,
)
@pytest.mark.parametrize(("group", "name"), INDEX_ATTRIBUTES)
def test_attributes_of_another_kind(index, group, name, value):
    before = read_everything(index)

    def change(file):
        del file[group].attrs[name]
        if value is not None:
            file[group].attrs[name] = value

    change_sealed(index, change)
    if name.startswith("version.") and value is None:
        assert len(read_everything(index)) == len(before)
    else:
        assert_refused(index, name)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"dim": 4', '"dim": 1e12', "dim"),
        ('"dim": 4', '"dim": 4.0', "dim"),
        ('"dim": 4', '"dim": true', "dim"),
        ('"dim": 4', '"dim": 99999999999', "dim"),
        ('"dim": 4', '"dim": 0', "dim"),
        ('"dim": 4', '"dim": ' + "9" * 5000, "settings"),
        ('"dtype": "float16"', '"dtype": "O"', "dtype"),
        ('"dtype": "float16"', '"dtype": ["float16"]', "dtype"),
        ('"modality": "image"', '"modality": "sound"', "modality"),
        ('"normalized": true', '"normalized": "yes"', "normalized"),
        ('"transform": {"size": 8}', '"transform": ' + "[" * 20_000 + "]" * 20_000, "settings"),
        ('"transform": {"size": 8}', '"transform": null', "transform"),
        ('"weights_sha256": "', '"weights": "', "weights_sha256"),
        ("{", "[", "settings"),
    ],
)
def test_settings_that_make_no_sense(index, old, new, field):
    def change(file):
        attributes = file["teachers/vision"].attrs
        attributes["settings"] = attributes["settings"].replace(old, new, 1)

    change_sealed(index, change)
    assert_refused(index, field)


@pytest.mark.parametrize("dim", [2, 8])
def test_another_width_is_no_longer_or_shorter_row(index, dim):
    def change(file):
        attributes = file["teachers/vision"].attrs
        attributes["settings"] = attributes["settings"].replace('"dim": 4', f'"dim": {dim}')

    change_sealed(index, change)
    assert verify(index)[1]


def test_texts_that_are_no_utf8(index):
    def change(file):
        file["splits/train/captions/bytes"][3] = 0xFF

    change_sealed(index, change)
    assert_refused(index, "splits/train/captions")


@pytest.mark.parametrize("file_name", ["/dev/zero", "../elsewhere.h5", "store/\0.h5", "store"])
def test_shards_lie_below_the_store(index, file_name):
    name = "teachers/vision/train/shards/files"
    n_shards = 3

    def change(file):
        raw = file_name.encode().ljust(8, b"x") if "\0" in file_name else file_name.encode()
        del file[name]
        part = file.create_group(name)
        part.create_dataset("bytes", data=np.frombuffer(raw * n_shards, np.uint8))
        part.create_dataset("offsets", data=np.arange(n_shards + 1) * len(raw))

    change_sealed(index, change)
    with pytest.raises(StoreError):
        read_everything(index)
    assert verify(index)[1]


SHARD_ATTRIBUTES = [
    "teacher",
    "split",
    "split_fingerprint",
    "start",
    "stop",
    "settings",
    "format_version",
]


def _shard(index):
    return index.with_suffix("") / "vision" / "train-000000000-000000007.h5"


@pytest.mark.parametrize(
    ("name", "change"), [("rows", _shorter), *product(("rows", "skipped"), OF_DATASETS)]
)
def test_shards_of_another_kind(index, name, change):
    shard = _shard(index)
    change_sealed(shard, lambda file: change(file, name))
    with pytest.raises(StoreError) as error:
        read_shard(index.parent, shard.relative_to(index.parent).as_posix())
    assert error.value.path == shard
    assert [damage.path for damage in verify(index)[1]] == [shard]
    with pytest.raises(StoreError) as error:
        EmbeddingStore(index).embeddings("vision", "train")[5]
    assert error.value.path == shard


@pytest.mark.parametrize("value", [None, "x", 1.5, np.zeros(3), -5, 1 << 62], ids=repr)
@pytest.mark.parametrize("name", SHARD_ATTRIBUTES)
def test_attributes_of_shards(index, name, value):
    shard = _shard(index)

    def change(file):
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    change_sealed(shard, change)
    assert [damage.path for damage in verify(index)[1]] == [shard]
    if not isinstance(value, str):
        run_error("store", "merge", index.with_name("out.h5"), index)


def test_an_index_is_verified_when_it_is_opened(index):
    """A bit of a caption, of an id, of a teacher's settings: nothing is read from it."""
    content = index.read_bytes()
    for place in range(BLOCK, len(content), 997):
        index.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ChecksumError):
            EmbeddingStore(index)


def test_a_long_index_is_verified_when_asked_for(index, monkeypatch):
    monkeypatch.setattr("cusa.data.store.reader.VERIFIED_BYTES", 1000)
    content = index.read_bytes()
    place = content.index(b"train 3 text 0")
    index.write_bytes(content[:place] + b"T" + content[place + 1 :])
    store = EmbeddingStore(index)
    with pytest.raises(ChecksumError):
        store.verify_index()
    index.write_bytes(content)
    EmbeddingStore(index).verify_index()


def test_a_store_that_was_replaced_while_it_was_open_is_noticed(index, tmp_path):
    """What was read of the old index, such as where captions begin, says nothing of the new one."""
    mapped, unmapped = EmbeddingStore(index), EmbeddingStore(index)
    assert mapped.split("train").captions[3] == "train 1 text 1"
    other = make_store(tmp_path / "other", {"train": 30, "val": 5}, dim=4)
    os.replace(other, index)
    assert (
        mapped.split("train").captions[4] == "train 2 text 0"
    )  # the old file, as long as it is mapped
    for read in (
        lambda: unmapped.split("train").captions[3],
        lambda: unmapped.split("train").caption_image,
        lambda: unmapped.embeddings("vision", "train"),
    ):
        with pytest.raises(ReplacedError):
            read()


@pytest.mark.parametrize("place", [700, -40])
def test_a_damaged_shard_never_reaches_the_hdf5_library(index, monkeypatch, place):
    """The library may not come back from it."""
    path = next(index.with_suffix("").rglob("*.h5"))
    seal = read_seal(path, SHARD_FORMAT)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr("h5py.File", None)
    with pytest.raises(StoreError) as raised:
        read_shard(index.parent, str(path.relative_to(index.parent)))
    assert raised.value.path == path
    with pytest.raises(StoreError) as raised:
        read_picture_digests(path, seal)
    assert raised.value.path == path
