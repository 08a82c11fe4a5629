"""``cusa-eval``: evaluate models, compare them, and show what they retrieve."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import (
    DATA_ROOT_OPTION,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    command,
    print_plain,
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
from cusa.data.errors import RunError, SettingError
from cusa.stages.machine import default_workers, pick_device

if TYPE_CHECKING:
    from cusa.eval.evaluators.request import EvalRequest


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
    _measure(options, _retrieval_suites(options))


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
    _measure(options, ("images",))


@command()
@MODEL_OPTIONS
@click.option(
    "--data",
    "sts_data",
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
    _measure(options, ("sts",))


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
    _measure(options, (*_retrieval_suites(options), "images", "sts"), skip_absent=True)


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


def _retrieval_suites(options: dict[str, Any]) -> tuple[str, ...]:
    return ("retrieval", "judgements") if options["judgements"] else ("retrieval",)


def _measure(options: dict[str, Any], suites: tuple[str, ...], skip_absent: bool = False) -> None:
    """Run suites, and print tables, notes, and the files written."""
    quiet_libraries()
    _require_hub(options["models"])
    from cusa.cli.evaluate_output import print_files, print_tables
    from cusa.cli.progress import StepTasks, progress
    from cusa.eval.evaluate import evaluate, make_sections

    request = _request(options, suites, skip_absent)
    with progress() as progress_bar:
        evaluation = evaluate(request, StepTasks(progress_bar).advance)
    print_tables(make_sections(evaluation.reports))
    for note in evaluation.notes:
        print_plain(f"note: {note}")
    print_files(evaluation.written)


def _require_hub(models: Sequence[str]) -> None:
    """Refuse a hub model that is neither cached nor on the hub, before libraries are imported."""
    from cusa.data.hub import require

    for model in models:
        # A name in an existing folder is more likely a mistyped run, so the hub is not asked.
        if not Path(model).parent.is_dir():
            require(model, RunError)


def _model_specs(options: dict[str, Any]) -> tuple[str, ...]:
    """Return the models in the order of the command line, or the latest run if there are none.

    A run that does not exist is refused here, and never looked up on the model hub.
    """
    from cusa.eval.models.evaluated_models import check_local, latest_run

    specs = click.get_current_context().meta.get(MODEL_SPECS_KEY, [])
    for spec, is_run in specs:
        check_local(spec, is_run)
    if not specs and not options["image_embeddings"] and not options["text_embeddings"]:
        return (str(latest_run(Path("runs"))),)
    return tuple(spec for spec, _ in specs)


def _request(options: dict[str, Any], suites: tuple[str, ...], skip_absent: bool) -> EvalRequest:
    from cusa.data.readers.columns import USUAL_COLUMNS
    from cusa.eval.evaluators.request import EvalRequest, MeasureOptions, SplitRequest
    from cusa.eval.metrics.bootstrap import Bootstrap
    from cusa.eval.metrics.metric_options import Scoring
    from cusa.eval.models.evaluated_models import ComputeOptions

    compute = ComputeOptions(
        device=pick_device(options["device"]),
        checkpoint=options["checkpoint"],
        batch_size=options["batch_size"],
        workers=options["workers"],
        readers=default_workers(inputs_are_stored=False),
    )
    scoring = Scoring(options["ties"], Bootstrap(options["bootstrap"], options["seed"]))
    return EvalRequest(
        suites=suites,
        skip_absent=skip_absent,
        models=_model_specs(options),
        embedding_files=(_embedding_file(options, "image"), _embedding_file(options, "text")),
        name=options["name"],
        split=SplitRequest(
            split=options.get("split", "test"),
            dataset=options.get("dataset", ()),
            data_root=options["data_root"],
            embeddings=options.get("embeddings"),
            image_root=options.get("image_root"),
            columns=options.get("columns", USUAL_COLUMNS),
        ),
        image_sets=options.get("data", ()),
        sts_folder=options.get("sts_data"),
        judgement_files=options.get("judgements", ()),
        pmrp=options.get("pmrp"),
        options=MeasureOptions(scoring, options["allow_partial"], options.get("gallery", 0)),
        compute=compute,
        out=options["out"],
        latex=options["latex"],
    )


def _embedding_file(options: dict[str, Any], modality: str) -> tuple[Path, Path | None] | None:
    rows_path = options[f"{modality}_embeddings"]
    ids_path = options[f"{modality}_ids"]
    if rows_path:
        return rows_path, ids_path
    if ids_path:
        raise SettingError(
            f"--{modality}-ids {ids_path} is given without embeddings; pass "
            f"--{modality}-embeddings as well",
            path=ids_path,
            name=f"--{modality}-ids",
        )
    return None
