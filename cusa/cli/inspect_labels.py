"""``cusa-store inspect``: what the soft labels of a store say before training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import CONTEXT_SETTINGS, PATH, STORE_ARGUMENT, one_line_errors

if TYPE_CHECKING:
    from rich.table import Table

    from cusa.eval.inspection.results import Inspection


@click.command(context_settings=CONTEXT_SETTINGS)
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
    "--batch-size", type=click.IntRange(2), default=128, help="Pairs in a training batch."
)
@click.option(
    "--batches", type=click.IntRange(1), default=100, help="Batches to average the figures over."
)
@click.option(
    "--pairs",
    type=click.IntRange(0),
    default=30,
    help="Most similar pairs to show of each ranking.",
)
@click.option(
    "--sample", type=click.IntRange(2), default=20_000, help="Images to search for these pairs."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, help="Seed of the batches and of the sample."
)
@click.option("--image-root", type=PATH, help="Folder of the images, if not the store's own.")
@click.option(
    "--out",
    "page_path",
    type=PATH,
    help="HTML page to write.  [default: STORE's name with .inspect.html]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@one_line_errors
def inspect(store_path: Path, page_path: Path | None, as_json: bool, **settings: Any) -> None:
    """Show how sharp the soft labels of STORE are, with likely false negatives in pictures.

    Batches are drawn as cusa-train draws them; no model is loaded.
    """
    from cusa.cli.console import print_plain
    from cusa.cli.progress import StepTasks, progress
    from cusa.data.store.reader import EmbeddingStore

    # Mistakes are told before torch loads, and before the work.
    opened = EmbeddingStore(store_path)
    page_path = _checked_page_path(page_path, store_path)
    _check_image_root(settings["image_root"])

    from cusa.eval.inspection import soft_labels
    from cusa.eval.inspection.results import Settings, to_json

    with progress(quiet=as_json) as progress_bar:
        steps = StepTasks(progress_bar, unit="steps")
        inspection = soft_labels.inspect(opened, Settings(**settings), steps.complete)
    if as_json:
        content = {**to_json(inspection), "page": str(page_path.resolve())}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _print_inspection(inspection)
    # The figures are on the screen before the page's pictures are read.
    n_unreadable = soft_labels.write_inspection(page_path, inspection)
    if not as_json:
        note = f" ({n_unreadable:,} of its pictures could not be read)" if n_unreadable else ""
        print_plain(f"page: {page_path.resolve()}{note}")


def _checked_page_path(requested: Path | None, store_path: Path) -> Path:
    """Choose where the page goes, and make its folder: before the work, not after it.

    Raises:
        SettingError: If it is a folder, or the store.
    """
    from cusa.data.errors import SettingError

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
            name="--out",
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    return page


def _check_image_root(image_root: Path | None) -> None:
    from cusa.data.errors import SettingError

    if image_root is not None and not image_root.is_dir():
        raise SettingError(
            f"--image-root {image_root} is not a folder; leave it out for a page without pictures",
            path=image_root,
            name="--image-root",
        )


def _print_inspection(inspection: Inspection) -> None:
    from cusa.cli.console import console, print_plain

    settings = inspection.settings
    print_plain(
        f"{inspection.dataset}, split {settings.split}: {inspection.n_pairs:,} pairs of "
        f"{inspection.n_images:,} images, {inspection.n_left_out:,} left out; "
        f"{settings.batches:,} batches of {settings.batch_size:,}\n"
        f"image teacher {inspection.image.name}, text teacher {inspection.text.name}"
    )
    screen = console()
    screen.print(_sharpness_table(inspection))
    screen.print(_false_negatives_table(inspection))
    agreement = inspection.agreement
    print_plain(
        f"agreement of the teachers: Pearson {_figure(agreement.pearson, 3)}, "
        f"Spearman {_figure(agreement.spearman, 3)}, "
        f"nearest neighbours in common {_figure(100 * agreement.overlap, 1)} % "
        f"(by chance {_figure(100 * agreement.chance, 1)} %), "
        f"KL at tau_s 1 {agreement.kl:.4f}\n"
        f"likely duplicates: {inspection.n_duplicates:,} pairs among "
        f"{inspection.n_searched:,} images"
    )


def _sharpness_table(inspection: Inspection) -> Table:
    from rich.table import Table

    teachers = (inspection.image, inspection.text)
    table = Table("tau_s", *_teacher_columns("perplexity", "own", "other"), title="soft labels")
    table.caption = (
        f"perplexity: of {inspection.settings.batch_size:,}; own: label of the pair itself; "
        "other: greatest label of another image"
    )
    for tau in inspection.image.sharpness:
        cells = [f"{tau:g}"]
        for teacher in teachers:
            figures = teacher.sharpness[tau]
            cells.append(_figure(figures.perplexity, 1))
            cells.append(_figure(figures.own_label, 3))
            cells.append(_figure(figures.greatest_other_label, 3))
        table.add_row(*cells)
    return table


def _false_negatives_table(inspection: Inspection) -> Table:
    from rich.table import Table

    table = Table("cosine", *_teacher_columns("in a batch", "% of rows"))
    table.title = "likely false negatives: pairs of different images with at least this cosine"
    # Both teachers have the same cosines.
    for least_cosine in inspection.image.false_negatives:
        cells = [f"{least_cosine:g}"]
        for teacher in (inspection.image, inspection.text):
            count = teacher.false_negatives[least_cosine]
            cells += [f"{count.pairs:,.1f}", f"{100 * count.rows:.1f}"]
        table.add_row(*cells)
    if math.isfinite(inspection.same_image_cosine):
        count = inspection.same_image_count
        text_cells = (f"{count.pairs:,.1f}", f"{100 * count.rows:.1f}")
        table.add_row(f"{inspection.same_image_cosine:.3f} *", "", "", *text_cells)
        table.caption = "* the median of two captions of the same image"
    return table


def _teacher_columns(*titles: str) -> list[str]:
    columns = []
    for modality in ("image", "text"):
        columns += [f"{modality}: {title}" for title in titles]
    return columns


def _figure(value: float, digits: int) -> str:
    from cusa.eval.inspection.soft_labels import format_figure

    return format_figure(value, digits)
