"""The console on stdout, and text printed as it is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Width of tables if the output is not a terminal.
LOG_WIDTH = 120


def console(quiet: bool = False) -> Console:
    """Make a rich console on stdout, wide enough for tables if that is not a terminal."""
    from rich.console import Console

    # In a service without any output, stdout is None.
    if sys.stdout is not None and sys.stdout.isatty():
        return Console(quiet=quiet)
    return Console(quiet=quiet, width=LOG_WIDTH)


def print_plain(message: str, screen: Console | None = None) -> None:
    """Print text on stdout as it is, without markup, colours or added line breaks."""
    if screen is None:
        screen = console()
    screen.print(message, highlight=False, markup=False, soft_wrap=True)


def print_labelled(screen: Console, label: str, message: str) -> None:
    """Print a label, which may have markup, and a message, whose brackets are kept."""
    from rich.markup import escape

    screen.print(f"{label} {escape(message)}", highlight=False, soft_wrap=True)


def counted(number: int, unit: str) -> str:
    """Format a number with its unit: ``"1 epoch"``, ``"2,000 epochs"``."""
    plural = "" if number == 1 else "s"
    return f"{number:,} {unit}{plural}"
