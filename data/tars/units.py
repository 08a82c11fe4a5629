"""The two kinds of files that hold the samples of a set: tars, and Parquet files."""

from __future__ import annotations

TAR_SUFFIX = ".tar"
PARQUET_SUFFIX = ".parquet"
UNIT_SUFFIXES = (TAR_SUFFIX, PARQUET_SUFFIX)
# Of Parquet files, captions are a column.
PARQUET_CAPTIONS = "parquet:"


def is_parquet(caption_rule: str) -> bool:
    """Return whether a caption rule is of Parquet files instead of tars."""
    return caption_rule.startswith(PARQUET_CAPTIONS)


def unit_suffix(caption_rule: str) -> str:
    """Return the suffix of the files that pairs are read from by a caption rule."""
    if is_parquet(caption_rule):
        return PARQUET_SUFFIX
    return TAR_SUFFIX
