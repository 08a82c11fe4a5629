"""``python -m cusa.hosts.open_clip``: open_clip's own trainer, with CSA and USA beside its loss."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click

from cusa.cli.console import PATH, command
from cusa.data.errors import SettingError
from cusa.screen.console import print_plain


@command()
@click.option(
    "--embeddings", required=True, type=PATH, help="The embedding store of cusa-precompute."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="One setting of the loss, e.g. loss.alpha=0.2 (cusa-train settings lists them), or of "
    "data.train_split, data.image_teacher, data.text_teacher, data.cross_teacher.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- ARGUMENTS")
def main(embeddings: Path, settings: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Run open_clip's own trainer with CSA and USA beside its loss.

    ARGUMENTS are those of open_clip_train.main. --train-data must be a table (csv or tsv) whose
    pairs are in the store; they may be in any order.
    """
    _trainer().train(embeddings, arguments, settings)


@command()
@click.argument("checkpoint", type=PATH)
@click.argument("out", type=PATH)
def export(checkpoint: Path, out: Path) -> None:
    """Write a checkpoint's weights to OUT.safetensors, as open_clip loads them (--pretrained).

    The uni-modal heads and the temperatures are left out.
    """
    _trainer().export_weights(checkpoint, out)
    print_plain(f"exported: {out}")


main.subcommands |= {"export": export}


def _trainer() -> ModuleType:
    """Import the module that needs open_clip.

    Raises:
        SettingError: If open_clip or what its trainer needs is not installed.
    """
    try:
        from cusa.hosts.open_clip import trainer
    except ImportError as error:
        raise SettingError(
            f"open_clip's trainer cannot be imported ({error}); pip install 'cusa[open_clip]'"
        ) from None
    return trainer


if __name__ == "__main__":
    main()
