"""The arguments that the scripts of the study share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cusa.cli.console import POSITIVE

_PARAMETERS = (
    click.argument("store", type=click.Path(path_type=Path, exists=True)),
    click.option("--seeds", type=POSITIVE, default=1),
    click.option(
        "--split", default="val", help="What is measured; test is for what val has chosen."
    ),
    click.option(
        "--judgements",
        type=click.Path(path_type=Path, exists=True),
        help="People's, of that split.",
    ),
    click.option(
        "--set", "more", multiple=True, metavar="NAME=VALUE", help="A setting of all runs."
    ),
    click.option(
        "--out", type=click.Path(path_type=Path), help="File of the runs, kept up to date."
    ),
)


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the store, what is measured on it, and the file of the results."""
    for add_parameter in reversed(_PARAMETERS):
        command = add_parameter(command)
    return command
