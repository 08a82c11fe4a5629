"""Options for the data set to read, and for the names of its columns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from cusa.cli.console import Decorator

# For each column option: the field of ColumnNames that it sets, and the column's contents.
_COLUMN_OPTIONS = {
    "image": ("image", "the images' paths"),
    "caption": ("caption", "the captions"),
    "id": ("image_id", "the images' ids"),
    "split": ("split", "the splits"),
}


def dataset_option(*names: str, help_text: str, required: bool = False) -> Decorator:
    """Make the option ``--dataset``, which may be repeated.

    Args:
        names: Name of the command's parameter, if it is not ``dataset``.
        help_text: Help text of the option.
        required: Whether the option is required.
    """
    return click.option(
        "--dataset",
        *names,
        multiple=True,
        required=required,
        metavar="NAME|hf:OWNER/NAME[:SPLIT]|[SPLIT=]PATH",
        help=help_text,
    )


DATASETS_OPTION = dataset_option(
    "datasets",
    required=True,
    help_text="coco, flickr30k, flickr8k, demo; a data set of the Hugging Face hub; an annotation "
    "file (Karpathy, COCO, ALBEF, Flickr, a table, JSON Lines, Parquet); or a folder (images with "
    "captions beside them, an imagefolder, saved by datasets). Repeat it for files of one split "
    "each. docs/data.md shows every form.",
)


def column_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--image-column`` and the like; the command gets their values as ``columns``."""

    @functools.wraps(command)
    def wrapper(*args: Any, **options: Any) -> Any:
        from cusa.data.readers.columns import ColumnNames

        chosen = {}
        for role, (field, _) in _COLUMN_OPTIONS.items():
            chosen[field] = options.pop(f"{role}_column")
        return command(*args, columns=ColumnNames(**chosen), **options)

    decorated: Callable[..., Any] = wrapper
    for role, (_, content) in reversed(_COLUMN_OPTIONS.items()):
        help_text = f"Column of {content}, if its name is not a usual one."
        decorated = click.option(f"--{role}-column", metavar="NAME", help=help_text)(decorated)
    return decorated
