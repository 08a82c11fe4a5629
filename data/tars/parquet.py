"""Parquet files with the bytes of images, as units of a set beside tars; a row is a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cusa.data.errors import CusaError, DataError, SettingError
from cusa.data.objects.folder import location_text
from cusa.data.readers.extras import import_extra
from cusa.data.record import Record
from cusa.data.record_columns import Records
from cusa.data.tars.pairs import (
    TEXT_CAPTIONS,
    TarPairs,
    caption_reader,
    captions_with_words,
    name_of_tar,
    read_pairs_of_tar,
)
from cusa.data.tars.parquet_columns import (
    damaged_parquet,
    image_bytes,
    image_column,
    key_column,
    open_parquet,
)
from cusa.data.tars.samples import FileState, TarError, state_of_file
from cusa.data.tars.units import PARQUET_CAPTIONS, PARQUET_SUFFIX, is_parquet

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_ROWS_PER_BATCH = 64


def caption_rule_of(
    tars: Sequence[Path],
    requested_rule: str | None,
) -> str:
    """Return the rule by which the captions of tars, or of Parquet files, are read.

    Args:
        tars: The files.
        requested_rule: The rule; ``None``: ``"txt"`` of tars, ``"parquet:caption"`` of Parquet
            files.

    Raises:
        DataError: If there are files of both kinds.
        SettingError: If the rule is none, or one for files of the other kind.
    """
    files_by_suffix = {tar.suffix: location_text(tar) for tar in tars}
    are_parquet = PARQUET_SUFFIX in files_by_suffix
    if are_parquet and len(files_by_suffix) > 1:
        raise DataError(
            f"{' and '.join(files_by_suffix.values())}: tars and Parquet files make no set "
            "together; give each kind a set of its own",
            name="dataset",
        )
    default_rule = TEXT_CAPTIONS
    if are_parquet:
        default_rule = f"{PARQUET_CAPTIONS}caption"
    caption_rule = requested_rule or default_rule
    column = caption_rule.removeprefix(PARQUET_CAPTIONS)
    if are_parquet and not (is_parquet(caption_rule) and column):
        raise SettingError(
            f"--caption {caption_rule!r}: of Parquet files, legal is {PARQUET_CAPTIONS}COLUMN, "
            f"such as {default_rule}",
            name="caption",
        )
    if not are_parquet:
        caption_reader(caption_rule)
    return caption_rule


def read_pairs_of_unit(
    path: Path,
    caption_rule: str,
    may_be_damaged: bool,
) -> TarPairs:
    """Read the pairs of a tar or, if captions are a column, of a Parquet file.

    Args:
        path: The file.
        caption_rule: Where captions are, as in :class:`cusa.data.tars.pair_files.PairFile`.
        may_be_damaged: Whether the whole samples of a damaged file are returned.

    Raises:
        TarError: If the file cannot be read, or is damaged and may not be.
        DataError: If no column, or more than one, could be the images.
        SettingError: If the caption rule is not legal, or the file has no such column of texts.
    """
    if is_parquet(caption_rule):
        return _read_pairs_of_parquet(path, caption_rule, may_be_damaged)
    return read_pairs_of_tar(path, caption_rule, may_be_damaged)


def _read_pairs_of_parquet(
    path: Path,
    caption_rule: str,
    may_be_damaged: bool,
) -> TarPairs:
    state, sha256 = _state_and_digest(path)
    file = open_parquet(path)
    caption_column = caption_rule.removeprefix(PARQUET_CAPTIONS)
    names = file.schema_arrow.names
    _require_texts(file, path, caption_column)
    samples = _Samples(path, image_column(file, path), caption_column, key_column(names))
    samples.read(file)
    if samples.damage is not None and not may_be_damaged:
        raise samples.damage
    pairs = TarPairs(
        name=name_of_tar(path),
        path=path,
        state=state,
        sha256=sha256,
        caption_rule=caption_rule,
        is_complete=samples.damage is None,
        records=Records.from_records(samples.records.values()),
        # Rows have no place of their own in the file.
        image_offsets=np.zeros(len(samples.records), np.int64),
        image_sizes=np.zeros(len(samples.records), np.int64),
        left_out=tuple(samples.left_out.items()),
    )
    pairs.require_unchanged(state_of_file(path))
    return pairs


def _require_texts(
    file: ParquetFile,
    path: Path,
    caption_column: str,
) -> None:
    """Refuse a file without a column of that name, or with one that cannot hold texts.

    Raises:
        SettingError: If it is refused.
    """
    names = file.schema_arrow.names
    if caption_column not in names:
        raise SettingError(
            f"{path} has no column {caption_column!r}; pass --caption {PARQUET_CAPTIONS}COLUMN, "
            f"one of: {', '.join(names)}",
            path=path,
            name="caption",
        )
    column_type = file.schema_arrow.field(caption_column).type
    if import_extra("pyarrow.types", path).is_primitive(column_type):
        raise SettingError(
            f"{path}: column {caption_column!r} holds {column_type}, not texts or lists of texts; "
            f"pass --caption {PARQUET_CAPTIONS}COLUMN with another column",
            path=path,
            name="caption",
        )


@dataclass
class _Samples:
    """The samples of a Parquet file, as they are read.

    Attributes:
        path: The file.
        image_column: Column of the images' bytes.
        caption_column: Column of the captions.
        key_column: Column of the keys; ``None``: the numbers of the rows.
        records: A record for each key of a single row with an image and a caption.
        left_out: Why the rows of each other key are no pairs.
        damage: What is wrong with the file, as far as it was read.
    """

    path: Path
    image_column: str
    caption_column: str
    key_column: str | None
    records: dict[str, Record] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    damage: TarError | None = None

    def read(self, file: ParquetFile) -> None:
        """Read all rows, up to the first that is damaged."""
        seen: set[str] = set()
        for row, cells in self._rows(file):
            sample_key = self._key(cells, row)
            if sample_key in seen:
                self._refuse_repeated(sample_key)
                continue
            seen.add(sample_key)
            self._add_or_leave_out(sample_key, row, cells)

    def _rows(self, file: ParquetFile) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and the cells of each row, up to the first that is damaged."""
        columns = [self.image_column, self.caption_column]
        if self.key_column is not None:
            columns.append(self.key_column)
        row = 0
        try:
            for batch in file.iter_batches(_ROWS_PER_BATCH, columns=columns, use_threads=False):
                for cells in batch.to_pylist():
                    yield row, cells
                    row += 1
        except Exception as error:  # pyarrow raises many things on damaged files
            self.damage = damaged_parquet(self.path, error)

    def _key(
        self,
        cells: dict[str, Any],
        row: int,
    ) -> str:
        """Return the key of a row, which is its number if it has none."""
        value = None
        if self.key_column is not None:
            value = cells[self.key_column]
        if value is None or value == "":
            return f"{row:09d}"
        return str(value)

    def _refuse_repeated(self, sample_key: str) -> None:
        """Leave out all rows of a key that several have."""
        self.records.pop(sample_key, None)
        self._leave_out(sample_key, "there are two rows with its key")
        if self.damage is None:
            self.damage = TarError(
                f"{self.path}: two rows have the key {sample_key!r}; give each row a key of its "
                "own",
                path=self.path,
                name=sample_key,
            )

    def _add_or_leave_out(
        self,
        sample_key: str,
        row: int,
        cells: dict[str, Any],
    ) -> None:
        try:
            captions = self._captions(sample_key, cells[self.caption_column])
            if not image_bytes(cells[self.image_column]):
                raise TarError(f"row {sample_key!r} has no image", name=sample_key)
            if "\0" in sample_key:
                raise TarError(f"the key {sample_key!r} holds a NUL", name=sample_key)
        except CusaError as error:
            self._leave_out(sample_key, str(error))
            return
        image_id = f"{name_of_tar(self.path)}/{sample_key}"
        self.records[sample_key] = Record(
            image_id=image_id,
            image_path=f"{name_of_tar(self.path)}.parquet/{row}",
            captions=tuple(captions),
            caption_ids=tuple(f"{image_id}#{number}" for number in range(len(captions))),
        )

    def _leave_out(
        self,
        sample_key: str,
        reason: str,
    ) -> None:
        # No text of a store holds a NUL.
        self.left_out[sample_key.replace("\0", "")] = reason

    def _captions(
        self,
        sample_key: str,
        value: Any,
    ) -> list[str]:
        captions = value
        if not isinstance(value, list):
            captions = [value]
        if not captions or not all(isinstance(caption, str) for caption in captions):
            message = f"column {self.caption_column!r} of row {sample_key!r} is no caption"
            raise TarError(message, name=sample_key)
        return captions_with_words(captions, sample_key)


def _state_and_digest(path: Path) -> tuple[FileState, str]:
    """Return the state and the sha256 (hex) of a file."""
    if path.exists() and not path.is_file():
        raise TarError(f"{path} is not a file; check the path", path=path)
    try:
        with path.open("rb") as file:
            state = state_of_file(file.fileno())
            return state, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}); check the path"
        raise TarError(message, path=path) from None
