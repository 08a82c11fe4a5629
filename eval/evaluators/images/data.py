"""Image-retrieval data sets: their test images and classes, and checks that they are complete.

The test sets are those of the CUSA paper's image retrieval, which follows Unicom: the second half
of the classes of CUB-200-2011 and Cars-196; the test splits of Stanford Online Products and of
iNaturalist 2018 (Smooth-AP's); and the queries and gallery of In-Shop Clothes Retrieval. Any folder
with one folder per class can be measured, too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np

from cusa.data.errors import DataError, SettingError
from cusa.data.lines import Place
from cusa.eval.evaluators.images.known_sets import IMAGE_SETS
from cusa.eval.evaluators.images.layouts import read_folder
from cusa.eval.evaluators.images.lists import Listed, Listing

FOLDER = "folder"  # stands for any folder with one folder per class


@dataclass(frozen=True)
class LabelledImages:
    """Images and the classes they belong to.

    Attributes:
        paths: Absolute path of each file.
        labels: int64 ``[n]``: class of each image, as the data set numbers its classes (In-Shop's
            items, iNaturalist's species); in a folder of classes, the position among their sorted
            names.
        ids: Path of each file relative to the data set's folder, "/" separated. Folders that only
            some copies of the data set have around the images (``Img/``, ``car_data/``, a folder
            nested in itself) are left out, so that all copies have the same ids.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    ids: tuple[str, ...]


@dataclass(frozen=True)
class ImageSet:
    """The test set of an image-retrieval data set.

    Attributes:
        name: ``"cub"``, ``"cars"``, ``"sop"``, ``"inshop"``, ``"inaturalist"``, or the name of a
            folder.
        queries: The query images.
        gallery: The images searched; ``None`` if every image is a query against all others.
        notes: Remarks for the user: missing images, counts that differ from the published ones,
            queries without another image of their class.
    """

    name: str
    queries: LabelledImages
    gallery: LabelledImages | None
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the ids and labels of queries and gallery, in order."""
        digest = hashlib.sha256()
        for images in (self.queries, self.gallery):
            if images is None:
                digest.update((-1).to_bytes(8, "little", signed=True))
                continue
            digest.update(len(images.ids).to_bytes(8, "little"))
            for image_id in images.ids:
                encoded = image_id.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
            digest.update(images.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def n_classes(self) -> int:
        """Number of classes of queries and gallery together."""
        labels = self.queries.labels
        if self.gallery is not None:
            labels = np.concatenate([labels, self.gallery.labels])
        return len(np.unique(labels))


def load_image_set(name: str, folder: Path, allow_partial: bool = False) -> ImageSet:
    """Return the test images of a data set and their classes, without reading the images.

    Args:
        name: ``"cub"``, ``"cars"``, ``"sop"``, ``"inshop"``, ``"inaturalist"``, or ``"folder"`` for
            any folder with one folder per class, in which every image is a query.
        folder: The data set's folder, or its parent.
        allow_partial: Whether to leave out listed images that are missing, and to accept counts
            other than the published ones; the notes then say so.

    Raises:
        CusaError: If the name is unknown, the folder is not the data set's, a list is missing or
            malformed, images are missing or listed twice, or the counts are not the published ones.
        OSError: If a folder cannot be read.
    """
    if name != FOLDER and name not in IMAGE_SETS:
        raise SettingError(
            f"unknown image set {name!r}; legal: {', '.join((*IMAGE_SETS, FOLDER))}", name="name"
        )
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {problem}; pass the data set's folder", path=folder)
    if name == FOLDER:
        listing = read_folder(folder)
        _check_listed(listing, folder)
        return _image_set(folder.name, listing, [])

    folder = _data_folder(name, folder)
    listing = IMAGE_SETS[name].read(folder)
    _check_listed(listing, folder)
    difference = _unlike_published(name, listing)
    if difference and not allow_partial:
        raise DataError(
            f"{difference}; pass --allow-partial to evaluate it as it is", path=folder, name=name
        )
    listing, notes = _present(listing, allow_partial)
    if difference := _unlike_published(name, listing):
        notes.append(difference)
    return _image_set(name, listing, notes)


def find_image_sets(root: Path) -> dict[str, Path]:
    """Find the known data sets in a folder, each in a subfolder of a usual name.

    Args:
        root: The folder, such as ``data``.

    Returns:
        The folder of each data set by its name, in the order of :data:`IMAGE_SETS`.
    """
    folders = {}
    for name, known_set in IMAGE_SETS.items():
        for usual_name in (name, *known_set.folders):
            folder = _find(name, root / usual_name)
            if folder is not None and name not in folders:
                folders[name] = folder
    return folders


def _holds(name: str, folder: Path) -> bool:
    return any((folder / list_name).is_file() for list_name in IMAGE_SETS[name].lists)


def _find(name: str, folder: Path) -> Path | None:
    """Return the data set's folder: the given one, or one of a usual name in it."""
    for usual_name in ("", name, *IMAGE_SETS[name].folders):
        if _holds(name, folder / usual_name):
            return folder / usual_name
    return None


def _data_folder(name: str, folder: Path) -> Path:
    known_set = IMAGE_SETS[name]
    # In-Shop's Eval/ and the cars' devkit/ hold lists, but are subfolders of the data set's folder.
    list_folders = map(attrgetter("parent.name"), map(Path, known_set.lists))
    if folder.name not in list_folders or not _holds(name, folder.parent):
        data_folder = _find(name, folder)
        if data_folder is not None:
            return data_folder
    for parent in folder.parents[:3]:
        if _holds(name, parent):
            raise DataError(
                f"{folder} is only part of {name}; pass {parent}", path=folder, name=name
            )
    lists = " or ".join(known_set.lists)
    raise DataError(
        f"no {name} in {folder}; pass its folder (usually {known_set.folders[0]}), which holds "
        f"{lists}",
        path=folder,
        name=name,
    )


def _check_listed(listing: Listing, folder: Path) -> None:
    """Refuse empty sets, images that are listed twice, and names that are not UTF-8."""
    if not listing.queries or listing.gallery == []:
        role = "test"
        if listing.gallery is not None:
            role = "gallery" if listing.queries else "query"
        raise DataError(
            f"the lists in {folder} name no {role} image; restore them", path=folder, name=role
        )
    line_of_id: dict[str, Place] = {}
    for image in listing.images:
        if image.id in line_of_id:
            raise image.listed_at.fault(
                f"{image.id} is already listed in {line_of_id[image.id]}; list each image once"
            )
        line_of_id[image.id] = image.listed_at
        try:
            image.id.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"the file name {image.id!a} in {folder} is not UTF-8; rename it", path=folder
            ) from None


def _unlike_published(name: str, listing: Listing) -> str:
    """Describe how the counts differ from the published ones; empty if they do not."""
    known_set = IMAGE_SETS[name]
    n_classes = len({image.label for image in listing.images})
    n_gallery = None if listing.gallery is None else len(listing.gallery)
    counts = len(listing.queries), n_gallery, n_classes
    published_counts = known_set.queries, known_set.gallery, known_set.classes
    if counts == published_counts:
        return ""
    return (
        f"{name} has {_counts_in_words(*counts)}; "
        f"the published test set has {_counts_in_words(*published_counts)}"
    )


def _counts_in_words(n_queries: int, n_gallery: int | None, n_classes: int) -> str:
    if n_gallery is None:
        return f"{n_queries:,} images of {n_classes:,} classes"
    return f"{n_queries:,} queries and {n_gallery:,} gallery images of {n_classes:,} classes"


def _present(listing: Listing, allow_partial: bool) -> tuple[Listing, list[str]]:
    """Return the images whose files exist, and a note on those that are missing."""
    queries = _with_files(listing.queries)
    gallery = None if listing.gallery is None else _with_files(listing.gallery)
    present = Listing(queries, gallery)
    n_listed, n_present = len(listing.images), len(present.images)
    if n_present == n_listed:
        return listing, []

    present_ids = set(map(attrgetter("id"), present.images))
    first = next(image for image in listing.images if image.id not in present_ids)
    missing = (
        f"{n_listed - n_present:,} of {n_listed:,} listed images are missing, "
        f"first {first.path} ({first.listed_at})"
    )
    if not allow_partial:
        raise DataError(
            f"{missing}; add them, or pass --allow-partial to evaluate the others",
            path=first.path,
        )
    if not queries or gallery == []:
        raise DataError(
            f"{missing}, and nothing is left to evaluate; pass a folder that holds the images, too",
            path=first.path,
        )
    return present, [f"{missing}; they are left out"]


def _with_files(images: Sequence[Listed]) -> list[Listed]:
    return [image for image in images if os.path.isfile(image.path)]


def _image_set(name: str, listing: Listing, notes: list[str]) -> ImageSet:
    """Make the set, with a note on the queries that have no candidate of their class."""
    queries, gallery = _labelled(listing.queries), None
    if listing.gallery is None:
        classes, counts = np.unique(queries.labels, return_counts=True)
        answerable = classes[counts > 1]
    else:
        gallery = _labelled(listing.gallery)
        answerable = gallery.labels
    n_alone = int(np.count_nonzero(~np.isin(queries.labels, answerable)))
    if n_alone:
        notes.append(
            f"{n_alone:,} of {len(queries.labels):,} queries have no other image of their class to "
            "find, and always count as misses"
        )
    return ImageSet(name, queries, gallery, tuple(notes))


def _labelled(images: Sequence[Listed]) -> LabelledImages:
    paths, labels, ids = [], [], []
    for image in images:
        paths.append(image.path)
        labels.append(image.label)
        ids.append(image.id)
    return LabelledImages(tuple(paths), np.array(labels, np.int64), tuple(ids))
