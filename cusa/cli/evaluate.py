"""``cusa-eval``: measure models, compare them, and show what they retrieve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import CONTEXT_SETTINGS, DEVICE_OPTION, PATH, DefaultCommand, one_line_errors
from cusa.cli.search import index, search
from cusa.data.errors import SettingError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from cusa.eval.evaluators.request import EvalRequest
    from cusa.eval.report.tables import Section, Table

# Key of click's context: (spec, whether it is a run), in the order of the command line.
_SPECS = "cusa.eval.models.any_model"
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _options(*options: Decorator) -> Decorator:
    """Join options into one decorator, in the order of ``--help``."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        # The decorator that is applied last is the first of --help.
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _in_order(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Put models and runs into one list, in the order of the command line."""
    specs = context.meta.setdefault(_SPECS, [])
    is_run = option.name == "models_of_runs"
    specs += [(value, is_run) for value in values]
    return values


_model_options = _options(
    click.option(
        "--model",
        "models",
        multiple=True,
        metavar="MODEL",
        callback=_in_order,
        help="A Hugging Face dual encoder or sentence-transformers model by name or folder; a "
        "teacher; a run. Repeat it to compare.",
    ),
    click.option(
        "--run",
        "models_of_runs",
        multiple=True,
        metavar="FOLDER",
        callback=_in_order,
        help="A run of cusa-train or an exported folder, on this machine; repeatable.  [default: "
        "the latest under runs/]",
    ),
    click.option(
        "--image-embeddings",
        type=PATH,
        help="Image embeddings of another model: .npy, .h5 or .safetensors.",
    ),
    click.option(
        "--image-ids", type=PATH, help="Their ids, if the file has none: .txt, .json or .npy."
    ),
    click.option("--text-embeddings", type=PATH, help="Its text embeddings."),
    click.option("--text-ids", type=PATH, help="Their ids."),
    click.option(
        "--name", help="Name of that model in tables and below runs/eval.  [default: the files']"
    ),
)
_run_options = _options(
    click.option(
        "--ties",
        type=click.Choice(["pessimistic", "mean", "optimistic"]),
        default="pessimistic",
        help="Count equal similarities against the model, for it, or as the mean of both.",
    ),
    click.option(
        "--bootstrap",
        type=click.IntRange(0),
        default=1000,
        help="Resamplings of the queries for 95 % intervals; 0: none.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        help="Seed of the resampling, and of the choice of the queries shown.",
    ),
    click.option(
        "--allow-partial", is_flag=True, help="Evaluate known data sets that are incomplete, too."
    ),
    click.option(
        "--index",
        type=click.Choice(["exact", "hnsw", "ivf"]),
        default="exact",
        help="Report an approximate FAISS index beside the exact figures.",
    ),
    click.option(
        "--checkpoint",
        type=click.Choice(["best", "last"]),
        default="best",
        help="Checkpoint of runs.",
    ),
    DEVICE_OPTION,
    click.option("--batch-size", type=click.IntRange(1), default=256),
    click.option(
        "--workers",
        type=click.IntRange(0),
        help="Processes that read inputs.  [default: cores, at most 8]",
    ),
    click.option(
        "--out",
        type=PATH,
        help="Folder of report.html.  [default: the model's own results; for several, eval/ "
        "beside them]",
    ),
    click.option("--latex", is_flag=True, help="Write tables.tex beside the report, too."),
)
_data_root_option = click.option(
    "--data-root", type=PATH, default=Path("data"), help="Folder of the named data sets."
)
_split_options = _options(
    click.option("--split", default="test", help="Split of the store or data set."),
    click.option(
        "--dataset",
        multiple=True,
        help="coco, flickr30k, demo, or annotation files as for cusa-precompute.  [default: the "
        "run's store]",
    ),
    click.option("--embeddings", type=PATH, help="Another store than the run's own."),
    click.option("--image-root", type=PATH, help="Folder of the images, if not the data's own."),
)
_retrieval_options = _options(
    click.option(
        "--pmrp", type=PATH, help="Folder of pm_*.json: plausible matches of COCO's test split."
    ),
    click.option(
        "--gallery",
        type=click.IntRange(0),
        default=6,
        help="Queries of each task to show in the report.",
    ),
)


@click.command(cls=DefaultCommand, context_settings=CONTEXT_SETTINGS)
@_model_options
@_split_options
@_data_root_option
@_run_options
@_retrieval_options
@click.version_option(package_name="cusa")
@one_line_errors
def main(**options: Any) -> None:
    """Measure retrieval across modalities and among captions, by exact ranks.

    Writes tables, metrics.json and report.html.
    """
    _measure(options, ("retrieval",))


@click.command(context_settings=CONTEXT_SETTINGS)
@_model_options
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=FOLDER",
    help="cub, cars, sop, inshop, inaturalist, or FOLDER with a folder per class; repeat it.  "
    "[default: all below --data-root]",
)
@_data_root_option
@_run_options
@one_line_errors
def images(**options: Any) -> None:
    """Measure image-to-image retrieval by class.

    R@1 as in the paper, R-Precision and mAP@R; writes images.json and report.html.
    """
    _measure(options, ("images",))


@click.command(context_settings=CONTEXT_SETTINGS)
@_model_options
@click.option(
    "--data",
    "sts_data",
    type=PATH,
    help="Folder of STS sets, in any layout.  [default: sts in --data-root]",
)
@_data_root_option
@_split_options
@_run_options
@one_line_errors
def sts(**options: Any) -> None:
    """Measure sentence similarity.

    STS12-16, STS-B and SICK-R by the paper's rule, and CxC; writes sts.json and report.html.
    """
    _measure(options, ("sts",))


@click.command("all", context_settings=CONTEXT_SETTINGS)
@_model_options
@_split_options
@_data_root_option
@_run_options
@_retrieval_options
@one_line_errors
def everything(**options: Any) -> None:
    """Run all three suites on the data there is.

    That is the split, and the image sets and STS sets below --data-root.
    """
    _measure(options, ("retrieval", "images", "sts"), skip_absent=True)


@click.command(context_settings=CONTEXT_SETTINGS)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--bootstrap", type=click.IntRange(1), default=1000, help="Resamplings of the queries."
)
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option(
    "--out",
    type=PATH,
    help="Folder of comparison.html and .json.  [default: eval/ beside the first]",
)
@click.option("--latex", is_flag=True, help="Write comparison.tex beside it, too.")
@one_line_errors
def compare(models: tuple[str, ...], **options: Any) -> None:
    """Compare models that cusa-eval has measured with the first of them, by paired differences.

    MODEL is a run directory, or a folder of results.
    """
    from cusa.cli.console import quiet_libraries

    quiet_libraries()
    from cusa.eval.compare_runs import compare_measured

    content, written = compare_measured([Path(model) for model in models], **options)
    _print_comparison(content)
    _print_files(written)


# ``cusa-eval retrieval`` is the same as ``cusa-eval`` alone.
main.subcommands |= {
    "retrieval": click.Command(
        "retrieval",
        callback=main.callback,
        params=main.params,
        help=main.help,
        context_settings=CONTEXT_SETTINGS,
    ),
    "images": images,
    "sts": sts,
    "all": everything,
    "compare": compare,
    "index": index,
    "search": search,
}


def _measure(options: dict[str, Any], suites: tuple[str, ...], skip_absent: bool = False) -> None:
    """Run suites, and print tables, notes, and the files written."""
    from cusa.cli.console import default_workers, pick_device, quiet_libraries
    from cusa.cli.progress import StepTasks, progress

    quiet_libraries()
    _require_hub(options["models"])
    from cusa.eval.evaluate import evaluate, make_sections

    options["device"] = pick_device(options["device"])
    options["readers"] = default_workers(inputs_are_stored=False)
    options["models"] = _model_specs(options)
    request = _request(options, suites, skip_absent)
    with progress() as progress_bar:
        evaluation = evaluate(request, StepTasks(progress_bar).advance)
    _print_tables(make_sections(evaluation.reports))
    for note in evaluation.notes:
        _print(f"note: {note}")
    _print_files(evaluation.written)


def _require_hub(models: Sequence[str]) -> None:
    """Refuse a model of the hub that is neither there nor cached, before libraries load."""
    from cusa.data.errors import RunError
    from cusa.data.hub import require

    for model in models:
        # What stands beside folders is more likely a mistyped run, and the hub is not asked for it.
        if not Path(model).parent.is_dir():
            require(model, RunError)


def _model_specs(options: dict[str, Any]) -> tuple[str, ...]:
    """Name the models, in the order of the command line; the latest run if there is no other.

    A run that does not exist is refused here, and never looked up on a model hub.
    """
    from cusa.eval.models.evaluated_models import check_local, latest_run

    specs = click.get_current_context().meta.get(_SPECS, [])
    for spec, is_run in specs:
        check_local(spec, is_run)
    if not specs and not options["image_embeddings"] and not options["text_embeddings"]:
        return (str(latest_run(Path("runs"))),)
    return tuple(spec for spec, _ in specs)


def _request(options: dict[str, Any], suites: tuple[str, ...], skip_absent: bool) -> EvalRequest:
    from cusa.eval.evaluators.request import EvalRequest, MeasureOptions, SplitRequest
    from cusa.eval.metrics.bootstrap import Bootstrap
    from cusa.eval.metrics.metric_options import Scoring
    from cusa.eval.models.evaluated_models import ComputeOptions

    scoring = Scoring(options["ties"], Bootstrap(options["bootstrap"], options["seed"]))
    return EvalRequest(
        suites=suites,
        skip_absent=skip_absent,
        models=options["models"],
        embedding_files=(_embedding_file(options, "image"), _embedding_file(options, "text")),
        name=options["name"],
        split=SplitRequest(
            split=options.get("split", "test"),
            dataset=options.get("dataset", ()),
            data_root=options["data_root"],
            embeddings=options.get("embeddings"),
            image_root=options.get("image_root"),
        ),
        image_sets=options.get("data", ()),
        sts_folder=options.get("sts_data"),
        pmrp=options.get("pmrp"),
        options=MeasureOptions(
            scoring, options["allow_partial"], options["index"], options.get("gallery", 0)
        ),
        compute=ComputeOptions(
            device=options["device"],
            checkpoint=options["checkpoint"],
            batch_size=options["batch_size"],
            workers=options["workers"],
            readers=options["readers"],
        ),
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
            f"--{modality}-ids {ids_path} are of no embeddings; pass --{modality}-embeddings, too",
            path=ids_path,
            name=f"--{modality}-ids",
        )
    return None


def _print_tables(sections: Sequence[Section]) -> None:
    """Print the report's tables."""
    screen = _screen()
    for section in sections:
        for fact in section.facts:
            _print(fact)
        for table in section.tables:
            screen.print(_screen_table(table))


def _screen_table(table: Table) -> RichTable:
    from rich.markup import escape
    from rich.table import Table as RichTable

    screen_table = RichTable(title=table.title, title_justify="left")
    screen_table.add_column("model")
    if table.by_head:
        screen_table.add_column("head", no_wrap=True)
    for group, _ in table.groups:
        for metric in group.metrics:
            heading = f"{group.title}\n{metric.label}".strip()
            screen_table.add_column(escape(heading), justify="right")

    for row in table.rows:
        cells = [escape(row.name)]
        if table.by_head:
            cells.append(f"{row.head} (untrained)" if row.untrained else row.head)
        for cell in row.cells:
            cells.append(f"[bold]{cell.text}[/]" if cell.best else cell.text)
        is_published = row.run is None
        screen_table.add_row(*cells, style="dim" if is_published else None)
    return screen_table


def _print_comparison(content: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    model_names = [escape(model_name) for model_name in content["models"]]
    table = Table("set", "metric", *model_names, title=f"differences from {model_names[0]}")
    for row in content["rows"]:
        cells = [f"{row['values'][0]:.1f}"]
        for value, paired in zip(row["values"][1:], row["differences"][1:], strict=True):
            interval = ""
            if paired["low"] is not None:
                interval = f", {paired['low']:+.1f} to {paired['high']:+.1f}"
            cells.append(f"{value:.1f} ({paired['difference']:+.1f}{interval})")
        table.add_row(escape(row["set"]), row["metric"], *cells)
    _screen().print(table)


def _screen() -> Console:
    from cusa.cli.console import console

    return console()


def _print_files(written: dict[str, list[Path]]) -> None:
    """Print which files were written, by kind."""
    for kind, paths in written.items():
        _print(f"{kind}: {', '.join(str(path) for path in paths)}")


def _print(text: str) -> None:
    from cusa.cli.console import print_plain

    print_plain(text)
