"""Readers of the published image-retrieval data sets: the test images, from the split lists.

Each reader takes the data set's own folder and reads the lists only. Whether the images exist, and
in the published number, is checked in :mod:`cusa.eval.evaluators.images.data`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cusa.data.errors import DataError, FileFormatError
from cusa.data.image_folder import find_images
from cusa.data.lines import Place
from cusa.eval.evaluators.images.lists import (
    Listed,
    Listing,
    first_file,
    listed_image,
    non_blank_lines,
    read_mat,
    read_table,
    read_values_by_id,
    whole_number,
)

# The second half of the classes, which are never seen in training.
_CUB_TEST_CLASSES = range(101, 201)
_CARS_TEST_CLASSES = range(99, 197)
_CARS_TEST_MAT = "cars_test_annos_withlabels.mat"

CUB_LISTS = ("images.txt", "image_class_labels.txt", "classes.txt")
CARS_LISTS = {  # the test list of each form, and the folder of its images
    "cars_annos.mat": "car_ims",
    f"devkit/{_CARS_TEST_MAT}": "cars_test",
    _CARS_TEST_MAT: "cars_test",
    "anno_test.csv": "",
}
SOP_LISTS = ("Ebay_test.txt",)
INSHOP_LISTS = (
    "Eval/list_eval_partition.txt",
    "Anno/list_eval_partition.txt",
    "list_eval_partition.txt",
)
INATURALIST_LISTS = ("Inat_dataset_splits/Inaturalist_test_set1.txt", "Inaturalist_test_set1.txt")


def read_cub(folder: Path) -> Listing:
    """Read the test images of CUB-200-2011, classes 101 to 200.

    The lists are ``images.txt``, ``image_class_labels.txt`` and ``classes.txt``.

    Raises:
        CusaError: If a list is missing or malformed, or an image lies in the folder of another
            class than that of its label.
    """
    images = read_values_by_id(folder / CUB_LISTS[0])
    labels = read_values_by_id(folder / CUB_LISTS[1])
    classes = read_values_by_id(folder / CUB_LISTS[2])
    test_images = []
    for image_number, (location, image_path) in images.items():
        if image_number not in labels:
            path = folder / CUB_LISTS[1]
            raise FileFormatError(
                f"{path} has no label for image {image_number} ({location}); restore the list",
                path=path,
            )
        label_location, label_text = labels[image_number]
        label = whole_number(label_text, label_location, "class id")
        class_name = classes[label][1] if label in classes else ""
        if image_path.partition("/")[0] != class_name:
            raise location.fault(
                f"{image_path} has the label {label}, which {CUB_LISTS[2]} names {class_name!r}; "
                "restore the lists"
            )
        if label in _CUB_TEST_CLASSES:
            test_images.append(listed_image(folder, f"images/{image_path}", label, location))
    return Listing(test_images)


def read_cars(folder: Path) -> Listing:
    """Read the test images of Cars-196, classes 99 to 196 of both halves of the original split.

    Three forms are in use: ``cars_annos.mat`` with ``car_ims/``; the devkit's two lists with
    ``cars_train/`` and ``cars_test/``; and ``anno_train.csv`` and ``anno_test.csv`` with
    ``car_data/train/`` and ``car_data/test/``. The caller knows that one of :data:`CARS_LISTS`
    exists.

    Raises:
        CusaError: If a list is missing or malformed, or two images of a half have the same name.
    """
    list_names = [name for name in CARS_LISTS if (folder / name).is_file()]
    # Lists of several forms may lie side by side: prefer one whose images are there.
    list_name = max(list_names, key=lambda name: (folder / CARS_LISTS[name]).is_dir())
    if list_name == "cars_annos.mat":
        images = list(read_mat(folder / list_name, "relative_im_path", folder, ""))
    elif list_name == "anno_test.csv":
        images = _read_cars_tables(folder)
    else:
        images = _read_cars_devkit(folder, folder / list_name)
    return Listing([image for image in images if image.label in _CARS_TEST_CLASSES])


def _read_cars_tables(folder: Path) -> list[Listed]:
    base_folder = folder
    for candidate in (folder / "car_data", folder / "car_data" / "car_data"):
        if (candidate / "test").is_dir():
            base_folder = candidate
    images: list[Listed] = []
    for half in ("train", "test"):
        images += _read_cars_table(folder / f"anno_{half}.csv", base_folder, half)
    return images


def _read_cars_devkit(folder: Path, test_list: Path) -> list[Listed]:
    train_list = first_file(folder, ("devkit/cars_train_annos.mat", "cars_train_annos.mat"))
    images: list[Listed] = []
    for half, list_path in (("cars_train", train_list), ("cars_test", test_list)):
        image_folder = folder / half
        if (image_folder / half).is_dir():  # a common archive nests the folder in itself
            image_folder = image_folder / half
        images += read_mat(list_path, "fname", image_folder, f"{half}/")
    return images


def _read_cars_table(path: Path, base_folder: Path, half: str) -> Iterator[Listed]:
    """Yield the images of a table with the columns filename, x1, y1, x2, y2 and class.

    The files are searched for in the class folders below ``base_folder / half``.
    """
    path_of_name: dict[str, str] = {}
    n_copies: Counter[str] = Counter()
    for folder, _, names in os.walk(base_folder / half, followlinks=True):
        below_base = Path(folder).relative_to(base_folder).as_posix()
        for name in names:
            path_of_name[name] = f"{below_base}/{name}"
        n_copies.update(names)

    for number, (location, line) in enumerate(non_blank_lines(path)):
        row = list(map(str.strip, line.split(",")))
        if number == 0 and row[-1] == "class":
            continue
        if len(row) != 6:
            raise location.fault(
                f"expected filename,x1,y1,x2,y2,class, found {line[:80]!r}; restore the list"
            )
        name = row[0]
        label = whole_number(row[5], location, "class")
        image = listed_image(base_folder, path_of_name.get(name, f"{half}/{name}"), label, location)
        if n_copies[name] > 1:
            raise location.fault(
                f"{n_copies[name]} files below {base_folder / half} are named {name}; keep the "
                "right one"
            )
        yield image


def read_sop(folder: Path) -> Listing:
    """Read the test images of Stanford Online Products from ``Ebay_test.txt``.

    Raises:
        CusaError: If the list is missing or malformed.
    """
    columns = "image_id class_id super_class_id path"
    images = []
    for location, (_, class_id, _, image_path) in read_table(
        folder / SOP_LISTS[0], columns, header=True
    ):
        label = whole_number(class_id, location, "class_id")
        images.append(listed_image(folder, image_path, label, location))
    return Listing(images)


def read_inshop(folder: Path) -> Listing:
    """Read queries and gallery of In-Shop Clothes Retrieval from ``list_eval_partition.txt``.

    The images lie in ``img/`` or ``Img/img/``.

    Raises:
        CusaError: If the list is missing or malformed.
    """
    base_folder = folder
    if not (folder / "img").is_dir() and (folder / "Img" / "img").is_dir():
        base_folder = folder / "Img"
    list_path = first_file(folder, INSHOP_LISTS)
    columns = "image_name item_id evaluation_status"
    by_status: dict[str, list[Listed]] = {"train": [], "query": [], "gallery": []}
    for location, row in read_table(list_path, columns, header=True, counted=True):
        image_name, item_id, status = row
        if status not in by_status:
            raise location.fault(f"evaluation_status {status!r}; legal: {', '.join(by_status)}")
        prefix, _, item_number = item_id.rpartition("_")
        if prefix != "id":
            raise location.fault(
                f"item_id {item_id!r} is not of the form id_00000001; restore the list"
            )
        label = whole_number(item_number, location, "item_id")
        by_status[status].append(listed_image(base_folder, image_name, label, location))
    return Listing(by_status["query"], by_status["gallery"])


def read_inaturalist(folder: Path) -> Listing:
    """Read the test images of Smooth-AP's retrieval split of iNaturalist 2018.

    The list has a path per line, in which the last folder is the number of the species.

    Raises:
        CusaError: If the list is missing or malformed.
    """
    images = []
    for location, (image_path,) in read_table(first_file(folder, INATURALIST_LISTS), "path"):
        species = whole_number(PurePosixPath(image_path).parent.name, location, "class folder")
        images.append(listed_image(folder, image_path, species, location))
    return Listing(images)


def read_folder(folder: Path) -> Listing:
    """Read a folder with one folder per class, each with images at any depth.

    Classes are numbered in the order of their names.

    Raises:
        CusaError: If there are no images, images outside any class folder, or fewer than two
            classes.
    """
    image_paths = find_images(folder)
    ids = [path.relative_to(folder).as_posix() for path in image_paths]
    outside = [image_id for image_id in ids if "/" not in image_id]
    if outside:
        raise DataError(
            f"{len(outside):,} images lie in no class folder, first {folder / outside[0]}; pass "
            f"the folder with one folder per class ({folder.parent}, if {folder.name} is a class)",
            path=folder / outside[0],
        )
    class_names = [image_id.partition("/")[0] for image_id in ids]
    label_of_class = {name: label for label, name in enumerate(sorted(set(class_names)))}
    if len(label_of_class) < 2:
        raise DataError(
            f"all images of {folder} lie in {folder / class_names[0]}; pass the folder with one "
            "folder per class, of which there must be two or more",
            path=folder,
        )
    images = []
    for image_id, path, class_name in zip(ids, image_paths, class_names, strict=True):
        images.append(Listed(image_id, path, label_of_class[class_name], Place(folder, "")))
    return Listing(images)
