"""Data sets of Hugging Face's ``datasets``: saved in a folder, on the hub, or in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cusa.data.errors import DataError, FileFormatError, HubNetworkError, first_line
from cusa.data.hub import ask_hub, is_hub_name
from cusa.data.hub_errors import one_line_hub_errors
from cusa.data.quiet import without_output
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
        # Offsets that lead out of the mapped file would crash the process when they are read.
        dataset.data.table.validate(full=True)
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
        HubError: If the hub does not show it, or does not answer and it is not in the local cache.
        DataError: If it cannot be loaded, has no such split, or a split's name is unknown.
    """
    repository, _, split_name = name.partition(":")
    library = import_extra("datasets", f"{HUB_PREFIX}{name}")
    network_error = _network_error(repository)
    try:
        loaded = _load(library, repository, split_name, is_offline=network_error is not None)
    except Exception as error:  # from the hub, the network, or the data set's own files
        if network_error is not None:
            raise network_error from None
        raise DataError(
            f"{HUB_PREFIX}{name} cannot be loaded ({first_line(error)}); check the name, the "
            "split and the network",
            name=name,
        ) from None
    if split_name:
        source = replace(source, split=source.split or canonical_split(split_name))
        return [read_dataset(loaded, source)]
    return read_dataset_dict(loaded, source)


def _network_error(repository: str) -> HubNetworkError | None:
    """Ask the hub for a data set, and return the error if it does not answer.

    Raises:
        DataError: If that is no name.
        HubError: If the hub answers that it does not show the data set.
    """
    from huggingface_hub import HfApi

    if os.path.isdir(repository):
        return None
    if not is_hub_name(repository):
        message = f"{HUB_PREFIX}{repository} names no data set of the hub; legal: hf:OWNER/NAME"
        raise DataError(message, name=repository)
    try:
        with one_line_hub_errors(repository):
            ask_hub(lambda: HfApi().dataset_info(repository))
    except HubNetworkError as error:
        return error
    return None


def _load(
    library: ModuleType,
    repository: str,
    split_name: str,
    is_offline: bool,
) -> Any:
    """Load a data set by ``datasets``.

    Args:
        library: The module ``datasets``.
        repository: Its name on the hub.
        split_name: The split; empty for all of them.
        is_offline: Whether to look into the local cache alone. The library itself would ask a hub
            that does not answer again and again, for half a minute.
    """
    setting = library.config.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = setting or is_offline
    try:
        with without_output(library, library.utils.logging):
            return library.load_dataset(repository, split=split_name or None)
    finally:
        library.config.HF_HUB_OFFLINE = setting


def read_dataset_dict(
    dataset_of_split: Mapping[str, datasets.Dataset],
    source: Source,
) -> list[Annotations]:
    """Read a ``datasets.DatasetDict``: the rows of each split, as :func:`read_dataset` does.

    Raises:
        DataError: If a split's name is unknown.
    """
    annotations = []
    for name, dataset in dataset_of_split.items():
        split_source = replace(source, split=canonical_split(name, source.path))
        annotations.append(read_dataset(dataset, split_source))
    return annotations


def read_dataset(dataset: datasets.Dataset, source: Source) -> Annotations:
    """Read a ``datasets.Dataset``; pictures in it are written to the source's unpack folder.

    Raises:
        FileFormatError: If a column is missing.
    """
    # Of a stream, the columns may be unknown.
    names = tuple(dataset.features or ())
    columns = choose_columns(names, source.columns, source.path)
    library = import_extra("datasets", source.path)
    feature = dataset.features[columns.image]
    holds_pictures = not isinstance(feature, library.Value) or feature.dtype == "binary"
    if isinstance(feature, library.Image):
        dataset = dataset.cast_column(columns.image, library.Image(decode=False))
    # A transform of the user's stays. Other formats give tensors of what the columns hold, and
    # columns that nobody asks for may need long to be decoded.
    if getattr(dataset, "format", {"type": None})["type"] != "custom":
        names = columns.select(names)
        dataset = dataset.with_format(None).select_columns(list(names))
    table = Table(names, _rows(dataset, source))
    if not holds_pictures:
        return read_pairs(table, source, LOCATION_FORMAT)
    split = source.split_by_name() or "train"
    table = with_image_files(table, columns.image, source.unpack_folder, f"{split}/")
    annotations = read_pairs(table, source, LOCATION_FORMAT)
    return replace(annotations, image_folder=source.unpack_folder)


def _rows(
    dataset: datasets.Dataset,
    source: Source,
) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        for fields in dataset:
            yield number, fields
            number += 1
    except Exception as error:  # of damaged files, of decoders, of the user's own transform
        location = LOCATION_FORMAT.format(number)
        raise FileFormatError(
            f"{source.path} {location} cannot be read ({first_line(error)}); repair or remove it",
            path=source.path,
            location=location,
        ) from None
