"""The published image-retrieval data sets: their sizes, and the layout of their folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cusa.eval.evaluators.images import layouts
from cusa.eval.evaluators.images.lists import Listing


@dataclass(frozen=True)
class KnownSet:
    """A published data set.

    Attributes:
        queries: Number of test images; with a gallery, number of query images.
        gallery: Number of gallery images; ``None`` without a gallery.
        classes: Number of classes of the test images.
        folders: Usual names of its folder.
        lists: Files relative to that folder, any of which identifies it.
        read: Reads the test images from the data set's folder.
        title: Title in reports.
        short_title: Title in narrow columns.
        in_paper: Whether the paper's average includes it.
    """

    queries: int
    gallery: int | None
    classes: int
    folders: tuple[str, ...]
    lists: tuple[str, ...]
    read: Callable[[Path], Listing]
    title: str
    short_title: str
    in_paper: bool = True


IMAGE_SETS: Mapping[str, KnownSet] = MappingProxyType(
    {
        "cub": KnownSet(
            queries=5_924,
            gallery=None,
            classes=100,
            folders=("CUB_200_2011", "cub200"),
            lists=layouts.CUB_LISTS[:2],
            read=layouts.read_cub,
            title="CUB-200-2011",
            short_title="CUB",
        ),
        "cars": KnownSet(
            queries=8_131,
            gallery=None,
            classes=98,
            folders=("cars196", "stanford_cars"),
            lists=tuple(layouts.CARS_LISTS),
            read=layouts.read_cars,
            title="Cars-196",
            short_title="Cars",
            in_paper=False,
        ),
        "sop": KnownSet(
            queries=60_502,
            gallery=None,
            classes=11_316,
            folders=("Stanford_Online_Products",),
            lists=layouts.SOP_LISTS,
            read=layouts.read_sop,
            title="Stanford Online Products",
            short_title="SOP",
        ),
        "inshop": KnownSet(
            queries=14_218,
            gallery=12_612,
            classes=3_985,
            folders=("Inshop_Clothes", "InShop_Clothes"),
            lists=layouts.INSHOP_LISTS,
            read=layouts.read_inshop,
            title="In-Shop",
            short_title="In-Shop",
        ),
        "inaturalist": KnownSet(
            queries=136_093,
            gallery=None,
            classes=2_452,
            folders=("iNaturalist", "Inaturalist", "iNaturalist2018", "inaturalist2018"),
            lists=layouts.INATURALIST_LISTS,
            read=layouts.read_inaturalist,
            title="iNaturalist 2018",
            short_title="iNat",
        ),
    }
)
PAPER_SETS = tuple(name for name, known_set in IMAGE_SETS.items() if known_set.in_paper)
