"""The published folders of image-retrieval data sets: their split lists, read to the test images.

Each reader takes the data set's own folder and looks at lists only: whether the images are there,
and whether it is as many as there should be, is for :mod:`cusa.eval.evaluators.images.data` to say.
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
CARS_LISTS = {  # the list of each form, and the folder that its images lie in
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
    """Read CUB-200-2011: classes 101 to 200, named by three lists.

    These are ``images.txt``, ``image_class_labels.txt`` and ``classes.txt``.

    Raises:
        CusaError: If a list is missing or malformed, or an image lies in the folder of another
            class than its label's.
    """
    images = read_values_by_id(folder / CUB_LISTS[0])
    labels = read_values_by_id(folder / CUB_LISTS[1])
    classes = read_values_by_id(folder / CUB_LISTS[2])
    test_images = []
    for image_number, (location, image_path) in images.items():
        if image_number not in labels:
            path = folder / CUB_LISTS[1]
            raise FileFormatError(
                f"{path} has no label of image {image_number} ({location}); restore the whole list",
                path=path,
            )
        label_location, label_text = labels[image_number]
        label = whole_number(label_text, label_location, "class id")
        class_name = classes[label][1] if label in classes else ""
        if image_path.partition("/")[0] != class_name:
            raise location.fault(
                f"{image_path} has the label {label}, which {CUB_LISTS[2]} calls {class_name!r}; "
                "restore the lists"
            )
        if label in _CUB_TEST_CLASSES:
            test_images.append(listed_image(folder, f"images/{image_path}", label, location))
    return Listing(test_images)


def read_cars(folder: Path) -> Listing:
    """Read Cars-196: classes 99 to 196, from both halves of the classification split.

    Three forms are in use: ``cars_annos.mat`` with ``car_ims/``; the devkit's two lists with
    ``cars_train/`` and ``cars_test/``; and ``anno_train.csv`` and ``anno_test.csv`` with
    ``car_data/train/`` and ``car_data/test/``. One list at least must be there.

    Raises:
        CusaError: If a list is missing or malformed, or two images of a half have one name.
    """
    list_names = [name for name in CARS_LISTS if (folder / name).is_file()]
    # A list of one form may lie beside the images of another: one that has its images goes first.
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
        if (image_folder / half).is_dir():  # one archive in use packs the folder into itself
            image_folder = image_folder / half
        images += read_mat(list_path, "fname", image_folder, f"{half}/")
    return images


def _read_cars_table(path: Path, base_folder: Path, half: str) -> Iterator[Listed]:
    """Yield the images of ``filename, x1, y1, x2, y2, class``.

    They are looked for below ``base/half``, where they lie in class folders.
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
                f"{n_copies[name]} files below {base_folder / half} are called {name}; keep the "
                "right one"
            )
        yield image


def read_sop(folder: Path) -> Listing:
    """Read Stanford Online Products: the images of ``Ebay_test.txt``.

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
    """Read In-Shop Clothes Retrieval: query and gallery of ``list_eval_partition.txt``.

    Images lie in ``img/`` or ``Img/img/``.

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
    """Read Smooth-AP's retrieval split of iNaturalist 2018.

    It has a path per line, whose last folder is the species' number.

    Raises:
        CusaError: If the list is missing or malformed.
    """
    images = []
    for location, (image_path,) in read_table(first_file(folder, INATURALIST_LISTS), "path"):
        species = whole_number(PurePosixPath(image_path).parent.name, location, "class folder")
        images.append(listed_image(folder, image_path, species, location))
    return Listing(images)


def read_folder(folder: Path) -> Listing:
    """Read one folder per class, images at any depth below it.

    Classes are numbered in the order of their names.

    Raises:
        CusaError: If there are no images, images outside of a class folder, or fewer than two
            classes.
    """
    image_paths = find_images(folder)
    ids = [path.relative_to(folder).as_posix() for path in image_paths]
    outside = [image_id for image_id in ids if "/" not in image_id]
    if outside:
        raise DataError(
            f"{len(outside):,} images lie in no class folder, first {folder / outside[0]}; pass "
            f"the folder that holds one folder per class ({folder.parent}, if {folder.name} is a "
            "class)",
            path=folder / outside[0],
        )
    class_names = [image_id.partition("/")[0] for image_id in ids]
    label_of_class = {name: label for label, name in enumerate(sorted(set(class_names)))}
    if len(label_of_class) < 2:
        raise DataError(
            f"all images of {folder} lie in {folder / class_names[0]}; pass the folder that holds "
            "one folder per class",
            path=folder,
        )
    images = []
    for image_id, path, class_name in zip(ids, image_paths, class_names, strict=True):
        images.append(Listed(image_id, path, label_of_class[class_name], Place(folder, "")))
    return Listing(images)
