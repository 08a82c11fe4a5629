"""``cusa-precompute``: run the teachers once over a data set, into an embedding store."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any

import click
from click.core import ParameterSource

from cusa.cli.console import (
    DATA_ROOT_OPTION,
    DEVICE_OPTION,
    DTYPE_OPTION,
    IMAGE_ROOT_OPTION,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    choice_option,
    command,
    quiet_libraries,
)
from cusa.cli.data_options import DATASETS_OPTION, column_options
from cusa.data.errors import SettingError
from cusa.data.shell import shell_command
from cusa.screen.console import print_plain

_TARS = "WebDataset tars and patterns of Parquet files"
# Options that apply to them alone.
_ONLY_TARS = ("caption", "on_tar", "tars", "engine", "ray_address")


def _number_range(
    _context: click.Context, _option: click.Parameter, number_range: str | None
) -> tuple[int, int] | None:
    if number_range is None:
        return None
    numbers = re.fullmatch(r"(\d+):(\d+)", number_range)
    if numbers is None:
        raise click.BadParameter(f"{number_range!r} is not A:B, two numbers such as 0:8")
    return int(numbers[1]), int(numbers[2])


def _refuse_given(context: click.Context, names: Collection[str], subject: str) -> None:
    """Refuse options that do not apply to the data set, if the user gave them."""
    for parameter in context.command.params:
        is_given = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if is_given and parameter.name in names:
            raise SettingError(
                f"{parameter.opts[0]} does not apply to {subject}; leave it out",
                name=parameter.name,
            )


@command()
@DATASETS_OPTION
@click.option(
    "--teacher",
    multiple=True,
    metavar="NAME|NAME=PATH|OWNER/MODEL|FOLDER|clip:OWNER/MODEL",
    help="Repeatable. Known: unicom, unicom-vit-b-16, unicom-vit-l-14, unicom-vit-l-14-336px, "
    "efficientnet-lite0 (images); mpnet, minilm (text); any Hugging Face vision or "
    "sentence-transformers model; clip:MODEL, the image and the text rows of a dual encoder. A "
    "modality without a teacher gets unicom or mpnet.",
)
@column_options
@click.option(
    "--out",
    type=PATH,
    help="The store's index file; of tars, the folder of the set, or its URL.  [default: "
    "DATA_ROOT/NAME_teachers.h5, or DATA_ROOT/NAME_teachers]",
)
@IMAGE_ROOT_OPTION
@DATA_ROOT_OPTION
@click.option("--splits", metavar="A,B", help="Only these splits.  [default: all]")
@click.option("--limit", type=POSITIVE, help="Only the first N images of each split.")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the training images that becomes val if the data set has no val split; "
    "0: none.  [default: as in the store, or 0.1 and at most 5,000 images]",
)
@DEVICE_OPTION
@choice_option(
    "--precision",
    "auto",
    "fp32",
    "fp16",
    "bf16",
    help="Precision that teachers compute in; auto is fp16 on a GPU, fp32 elsewhere.",
)
@click.option(
    "--batch-size", type=POSITIVE, help="Items per forward pass.  [default: by teacher and device]"
)
@click.option(
    "--workers",
    type=NOT_NEGATIVE,
    help="Processes that decode images.  [default: cores, at most 16]",
)
@click.option(
    "--shard-rows",
    type=POSITIVE,
    help="Rows per shard; work is handed out and resumed by shard.  [default: the store's own, or "
    "16384]",
)
@click.option(
    "--shard-range",
    metavar="A:B",
    callback=_number_range,
    help="Make only shards A to B - 1 of this run, as --plan counts them, for arrays of jobs; join "
    "the parts with cusa-store merge.",
)
@DTYPE_OPTION
@choice_option(
    "--normalizer", "albef", "none", help="albef: lower case, no punctuation, at most 64 words."
)
@click.option(
    "--pooling",
    type=click.Choice(["cls", "mean", "pooler"]),
    help="What becomes the row of a Hugging Face vision model: its class token, the mean over its "
    "patches, or its pooled output.  [default: the best that the model has; a note names it]",
)
@click.option(
    "--check-pictures",
    is_flag=True,
    help="Keep rows of an earlier version, which did not turn pictures upright or lay them over "
    "white, if no picture has an EXIF orientation or transparency. Reads every picture's header.",
)
@choice_option(
    "--on-error",
    "fail",
    "skip",
    help="On an unreadable image, an empty caption, or an item whose row would be zero: stop, or "
    "record it as skipped.",
)
@click.option(
    "--reuse",
    type=PATH,
    metavar="OLD.h5",
    help="Reuse rows of this store for the same pictures, captions and settings, whatever their "
    "ids, paths and splits are there.",
)
@click.option(
    "--caption",
    metavar="txt|json:FIELD|parquet:COLUMN",
    help="Tars: where captions are, the samples' .txt files or a field of their .json files; of "
    "Parquet files, a column.  [default: txt, or parquet:caption]",
)
@click.option(
    "--on-tar",
    type=click.Choice(["fail", "skip", "keep"]),
    help="Tars: on a damaged one, stop, leave it out, or keep its whole samples.  [default: fail]",
)
@click.option(
    "--tars",
    metavar="A:B",
    callback=_number_range,
    help="Tars: only A to B - 1, sorted by name.  [default: all, or this job's share of a Slurm "
    "array]",
)
@choice_option(
    "--engine",
    "local",
    "ray",
    help="Tars: make them in this process, or on a cluster with Ray, in an actor on each device.",
)
@click.option(
    "--ray-address",
    metavar="auto|HOST:PORT",
    help="The cluster of Ray; auto is that of this node.  [default: RAY_ADDRESS, or a Ray that is "
    "started on this machine]",
)
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Try the teachers for a few seconds; print rows, shards, disk space, time, and the time "
    "saved per epoch of training; of tars, what an array of jobs would take. Writes nothing.",
)
@click.version_option(package_name="cusa")
@click.pass_context
def main(context: click.Context, only_plan: bool, **options: Any) -> None:
    """Run the teachers once over a data set and write their embeddings to an HDF5 store.

    Run it again to resume after an interruption, or to add a teacher or a split. With several GPUs,
    or machines that share a file system: torchrun --nproc-per-node N -m cusa.precompute ... (the
    same options).
    """
    from cusa.data.tars.paths import are_tars

    quiet_libraries()
    if are_tars(options["dataset"]):
        _precompute_tars(context, only_plan, options)
        return
    _refuse_given(context, _ONLY_TARS, f"this data set, only to {_TARS}")
    for name in _ONLY_TARS:
        del options[name]
    from cusa.cli.precompute_output import print_outcome, print_plan
    from cusa.stages.precompute import plan, precompute

    if only_plan:
        estimated = plan(progress=True, **options)
        if estimated.leads:
            print_plan(estimated)
        return
    finished_store = precompute(progress=True, **options)
    if finished_store.teachers:
        print_outcome(finished_store)


def _precompute_tars(context: click.Context, only_plan: bool, options: dict[str, Any]) -> None:
    """Run the teachers over tars, and print what the set holds; or print what that would take."""
    from cusa.cli.tars_output import print_manifest, print_tar_plan
    from cusa.stages.options import TarOptions
    from cusa.stages.precompute_tars import plan_tars, precompute_tars

    legal_names = {"dataset", *TarOptions.__annotations__}
    _refuse_given(context, options.keys() - legal_names, _TARS)
    tar_options = {name: options[name] for name in legal_names}
    if only_plan:
        estimated = plan_tars(progress=True, **tar_options)
        if estimated.leads:
            print_tar_plan(estimated)
        return
    finished_set = precompute_tars(progress=True, **tar_options)
    if not finished_set.leads:
        return
    if finished_set.manifest is not None:
        print_manifest(finished_set, finished_set.manifest)
        return
    next_command = shell_command("cusa-store", "index", os.fspath(finished_set))
    print_plain(f"next, when all tars are done: {next_command}")
