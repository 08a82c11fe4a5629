"""Commands for the user to copy from a message."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def flag_of(option: str) -> str:
    """Return an option's flag: ``"--batch-size"`` of ``"batch_size"``."""
    return "--" + option.replace("_", "-")


def shell_command(program: str, *arguments: object) -> str:
    """Return a command line that runs as printed, even outside the active environment.

    Args:
        program: One of this package's programs, such as ``"cusa-train"``.
        arguments: Its arguments; they are quoted if a shell needs it.
    """
    installed = Path(sys.executable).parent / program
    on_path = shutil.which(program)
    is_found_by_name = on_path is not None and installed.exists() and installed.samefile(on_path)
    if installed.exists() and not is_found_by_name:
        program = str(installed)
    return shlex.join([program, *map(str, arguments)])
