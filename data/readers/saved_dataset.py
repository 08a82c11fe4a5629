"""Data sets of Hugging Face's ``datasets``: saved in a folder, on the hub, or in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cusa.data.errors import DataError, FileFormatError, first_line
from cusa.data.readers.columns import choose_columns
from cusa.data.readers.extras import import_extra
from cusa.data.readers.forms import Annotations, Source, Table
from cusa.data.readers.image_bytes import with_image_files
from cusa.data.readers.pair_table import read_pairs
from cusa.data.readers.split_names import canonical_split

if TYPE_CHECKING:
    import datasets

LOCATION_FORMAT = "row {}"
_DICT_FILE = "dataset_dict.json"
HUB_PREFIX = "hf:"
_SAVED_FILES = ("state.json", "dataset_info.json")


def is_saved_dict(folder: Path) -> bool:
    """Return whether a folder is a saved ``DatasetDict``."""
    return (folder / _DICT_FILE).is_file()


def is_saved(folder: Path) -> bool:
    """Return whether a folder is a saved ``Dataset``."""
    return all((folder / name).is_file() for name in _SAVED_FILES)


def read_saved(source: Source) -> Annotations:
    """Read a ``Dataset`` that ``save_to_disk`` wrote.

    Raises:
        FileFormatError: If it is damaged, or a column is missing.
        DataError: If ``datasets`` is not installed.
    """
    library = import_extra("datasets", source.path)
    try:
        dataset = library.load_from_disk(source.path)
    except Exception as error:  # datasets and pyarrow raise errors of many classes
        message = (
            f"{source.path} cannot be read as a saved data set ({first_line(error)}); save it again"
        )
        raise FileFormatError(message, path=source.path) from None
    return read_dataset(dataset, source)


def read_hub(name: str, source: Source) -> list[Annotations]:
    """Read a data set of the Hugging Face hub.

    Args:
        name: ``"OWNER/NAME"``, or ``"OWNER/NAME:split"`` for one split of it.
        source: Its columns, and the folder where its pictures are written.

    Returns:
        The rows of each split.

    Raises:
        DataError: If it cannot be loaded, has no such split, or a split's name is unknown.
    """
    repository, _, split_name = name.partition(":")
    library = import_extra("datasets", f"{HUB_PREFIX}{name}")
    try:
        loaded = library.load_dataset(repository, split=split_name or None)
    except Exception as error:  # from the hub, the network, or the data set's own files
        raise DataError(
            f"{HUB_PREFIX}{name} cannot be loaded ({first_line(error)}); check the name, the "
            "split and the network",
            name=name,
        ) from None
    if split_name:
        source = replace(source, split=source.split or canonical_split(split_name))
        return [read_dataset(loaded, source)]
    annotations = []
    for hub_split in loaded:
        split_source = replace(source, split=canonical_split(hub_split, source.path))
        annotations.append(read_dataset(loaded[hub_split], split_source))
    return annotations


def read_dataset(dataset: datasets.Dataset, source: Source) -> Annotations:
    """Read a ``datasets.Dataset``; pictures in it are written to the source's unpack folder.

    Raises:
        FileFormatError: If a column is missing.
    """
    columns = choose_columns(dataset.column_names, source.columns, source.path)
    library = import_extra("datasets", source.path)
    feature = dataset.features[columns.image]
    holds_pictures = not isinstance(feature, library.Value) or feature.dtype == "binary"
    if isinstance(feature, library.Image):
        dataset = dataset.cast_column(columns.image, library.Image(decode=False))
    table = Table(tuple(dataset.column_names), _rows(dataset))
    if not holds_pictures:
        return read_pairs(table, source, LOCATION_FORMAT)
    split = source.split_by_name() or "train"
    table = with_image_files(table, columns.image, source.unpack_folder, f"{split}/")
    annotations = read_pairs(table, source, LOCATION_FORMAT)
    return replace(annotations, image_folder=source.unpack_folder)


def _rows(dataset: datasets.Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(dataset)
