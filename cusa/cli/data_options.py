"""Options for the data set to read, and for the names of its columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cusa.cli.console import Decorator

_COLUMN_CONTENTS = {
    "image": "the images' paths",
    "caption": "the captions",
    "id": "the images' ids",
    "split": "the splits",
}


def _given(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return ``None`` for an option that may be repeated and is not given."""
    return values or None


def dataset_option(help_text: str, required: bool = False) -> Decorator:
    """Make the option ``--dataset``, which may be repeated.

    Args:
        help_text: Help text of the option.
        required: Whether the option is required.
    """
    return click.option(
        "--dataset",
        multiple=True,
        callback=_given,
        required=required,
        metavar="NAME|hf:OWNER/NAME[:SPLIT]|[SPLIT=]PATH",
        help=help_text,
    )


DATASETS_OPTION = dataset_option(
    required=True,
    help_text="coco, flickr30k, flickr8k, demo; a data set of the Hugging Face hub; an annotation "
    "file (Karpathy, COCO, ALBEF, Flickr, a table, JSON Lines, Parquet); a folder (images with "
    "captions beside them, an imagefolder, saved by datasets); of cusa-precompute, WebDataset tars "
    "'set/{00000..00999}.tar', or Parquet files of pictures by such a pattern. Repeat it for files "
    "of one split each. docs/data.md shows all.",
)


def column_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--image-column`` and the like."""
    for role, content in reversed(_COLUMN_CONTENTS.items()):
        help_text = f"Column of {content}, if its name is not a usual one."
        command = click.option(f"--{role}-column", metavar="NAME", help=help_text)(command)
    return command
