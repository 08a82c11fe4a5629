"""``cusa-store``: inspect, verify, merge and share embedding stores; export and import rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cusa.cli.console import (
    CONTEXT_SETTINGS,
    DEVICE_OPTION,
    JSON_OPTION,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    STORE_ARGUMENT,
    command,
    fail,
    quiet_libraries,
)
from cusa.cli.inspect_labels import inspect
from cusa.cli.store_hub import pull, push
from cusa.cli.store_rows import export, import_, import_runs
from cusa.data.errors import SettingError
from cusa.screen.console import console
from cusa.stages.machine import pick_device

if TYPE_CHECKING:
    from cusa.precompute.audit import Audit

PROCESSES_OPTION = click.option(
    "--processes", type=POSITIVE, default=1, help="Of a set of tars: processes that read its files."
)


@click.group(context_settings=CONTEXT_SETTINGS)
@click.version_option(package_name="cusa")
def main() -> None:
    """Inspect, verify, merge and share embedding stores; export and import rows."""


@command()
@STORE_ARGUMENT
@JSON_OPTION
def info(store_path: Path, as_json: bool) -> None:
    """Print splits, teachers, rows, sizes, norms and provenance.

    STORE is the index of a store, or the folder of a set of tars, also as s3://BUCKET/PREFIX; of a
    set, the tars that are missing are named.
    """
    from cusa.data.store.summary import summarize
    from cusa.data.tars.summary import summarize_set
    from cusa.data.tars.verify import holds_set

    is_set = holds_set(store_path)
    summary = summarize_set(store_path) if is_set else summarize(store_path)
    if as_json:
        click.echo(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    from cusa.cli.store_output import print_set_summary, print_summary

    if is_set:
        print_set_summary(summary)
    else:
        print_summary(store_path, summary)


@command()
@STORE_ARGUMENT
@click.option(
    "--repair",
    is_flag=True,
    help="Rename damaged files to NAME.damaged, so that the next cusa-precompute makes exactly "
    "those again.",
)
@PROCESSES_OPTION
def verify(store_path: Path, repair: bool, processes: int) -> None:
    """Compare all bytes with the checksums, and name damaged files.

    STORE is the index of a store, or the folder of a set of tars, also s3:// or hf://datasets/.
    """
    from cusa.data.objects.folder import is_remote, location_text
    from cusa.data.store import verify as checks
    from cusa.data.tars.verify import holds_set, set_aside_in_set, verify_set

    if repair and is_remote(store_path):
        raise SettingError(
            f"--repair does not apply to {location_text(store_path)}; delete the files that verify "
            "names, and run the cusa-precompute command again",
            name="repair",
        )
    is_set = holds_set(store_path)
    if is_set:
        n_files, damages = verify_set(store_path, processes)
    else:
        n_files, damages = checks.verify(store_path)
    for damage in damages:
        click.echo(f"{location_text(damage.path)}: {damage.problem}")
    if not damages:
        click.echo(f"{n_files} files are whole")
        return
    if not repair:
        advice = "--repair lets cusa-precompute make them again"
        if is_remote(store_path):
            advice = "delete these, and run the cusa-precompute command again"
        fail(f"{len(damages)} of {n_files} files are damaged or missing; {advice}")
    moved = set_aside_in_set(damages) if is_set else checks.set_aside(store_path, damages)
    for path in moved:
        click.echo(f"set aside: {path}")
    click.echo(
        "run the same cusa-precompute commands again to make what is missing (all that the store "
        "was made with, if its index was damaged); rows that were imported have to be imported "
        "again"
    )


@command()
@STORE_ARGUMENT
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="NAME|NAME=PATH",
    help="Only this teacher, loaded from PATH if given.  [default: all of them]",
)
@click.option(
    "--sample",
    type=POSITIVE,
    default=256,
    help="Number of rows to check for each teacher and split.",
)
@click.option("--seed", type=NOT_NEGATIVE, default=0, help="Seed of the random choice of rows.")
@click.option(
    "--least-cosine",
    type=click.FloatRange(-1, 1),
    default=0.999,
    help="Cosine that every row must reach.",
)
@DEVICE_OPTION
@click.option(
    "--dataset",
    multiple=True,
    metavar="TARS",
    help="Of a set of tars: the tars, if they are not where the set says; at most 16 are read.",
)
def audit(
    store_path: Path,
    teachers: tuple[str, ...],
    sample: int,
    seed: int,
    least_cosine: float,
    device: str,
    dataset: tuple[str, ...],
) -> None:
    """Run the teachers again on random rows, and compare.

    STORE is the index of a store, or the folder of a set of tars. The tars have to be those that
    the rows of the set were made of.
    """
    from cusa.data.tars.verify import holds_set

    if holds_set(store_path):
        audits = _audit_set(store_path, teachers, dataset, sample, seed, device)
    elif dataset:
        raise SettingError(
            f"--dataset is for sets of tars; {store_path} knows its images", name="dataset"
        )
    else:
        audits = _audit_store(store_path, teachers, sample, seed, device)

    from cusa.cli.store_output import audits_table

    console().print(audits_table(audits, least_cosine))
    n_wrong = sum(result.least < least_cosine for result in audits)
    if n_wrong:
        fail(
            f"{n_wrong} of {len(audits)} are wrong: rows differ from the teacher's output "
            f"(cosine < {least_cosine})"
        )


def _audit_store(
    store_path: Path,
    teachers: Sequence[str],
    sample: int,
    seed: int,
    device: str,
) -> list[Audit]:
    from cusa.data.store.reader import EmbeddingStore

    # Opened first, to report a mistyped store before libraries are imported.
    opened = EmbeddingStore(store_path)
    quiet_libraries()
    from cusa.precompute.audit import audit as audit_teacher

    audits = []
    device = pick_device(device)
    for spec in teachers or opened.teachers:
        teacher_name, _, source = spec.partition("=")
        audits += audit_teacher(opened, teacher_name, source or None, sample, seed, device)
    return audits


def _audit_set(
    folder: Path,
    teachers: Sequence[str],
    dataset: Sequence[str],
    sample: int,
    seed: int,
    device: str,
) -> list[Audit]:
    from cusa.data.objects.folder import location_text
    from cusa.data.tars.paths import expand_tars
    from cusa.data.tars.tar_set import TarSet

    opened = TarSet(folder)
    if dataset:
        tars = expand_tars(dataset)
    elif opened.image_root is not None:
        tars = [opened.tar_path(tar_name) for tar_name in opened.manifest.names]
    else:
        raise SettingError(
            f"{location_text(folder)} does not say where its tars are; pass --dataset TARS",
            name="dataset",
        )
    sources: dict[str, str] = {}
    for spec in teachers or opened.teachers:
        teacher_name, _, source = spec.partition("=")
        # A teacher that the set does not have is refused by the audit.
        sources[teacher_name] = source or opened.sources.get(teacher_name, teacher_name)
    quiet_libraries()
    from cusa.precompute.tars.audit import audit_set

    return audit_set(opened, tars, sources, sample, seed, pick_device(device))


@command()
@click.argument("store_path", metavar="OUT", type=PATH)
@click.argument("part_paths", metavar="PARTS...", type=PATH, nargs=-1, required=True)
def merge(store_path: Path, part_paths: tuple[Path, ...]) -> None:
    """Join PARTS into the store OUT.

    PARTS are indexes made with --shard-range, or stores with other teachers or splits.
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


@command()
@click.argument("folder", metavar="SET", type=PATH)
@click.option(
    "--dataset",
    multiple=True,
    metavar="TARS",
    help="The tars of the set, if they were moved; tars without rows are named, too.",
)
@PROCESSES_OPTION
def index(folder: Path, dataset: tuple[str, ...], processes: int) -> None:
    """Write the manifest of SET, a folder or s3:// prefix of WebDataset tars' rows, from its files.

    For job arrays, whose last job cannot know that it is the last; run it again after tars were
    added. Every file is verified.
    """
    from cusa.cli.tars_output import print_manifest, print_missing
    from cusa.data.objects.folder import require_writable
    from cusa.data.tars.manifest import write_manifest
    from cusa.data.tars.manifest_building import build_manifest
    from cusa.data.tars.origin import record_origin
    from cusa.data.tars.paths import common_folder, expand_tars
    from cusa.data.tars.summary import require_tars_of

    require_writable(folder)
    tars = expand_tars(dataset) if dataset else []
    manifest = build_manifest(folder, processes=processes)
    if tars:
        require_tars_of(manifest, folder, tars)
        image_root = record_origin(folder, common_folder(tars), {}).image_root
        manifest = replace(manifest, image_root=image_root)
    write_manifest(folder, manifest)
    print_manifest(folder, manifest)
    print_missing(tars, manifest)


COMMANDS = (audit, export, import_, import_runs, index, info, inspect, merge, pull, push, verify)
for subcommand in COMMANDS:
    main.add_command(subcommand)
