"""``cusa-eval``: evaluate models, compare them, and show what they retrieve."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import (
    DATA_ROOT_OPTION,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    command,
    quiet_libraries,
)
from cusa.cli.evaluate_options import (
    MODEL_OPTIONS,
    MODEL_SPECS_KEY,
    RETRIEVAL_OPTIONS,
    RUN_OPTIONS,
    SPLIT_OPTIONS,
)
from cusa.cli.search import index, search

if TYPE_CHECKING:
    from cusa.stages.kinds import Suite


@command()
@MODEL_OPTIONS
@SPLIT_OPTIONS
@DATA_ROOT_OPTION
@RUN_OPTIONS
@RETRIEVAL_OPTIONS
@click.version_option(package_name="cusa")
def main(**options: Any) -> None:
    """Measure retrieval across modalities and among captions, by exact ranks.

    Writes tables, metrics.json and report.html.
    """
    _measure("retrieval", options)


@command()
@MODEL_OPTIONS
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=FOLDER",
    help="cub, cars, sop, inshop, inaturalist, or FOLDER with a folder per class; repeatable.  "
    "[default: all below --data-root]",
)
@DATA_ROOT_OPTION
@RUN_OPTIONS
def images(**options: Any) -> None:
    """Measure image-to-image retrieval by class.

    R@1 as in the paper, R-Precision and mAP@R; writes images.json and report.html.
    """
    _measure("images", options)


@command()
@MODEL_OPTIONS
@click.option(
    "--data",
    type=PATH,
    help="Folder of STS sets, in any layout.  [default: sts in --data-root]",
)
@DATA_ROOT_OPTION
@SPLIT_OPTIONS
@RUN_OPTIONS
def sts(**options: Any) -> None:
    """Measure sentence similarity.

    STS12-16, STS-B and SICK-R by the paper's rule, and CxC; writes sts.json and report.html.
    """
    _measure("sts", options)


@command("all")
@MODEL_OPTIONS
@SPLIT_OPTIONS
@DATA_ROOT_OPTION
@RUN_OPTIONS
@RETRIEVAL_OPTIONS
def everything(**options: Any) -> None:
    """Run every suite for which there are data.

    These are the split, and the image sets and STS sets below --data-root.
    """
    _measure("all", options)


@command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--bootstrap", type=POSITIVE, default=1000, help="Number of resamplings of the queries."
)
@click.option("--seed", type=NOT_NEGATIVE, default=0)
@click.option(
    "--out",
    type=PATH,
    help="Folder of comparison.html and .json.  [default: eval/ beside the first]",
)
@click.option("--latex", is_flag=True, help="Write comparison.tex beside it, too.")
def compare(models: tuple[str, ...], **options: Any) -> None:
    """Compare evaluated models with the first of them, by paired differences.

    MODEL is a run directory, or a folder of results of cusa-eval.
    """
    quiet_libraries()
    from cusa.cli.evaluate_output import print_comparison, print_files
    from cusa.eval.compare_runs import compare_measured

    content, written = compare_measured([Path(model) for model in models], **options)
    print_comparison(content)
    print_files(written)


# ``cusa-eval retrieval`` is the same as ``cusa-eval`` alone, but has no subcommands.
retrieval = copy.copy(main)
retrieval.subcommands = {}
main.subcommands = {
    "retrieval": retrieval,
    "images": images,
    "sts": sts,
    "all": everything,
    "compare": compare,
    "index": index,
    "search": search,
}


def _measure(suite: Suite, options: dict[str, Any]) -> None:
    """Run a suite, and print tables, notes, and the files written."""
    quiet_libraries()
    from cusa.stages.evaluate import evaluate

    evaluation = evaluate(_models(), suite=suite, progress=True, **options)
    # Imported late: a mistyped model is refused before libraries are loaded.
    from cusa.cli.evaluate_output import print_evaluation

    print_evaluation(evaluation)


def _models() -> list[str | Path]:
    """Return the models in the order of the command line, runs as paths.

    A run that does not exist is refused, and never looked up on the model hub.
    """
    models: list[str | Path] = []
    for spec, is_run in click.get_current_context().meta.get(MODEL_SPECS_KEY, []):
        if not is_run:
            models.append(spec)
            continue
        from cusa.eval.models.evaluated_models import check_local

        check_local(spec, is_run)
        models.append(Path(spec))
    return models
