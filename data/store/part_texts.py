"""The texts of a store in parts: in a file of their own, instead of in the index of each part.

The file is an index without teachers, beside the parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import h5py

from cusa.data.errors import StoreError
from cusa.data.records import TRUTH_ARRAYS
from cusa.data.store.checksum import (
    INDEX_FORMAT,
    open_sealed,
    read_seal,
    seal_holds,
)
from cusa.data.store.hdf5 import child_group, child_groups, refuse, text_attribute
from cusa.data.store.index_checks import refuse_index
from cusa.data.store.split_table import SplitTable, read_split

# Attribute of a part's index: the name of the file with its texts.
TEXTS_FILE = "texts_file"


def texts_path_of_store(out: Path, tables: Mapping[str, SplitTable]) -> Path:
    """Return the path of the texts of a store in parts; other contents have another path.

    Args:
        out: Path of the store's index.
        tables: The splits.
    """
    digest = hashlib.sha256()
    for name, table in sorted(tables.items()):
        digest.update(f"{name} {table.fingerprint}\n".encode())
        if table.truth is not None:
            for array_name in TRUTH_ARRAYS:
                digest.update(getattr(table.truth, array_name).tobytes())
    return out.with_name(f"{out.stem}.part-texts-{digest.hexdigest()[:8]}.h5")


def texts_path_of_part(index_path: Path, file: h5py.File) -> Path | None:
    """Return the path of the file that has the texts of an index; ``None``: it has them itself.

    Raises:
        StoreError: If there is no such file.
    """
    if TEXTS_FILE not in file.attrs:
        return None
    name = text_attribute(file, TEXTS_FILE)
    if Path(name).name != name:
        refuse(index_path, f"@{TEXTS_FILE}", "it is not the name of a file")
    texts_path = index_path.with_name(name)
    if not texts_path.is_file():
        raise StoreError(
            f"{texts_path} is missing: it has the captions and ids of {index_path}, which is the "
            "index of a part; copy it from where the part was made, or make the part again",
            path=texts_path,
        )
    return texts_path


class HasFingerprint(Protocol):
    """A split, however it is read."""

    @property
    def fingerprint(self) -> str:
        """Return the sha256 (hex) over ids, paths and captions."""


def require_same_split(
    index_path: Path,
    split_group: h5py.Group,
    texts: HasFingerprint | None,
) -> None:
    """Refuse texts of another split than that of a part.

    Args:
        index_path: The index of the part.
        split_group: The split in it.
        texts: The split in the file of texts; ``None`` if it has no such split.

    Raises:
        StoreError: If it differs.
    """
    fingerprint = text_attribute(split_group, "fingerprint")
    if texts is None or texts.fingerprint != fingerprint:
        raise StoreError(
            f"{index_path}: the file with its texts has other ones for {split_group.name}; make "
            "the part again",
            path=index_path,
            name="fingerprint",
        )


def read_part_tables(index_path: Path, file: h5py.File, texts_path: Path) -> dict[str, SplitTable]:
    """Read the splits of a part from the file of its texts.

    Raises:
        StoreError: If that is damaged, or has other splits.
    """
    # The parts of a store are read one after the other, and have the same file.
    tables = _read_tables(texts_path, read_seal(texts_path, INDEX_FORMAT))
    tables_of_part: dict[str, SplitTable] = {}
    for name, group in child_groups(child_group(file, "splits")).items():
        require_same_split(index_path, group, tables.get(name))
        tables_of_part[name] = tables[name]
    return tables_of_part


@lru_cache(maxsize=1)
def _read_tables(texts_path: Path, seal: str) -> dict[str, SplitTable]:
    if not seal_holds(texts_path, INDEX_FORMAT):
        refuse_index(texts_path)
    with open_sealed(texts_path, INDEX_FORMAT, seal) as file:
        groups = child_groups(child_group(file, "splits"))
        return {name: read_split(texts_path, group) for name, group in groups.items()}
