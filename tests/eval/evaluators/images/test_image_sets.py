import contextlib
import hashlib
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from scipy.io import savemat

from cusa.data.errors import CusaError, DataError, FileFormatError, SettingError
from cusa.eval.evaluators.images import data as image_sets
from cusa.eval.evaluators.images.data import find_image_sets, load_image_set
from cusa.eval.evaluators.images.known_sets import IMAGE_SETS
from cusa.eval.evaluators.images.lists import read_annotations
from tests.helpers import Fault, fault_of


def write(root: Path, name: str, text: str | bytes = b"") -> None:
    """A file; without text an "image", whose bytes nobody may need."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def expect(monkeypatch, name: str, queries: int, gallery: int | None, classes: int) -> None:
    """Let a made-up tree of that size be the whole published data set."""
    known = IMAGE_SETS[name]
    size = replace(known, queries=queries, gallery=gallery, classes=classes)
    monkeypatch.setattr(
        image_sets, "IMAGE_SETS", MappingProxyType({**image_sets.IMAGE_SETS, name: size})
    )


def annotations(root: Path, name: str, fields: tuple[str, ...], rows: list[tuple]) -> None:
    """A MATLAB file with the struct array of the cars' devkit, [1, n]."""
    array = np.zeros((1, len(rows)), dtype=[(f, object) for f in fields])
    for n, row in enumerate(rows):
        array[0, n] = row
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    savemat(root / name, {"annotations": array})


BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
BIRDS = {  # id: class, path
    1: (100, "100.Brown_Pelican/Brown_Pelican_0122_94022.jpg"),
    2: (101, "101.White_Pelican/White_Pelican_0039_96934.jpg"),
    3: (102, "102.Western_Wood_Pewee/Western_Wood_Pewee_0040_795046.jpg"),
    4: (101, "101.White_Pelican/White_Pelican_0025_97604.jpg"),
    5: (200, "200.Common_Yellowthroat/Common_Yellowthroat_0049_190708.jpg"),
}


def make_cub(root: Path) -> Path:
    classes = {label: path.partition("/")[0] for label, path in BIRDS.values()}
    write(root, "classes.txt", "".join(f"{label} {name}\n" for label, name in classes.items()))
    write(root, "images.txt", "".join(f"{n} {path}\n" for n, (_, path) in BIRDS.items()))
    write(
        root, "image_class_labels.txt", "".join(f"{n} {label}\n" for n, (label, _) in BIRDS.items())
    )
    for _, path in BIRDS.values():
        write(root, f"images/{path}")
    return root


def make_cars(root: Path) -> Path:
    fields = ("relative_im_path", *BOX, "class", "test")
    rows = [(98, 0), (99, 0), (99, 1), (196, 1), (1, 1)]
    annotations(
        root,
        "cars_annos.mat",
        fields,
        [(f"car_ims/{n:06d}.jpg", 1, 2, 3, 4, c, t) for n, (c, t) in enumerate(rows, 1)],
    )
    for n in range(1, 6):
        write(root, f"car_ims/{n:06d}.jpg")
    return root


def make_cars_devkit(
    root: Path, test_list: str = "cars_test_annos_withlabels.mat", nested: bool = False
) -> Path:
    fields = (*BOX, "class", "fname")
    train = [(39, 116, 569, 375, c, f"{n:05d}.jpg") for n, c in enumerate((14, 99, 150), 1)]
    test = [(30, 52, 246, 147, c, f"{n:05d}.jpg") for n, c in enumerate((181, 2, 99), 1)]
    annotations(root, "devkit/cars_train_annos.mat", fields, train)
    annotations(root, test_list, fields, test)
    for half in ("cars_train", "cars_test"):
        for n in range(1, 4):
            write(root, f"{half}/{half}/{n:05d}.jpg" if nested else f"{half}/{n:05d}.jpg")
    return root


def make_cars_csv(root: Path, base: str = "car_data/car_data/", header: str = "") -> Path:
    write(
        root,
        "anno_train.csv",
        header + "00001.jpg,39,116,569,375,14\n00002.jpg,36,116,868,587,174\n",
    )
    write(
        root,
        "anno_test.csv",
        header + "00001.jpg,30,52,246,147,181\n00002.jpg,100,19,576,203,174\n",
    )
    write(root, f"{base}train/Audi TTS Coupe 2012/00001.jpg")
    write(root, f"{base}train/Ram C-V Cargo Van Minivan 2012/00002.jpg")
    write(root, f"{base}test/Suzuki Aerio Sedan 2007/00001.jpg")
    write(root, f"{base}test/Ram C-V Cargo Van Minivan 2012/00002.jpg")
    return root


SOP_HEADER = "image_id class_id super_class_id path\n"


def make_sop(root: Path) -> Path:
    images = {
        "59552": (11319, "bicycle_final/251952414262_0.JPG"),
        "59553": (11319, "bicycle_final/251952414262_1.JPG"),
    }
    images["59554"] = (22634, "toaster_final/391106790575_2.JPG")
    write(
        root,
        "Ebay_test.txt",
        SOP_HEADER + "".join(f"{n} {c} 1 {path}\n" for n, (c, path) in images.items()),
    )
    write(root, "Ebay_train.txt", SOP_HEADER + "1 1 1 bicycle_final/111085122871_0.JPG\n")
    for _, path in images.values():
        write(root, path)
    return root


CLOTHES = [
    ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
    ("img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg", "id_00000001", "query"),
    ("img/WOMEN/Blouses_Shirts/id_00000001/02_2_side.jpg", "id_00000001", "gallery"),
    ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "gallery"),
    ("img/MEN/Denim/id_00000080/01_2_side.jpg", "id_00000080", "query"),
    ("img/MEN/Denim/id_00000080/01_7_additional.jpg", "id_00000080", "query"),
]


def make_inshop(
    root: Path, partition: str = "Eval/list_eval_partition.txt", images: str = "Img/"
) -> Path:
    rows = "".join(f"{name.ljust(70)} {item}  {status}\n" for name, item, status in CLOTHES)
    write(root, partition, f"{len(CLOTHES)}\nimage_name item_id evaluation_status\n{rows}")
    for name, _, _ in CLOTHES:
        write(root, images + name)
    return root


SPECIES = [
    "train_val2018/Aves/3210/aa.jpg",
    "train_val2018/Plantae/7477/bb.jpg",
    "train_val2018/Aves/3210/cc.jpg",
]


def make_inaturalist(
    root: Path, split: str = "Inat_dataset_splits/Inaturalist_test_set1.txt"
) -> Path:
    write(root, split, "".join(f"{path}\n" for path in SPECIES))
    for path in SPECIES:
        write(root, path)
    return root


MAKE = {
    "cub": (make_cub, (4, None, 3)),
    "cars": (make_cars, (3, None, 2)),
    "sop": (make_sop, (3, None, 2)),
    "inshop": (make_inshop, (3, 2, 2)),
    "inaturalist": (make_inaturalist, (3, None, 2)),
}


def test_the_published_sizes():
    # CUSA's supplementary, image retrieval; Unicom, table 8; the data sets' own papers.
    assert {name: (s.queries, s.gallery, s.classes) for name, s in IMAGE_SETS.items()} == {
        "cub": (5_924, None, 100),
        "cars": (8_131, None, 98),
        "sop": (60_502, None, 11_316),
        "inshop": (14_218, 12_612, 3_985),
        "inaturalist": (136_093, None, 2_452),
    }


# --- what is read


def test_cub_tests_on_the_second_half_of_the_classes(tmp_path, monkeypatch):
    expect(monkeypatch, "cub", 4, None, 3)
    birds = load_image_set("cub", make_cub(tmp_path / "CUB_200_2011"))
    assert birds.queries.ids == tuple(f"images/{BIRDS[n][1]}" for n in (2, 3, 4, 5))
    assert birds.queries.labels.tolist() == [101, 102, 101, 200]
    assert birds.queries.labels.dtype == np.int64
    assert birds.queries.paths == tuple(tmp_path / "CUB_200_2011" / i for i in birds.queries.ids)
    assert (birds.name, birds.gallery, birds.n_classes) == ("cub", None, 3)
    assert birds.notes == (
        "2 of 4 queries have no other image of their class to find, and always count as misses",
    )


def test_cars_of_both_halves_of_the_classification_split(tmp_path, monkeypatch):
    expect(monkeypatch, "cars", 3, None, 2)
    cars = load_image_set("cars", make_cars(tmp_path))
    assert cars.queries.ids == ("car_ims/000002.jpg", "car_ims/000003.jpg", "car_ims/000004.jpg")
    assert cars.queries.labels.tolist() == [99, 99, 196]
    assert cars.queries.paths[0] == tmp_path / "car_ims/000002.jpg"


@pytest.mark.parametrize(
    "test_list", ["cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"]
)
@pytest.mark.parametrize("nested", [False, True])
def test_cars_of_the_devkit(tmp_path, monkeypatch, test_list, nested):
    expect(monkeypatch, "cars", 4, None, 3)
    cars = load_image_set("cars", make_cars_devkit(tmp_path, test_list, nested))
    assert cars.queries.ids == (
        "cars_train/00002.jpg",
        "cars_train/00003.jpg",
        "cars_test/00001.jpg",
        "cars_test/00003.jpg",
    )
    assert cars.queries.labels.tolist() == [99, 150, 181, 99]
    assert all(path.is_file() for path in cars.queries.paths)


@pytest.mark.parametrize("base", ["car_data/car_data/", "car_data/", ""])
@pytest.mark.parametrize("header", ["", "filename,x1,y1,x2,y2,class\n"])
def test_cars_of_the_csv_files_lie_in_class_folders(tmp_path, monkeypatch, base, header):
    expect(monkeypatch, "cars", 3, None, 2)
    cars = load_image_set("cars", make_cars_csv(tmp_path, base, header))
    assert cars.queries.ids == (
        "train/Ram C-V Cargo Van Minivan 2012/00002.jpg",
        "test/Suzuki Aerio Sedan 2007/00001.jpg",
        "test/Ram C-V Cargo Van Minivan 2012/00002.jpg",
    )
    assert cars.queries.labels.tolist() == [174, 181, 174]
    assert cars.queries.paths == tuple(tmp_path / f"{base}{i}" for i in cars.queries.ids)


def test_cars_take_the_list_whose_images_are_there(tmp_path, monkeypatch):
    expect(monkeypatch, "cars", 4, None, 3)
    annotations(
        tmp_path, "cars_annos.mat", ("relative_im_path", "class"), [("car_ims/000001.jpg", 99)]
    )
    assert (
        load_image_set("cars", make_cars_devkit(tmp_path)).queries.ids[0] == "cars_train/00002.jpg"
    )


def test_sop(tmp_path, monkeypatch):
    expect(monkeypatch, "sop", 3, None, 2)
    products = load_image_set("sop", make_sop(tmp_path))
    assert products.queries.labels.tolist() == [11319, 11319, 22634]
    assert products.queries.ids[2] == "toaster_final/391106790575_2.JPG"


@pytest.mark.parametrize("place", ["Eval/", "Anno/", ""])
@pytest.mark.parametrize("images", ["", "Img/"])
def test_inshop_has_a_gallery(tmp_path, monkeypatch, place, images):
    expect(monkeypatch, "inshop", 3, 2, 2)
    clothes = load_image_set(
        "inshop", make_inshop(tmp_path, f"{place}list_eval_partition.txt", images)
    )
    assert clothes.queries.ids == tuple(CLOTHES[n][0] for n in (1, 4, 5))
    assert clothes.queries.labels.tolist() == [1, 80, 80]
    assert clothes.gallery.ids == tuple(CLOTHES[n][0] for n in (2, 3))
    assert clothes.gallery.labels.tolist() == [1, 80]
    assert clothes.gallery.paths[0] == tmp_path / f"{images}{CLOTHES[2][0]}"
    assert (clothes.n_classes, clothes.notes) == (2, ())


def test_a_query_without_its_class_in_the_gallery_is_told(tmp_path, monkeypatch):
    expect(monkeypatch, "inshop", 3, 2, 3)
    partition = make_inshop(tmp_path) / "Eval/list_eval_partition.txt"
    partition.write_text(
        partition.read_text().replace("id_00000080  gallery", "id_00000081  gallery")
    )
    clothes = load_image_set("inshop", tmp_path)
    assert clothes.n_classes == 3
    assert clothes.notes == (
        "2 of 3 queries have no other image of their class to find, and always count as misses",
    )


@pytest.mark.parametrize(
    "split", ["Inat_dataset_splits/Inaturalist_test_set1.txt", "Inaturalist_test_set1.txt"]
)
def test_inaturalist_takes_the_class_from_the_folder(tmp_path, monkeypatch, split):
    expect(monkeypatch, "inaturalist", 3, None, 2)
    nature = load_image_set("inaturalist", make_inaturalist(tmp_path, split))
    assert nature.queries.ids == tuple(SPECIES)
    assert nature.queries.labels.tolist() == [3210, 7477, 3210]


def test_crlf_a_byte_order_mark_and_blank_lines_change_nothing(tmp_path, monkeypatch):
    for name, (make, size) in MAKE.items():
        expect(monkeypatch, name, *size)
        root = make(tmp_path / name)
        before = load_image_set(name, root).fingerprint
        for path in root.rglob("*.txt"):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
        assert load_image_set(name, root).fingerprint == before


def test_a_relative_folder_gives_absolute_paths(tmp_path, monkeypatch):
    expect(monkeypatch, "sop", 3, None, 2)
    make_sop(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert (
        load_image_set("sop", Path()).queries.paths[0]
        == tmp_path / "bicycle_final/251952414262_0.JPG"
    )


def test_any_folder_of_class_folders(tmp_path):
    for name in (
        "b/x/2.png",
        "b/1.jpg",
        "a/3.JPEG",
        "a/notes.txt",
        ".cache/4.jpg",
        "a/.5.jpg",
        "c/deep/er/6.webp",
    ):
        write(tmp_path / "things", name)
    things = load_image_set("folder", tmp_path / "things")
    assert things.queries.ids == ("a/3.JPEG", "b/1.jpg", "b/x/2.png", "c/deep/er/6.webp")
    assert things.queries.labels.tolist() == [0, 1, 1, 2]
    assert (things.name, things.gallery, things.n_classes) == ("things", None, 3)
    assert things.notes == (
        "2 of 4 queries have no other image of their class to find, and always count as misses",
    )


# --- counts, missing images


@pytest.mark.parametrize("name", MAKE)
def test_other_counts_than_the_published_are_refused_or_told(tmp_path, name):
    make, (queries, gallery, classes) = MAKE[name]
    images = (
        f"{queries} images"
        if gallery is None
        else f"{queries} queries and {gallery} gallery images"
    )
    root = make(tmp_path)
    with pytest.raises(CusaError) as error:
        load_image_set(name, root)
    known = IMAGE_SETS[name]
    problem, hint = str(error.value).rsplit("; ", 1)
    assert problem.startswith(
        f"{name} has {images} of {classes} classes; the published test set has {known.queries:,}"
    )
    assert problem.endswith(f" of {known.classes:,} classes")
    assert hint == "pass --allow-partial to evaluate it as it is"
    assert load_image_set(name, root, allow_partial=True).notes[0] == problem


def test_the_count_of_classes_and_of_the_gallery_matter_too(tmp_path, monkeypatch):
    expect(monkeypatch, "sop", 3, None, 3)
    with pytest.raises(CusaError) as refused:
        load_image_set("sop", make_sop(tmp_path / "sop"))
    assert fault_of(refused.value) == Fault(DataError, path=tmp_path / "sop", name="sop")
    expect(monkeypatch, "inshop", 3, 3, 2)
    with pytest.raises(CusaError) as refused:
        load_image_set("inshop", make_inshop(tmp_path / "inshop"))
    assert fault_of(refused.value) == Fault(DataError, path=tmp_path / "inshop", name="inshop")


def test_missing_images_are_an_error_or_left_out_and_told(tmp_path, monkeypatch):
    expect(monkeypatch, "inshop", 3, 2, 2)
    root = make_inshop(tmp_path)
    for n in (2, 4):
        (root / "Img" / CLOTHES[n][0]).unlink()
    where = root / "Eval/list_eval_partition.txt"
    first = (
        f"2 of 5 listed images are missing, first {root / 'Img' / CLOTHES[4][0]} ({where} line 7)"
    )
    with pytest.raises(CusaError) as error:
        load_image_set("inshop", root)
    assert str(error.value) == f"{first}; add them, or pass --allow-partial to evaluate the others"
    clothes = load_image_set("inshop", root, allow_partial=True)
    assert clothes.queries.ids == (CLOTHES[1][0], CLOTHES[5][0])
    assert clothes.queries.labels.tolist() == [1, 80]
    assert clothes.gallery.ids == (CLOTHES[3][0],)
    assert clothes.notes == (
        f"{first}; they are left out",
        "inshop has 2 queries and 1 gallery images of 2 classes; the published test set has "
        "3 queries and 2 gallery images of 2 classes",
        "1 of 2 queries have no other image of their class to find, and always count as misses",
    )


@pytest.mark.parametrize(
    ("name", "gone"), [("sop", (0, 1, 2)), ("inshop", (1, 4, 5)), ("inshop", (2, 3))]
)
def test_without_any_image_a_part_cannot_be_evaluated(tmp_path, name, gone):
    root = MAKE[name][0](tmp_path)
    images = (
        sorted(root.rglob("*.JPG")) if name == "sop" else [root / "Img" / c[0] for c in CLOTHES]
    )
    for n in gone:
        images[n].unlink()
    with pytest.raises(CusaError) as error:
        load_image_set(name, root, allow_partial=True)
    assert fault_of(error.value) == Fault(DataError, path=images[gone[0]])


def test_each_image_is_looked_for_once(tmp_path, monkeypatch):
    looked: Counter[str] = Counter()
    stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **k: (looked.update([str(path)]), stat(path, **k))[1]
    )
    for name, (make, _) in MAKE.items():
        root = make(tmp_path / name)
        looked.clear()
        found = load_image_set(name, root, allow_partial=True)
        images = [str(p) for part in (found.queries, found.gallery) if part for p in part.paths]
        assert [looked[image] for image in images] == [1] * len(images)


# --- what is refused


def damage(path: Path, old: str | None, new: str) -> None:
    """Replace a text of a list once; ``""`` stands for all of it, and ``None`` for the file."""
    if old is None:
        path.unlink()
        return
    text = path.read_bytes().decode("latin-1")
    assert old in text
    path.write_bytes((text.replace(old, new, 1) if old else new).encode("latin-1"))


LABELS, SOP, EVAL = "image_class_labels.txt", "Ebay_test.txt", "Eval/list_eval_partition.txt"
SPLIT = "Inat_dataset_splits/Inaturalist_test_set1.txt"


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "location"),
    [
        ("cub", "classes.txt", None, "", ""),
        ("cub", LABELS, None, "", ""),
        ("cub", LABELS, "5 200\n", "", ""),
        ("cub", LABELS, "2 101", "2 bird", "line 2"),
        ("cub", LABELS, "2 101", "2", "line 2"),
        ("cub", "images.txt", "", "", ""),
        (
            "cub",
            "images.txt",
            "2 101",
            "2 102",
            "line 2",
        ),
        ("cub", "images.txt", "3 102", "2 102", "line 3"),
        (
            "cub",
            "images.txt",
            "White_Pelican_0039",
            "Wei\xdfpelikan",
            "line 2",
        ),
        (
            "sop",
            SOP,
            "class_id",
            "class",
            "line 1",
        ),
        ("sop", SOP, "", "", "line 1"),
        ("sop", SOP, "", SOP_HEADER, ""),
        (
            "sop",
            SOP,
            "59553 11319 1 ",
            "59553 11319 ",
            "line 3",
        ),
        ("sop", SOP, "22634", "-4", "line 4"),
        ("sop", SOP, "22634", "\xb2", "line 4"),
        ("sop", SOP, "22634", "9" * 30, "line 4"),
        (
            "sop",
            SOP,
            "toaster_final",
            "../toaster_final",
            "line 4",
        ),
        (
            "sop",
            SOP,
            "toaster_final",
            "/toaster_final",
            "line 4",
        ),
        (
            "sop",
            SOP,
            "final/251952414262_1",
            "final/.//251952414262_0",
            "line 3",
        ),
        (
            "inshop",
            EVAL,
            "6\n",
            "",
            "line 1",
        ),
        (
            "inshop",
            EVAL,
            "item_id",
            "item",
            "line 2",
        ),
        (
            "inshop",
            EVAL,
            "train",
            "val",
            "line 3",
        ),
        (
            "inshop",
            EVAL,
            "id_00000080  gallery",
            "80  gallery",
            "line 6",
        ),
        (
            "inshop",
            EVAL,
            "id_00000080  gallery",
            "id_8O  gallery",
            "line 6",
        ),
        ("inaturalist", SPLIT, "", "\n\n", ""),
        (
            "inaturalist",
            SPLIT,
            "7477",
            "Rosa",
            "line 2",
        ),
        (
            "inaturalist",
            SPLIT,
            "train_val2018/Plantae/7477/",
            "",
            "line 2",
        ),
        (
            "cars",
            "cars_annos.mat",
            "",
            "no matlab",
            "",
        ),
    ],
)
def test_a_damaged_list_names_itself_and_the_line(tmp_path, name, file, old, new, location):
    root = MAKE[name][0](tmp_path)
    damage(root / file, old, new)
    for allow_partial in (False, True):
        with pytest.raises(CusaError) as error:
            load_image_set(name, root, allow_partial)
        fault = Fault(FileFormatError, path=root / file, location=location)
        assert fault_of(error.value) == fault
        assert str(error.value).startswith(str(root / file))


def test_damaged_matlab_files_of_any_kind_are_one_line(tmp_path):
    """Cut off, and with bytes changed: scipy hangs or crashes on some, in a process of its own."""
    annotations(
        tmp_path, "cars_annos.mat", ("relative_im_path", "class"), [("a.jpg", 99), ("b.jpg", 100)]
    )
    path, rng = tmp_path / "cars_annos.mat", np.random.default_rng(3)
    whole = path.read_bytes()
    for cut in (0, 60, 140, len(whole) - 9):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileFormatError) as error:
            read_annotations(path, "relative_im_path")
        assert error.value.path == path
    for _ in range(6):
        damaged = bytearray(whole)
        damaged[rng.integers(124, len(whole))] ^= 0xFF
        path.write_bytes(damaged)
        with contextlib.suppress(FileFormatError):
            read_annotations(path, "relative_im_path")


def test_an_image_that_is_query_and_gallery_is_refused(tmp_path):
    partition = make_inshop(tmp_path) / EVAL
    damage(partition, CLOTHES[3][0], CLOTHES[4][0])
    with pytest.raises(CusaError) as error:
        load_image_set("inshop", tmp_path, allow_partial=True)
    assert str(error.value) == (
        f"{partition} line 6: {CLOTHES[4][0]} is already listed in {partition} line 7; "
        "list each image once"
    )


@pytest.mark.parametrize("part", ["query", "gallery"])
def test_a_list_without_a_part_is_refused(tmp_path, part):
    partition = make_inshop(tmp_path) / EVAL
    partition.write_text(partition.read_text().replace(f"  {part}", "  train"))
    with pytest.raises(CusaError) as error:
        load_image_set("inshop", tmp_path, allow_partial=True)
    assert fault_of(error.value) == Fault(DataError, path=tmp_path, name=part)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (
            [("a.jpg", 99), ("b.jpg", "BMW")],
            Fault(FileFormatError, path=Path("cars_annos.mat"), location="annotation 2"),
        ),
        (
            [("a.jpg", 99), ("b.jpg", 99.5)],
            Fault(FileFormatError, path=Path("cars_annos.mat"), location="annotation 2"),
        ),
        ([("a.jpg", 9)], Fault(DataError, path=Path("."), name="test")),
        (
            [("a.jpg", 99), ("a.jpg", 99)],
            Fault(FileFormatError, path=Path("cars_annos.mat"), location="annotation 2"),
        ),
        (
            [("../a.jpg", 99)],
            Fault(FileFormatError, path=Path("cars_annos.mat"), location="annotation 1"),
        ),
    ],
)
def test_a_damaged_matlab_file(tmp_path, rows, fault):
    annotations(tmp_path, "cars_annos.mat", ("relative_im_path", "class"), rows)
    with pytest.raises(CusaError) as error:
        load_image_set("cars", tmp_path, allow_partial=True)
    assert fault_of(error.value, tmp_path) == fault


@pytest.mark.parametrize(
    "content", [{"names": [1]}, {"annotations": {"fname": "1.jpg"}}, {"annotations": [1, 2]}]
)
def test_a_matlab_file_of_something_else(tmp_path, content):
    savemat(tmp_path / "cars_annos.mat", content)
    with pytest.raises(CusaError) as refused:
        load_image_set("cars", tmp_path)
    assert fault_of(refused.value) == Fault(FileFormatError, path=tmp_path / "cars_annos.mat")


@pytest.mark.parametrize("name", ["  ", "b.jpg "])
def test_a_blank_or_padded_name_of_a_matlab_file_is_damage(tmp_path, name):
    annotations(
        tmp_path, "cars_annos.mat", ("relative_im_path", "class"), [("a.jpg", 99), (name, 100)]
    )
    with pytest.raises(FileFormatError) as error:
        read_annotations(tmp_path / "cars_annos.mat", "relative_im_path")
    assert (error.value.path, error.value.location) == (tmp_path / "cars_annos.mat", "annotation 2")


def test_a_class_stored_as_a_double_is_a_number(tmp_path):
    annotations(
        tmp_path,
        "cars_annos.mat",
        ("relative_im_path", "class"),
        [("a.jpg", 99.0), ("b.jpg", 99.0)],
    )
    write(tmp_path, "a.jpg")
    write(tmp_path, "b.jpg")
    assert load_image_set("cars", tmp_path, allow_partial=True).queries.labels.tolist() == [99, 99]


def test_the_devkit_needs_both_lists_and_all_images(tmp_path, monkeypatch):
    expect(monkeypatch, "cars", 4, None, 3)
    (make_cars_devkit(tmp_path) / "cars_test/00003.jpg").unlink()
    with pytest.raises(CusaError) as refused:
        load_image_set("cars", tmp_path)
    assert fault_of(refused.value) == Fault(DataError, path=tmp_path / "cars_test/00003.jpg")
    (tmp_path / "devkit/cars_train_annos.mat").unlink()
    with pytest.raises(CusaError) as refused:
        load_image_set("cars", tmp_path)
    assert fault_of(refused.value) == Fault(
        FileFormatError, path=tmp_path / "devkit/cars_train_annos.mat"
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("anno_train.csv", None, "", Fault(FileFormatError, path=Path("anno_train.csv"))),
        (
            "anno_test.csv",
            ",181",
            "",
            Fault(FileFormatError, path=Path("anno_test.csv"), location="line 1"),
        ),
        (
            "anno_test.csv",
            ",181",
            ",Suzuki",
            Fault(FileFormatError, path=Path("anno_test.csv"), location="line 1"),
        ),
        (
            "anno_test.csv",
            "00002",
            "../00002",
            Fault(FileFormatError, path=Path("anno_test.csv"), location="line 2"),
        ),
        (
            "anno_test.csv",
            "00002",
            "00009",
            Fault(DataError, path=Path("car_data/car_data/test/00009.jpg")),
        ),
    ],
)
def test_a_damaged_csv(tmp_path, monkeypatch, file, old, new, fault):
    expect(monkeypatch, "cars", 3, None, 2)
    damage(make_cars_csv(tmp_path) / file, old, new)
    with pytest.raises(CusaError) as error:
        load_image_set("cars", tmp_path)
    assert fault_of(error.value, tmp_path) == fault


def test_two_files_of_one_name_leave_a_csv_ambiguous(tmp_path):
    write(make_cars_csv(tmp_path), "car_data/car_data/test/Copy/00002.jpg")
    with pytest.raises(CusaError) as refused:
        load_image_set("cars", tmp_path)
    assert fault_of(refused.value) == Fault(
        FileFormatError, path=tmp_path / "anno_test.csv", location="line 2"
    )


def test_unknown_names_and_places(tmp_path):
    with pytest.raises(CusaError) as refused:
        load_image_set("birds", tmp_path)
    assert fault_of(refused.value) == Fault(SettingError, name="name")
    with pytest.raises(CusaError) as refused:
        load_image_set("cub", tmp_path / "nowhere")
    assert fault_of(refused.value) == Fault(DataError, path=tmp_path / "nowhere")
    write(tmp_path, "file")
    with pytest.raises(CusaError) as refused:
        load_image_set("folder", tmp_path / "file")
    assert fault_of(refused.value) == Fault(DataError, path=tmp_path / "file")


# --- one level off


@pytest.mark.parametrize("name", MAKE)
def test_the_parent_of_the_usual_folder_will_do(tmp_path, monkeypatch, name):
    make, size = MAKE[name]
    expect(monkeypatch, name, *size)
    for usual in (name, *IMAGE_SETS[name].folders):
        inside = load_image_set(name, make(tmp_path / usual / usual))
        assert load_image_set(name, tmp_path / usual).queries.paths == inside.queries.paths


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("cub", "images"),
        ("cub", "images/101.White_Pelican"),
        ("cars", "car_ims"),
        ("sop", "bicycle_final"),
        ("inshop", "Eval"),
        ("inshop", "Img"),
        ("inshop", "Img/img"),
        ("inaturalist", "Inat_dataset_splits"),
        ("inaturalist", "train_val2018/Aves"),
    ],
)
def test_a_part_of_the_folder_names_the_folder(tmp_path, name, part):
    root = MAKE[name][0](tmp_path / "sets")
    with pytest.raises(CusaError) as error:
        load_image_set(name, root / part)
    assert str(error.value) == f"{root / part} is only part of {name}; pass {root}"


@pytest.mark.parametrize("part", ["devkit", "cars_test"])
def test_a_part_of_the_devkit_names_the_folder(tmp_path, part):
    root = make_cars_devkit(tmp_path / "sets", "devkit/cars_test_annos_withlabels.mat")
    with pytest.raises(CusaError) as error:
        load_image_set("cars", root / part)
    assert str(error.value) == f"{root / part} is only part of cars; pass {root}"


def test_a_folder_of_something_else_is_told_what_to_look_for(tmp_path):
    write(tmp_path, "train2018.json", "{}")
    with pytest.raises(CusaError) as error:
        load_image_set("inaturalist", tmp_path)
    assert str(error.value) == (
        f"no inaturalist in {tmp_path}; pass its folder (usually iNaturalist), which holds "
        "Inat_dataset_splits/Inaturalist_test_set1.txt or Inaturalist_test_set1.txt"
    )


def test_a_class_folder_is_not_a_folder_of_classes(tmp_path):
    write(tmp_path, "birds/wren/1.jpg")
    write(tmp_path, "birds/wren/2.jpg")
    with pytest.raises(CusaError) as refused:
        load_image_set("folder", tmp_path / "birds/wren")
    assert fault_of(refused.value) == Fault(DataError, path=tmp_path / "birds/wren/1.jpg")
    with pytest.raises(CusaError) as refused:
        load_image_set("folder", tmp_path)
    assert fault_of(refused.value) == Fault(DataError, path=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CusaError) as refused:
        load_image_set("folder", tmp_path / "empty")
    assert fault_of(refused.value) == Fault(DataError, path=tmp_path / "empty")


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path):
    for label in ("a", "b"):
        write(tmp_path, f"{label}/1.jpg")
    (tmp_path / "b" / os.fsdecode(b"\xe9t\xe9.jpg")).write_bytes(b"")
    with pytest.raises(CusaError) as refused:
        load_image_set("folder", tmp_path)
    assert fault_of(refused.value) == Fault(DataError, path=tmp_path)


def test_find_image_sets(tmp_path):
    make_cub(tmp_path / "CUB_200_2011")
    make_cars_devkit(tmp_path / "stanford_cars")
    make_sop(tmp_path / "sop" / "Stanford_Online_Products")
    (tmp_path / "inshop").mkdir()
    make_inaturalist(tmp_path / "other")
    assert list(find_image_sets(tmp_path).items()) == [
        ("cub", tmp_path / "CUB_200_2011"),
        ("cars", tmp_path / "stanford_cars"),
        ("sop", tmp_path / "sop" / "Stanford_Online_Products"),
    ]
    assert find_image_sets(tmp_path / "nowhere") == {}


# --- the fingerprint


def test_the_fingerprint_is_that_of_ids_and_labels(tmp_path, monkeypatch):
    expect(monkeypatch, "inshop", 3, 2, 2)
    digest = hashlib.sha256()
    for rows, labels in (((1, 4, 5), (1, 80, 80)), ((2, 3), (1, 80))):
        digest.update(len(rows).to_bytes(8, "little"))
        for n in rows:
            digest.update(len(CLOTHES[n][0]).to_bytes(8, "little") + CLOTHES[n][0].encode())
        for label in labels:
            digest.update(label.to_bytes(8, "little"))
    packed = load_image_set("inshop", make_inshop(tmp_path / "a"))
    plain = load_image_set("inshop", make_inshop(tmp_path / "b", "list_eval_partition.txt", ""))
    assert packed.fingerprint == plain.fingerprint == digest.hexdigest()


def test_the_fingerprint_knows_order_labels_and_parts(tmp_path, monkeypatch):
    expect(monkeypatch, "inshop", 3, 2, 2)
    root = make_inshop(tmp_path)
    prints = [load_image_set("inshop", root).fingerprint]
    lines = (root / EVAL).read_text().splitlines(keepends=True)
    swapped = [*lines[:6], lines[7], lines[6]]
    relabelled = [line.replace("id_00000080  ", "id_00000081  ") for line in lines]
    for text in ("".join(swapped), "".join(relabelled)):
        (root / EVAL).write_text(text)
        prints.append(load_image_set("inshop", root).fingerprint)
    (root / EVAL).write_text("".join(lines))
    (root / "Img" / CLOTHES[5][0]).unlink()
    prints.append(load_image_set("inshop", root, allow_partial=True).fingerprint)
    assert len(set(prints)) == 4
