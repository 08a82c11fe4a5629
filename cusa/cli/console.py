"""Shared parts of the command lines: one-line errors and settings of click."""

from __future__ import annotations

import errno
import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from cusa.data.errors import CusaError, Stopped

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(1)
NOT_NEGATIVE = click.IntRange(0)
_OTHER_PATH = "; choose another path"
# What to do about a refusal of the system.
_ADVICE = {
    errno.ENOSPC: "; free some space, and run the command again",
    errno.ENOENT: _OTHER_PATH,
    errno.ENOTDIR: _OTHER_PATH,
    errno.EISDIR: _OTHER_PATH,
    errno.EROFS: _OTHER_PATH,
}
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def choice_option(flag: str, *choices: str, **settings: Any) -> Decorator:
    """Make an option that takes one of several words; the first is the default."""
    return click.option(flag, type=click.Choice(choices), default=choices[0], **settings)


DEVICE_OPTION = choice_option("--device", "auto", "cpu", "cuda")
DATA_ROOT_OPTION = click.option(
    "--data-root", type=PATH, default=Path("data"), help="Folder of the named data sets."
)
IMAGE_ROOT_OPTION = click.option(
    "--image-root", type=PATH, help="Folder that image paths are relative to."
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
DTYPE_OPTION = choice_option("--dtype", "float16", "float32", help="Dtype of the stored rows.")
STORE_ARGUMENT = click.argument("store_path", metavar="STORE", type=PATH)

# 128 + SIGINT, as in shells.
INTERRUPTED_STATUS = 130


def one_line_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a user's mistake, or the system's refusal, into one line on stderr and status 1."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # Captions, ids and paths may hold any character. If the output's encoding lacks one, it is
        # printed as an escape instead of ending the run.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return function(*args, **kwargs)
        except Stopped as stopped:
            signal_name = signal.Signals(stopped.signal).name
            progress = f": {stopped}" if str(stopped) else ""
            fail(f"stopped by {signal_name}{progress}", 128 + stopped.signal)
        except CusaError as error:
            # It may contain a library's message of several lines.
            fail(str(error).replace("\n", " "))
        except PermissionError as error:
            path = error.filename or error
            fail(f"no permission for {path}: choose another path, or change its permissions")
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, "")
            fail(f"{error.strerror or error} {error.filename or ''}".strip() + advice)
        except KeyboardInterrupt:
            fail("interrupted; what is finished is kept", INTERRUPTED_STATUS)

    return wrapper


def command(name: str | None = None) -> Callable[[Callable[..., Any]], DefaultCommand]:
    """Turn a function into a command that prints each error as one line."""

    def decorate(function: Callable[..., Any]) -> DefaultCommand:
        decorator = click.command(name, DefaultCommand, context_settings=CONTEXT_SETTINGS)
        return decorator(one_line_errors(function))

    return decorate


class DefaultCommand(click.Command):
    """A command that may also have subcommands: ``cusa-train --seed 1``, ``cusa-train export``.

    Attributes:
        subcommands: The subcommands by name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.subcommands: dict[str, click.Command] = {}

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        """Make the context of this command, or of the subcommand that the first argument names."""
        if not args or args[0] not in self.subcommands:
            return super().make_context(info_name, args, parent, **extra)
        subcommand = self.subcommands[args[0]]
        return subcommand.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the context belongs to."""
        if ctx.command is self:
            return super().invoke(ctx)
        return ctx.command.invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands."""
        if not self.subcommands:
            return
        with formatter.section("Other commands"):
            rows = []
            for name, subcommand in self.subcommands.items():
                rows.append((f"{ctx.command_path} {name}", subcommand.get_short_help_str(120)))
            formatter.write_dl(rows)


def fail(message: str, status: int = 1) -> NoReturn:
    """Print ``Error: message`` on stderr and exit."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(status)


def quiet_libraries() -> None:
    """Turn off the libraries' own progress bars and advice.

    Call this before they are imported.
    """
    settings = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    for variable, value in settings.items():
        # The user's own settings take precedence.
        os.environ.setdefault(variable, value)
