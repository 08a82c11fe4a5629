"""Image-retrieval data sets: which images are the test set, of which classes, and whether all of it is there.

The test sets are those of the CUSA paper's image retrieval, which follows Unicom's: the second half of the classes of
CUB-200-2011 and Cars-196, the test splits of Stanford Online Products and of iNaturalist 2018 as Smooth-AP splits it,
and query and gallery of In-Shop Clothes Retrieval. Any folder of one folder per class will do as well.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from cusa.data.errors import CusaError
from cusa.data.lines import Place
from cusa.eval.evaluators.images import layouts
from cusa.eval.evaluators.images.layouts import Listed, Listing

FOLDER = "folder"  # the name of any tree of one folder per class


@dataclass(frozen=True)
class LabelledImages:
    """Images and the classes they belong to.

    Attributes:
        paths: Absolute path of each file.
        labels: int64 ``[n]``, each class's number in the data set: of In-Shop the item's, of iNaturalist the species';
            in a folder of classes, the position among the sorted names.
        ids: Path of each file relative to the data set's folder, "/" separated; whatever a copy packs around its images
            (``Img/``, ``car_data/``, a folder twice) is left out, so that all copies have the same ids.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    ids: tuple[str, ...]


@dataclass(frozen=True)
class ImageSet:
    """The test set of an image-retrieval data set.

    Attributes:
        name: ``"cub"``, ``"cars"``, ``"sop"``, ``"inshop"``, ``"inaturalist"``, or the folder's name.
        queries: Images that search.
        gallery: Images that are searched; ``None``: every image is a query against all others.
        notes: What the user should know: missing images, counts that are not the published ones, lonely classes.
    """

    name: str
    queries: LabelledImages
    gallery: LabelledImages | None
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over ids and labels of queries and gallery in order: equal only if every row means the same."""
        digest = hashlib.sha256()
        for part in (self.queries, self.gallery):
            digest.update(
                (-1 if part is None else len(part.ids)).to_bytes(8, "little", signed=True)
            )
            if part is not None:
                for raw in (image_id.encode() for image_id in part.ids):
                    digest.update(len(raw).to_bytes(8, "little") + raw)
                digest.update(part.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def n_classes(self) -> int:
        """Classes of queries and gallery together."""
        parts = [self.queries] if self.gallery is None else [self.queries, self.gallery]
        return len(np.unique(np.concatenate([part.labels for part in parts])))


@dataclass(frozen=True)
class KnownSet:
    """A published data set.

    Attributes:
        queries: Test images; with a gallery, those that search it.
        gallery: Images of the gallery; ``None``: there is none.
        classes: Classes of the test images.
        folders: Usual names of its folder.
        lists: Lists, relative to that folder, of which one shows that it is the right one.
        read: Reads the lists.
    """

    queries: int
    gallery: int | None
    classes: int
    folders: tuple[str, ...]
    lists: tuple[str, ...]
    read: Callable[[Path], Listing]


IMAGE_SETS: Mapping[str, KnownSet] = MappingProxyType(
    {
        "cub": KnownSet(
            5_924, None, 100, ("CUB_200_2011", "cub200"), layouts.CUB_LISTS[:2], layouts.read_cub
        ),
        "cars": KnownSet(
            8_131,
            None,
            98,
            ("cars196", "stanford_cars"),
            tuple(layouts.CARS_LISTS),
            layouts.read_cars,
        ),
        "sop": KnownSet(
            60_502, None, 11_316, ("Stanford_Online_Products",), layouts.SOP_LISTS, layouts.read_sop
        ),
        "inshop": KnownSet(
            14_218,
            12_612,
            3_985,
            ("Inshop_Clothes", "InShop_Clothes"),
            layouts.INSHOP_LISTS,
            layouts.read_inshop,
        ),
        "inaturalist": KnownSet(
            136_093,
            None,
            2_452,
            ("iNaturalist", "Inaturalist", "iNaturalist2018", "inaturalist2018"),
            layouts.INATURALIST_LISTS,
            layouts.read_inaturalist,
        ),
    }
)


def load_image_set(name: str, folder: Path, allow_partial: bool = False) -> ImageSet:
    """The test images of a data set and their classes; no image is read.

    Args:
        name: ``"cub"``, ``"cars"``, ``"sop"``, ``"inshop"``, ``"inaturalist"``, or ``"folder"`` for any tree of one
            folder per class, where every image is a query.
        folder: The data set's folder, or the one above it.
        allow_partial: Leave out listed images that are missing, and take other counts than the published ones; the
            notes tell.

    Raises:
        CusaError: If the name is unknown, the folder is another one, a list is missing or malformed, images are missing
            or listed twice, or their counts are not the published ones.
        OSError: If a folder cannot be read.
    """
    if name != FOLDER and name not in IMAGE_SETS:
        raise CusaError(f"unknown image set {name!r}; legal: {', '.join((*IMAGE_SETS, FOLDER))}")
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        raise CusaError(f"{folder} {problem}; pass the data set's folder")
    if name == FOLDER:
        listing = layouts.read_folder(folder)
        _check_listed(listing, folder)
        return _image_set(folder.name, listing, [])
    known = IMAGE_SETS[name]
    folder = _data_folder(name, known, folder)
    listing = known.read(folder)
    _check_listed(listing, folder)
    if not allow_partial and (problem := _unlike_published(name, known, listing)):
        raise CusaError(f"{problem}; pass --allow-partial to evaluate what is there")
    listing, notes = _present(listing, allow_partial)
    if problem := _unlike_published(name, known, listing):
        notes.append(problem)
    return _image_set(name, listing, notes)


def find_image_sets(root: Path) -> dict[str, Path]:
    """Known data sets below a folder, each in a folder of its own name or of its usual one.

    Args:
        root: The folder, such as ``data``.

    Returns:
        Name and folder of each, in the order of :data:`IMAGE_SETS`.
    """
    found = {}
    for name, known in IMAGE_SETS.items():
        places = (_find(name, known, root / usual) for usual in (name, *known.folders))
        place = next((p for p in places if p is not None), None)
        if place is not None:
            found[name] = place
    return found


def _holds(folder: Path, known: KnownSet) -> bool:
    return any((folder / name).is_file() for name in known.lists)


def _find(name: str, known: KnownSet, folder: Path) -> Path | None:
    """The data set's folder: this one, or one of a usual name in it."""
    places = (folder, *(folder / usual for usual in (name, *known.folders)))
    return next((place for place in places if _holds(place, known)), None)


def _data_folder(name: str, known: KnownSet, folder: Path) -> Path:
    # Eval/ of In-Shop and devkit/ of the cars hold a list, but are not the data set's folder.
    is_part = any(
        Path(x).parent.name == folder.name and (folder.parent / x).is_file() for x in known.lists
    )
    found = None if is_part else _find(name, known, folder)
    if found is not None:
        return found
    above = next((place for place in folder.parents[:3] if _holds(place, known)), None)
    if above is not None:
        raise CusaError(f"{folder} is only a part of {name}; pass {above}")
    lists = " or ".join(known.lists)
    raise CusaError(
        f"no {name} in {folder}; pass its folder (usually {known.folders[0]}), which holds {lists}"
    )


def _check_listed(listing: Listing, folder: Path) -> None:
    """Refuse empty sets, images that are listed twice, and names that no report could show."""
    if not listing.queries or listing.gallery == []:
        what = "test" if listing.gallery is None else "gallery" if listing.queries else "query"
        raise CusaError(f"the lists in {folder} name no {what} image; restore them")
    seen: dict[str, Place] = {}
    for image in (*listing.queries, *(listing.gallery or ())):
        if image.id in seen:
            raise image.where.fault(
                f"{image.id} is listed already, in {seen[image.id]}; list each image once"
            )
        seen[image.id] = image.where
        try:
            image.id.encode()
        except UnicodeEncodeError:
            raise CusaError(
                f"the file name {image.id!a} in {folder} is not UTF-8; rename it"
            ) from None


def _unlike_published(name: str, known: KnownSet, listing: Listing) -> str:
    """How the counts differ from the published ones; empty if they do not."""
    classes = len({image.label for image in (*listing.queries, *(listing.gallery or ()))})
    gallery = None if listing.gallery is None else len(listing.gallery)
    found, expected = (
        (len(listing.queries), gallery, classes),
        (known.queries, known.gallery, known.classes),
    )
    if found == expected:
        return ""
    return f"{name} has {_counts(*found)}; the published test set has {_counts(*expected)}"


def _counts(queries: int, gallery: int | None, classes: int) -> str:
    images = (
        f"{queries:,} images"
        if gallery is None
        else f"{queries:,} queries and {gallery:,} gallery images"
    )
    return f"{images} of {classes:,} classes"


def _present(listing: Listing, allow_partial: bool) -> tuple[Listing, list[str]]:
    """The images whose files are there, and a note on the others."""
    parts = [listing.queries, listing.gallery or []]
    there = [[image for image in part if os.path.isfile(image.path)] for part in parts]
    n_listed, n_there = (sum(map(len, p)) for p in (parts, there))
    if n_there == n_listed:
        return listing, []
    kept = {image.id for part in there for image in part}
    first = next(image for part in parts for image in part if image.id not in kept)
    missing = f"{n_listed - n_there:,} of {n_listed:,} listed images are missing, first {first.path} ({first.where})"
    if not allow_partial:
        raise CusaError(
            f"{missing}; put them there, or pass --allow-partial to evaluate the others"
        )
    if not there[0] or (listing.gallery is not None and not there[1]):
        raise CusaError(
            f"{missing}, and nothing is left to evaluate; pass the folder that holds the images, too"
        )
    return Listing(there[0], None if listing.gallery is None else there[1]), [
        f"{missing}; they are left out"
    ]


def _lonely(listing: Listing) -> list[str]:
    """A note on queries that no candidate is of the class of."""
    of_queries = np.array([image.label for image in listing.queries])
    candidates = (
        of_queries
        if listing.gallery is None
        else np.array([image.label for image in listing.gallery])
    )
    classes, counts = np.unique(candidates, return_counts=True)
    findable = classes[counts > 1] if listing.gallery is None else classes
    lonely = int(np.count_nonzero(~np.isin(of_queries, findable)))
    if not lonely:
        return []
    return [
        f"{lonely:,} of {len(of_queries):,} queries have no other image of their class to find: always misses"
    ]


def _image_set(name: str, listing: Listing, notes: list[str]) -> ImageSet:
    gallery = None if listing.gallery is None else _labelled(listing.gallery)
    return ImageSet(name, _labelled(listing.queries), gallery, (*notes, *_lonely(listing)))


def _labelled(images: Sequence[Listed]) -> LabelledImages:
    return LabelledImages(
        tuple(image.path for image in images),
        np.array([image.label for image in images], np.int64),
        tuple(image.id for image in images),
    )
