"""``cusa-store inspect``: inspect the soft labels of a store before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import JSON_OPTION, NOT_NEGATIVE, PATH, POSITIVE, STORE_ARGUMENT, command
from cusa.data.errors import SettingError
from cusa.screen.console import print_plain

if TYPE_CHECKING:
    from cusa.train.loss.config import LossConfig


@command()
@STORE_ARGUMENT
@click.option("--split", default="train", help="Split whose pairs would be trained on.")
@click.option(
    "--image-teacher",
    help="The store's image teacher that gives the soft labels.  [default: the only one]",
)
@click.option(
    "--text-teacher",
    help="The store's text teacher that gives the soft labels.  [default: the only one]",
)
@click.option(
    "--cross-teacher",
    multiple=True,
    help="The store's cross-modal teachers, for a loss that needs one.  [default: the only one]",
)
@click.option(
    "--batch-size", type=click.IntRange(2), default=128, help="Pairs in a training batch."
)
@click.option("--batches", type=POSITIVE, default=100, help="Number of batches to average over.")
@click.option(
    "--pairs",
    type=NOT_NEGATIVE,
    default=30,
    help="Number of most similar pairs to show for each ranking.",
)
@click.option(
    "--sample",
    type=click.IntRange(2),
    default=20_000,
    help="Number of images to search for these pairs.",
)
@click.option("--seed", type=NOT_NEGATIVE, default=0, help="Seed of the batches and of the sample.")
@click.option(
    "--judgements",
    type=PATH,
    help="People's judgements of the split's pairs, in the form of Flickr8k's "
    "CrowdFlowerAnnotations.txt: recommends a temperature for each teacher.",
)
@click.option("--image-root", type=PATH, help="Folder of the images, if not the store's own.")
@click.option(
    "--set",
    "loss_settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the loss, e.g. loss.rule=xclr: show its targets, too.",
)
@click.option(
    "--out",
    "page_path",
    type=PATH,
    help="HTML page to write.  [default: STORE's name with .inspect.html]",
)
@JSON_OPTION
def inspect(
    store_path: Path,
    page_path: Path | None,
    as_json: bool,
    loss_settings: tuple[str, ...],
    **settings: Any,
) -> None:
    """Show how sharp the soft labels are, likely false negatives, and how the teachers differ.

    Batches are drawn as cusa-train draws them; no model is loaded.
    """
    from cusa.data.store.reader import EmbeddingStore
    from cusa.screen.progress import StepTasks, progress_display

    loss = _loss(loss_settings)
    # Report mistakes before torch is imported and the work begins.
    opened = EmbeddingStore(store_path)
    page_path = _checked_page_path(page_path, store_path)
    _check_image_root(settings["image_root"])

    from cusa.cli.inspect_output import print_inspection
    from cusa.eval.inspection import soft_labels
    from cusa.eval.inspection.results import Settings, to_json

    with progress_display(quiet=as_json) as progress_bar:
        steps = StepTasks(progress_bar, unit="steps")
        inspection = soft_labels.inspect(opened, Settings(loss=loss, **settings), steps.complete)
    if as_json:
        content = {**to_json(inspection), "page": str(page_path.resolve())}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print_inspection(inspection)
    # The figures are printed before the page's pictures are read, which takes longer.
    n_unreadable = soft_labels.write_inspection(page_path, inspection)
    if not as_json:
        note = f" ({n_unreadable:,} of its pictures could not be read)" if n_unreadable else ""
        print_plain(f"page: {page_path.resolve()}{note}")


def _loss(loss_settings: tuple[str, ...]) -> LossConfig | None:
    """Return the settings of a loss, or ``None`` if none is given."""
    if not loss_settings:
        return None
    from cusa.train.config_building import build_config, parse_settings

    return build_config(parse_settings(loss_settings)).loss


def _checked_page_path(requested: Path | None, store_path: Path) -> Path:
    """Choose the path of the page, and make its folder before the work begins.

    Raises:
        SettingError: If it is a folder, or the store.
    """
    page = requested or store_path.with_suffix(".inspect.html")
    problem = ""
    if page.is_dir():
        problem = "a folder"
    elif page.resolve() == store_path.resolve():
        problem = "the store"
    if problem:
        raise SettingError(
            f"--out {page} is {problem}; pass the name of a page, such as inspect.html",
            path=page,
            name="out",
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    return page


def _check_image_root(image_root: Path | None) -> None:
    if image_root is not None and not image_root.is_dir():
        raise SettingError(
            f"--image-root {image_root} is not a folder; leave it out for a page without pictures",
            path=image_root,
            name="image_root",
        )
