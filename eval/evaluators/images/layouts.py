"""The published folders of image-retrieval data sets: their split lists, read to the test images and their classes.

Each reader takes the data set's own folder and looks at lists only: whether the images are there, and whether it is
as many as there should be, is :mod:`cusa.eval.evaluators.images.data`' to say.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cusa.data.errors import DataError, FileFormatError
from cusa.data.image_folder import find_images
from cusa.data.lines import Place, read_lines
from cusa.eval.evaluators.images.mat_files import read_annotations

_CUB_TEST, _CARS_TEST = (
    range(101, 201),
    range(99, 197),
)  # the second half of the classes: never seen in training
_CARS_TEST_MAT = "cars_test_annos_withlabels.mat"

CUB_LISTS = ("images.txt", "image_class_labels.txt", "classes.txt")
CARS_LISTS = {  # the list of each form, and the folder that its images lie in
    "cars_annos.mat": "car_ims",
    f"devkit/{_CARS_TEST_MAT}": "cars_test",
    _CARS_TEST_MAT: "cars_test",
    "anno_test.csv": "",
}
SOP_LISTS = ("Ebay_test.txt",)
INSHOP_LISTS = tuple(f"{folder}list_eval_partition.txt" for folder in ("Eval/", "Anno/", ""))
INATURALIST_LISTS = ("Inat_dataset_splits/Inaturalist_test_set1.txt", "Inaturalist_test_set1.txt")


@dataclass(frozen=True, slots=True)
class Listed:
    """An image that a list names.

    Attributes:
        id: Its path below the folder of the data set's images, "/" separated.
        path: The file, which may be missing.
        label: Number of its class.
        where: The list and the line that name it.
    """

    id: str
    path: Path
    label: int
    where: Place


@dataclass(frozen=True)
class Listing:
    """Test images of a data set; without a gallery, every image is a query against all others."""

    queries: list[Listed]
    gallery: list[Listed] | None = None


# --- the data sets


def read_cub(folder: Path) -> Listing:
    """CUB-200-2011: classes 101 to 200, named by ``images.txt``, ``image_class_labels.txt`` and ``classes.txt``.

    Raises:
        CusaError: If a list is missing or malformed, or an image lies in the folder of another class than its label's.
    """
    images, labels, classes = (_pairs(folder / name) for name in CUB_LISTS)
    listed = []
    for number, (where, relative) in images.items():
        if number not in labels:
            path = folder / CUB_LISTS[1]
            message = f"{path} has no label of image {number} ({where}); restore the whole list"
            raise FileFormatError(message, path=path)
        label = _number(labels[number][1], labels[number][0], "class id")
        named = classes[label][1] if label in classes else ""
        if relative.partition("/")[0] != named:
            raise where.fault(
                f"{relative} has the label {label}, which {CUB_LISTS[2]} calls {named!r}; restore the lists"
            )
        if label in _CUB_TEST:
            listed.append(_image(folder, f"images/{relative}", label, where))
    return Listing(listed)


def read_cars(folder: Path) -> Listing:
    """Cars-196: classes 99 to 196, from both halves of the classification split; one list at least must be there.

    Three forms are in use: ``cars_annos.mat`` with ``car_ims/``; the devkit's two lists with ``cars_train/`` and
    ``cars_test/``; and ``anno_train.csv`` and ``anno_test.csv`` with ``car_data/train/`` and ``car_data/test/``.

    Raises:
        CusaError: If a list is missing or malformed, or two images of a half have one name.
    """
    lists = [name for name in CARS_LISTS if (folder / name).is_file()]
    # A list of one form may lie beside the images of another: one that has its images goes first.
    chosen = next((name for name in lists if (folder / CARS_LISTS[name]).is_dir()), lists[0])
    if chosen == "cars_annos.mat":
        listed = list(_from_mat(folder / chosen, "relative_im_path", folder, ""))
    elif chosen == "anno_test.csv":
        bases = (folder / "car_data" / "car_data", folder / "car_data")
        base = next((b for b in bases if (b / "test").is_dir()), folder)
        listed = [
            i
            for half in ("train", "test")
            for i in _from_csv(folder / f"anno_{half}.csv", base, half)
        ]
    else:
        train = _first(folder, ("devkit/cars_train_annos.mat", "cars_train_annos.mat"))
        listed = []
        for half, path in ("cars_train", train), ("cars_test", folder / chosen):
            nested = folder / half / half  # one archive in use packs the folder into itself
            listed += _from_mat(
                path, "fname", nested if nested.is_dir() else folder / half, f"{half}/"
            )
    return Listing([image for image in listed if image.label in _CARS_TEST])


def read_sop(folder: Path) -> Listing:
    """Stanford Online Products: the images of ``Ebay_test.txt``.

    Raises:
        CusaError: If the list is missing or malformed.
    """
    rows = _table(folder / SOP_LISTS[0], "image_id class_id super_class_id path", header=True)
    return Listing(
        [_image(folder, row[3], _number(row[1], where, "class_id"), where) for where, row in rows]
    )


def read_inshop(folder: Path) -> Listing:
    """In-Shop Clothes Retrieval: query and gallery of ``list_eval_partition.txt``; images in ``img/`` or ``Img/img/``.

    Raises:
        CusaError: If the list is missing or malformed.
    """
    base = next((b for b in (folder, folder / "Img") if (b / "img").is_dir()), folder)
    path = _first(folder, INSHOP_LISTS)
    parts: dict[str, list[Listed]] = {"train": [], "query": [], "gallery": []}
    for where, (name, item, status) in _table(
        path, "image_name item_id evaluation_status", header=True, counted=True
    ):
        if status not in parts:
            raise where.fault(f"evaluation_status {status!r}; legal: {', '.join(parts)}")
        prefix, _, number = item.rpartition("_")
        if prefix != "id":
            raise where.fault(f"item_id {item!r} is not of the form id_00000001; restore the list")
        parts[status].append(_image(base, name, _number(number, where, "item_id"), where))
    return Listing(parts["query"], parts["gallery"])


def read_inaturalist(folder: Path) -> Listing:
    """Smooth-AP's retrieval split of iNaturalist 2018: a path per line, whose last folder is the species' number.

    Raises:
        CusaError: If the list is missing or malformed.
    """
    listed = []
    for where, (relative,) in _table(_first(folder, INATURALIST_LISTS), "path"):
        species = PurePosixPath(relative).parent.name
        listed.append(_image(folder, relative, _number(species, where, "class folder"), where))
    return Listing(listed)


def read_folder(folder: Path) -> Listing:
    """One folder per class, images at any depth below it; classes are numbered in the order of their names.

    Raises:
        CusaError: If there are no images, images outside of a class folder, or fewer than two classes.
    """
    paths = find_images(folder)
    ids = [path.relative_to(folder).as_posix() for path in paths]
    loose = [i for i in ids if "/" not in i]
    if loose:
        raise DataError(
            f"{len(loose):,} images lie in no class folder, first {folder / loose[0]}; pass the folder that holds one "
            f"folder per class ({folder.parent}, if {folder.name} is a class)"
        )
    numbers = {name: n for n, name in enumerate(sorted({i.partition("/")[0] for i in ids}))}
    if len(numbers) < 2:
        only = folder / next(iter(numbers))
        raise DataError(
            f"all images of {folder} lie in {only}; pass the folder that holds one folder per class"
        )
    return Listing(
        [
            Listed(i, path, numbers[i.partition("/")[0]], Place(folder, ""))
            for i, path in zip(ids, paths, strict=True)
        ]
    )


# --- the lists


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def _lines(path: Path) -> Iterator[tuple[Place, str]]:
    """Lines that are not blank, without white space around them, each with its place."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield Place(path, f"line {number}"), line.strip()


def _table(
    path: Path, columns: str, header: bool = False, counted: bool = False
) -> Iterator[tuple[Place, list[str]]]:
    """Rows of white-space separated columns, each with its place.

    Args:
        path: The list.
        columns: Names of the columns.
        header: Whether a line with these names precedes the rows.
        counted: Whether a line with a number precedes that one.
    """
    lines, nothing = _lines(path), (Place(path, "line 1"), "")
    if counted:
        where, line = next(lines, nothing)
        _number(line, where, "the number of images")
    if header:
        where, line = next(lines, nothing)
        if line.split() != columns.split():
            raise where.fault(
                f"expected the header {columns!r}, found {line[:80]!r}; restore the list"
            )
    wanted, empty = len(columns.split()), True
    for where, line in lines:
        row = line.split(None, wanted - 1)
        if len(row) < wanted:
            raise where.fault(f"expected {columns!r}, found {line[:80]!r}; restore the list")
        yield where, row
        empty = False
    if empty:
        raise FileFormatError(f"{path} is empty; expected lines of {columns!r}", path=path)


def _pairs(path: Path) -> dict[int, tuple[Place, str]]:
    """A list of CUB, ``<id> <value>``: place and value of each id."""
    pairs: dict[int, tuple[Place, str]] = {}
    for where, (key, value) in _table(path, "id value"):
        number = _number(key, where, "id")
        if number in pairs:
            raise where.fault(
                f"the id {number} is used twice, before in {pairs[number][0]}; restore the list"
            )
        pairs[number] = where, value
    return pairs


def _from_mat(path: Path, name_field: str, base: Path, prefix: str) -> Iterator[Listed]:
    """Images of the struct array ``annotations`` of a MATLAB file."""
    for number, (name, label) in enumerate(read_annotations(path, name_field), start=1):
        where = Place(path, f"annotation {number}")
        image = _image(base, name, _number(label.removesuffix(".0"), where, "class"), where)
        yield Listed(prefix + image.id, image.path, image.label, where)


def _from_csv(path: Path, base: Path, half: str) -> Iterator[Listed]:
    """Images of ``filename, x1, y1, x2, y2, class``, found below ``base/half``, where they lie in class folders."""
    found: dict[str, str] = {}
    copies: Counter[str] = Counter()
    for place, _, files in os.walk(base / half, followlinks=True):
        below = Path(place).relative_to(base).as_posix()
        found.update((name, f"{below}/{name}") for name in files)
        copies.update(files)
    for n, (where, line) in enumerate(_lines(path)):
        row = [field.strip() for field in line.split(",")]
        if n == 0 and row[-1] == "class":
            continue
        if len(row) != 6:
            raise where.fault(
                f"expected filename,x1,y1,x2,y2,class, found {line[:80]!r}; restore the list"
            )
        image = _image(
            base, found.get(row[0], f"{half}/{row[0]}"), _number(row[5], where, "class"), where
        )
        if copies[row[0]] > 1:
            raise where.fault(
                f"{copies[row[0]]} files below {base / half} are called {row[0]}; keep the right one"
            )
        yield image


def _number(text: str, where: Place, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):  # fits into int64
        raise where.fault(f"expected a number as {what}, found {text[:80]!r}; restore the list")
    return int(text)


def _image(base: Path, relative: str, label: int, where: Place) -> Listed:
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise where.fault(
            f"{relative!r} is no path below {base}; list images by paths within the data set"
        )
    return Listed(str(path), base / path, label, where)
