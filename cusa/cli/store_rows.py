"""``cusa-store export``, ``import`` and ``import-runs``: rows of a store for others, and theirs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import (
    DATA_ROOT_OPTION,
    DEVICE_OPTION,
    DTYPE_OPTION,
    IMAGE_ROOT_OPTION,
    PATH,
    STORE_ARGUMENT,
    choice_option,
    command,
    quiet_libraries,
)
from cusa.cli.data_options import column_options, dataset_option
from cusa.data.errors import SettingError

if TYPE_CHECKING:
    from cusa.data.foreign.rows import ForeignRows
    from cusa.data.store.schema import TeacherSettings


@command()
@STORE_ARGUMENT
@click.argument("rows_path", metavar="OUT", type=PATH)
@click.option("--teacher", required=True, help="Teacher to export.")
@click.option("--split", required=True, help="Split to export.")
def export(store_path: Path, rows_path: Path, teacher: str, split: str) -> None:
    """Write a teacher's rows, and their ids, to files.

    OUT is NAME.npy or NAME.safetensors; the ids are written to NAME.ids.json beside it.
    """
    from cusa.data.store.import_export import export_rows
    from cusa.data.store.reader import EmbeddingStore

    ids = export_rows(EmbeddingStore(store_path), teacher, split, rows_path)
    click.echo(f"rows: {rows_path}\nids: {ids}")


@command("import")
@STORE_ARGUMENT
@click.argument("rows_path", metavar="ROWS", type=PATH)
@click.option(
    "--ids",
    "ids_path",
    type=PATH,
    help="Ids of the rows: .txt (one per line), .json (a list) or .npy.  [default: those in the "
    ".h5, or NAME.ids.json beside NAME.npy]",
)
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Read ROWS as a pickled dictionary of the published code ({split}_unicom.npy); anything "
    "but numpy arrays and torch tensors in it is refused.",
)
@click.option("--teacher", required=True, help="Name for the teacher.")
@click.option("--split", required=True, help="Split that the rows belong to.")
@choice_option("--modality", "image", "text")
@click.option("--model-id", help="Model that made the rows.  [default: the teacher's name]")
@choice_option("--normalizer", "albef", "none", help="Normaliser that the captions went through.")
@click.option(
    "--cross-teacher",
    metavar="NAME",
    help="Dual encoder that the rows are half of; import the other half with the same name.",
)
@click.option("--logit-scale", type=float, help="What it multiplies cosines by, e.g. 100.")
@click.option("--logit-bias", type=float, help="What it adds then, e.g. -12.9; of SigLIP.")
@DTYPE_OPTION
@dataset_option(help_text="The data set, if STORE does not exist yet; as for cusa-precompute.")
@column_options
@IMAGE_ROOT_OPTION
@DATA_ROOT_OPTION
@choice_option(
    "--on-error",
    "fail",
    "skip",
    help="On an image or caption without a row: stop, or record it as skipped.",
)
def import_(
    store_path: Path,
    rows_path: Path,
    ids_path: Path | None,
    allow_pickle: bool,
    split: str,
    dataset: tuple[str, ...] | None,
    image_column: str | None,
    caption_column: str | None,
    id_column: str | None,
    split_column: str | None,
    image_root: Path | None,
    data_root: Path,
    on_error: str,
    **teacher_options: Any,
) -> None:
    """Add rows that another program computed.

    ROWS is a file of .npy, .safetensors or .h5, or one of the published code. If STORE does not
    exist, it is made for --dataset.
    """
    from cusa.data.datasets import load_dataset
    from cusa.data.readers.columns import ColumnNames
    from cusa.data.store.import_export import import_rows, index_for_import
    from cusa.data.store.schema import check_index_path

    check_index_path(store_path)
    foreign = _read_foreign_rows(rows_path, ids_path, allow_pickle)
    records = None
    if dataset is not None:
        columns = ColumnNames(image_column, caption_column, id_column, split_column)
        records = load_dataset(dataset, image_root, data_root, columns)
    data = index_for_import(store_path, records)

    teacher = teacher_options["teacher"]
    settings = _unknown_settings(foreign.rows.shape[1], **teacher_options)
    n_skipped, n_unused = import_rows(
        store_path, data, split, teacher, settings, foreign, skip_missing=on_error == "skip"
    )
    click.echo(f"{teacher}: {split} imported from {rows_path}, {n_skipped:,} skipped")
    if n_unused:
        click.echo(f"note: {n_unused:,} rows of {rows_path} belong to nothing in split {split}")
    click.echo(f"store: {store_path}")


@command("import-runs")
@STORE_ARGUMENT
@click.argument("run_dirs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@click.option("--cross-teacher", required=True, metavar="NAME", help="Name for the teacher.")
@choice_option("--checkpoint", "best", "last", help="Checkpoint of the runs.")
@DEVICE_OPTION
def import_runs(
    store_path: Path,
    run_dirs: tuple[Path, ...],
    cross_teacher: str,
    **compute_settings: str,
) -> None:
    """Add the embeddings of trained students as a cross-modal teacher.

    Those of several RUNs are stored side by side: their cosine is the mean of the students'.
    """
    quiet_libraries()
    from cusa.eval.students_as_teacher import import_students
    from cusa.screen.progress import StepTasks, progress_display
    from cusa.stages.evaluate import compute_options

    compute = compute_options(compute_settings)
    with progress_display() as progress_bars:
        advance = StepTasks(progress_bars).advance
        imported = import_students(store_path, run_dirs, cross_teacher, compute, advance)
    for teacher, split_name in imported:
        click.echo(f"{teacher}: {split_name} imported from {len(run_dirs)} runs")
    if not imported:
        click.echo(f"{cross_teacher}: all rows are there already")
    click.echo(f"store: {store_path}")


def _unknown_settings(
    dim: int,
    teacher: str,
    modality: str,
    model_id: str | None,
    normalizer: str,
    dtype: str,
    **logits: Any,
) -> TeacherSettings:
    """Make the settings of imported rows, for which it is unknown how they were computed."""
    from cusa.data.store.schema import TeacherSettings

    return TeacherSettings(
        modality=modality,
        model_id=model_id or teacher,
        weights_sha256="unknown",
        transform={"imported": True, **_logit_settings(**logits)},
        normalizer=normalizer if modality == "text" else "none",
        precision="unknown",
        dim=dim,
        dtype=dtype,
        normalized=True,
    )


def _logit_settings(
    cross_teacher: str | None,
    logit_scale: float | None,
    logit_bias: float | None,
) -> dict[str, Any]:
    """Return what is recorded of half of a cross-modal teacher."""
    from cusa.data.store.cross_teachers import CROSS_TEACHER, LOGIT_BIAS, LOGIT_SCALE
    from cusa.data.store.schema import check_name

    logits = {LOGIT_SCALE: logit_scale, LOGIT_BIAS: logit_bias}
    given = {name: value for name, value in logits.items() if value is not None}
    if cross_teacher is None:
        if given:
            raise SettingError(
                f"--{next(iter(given)).replace('_', '-')} is that of a dual encoder; name it with "
                "--cross-teacher",
                name="cross_teacher",
            )
        return {}
    check_name(cross_teacher)
    for name, value in given.items():
        if not math.isfinite(value) or (name == LOGIT_SCALE and value <= 0):
            raise SettingError(
                f"--{name.replace('_', '-')} must be a finite number, and a scale more than 0; got "
                f"{value:g}",
                name=name,
            )
    return {CROSS_TEACHER: cross_teacher, **given}


def _read_foreign_rows(rows_path: Path, ids_path: Path | None, allow_pickle: bool) -> ForeignRows:
    from cusa.data.foreign.published import read_published_rows
    from cusa.data.foreign.rows import ForeignRows, read_rows

    if not allow_pickle:
        return read_rows(rows_path, ids_path)
    if ids_path is not None:
        raise SettingError(
            "--ids is for an array, --allow-pickle for a dictionary of the published code; "
            "pass one of the two",
            name="ids",
        )
    keys, embeddings = read_published_rows(rows_path)
    return ForeignRows(keys, embeddings, str(rows_path))
