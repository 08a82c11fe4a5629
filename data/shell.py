"""Command lines that run as printed."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def shell_command(program: str, *arguments: object) -> str:
    """A command line that runs as printed, also where this environment is not the active one.

    Args:
        program: One of this package's programs, such as ``"cusa-train"``.
        arguments: Its arguments; they are quoted where a shell needs it.
    """
    installed = Path(sys.executable).parent / program
    on_path = shutil.which(program)
    if installed.exists() and (on_path is None or not installed.samefile(on_path)):
        program = str(installed)
    return shlex.join([program, *map(str, arguments)])
