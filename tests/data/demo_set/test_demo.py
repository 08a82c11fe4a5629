"""The embedded data set: the same bytes every time, and captions whose truth is known."""

from __future__ import annotations

import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cusa.data.demo_set import make as demo
from cusa.data.demo_set.captions import draw_captions
from cusa.data.demo_set.make import make_demo
from cusa.data.demo_set.truth import truth_of
from cusa.data.demo_set.world import Claim, Description, Scene, Thing, draw_scenes
from cusa.data.records import Dataset

SMALL = {"n_train": 24, "n_val": 8, "n_test": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_demo(tmp_path_factory.mktemp("demo"), **SMALL)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def _mtimes(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_same_seed_same_bytes_and_another_seed_others(made: Dataset, tmp_path: Path) -> None:
    make_demo(tmp_path / "again", **SMALL)
    assert _bytes(tmp_path / "again") == _bytes(made.image_root)
    make_demo(tmp_path / "other", seed=1, **SMALL)
    assert all(
        _bytes(tmp_path / "other")[name] != content
        for name, content in _bytes(made.image_root).items()
    )


def test_second_call_loads_and_renders_nothing(made: Dataset) -> None:
    before = _mtimes(made.image_root)
    again = make_demo(made.image_root, **SMALL)
    assert _mtimes(made.image_root) == before
    assert again.splits == made.splits
    for split, truth in made.truth.items():
        for name, array in vars(truth).items():
            np.testing.assert_array_equal(getattr(again.truth[split], name), array)


def test_killed_run_is_redone(
    made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    render = demo.render

    def killed_at_the_tenth(*args):
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return render(*args)

    monkeypatch.setattr(demo, "render", killed_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path, **SMALL)
    assert 0 < len(_bytes(tmp_path)) < 10
    monkeypatch.undo()
    make_demo(tmp_path, **SMALL)
    assert _bytes(tmp_path) == _bytes(made.image_root)


@pytest.mark.parametrize(
    "lost", ["demo.json", "manifest.jsonl", "truth.npz", "images/val/demo-val-00003.jpg"]
)
def test_folder_that_lost_a_file_is_redone(lost: str, made: Dataset, tmp_path: Path) -> None:
    make_demo(tmp_path, **SMALL)
    (tmp_path / lost).unlink()
    make_demo(tmp_path, **SMALL)
    assert _bytes(tmp_path) == _bytes(made.image_root)


def _flip(content: bytes) -> bytes:
    return content[:90] + bytes([content[90] ^ 1]) + content[91:]


@pytest.mark.parametrize("damaged", ["demo.json", "manifest.jsonl", "truth.npz"])
@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        lambda content: content[:50],
        lambda content: b"",
        lambda content: b"\xff\xfe" + content,
        lambda content: b"[" * 100_000,
        lambda content: content.replace(b'"images"', b'"pictures"') + b"\n ",
    ],
    ids=["flipped bit", "truncated", "empty", "no UTF-8", "nested", "other"],
)
def test_folder_with_a_damaged_file_is_redone(
    damaged: str, damage, made: Dataset, tmp_path: Path
) -> None:
    folder = shutil.copytree(made.image_root, tmp_path / "demo")
    (folder / damaged).write_bytes(damage((folder / damaged).read_bytes()))
    again = make_demo(folder, **SMALL)
    assert again.splits == made.splits
    assert _bytes(folder)["truth.npz"] == _bytes(made.image_root)["truth.npz"]
    assert _bytes(folder)["manifest.jsonl"] == _bytes(made.image_root)["manifest.jsonl"]


def test_folder_of_other_sizes_seed_or_version_is_redone(
    made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_demo(tmp_path, seed=3, n_train=30, n_val=2, n_test=2)
    make_demo(tmp_path, **SMALL)
    assert _bytes(tmp_path) == _bytes(made.image_root)  # no image of the larger split is left
    before = _mtimes(tmp_path)
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    make_demo(tmp_path, **SMALL)
    assert all(_mtimes(tmp_path)[path] != mtime for path, mtime in before.items())


def test_records_have_stable_ids_and_five_different_captions(made: Dataset) -> None:
    assert made.name == "demo"
    assert {split: len(records) for split, records in made.splits.items()} == {
        "train": 24,
        "val": 8,
        "test": 8,
    }
    for split, records in made.splits.items():
        for i, record in enumerate(records):
            assert record.image_id == f"demo-{split}-{i:05d}"
            assert record.caption_ids == tuple(f"{record.image_id}#{k}" for k in range(5))
            assert len(set(record.captions)) == 5
            assert all(c == c.strip() and "  " not in c for c in record.captions)


def test_images_open_in_the_right_size(made: Dataset) -> None:
    for records in made.splits.values():
        for record in records:
            with Image.open(made.image_root / record.image_path) as image:
                assert (image.size, image.mode) == ((224, 224), "RGB")


def test_a_longer_split_begins_with_a_shorter_one() -> None:
    assert draw_scenes("val", 9, seed=5)[:4] == draw_scenes("val", 4, seed=5)
    assert draw_scenes("val", 4, seed=5) != draw_scenes("test", 4, seed=5)


RED_STAR_OVER_BLUE_RING = Scene(
    (
        Thing("star", "red", "large", row=0, column=1),
        Thing("ring", "blue", "small", row=2, column=1),
    ),
    "sea",
)
TWO_RED_STARS = Scene(
    (
        Thing("star", "red", "small", row=1, column=0),
        Thing("star", "red", "medium", row=1, column=2),
    ),
    "snow",
)
ONE_RED_STAR = Scene((Thing("star", "red", "large", row=1, column=1),), "sea")
WORLD = [RED_STAR_OVER_BLUE_RING, TWO_RED_STARS, ONE_RED_STAR]

RED_STAR, BLUE = Description(("star",), ("red",)), Description(colours=("blue",))


@pytest.mark.parametrize(
    ("said", "claim", "true_of"),
    [
        ("a shape", Claim((Description(),)), [0, 1, 2]),
        ("a red star", Claim((RED_STAR,)), [0, 1, 2]),
        ("a red star and a red star", Claim((RED_STAR, RED_STAR)), [1]),
        ("something blue or purple", Claim((Description(colours=("blue", "purple")),)), [0]),
        ("a round shape", Claim((Description(("circle", "ring")),)), [0]),
        ("a large star", Claim((Description(("star",), size="large"),)), [0, 2]),
        ("a large ring", Claim((Description(("ring",), size="large"),)), []),
        ("a star at the top", Claim((Description(("star",), row=0),)), [0]),
        ("a star in the middle", Claim((Description(("star",), row=1, column=1),)), [2]),
        ("a red star above something blue", Claim((RED_STAR, BLUE), "above"), [0]),
        ("something blue above a red star", Claim((BLUE, RED_STAR), "above"), []),
        (
            "a star left of a star",
            Claim((Description(("star",)), Description(("star",))), "left of"),
            [1],
        ),
        ("two shapes, one of them red", Claim((Description(colours=("red",)),), count=2), [0, 1]),
        ("a single shape, red", Claim((Description(colours=("red",)),), count=1), [2]),
        (
            "a star in the snow or on the sea",
            Claim((Description(("star",)),), settings=("snow", "sea")),
            [0, 1, 2],
        ),
        ("a star on the sea", Claim((Description(("star",)),), settings=("sea",)), [0, 2]),
    ],
)
def test_truth_of_claims_that_a_reader_can_check(
    said: str, claim: Claim, true_of: list[int]
) -> None:
    truth = truth_of(WORLD, [claim])
    assert truth.indices.tolist() == true_of, said
    assert truth.indptr.tolist() == [0, len(true_of)]


def test_images_of_the_same_cast_share_a_label() -> None:
    elsewhere = Scene(
        (
            Thing("ring", "blue", "large", row=0, column=0),
            Thing("star", "red", "small", row=2, column=2),
        ),
        "chess",
    )
    a, b, c, d = truth_of([*WORLD, elsewhere], []).image_labels
    assert a == d
    assert len({a, b, c}) == 3


def _holds(claim: Claim, scene: Scene) -> bool:
    """The truth of a claim, the slow way: try every choice of things for the parts."""
    if claim.count is not None and len(scene.things) != claim.count:
        return False
    if claim.settings and scene.setting not in claim.settings:
        return False
    for things in permutations(scene.things, len(claim.descriptions)):
        fits = all(
            _fits(description, thing)
            for description, thing in zip(claim.descriptions, things, strict=True)
        )
        if claim.relation == "above":
            fits = fits and things[0].row < things[1].row
        if claim.relation == "left of":
            fits = fits and things[0].column < things[1].column
        if fits:
            return True
    return False


def _fits(description: Description, thing: Thing) -> bool:
    return (
        (not description.kinds or thing.kind in description.kinds)
        and (not description.colours or thing.colour in description.colours)
        and (description.size is None or thing.size == description.size)
        and (description.row is None or thing.row == description.row)
        and (description.column is None or thing.column == description.column)
    )


def test_truth_agrees_with_brute_force_and_holds_the_own_image() -> None:
    scenes = draw_scenes("test", 120, seed=2)
    claims = [
        c for i, s in enumerate(scenes) for c in draw_captions(s, np.random.default_rng(i)).values()
    ]
    assert len(claims) == 600
    truth = truth_of(scenes, claims)
    for c, claim in enumerate(claims):
        rows = truth.indices[truth.indptr[c] : truth.indptr[c + 1]].tolist()
        assert rows == [i for i, scene in enumerate(scenes) if _holds(claim, scene)]
        assert c // 5 in rows


def test_stored_truth_holds_the_own_image(made: Dataset) -> None:
    for split, records in made.splits.items():
        truth = made.truth[split]
        assert (truth.image_labels.dtype, truth.indptr.dtype, truth.indices.dtype) == (
            np.int64,
        ) * 3
        assert len(truth.image_labels) == len(records)
        own = records.caption_image
        assert len(truth.indptr) == len(own) + 1
        for c, image in enumerate(own):
            assert image in truth.indices[truth.indptr[c] : truth.indptr[c + 1]]


def test_default_world_has_many_captions_true_of_several_images_and_labels_that_recur() -> None:
    scenes = draw_scenes("test", 400, seed=0)
    claims = [
        c for i, s in enumerate(scenes) for c in draw_captions(s, np.random.default_rng(i)).values()
    ]
    truth = truth_of(scenes, claims)
    n_true = np.diff(truth.indptr).reshape(400, 5)
    assert (n_true > 1).mean() > 0.6
    medians = np.median(n_true, axis=0)
    assert medians[0] == 1  # the first caption names nearly everything,
    assert medians[4] > 20  # the last hardly anything
    sizes = np.bincount(truth.image_labels)
    assert (sizes >= 3).mean() > 0.5  # labels with 3 images or more
    assert (sizes[truth.image_labels] >= 3).mean() > 0.75  # images with such a label
