"""``cusa-store``: look at an embedding store, check it, put it together, take rows out and in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import (
    CONTEXT_SETTINGS,
    DEVICE_OPTION,
    PATH,
    STORE_ARGUMENT,
    fail,
    one_line_errors,
)
from cusa.cli.inspect_labels import inspect
from cusa.cli.store_rows import export, import_

if TYPE_CHECKING:
    from rich.table import Table

    from cusa.precompute.audit import Audit


@click.group(context_settings=CONTEXT_SETTINGS)
@click.version_option(package_name="cusa")
def main() -> None:
    """Look at an embedding store, check it, put it together, take rows out and in."""


main.add_command(inspect)
main.add_command(export)
main.add_command(import_)


@main.command()
@STORE_ARGUMENT
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@one_line_errors
def info(store_path: Path, as_json: bool) -> None:
    """Print what STORE holds: splits, teachers, rows, sizes, norms, provenance."""
    from cusa.data.store.summary import summarize

    summary = summarize(store_path)
    if as_json:
        click.echo(json.dumps(summary, indent=2, ensure_ascii=False))
        return

    from rich.markup import escape

    from cusa.cli.console import console, print_plain

    screen = console()
    dataset = escape(summary["dataset"])
    image_root = escape(summary["image_root"])
    screen.print(
        f"{escape(str(store_path))}: data set [bold]{dataset}[/], images under {image_root}",
        soft_wrap=True,
    )
    screen.print(_splits_table(summary["splits"]))
    screen.print(_teachers_table(summary["teachers"]))
    for teacher_name, settings in summary["teachers"].items():
        versions = settings["versions"].items()
        libraries = ", ".join(f"{library} {version}" for library, version in versions)
        print_plain(
            f"{teacher_name}: {settings['modality']} teacher {settings['model_id']} "
            f"from {settings['source']}, weights sha256 {settings['weights_sha256']}, "
            f"computed in {settings['precision']}, "
            f"caption normaliser {settings['normalizer']}; {libraries}"
        )


def _splits_table(splits: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("split", "images", "captions", "known truth", "fingerprint")
    for split_name, split in splits.items():
        table.add_row(
            escape(split_name),
            f"{split['images']:,}",
            f"{split['captions']:,}",
            "yes" if split["truth"] else "no",
            split["fingerprint"][:12],
        )
    return table


def _teachers_table(teachers: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        "teacher",
        "split",
        "rows",
        "dim",
        "dtype",
        "skipped",
        "shards",
        "MB",
        "norms (least, mean, most)",
    )
    for teacher_name, settings in teachers.items():
        for split_name, rows in settings["rows"].items():
            norms = " ".join(f"{norm:.4f}" for norm in rows["norms"] or ())
            table.add_row(
                escape(teacher_name),
                escape(split_name),
                f"{rows['rows']:,}",
                str(settings["dim"]),
                settings["dtype"],
                f"{rows['skipped']:,}",
                f"{rows['shards']:,}",
                f"{rows['bytes'] / 1e6:,.1f}",
                norms or "-",
            )
    return table


@main.command()
@STORE_ARGUMENT
@click.option(
    "--repair",
    is_flag=True,
    help="Rename damaged files to NAME.damaged, so that the next cusa-precompute makes exactly "
    "those again.",
)
@one_line_errors
def verify(store_path: Path, repair: bool) -> None:
    """Read every byte of STORE, compare it with the checksums, name damaged or missing files."""
    from cusa.data.store import verify as checks

    n_files, damages = checks.verify(store_path)
    for damage in damages:
        click.echo(f"{damage.path}: {damage.problem}")
    if not damages:
        click.echo(f"{n_files} files are whole")
        return
    if not repair:
        fail(
            f"{len(damages)} of {n_files} files are damaged or missing; --repair lets "
            "cusa-precompute make them again"
        )
    for path in checks.set_aside(store_path, damages):
        click.echo(f"set aside: {path}")
    click.echo(
        "run the same cusa-precompute commands again to make what is missing (all that the store "
        "was made with, if its index was damaged); rows that were imported have to be imported "
        "again"
    )


@main.command()
@STORE_ARGUMENT
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="NAME|NAME=PATH",
    help="Only this teacher; with PATH, loaded from there.  [default: all, from where they were]",
)
@click.option(
    "--sample", type=click.IntRange(1), default=256, help="Rows to check of each teacher and split."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, help="Seed of the random choice of rows."
)
@click.option(
    "--least-cosine",
    type=click.FloatRange(-1, 1),
    default=0.999,
    help="Cosine that every row must reach.",
)
@DEVICE_OPTION
@one_line_errors
def audit(
    store_path: Path,
    teachers: tuple[str, ...],
    sample: int,
    seed: int,
    least_cosine: float,
    device: str,
) -> None:
    """Run the teachers again on random rows of STORE and compare, before a wrong store is used."""
    from cusa.cli.console import console, pick_device, quiet_libraries
    from cusa.data.store.reader import EmbeddingStore

    # Opened first: a mistyped store is told before libraries load.
    opened = EmbeddingStore(store_path)
    quiet_libraries()

    from cusa.precompute.audit import audit as audit_teacher

    device = pick_device(device)
    audits: list[Audit] = []
    for spec in teachers or opened.teachers:
        teacher_name, _, source = spec.partition("=")
        audits += audit_teacher(opened, teacher_name, source or None, sample, seed, device)

    console().print(_audits_table(audits, least_cosine))
    n_wrong = sum(result.least < least_cosine for result in audits)
    if n_wrong:
        fail(
            f"{n_wrong} of {len(audits)} are wrong: rows differ from what the teacher gives "
            f"(cosine < {least_cosine})"
        )


def _audits_table(audits: list[Audit], least_cosine: float) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("teacher", "split", "rows", "least cosine", "of row", "mean cosine", "")
    for result in audits:
        notes = [f"another teacher: {field}" for field in result.differing]
        if result.least < least_cosine:
            notes.insert(0, "WRONG")
        table.add_row(
            escape(result.teacher),
            result.split,
            f"{result.n_rows:,}",
            f"{result.least:.6f}",
            f"{result.worst_row:,}",
            f"{result.mean:.6f}",
            escape("\n".join(notes)),
        )
    return table


@main.command()
@click.argument("store_path", metavar="OUT", type=PATH)
@click.argument("part_paths", metavar="PARTS...", type=PATH, nargs=-1, required=True)
@one_line_errors
def merge(store_path: Path, part_paths: tuple[Path, ...]) -> None:
    """Join PARTS into the store OUT.

    PARTS are what jobs with --shard-range made, or stores with other teachers or splits.
    """
    from cusa.data.store.merge import merge as merge_stores

    index = merge_stores(store_path, part_paths)
    for teacher_name, teacher_entry in index.teachers.items():
        n_rows = 0
        for shards in teacher_entry.shards.values():
            n_rows += sum(shard.stop - shard.start for shard in shards)
        click.echo(f"{teacher_name}: {n_rows:,} rows")
    click.echo(f"store: {store_path}")
    click.echo("it does not need the index files of the parts")
