"""Orientation and transparency in a teacher's settings, and stores that they do not concern."""

import numpy as np
import pytest
from PIL import Image

from cusa.data.errors import DataError, ImageError, StoreError
from cusa.data.images import DECODING
from cusa.data.records import Dataset, Record
from cusa.data.store.reader import EmbeddingStore
from cusa.precompute.audit import audit
from cusa.precompute.pictures import changed_decoding, refuse_changed_pictures
from cusa.precompute.teachers import parse_teacher
from tests.helpers import make_pairs, make_tiny_sentence, make_tiny_vit, run_failure, run_ok


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The arguments that made a store before settings told how pictures are decoded."""
    manifest = make_pairs(tmp_path / "d")
    vit, words = make_tiny_vit(tmp_path / "vit"), make_tiny_sentence(tmp_path / "words")
    teachers = ("--teacher", f"see={vit}", "--teacher", f"read={words}")
    out = tmp_path / "s.h5"
    args = ("--dataset", manifest, *teachers, "--out", out, "--workers", 0, "--shard-rows", 3)
    with monkeypatch.context() as patch:
        patch.setattr("cusa.precompute.teachers.base.DECODING", {})
        run_ok("precompute", *args, "--splits", "train")
    assert "orientation" not in EmbeddingStore(out).teachers["see"].transform
    return args


def _turn(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)


def test_settings_tell_how_pictures_are_decoded(tmp_path):
    manifest, vit = make_pairs(tmp_path / "d"), make_tiny_vit(tmp_path / "vit")
    words = make_tiny_sentence(tmp_path / "words")
    teachers = ("--teacher", f"see={vit}", "--teacher", f"read={words}", "--workers", 0)
    run_ok("precompute", "--dataset", manifest, *teachers, "--out", tmp_path / "s.h5")
    settings = EmbeddingStore(tmp_path / "s.h5").teachers
    assert settings["see"].transform["orientation"] == "exif"
    assert settings["see"].transform["transparency"] == "white"
    assert "orientation" not in settings["read"].transform


def test_rows_of_turned_pictures_are_the_upright_ones(tmp_path):
    """A picture stored sideways, with its orientation, has the row of its upright copy."""
    manifest, vit = make_pairs(tmp_path / "d", n=6, n_val=2), make_tiny_vit(tmp_path / "vit")
    exif = Image.Exif()
    exif[0x0112] = 8
    upright = np.asarray(Image.open(tmp_path / "d" / "000.jpg"))
    Image.fromarray(upright).save(tmp_path / "d" / "000.png")
    Image.fromarray(np.rot90(upright, -1).copy()).save(tmp_path / "d" / "001.png", exif=exif)
    clear = np.dstack([upright, np.zeros_like(upright[..., 0])])
    Image.fromarray(clear).save(tmp_path / "d" / "002.png")
    Image.new("RGB", (48, 36), "white").save(tmp_path / "d" / "003.png")
    manifest.write_text(
        "".join(
            f"{line}\n" for line in manifest.read_text().replace(".jpg", ".png").splitlines()[:8]
        )
    )
    words = make_tiny_sentence(tmp_path / "words")
    teachers = (
        "--teacher",
        f"see={vit}",
        "--teacher",
        f"read={words}",
        "--workers",
        0,
        "--val-fraction",
        0,
    )
    run_ok(
        "precompute",
        "--dataset",
        manifest,
        *teachers,
        "--out",
        tmp_path / "s.h5",
        "--dtype",
        "float32",
    )
    rows = EmbeddingStore(tmp_path / "s.h5").embeddings("see", "train").gather(np.arange(4))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    np.testing.assert_allclose(rows[2], rows[3], atol=1e-6)
    assert rows[0] @ rows[2] < 0.9999


def test_old_rows_are_refused_until_the_pictures_are_checked(old):
    out = old[old.index("--out") + 1]
    error = run_failure("precompute", *old)
    assert (type(error), error.path, error.name) == (StoreError, out, "see")
    text = run_ok("precompute", *old, "--check-pictures")
    assert "see: no picture has an EXIF orientation or transparency; its rows are kept" in text
    store = EmbeddingStore(out)
    assert set(store.splits_of("see")) == {"train", "val"}
    assert "orientation" not in store.teachers["see"].transform
    results = audit(store, "see", None, 20, 0, "cpu")
    assert all(result.least > 0.9999 and result.differing == () for result in results)


def test_old_shards_without_an_index_are_known_too(old):
    out = old[old.index("--out") + 1]
    out.unlink()
    assert run_failure("precompute", *old).path == out
    run_ok("precompute", *old, "--check-pictures")
    assert len(EmbeddingStore(out).embeddings("see", "train")) == 8


def test_old_rows_of_a_turned_picture_stay_refused(old, tmp_path):
    # Of a split that has no rows yet: those of one teacher are not to be mixed.
    turned = tmp_path / "d" / "010.jpg"
    _turn(turned)
    error = run_failure("precompute", *old, "--check-pictures")
    assert (type(error), error.path, error.name) == (DataError, turned, "see")


def test_rows_of_halved_pictures_stay_readable_and_get_no_others(tmp_path, monkeypatch):
    """Earlier versions could halve large JPEGs while they decoded them."""
    manifest = make_pairs(tmp_path / "d")
    teachers = ("--teacher", f"see={make_tiny_vit(tmp_path / 'vit')}", "--teacher", "minilm")
    out = tmp_path / "s.h5"
    args = ("--dataset", manifest, *teachers, "--workers", 0)
    with monkeypatch.context() as patch:
        halved = {**DECODING, "jpeg_draft": 96}
        patch.setattr("cusa.precompute.teachers.base.DECODING", halved)
        run_ok("precompute", *args, "--out", out, "--splits", "train")

    error = run_failure("precompute", *args, "--out", out)
    assert (type(error), error.name) == (StoreError, "see")
    assert "transform.jpeg_draft" in error.location
    store = EmbeddingStore(out)
    assert len(store.embeddings("see", "train")) == 8
    # Its teacher decodes whole pictures, and the audit says that those of the store were not.
    assert "jpeg_draft" not in _loaded_again(store).transform
    (result,) = audit(store, "see", None, 20, 0, "cpu")
    assert [field.split()[0] for field in result.differing] == ["transform.jpeg_draft"]
    run_ok("precompute", *args, "--out", tmp_path / "new.h5", "--reuse", out)
    assert "jpeg_draft" not in EmbeddingStore(tmp_path / "new.h5").teachers["see"].transform


def _loaded_again(store):
    """The settings of the teacher that a search or an evaluation loads for a store's rows."""
    request = parse_teacher(f"see={store.sources['see']}")
    return request.load_as(store.teachers["see"], "cpu").settings("fp32", "float16", "none")


def test_what_decodes_otherwise(tmp_path):
    rgb = Image.new("RGB", (8, 6), "red")
    plain = {"a.jpg": {}, "b.png": {}, "c.webp": {}, "d.tiff": {}}
    for name, options in plain.items():
        rgb.save(tmp_path / name, **options)
        assert changed_decoding(tmp_path / name) is None
        _turn(tmp_path / name)
    # Pillow has turned TIFFs at all times.
    assert [changed_decoding(tmp_path / name) for name in plain] == [
        *["EXIF orientation 6"] * 3,
        None,
    ]
    rgb.convert("RGBA").save(tmp_path / "opaque.png")
    assert changed_decoding(tmp_path / "opaque.png") is None
    Image.new("RGBA", (8, 6)).save(tmp_path / "clear.png")
    assert changed_decoding(tmp_path / "clear.png") == "transparent pixels"
    Image.new("L", (9_500, 9_500)).save(tmp_path / "huge.jpg")
    assert changed_decoding(tmp_path / "huge.jpg") == "more than 89,478,485 pixels"


def test_pictures_that_cannot_be_read_are_passed_over_only_where_they_are_skipped(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    records = [Record(name, f"{name}.png", ("x",), (f"{name}#0",)) for name in ("a", "missing")]
    dataset = Dataset("d", tmp_path, {"train": tuple(records)})
    refuse_changed_pictures(dataset, "see", skip_errors=True)
    with pytest.raises(ImageError) as missing:
        refuse_changed_pictures(dataset, "see", skip_errors=False)
    assert missing.value.path == tmp_path / "missing.png"
    Image.new("RGBA", (8, 6)).save(tmp_path / "missing.png")
    with pytest.raises(DataError) as changed:
        refuse_changed_pictures(dataset, "see", skip_errors=True)
    assert changed.value.path == tmp_path / "missing.png"
    assert changed.value.name == "see"
