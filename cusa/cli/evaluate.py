"""``cusa-eval``: measure models, across modalities and within one, compare them, and show what they retrieve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import Besides, one_line_errors
from cusa.data.errors import CusaError

if TYPE_CHECKING:
    from cusa.eval.queries import Suite
    from cusa.eval.report.report import RunReport
    from cusa.eval.request import Plan

_SPECS = (
    "cusa.eval.models.any_model"  # (spec, whether it is a run), in the order of the command line
)
_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _options(*options: Decorator) -> Decorator:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _in_order(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Put models and runs into one list, those first that stand first on the command line."""
    specs = context.meta.setdefault(_SPECS, [])
    specs += [(value, option.name == "models_of_runs") for value in values]
    return values


_path = click.Path(path_type=Path)
_models = _options(
    click.option("--model", "models", multiple=True, metavar="MODEL", callback=_in_order,
                 help="A Hugging Face dual encoder or sentence-transformers model by name or folder; a teacher; a run. "
                 "Repeat it to compare."),
    click.option("--run", "models_of_runs", multiple=True, metavar="FOLDER", callback=_in_order,
                 help="A run of cusa-train or an exported folder, on this machine; repeatable.  [default: the latest "
                 "under runs/]"),
    click.option("--image-embeddings", type=_path, help="Another model's image embeddings: .npy, .h5 or .safetensors."),
    click.option("--image-ids", type=_path, help="Their ids, if not in the file: .txt, .json or .npy."),
    click.option("--text-embeddings", type=_path, help="Its text embeddings."),
    click.option("--text-ids", type=_path, help="Their ids."),
    click.option("--name", help="That model's name in tables and below runs/eval.  [default: the files']"),
)  # fmt: skip
_how = _options(
    click.option("--ties", type=click.Choice(["pessimistic", "mean", "optimistic"]), default="pessimistic",
                 help="What equal similarities count as: against the model, for it, or the mean of both."),
    click.option("--bootstrap", type=click.IntRange(0), default=1000,
                 help="Resamplings of the queries for 95 % intervals; 0: none."),
    click.option("--seed", type=click.IntRange(0), default=0, help="Of the resampling, and of the queries shown."),
    click.option("--allow-partial", is_flag=True, help="Evaluate known data sets that are not complete, too."),
    click.option("--index", type=click.Choice(["exact", "hnsw", "ivf"]), default="exact",
                 help="Report an approximate FAISS index beside the exact figures."),
    click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", help="Of runs."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
    click.option("--batch-size", type=click.IntRange(1), default=256),
    click.option("--workers", type=click.IntRange(0), help="Readers of inputs.  [default: cores, at most 8]"),
    click.option("--out", type=_path,
                 help="Folder of report.html.  [default: the model's own results, for several eval/ beside them]"),
    click.option("--latex", is_flag=True, help="Write tables.tex beside the report, too."),
)  # fmt: skip
_data_root = click.option(
    "--data-root", type=_path, default=Path("data"), help="Where named data sets lie."
)
_split = _options(
    click.option("--split", default="test", help="Split of the store or data set."),
    click.option("--dataset", multiple=True,
                 help="coco, flickr30k, demo, or annotation files as of cusa-precompute.  [default: the run's store]"),
    click.option("--embeddings", type=_path, help="Another store than the run's own."),
    click.option("--image-root", type=_path, help="Folder of the images, if not the data's own."),
)  # fmt: skip
_shown = _options(
    click.option(
        "--pmrp", type=_path, help="Folder of pm_*.json: plausible matches of COCO's test."
    ),
    click.option(
        "--gallery", type=click.IntRange(0), default=6, help="Queries per task shown in the report."
    ),
)


@click.command(cls=Besides, context_settings=_CONTEXT)
@_models
@_split
@_data_root
@_how
@_shown
@click.version_option(package_name="cusa")
@one_line_errors
def main(**options: Any) -> None:
    """Retrieval across modalities and among captions: exact ranks, tables, metrics.json and report.html."""
    _measure(options, ("retrieval",))


@click.command(context_settings=_CONTEXT)
@_models
@click.option("--data", multiple=True, metavar="NAME=FOLDER",
              help="cub, cars, sop, inshop, inaturalist, or FOLDER with a folder per class; repeat it.  [default: all "
              "below --data-root]")  # fmt: skip
@_data_root
@_how
@one_line_errors
def images(**options: Any) -> None:
    """Image-to-image retrieval by class: R@1 as in the paper, R-Precision and mAP@R; images.json and report.html."""
    _measure(options, ("images",))


@click.command(context_settings=_CONTEXT)
@_models
@click.option(
    "--data",
    "sts_data",
    type=_path,
    help="Folder of STS sets, any layout.  [default: sts in --data-root]",
)
@_data_root
@_split
@_how
@one_line_errors
def sts(**options: Any) -> None:
    """Sentence similarity: STS12-16, STS-B, SICK-R by the paper's rule, and CxC; sts.json and report.html."""
    _measure(options, ("sts",))


@click.command("all", context_settings=_CONTEXT)
@_models
@_split
@_data_root
@_how
@_shown
@one_line_errors
def everything(**options: Any) -> None:
    """All three suites, on what there is: the split, the image sets and the STS sets below --data-root."""
    _measure(options, ("retrieval", "images", "sts"), skip_absent=True)


@click.command(context_settings=_CONTEXT)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--bootstrap", type=click.IntRange(1), default=1000, help="Resamplings of the queries."
)
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option(
    "--out",
    type=_path,
    help="Folder of comparison.html and .json.  [default: eval/ beside the first]",
)
@click.option("--latex", is_flag=True, help="Write comparison.tex beside it, too.")
@one_line_errors
def compare(models: tuple[str, ...], **options: Any) -> None:
    """Paired differences of models that cusa-eval has measured to the first, with their intervals.

    MODEL is a run directory, or a folder of results.
    """
    from cusa.cli.console import quiet_libraries

    quiet_libraries()
    from cusa.eval.compare_runs import compare_measured

    content, written = compare_measured([Path(m) for m in models], **options)
    _print_comparison(content)
    _say_written(written)


@click.command(context_settings=_CONTEXT)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--run", type=click.Path(path_type=Path), help="Run, or exported folder.  [default: the latest]"
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the index.  [default: RUN/index]"
)
@click.option("--kind", type=click.Choice(["flat", "hnsw", "ivf"]), default="flat",
              help="flat is exact; the others are for millions.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=32)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads that read images.  [default: cores, at most 8]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@one_line_errors
def index(
    source: Path,
    run: Path | None,
    out: Path | None,
    kind: Any,
    batch_size: int,
    workers: int | None,
    device: str,
) -> None:
    """Index a folder of images, or a .txt file of one text per line, for cusa-eval search."""
    from cusa.cli.console import default_workers, pick_device, progress, quiet_libraries
    from cusa.data.shell import shell_command

    quiet_libraries()
    from cusa.eval.models.evaluated_models import check_local, latest_run
    from cusa.eval.models.student import load_student
    from cusa.eval.search.index import IndexOptions, build_index

    run = run or latest_run(Path("runs"))
    check_local(str(run), is_run=True)
    out = out or run / "index"
    student = load_student(run, pick_device(device))
    options = IndexOptions(kind, batch_size, workers or default_workers(inputs_are_stored=False))
    with progress() as bar:
        task = bar.add_task("index", total=None, unit="items")
        summary = build_index(
            student,
            run,
            source,
            out,
            options,
            lambda n, of: bar.update(task, completed=n, total=of),
        )
    about = [_counted(summary.count, summary.modality)]
    if summary.skipped:
        about.append(f"{len(summary.skipped):,} skipped (see index.json)")
    if summary.blank_lines:
        about.append(_counted(summary.blank_lines, "empty line"))
    if summary.recall_of_exact is not None:
        about.append(f"{summary.recall_of_exact:.1f} % of the exact ten nearest found")
    _print(f"index: {out.resolve()} ({', '.join(about)})")
    _print(f"next: {shell_command('cusa-eval', 'search', 'a dog on a beach', '--index', out)}")


@click.command(context_settings=_CONTEXT)
@click.argument("query")
@click.option(
    "--index", "folder", type=click.Path(path_type=Path), help="[default: the latest under runs/]"
)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="The student, if it has moved.  [default: the index's]",
)
@click.option("-k", type=click.IntRange(1), default=10, help="Hits.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The page.  [default: search.html beside the index]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@one_line_errors
def search(
    query: str, folder: Path | None, run: Path | None, k: int, out: Path | None, device: str
) -> None:
    """Search an index for a text, or for an image file."""
    from cusa.cli.console import pick_device, quiet_libraries

    quiet_libraries()
    from cusa.eval.models.student import load_student
    from cusa.eval.search.index import latest_index
    from cusa.eval.search.search import SearchIndex, answer, write_contact_sheet

    opened = SearchIndex.open(folder or latest_index(Path("runs")))
    run = run or Path(opened.summary.student)
    found = answer(load_student(run, pick_device(device)), opened, query, k, str(run))
    for hit in found.hits:
        _print(
            f"{hit.rank:3} {hit.similarity:6.3f}  {hit.item.text}{'  (the query itself)' if hit.is_query else ''}"
        )
    if found.n_unnamed:
        _print(
            f"note: {found.n_unnamed} more found, whose lines in items.jsonl are damaged; build the index again"
        )
    out = out or opened.folder.resolve().parent / "search.html"
    write_contact_sheet(out, found)
    _print(f"page: {out.resolve()}")


main.others |= {
    "retrieval": click.Command(
        "retrieval",
        callback=main.callback,
        params=main.params,
        help=main.help,
        context_settings=_CONTEXT,
    ),
    "images": images,
    "sts": sts,
    "all": everything,
    "compare": compare,
    "index": index,
    "search": search,
}


def _measure(options: dict[str, Any], suites: tuple[Suite, ...], skip_absent: bool = False) -> None:
    from cusa.cli.console import default_workers, pick_device, progress, quiet_libraries

    quiet_libraries()
    from cusa.data.errors import RunError
    from cusa.data.hub import require

    for model in options["models"]:
        # What stands beside folders is more likely a mistyped run, and the hub is not asked for it.
        if not Path(model).parent.is_dir():
            require(model, RunError)
    from cusa.eval.evaluate import measure
    from cusa.eval.models.evaluated_models import latest_run

    options["device"] = pick_device(options["device"])
    options["readers"] = default_workers(inputs_are_stored=False)
    options["models"] = _specs()
    if not options["models"] and not options["image_embeddings"] and not options["text_embeddings"]:
        options["models"] = (str(latest_run(Path("runs"))),)
    with progress() as bar:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks or bar.tasks[tasks[what]].finished:
                tasks[what] = bar.add_task(what, total=total, unit=what.split()[-1])
            bar.advance(tasks[what], done)

        found = measure(_plan(options, suites, skip_absent), advance)
    _print_reports(found.reports)
    for line in found.notes:
        _print(f"note: {line}")
    _say_written(found.written)


def _specs() -> tuple[str, ...]:
    """Models by name; a run that is not there is refused here, and never looked up on a model hub."""
    from cusa.eval.models.evaluated_models import check_local

    specs = click.get_current_context().meta.get(_SPECS, [])
    for spec, is_run in specs:
        check_local(spec, is_run)
    return tuple(spec for spec, _ in specs)


def _plan(options: dict[str, Any], suites: tuple[Suite, ...], skip_absent: bool) -> Plan:
    from cusa.eval.metrics.bootstrap import Bootstrap
    from cusa.eval.metrics.metric_options import Scoring
    from cusa.eval.request import Plan
    from cusa.eval.splits import DataRequest
    from cusa.eval.suites import Measure

    scoring = Scoring(options["ties"], Bootstrap(options["bootstrap"], options["seed"]))
    return Plan(
        suites=suites,
        skip_absent=skip_absent,
        models=options["models"],
        files=(_file(options, "image"), _file(options, "text")),
        name=options["name"],
        data=DataRequest(
            split=options.get("split", "test"),
            dataset=options.get("dataset", ()),
            data_root=options["data_root"],
            embeddings=options.get("embeddings"),
            image_root=options.get("image_root"),
        ),
        image_sets=options.get("data", ()),
        sts=options.get("sts_data"),
        measure=Measure(scoring, options["allow_partial"], options["index"]),
        pmrp=options.get("pmrp"),
        device=options["device"],
        checkpoint=options["checkpoint"],
        batch_size=options["batch_size"],
        workers=options["workers"],
        readers=options["readers"],
        out=options["out"],
        latex=options["latex"],
        gallery=options.get("gallery", 0),
    )


def _file(options: dict[str, Any], modality: str) -> tuple[Path, Path | None] | None:
    rows, ids = options[f"{modality}_embeddings"], options[f"{modality}_ids"]
    if ids and not rows:
        raise CusaError(
            f"--{modality}-ids {ids} are of no embeddings; pass --{modality}-embeddings, too"
        )
    return (rows, ids) if rows else None


def _counted(number: int, unit: str) -> str:
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"


def _screen() -> Any:
    from cusa.cli.console import console

    return console()


def _print_reports(reports: Sequence[RunReport]) -> None:
    """The report's tables, on the screen."""
    from rich.markup import escape
    from rich.table import Table

    from cusa.eval.report.sections import make_sections

    for section in make_sections(reports):
        for fact in section.facts:
            _print(fact)
        for made in section.tables:
            table = Table(title=made.title, title_justify="left")
            table.add_column("model")
            if made.by_head:
                table.add_column("head", no_wrap=True)
            for group, _ in made.groups:
                for metric in group.metrics:
                    table.add_column(
                        escape(f"{group.title}\n{metric.label}".strip()), justify="right"
                    )
            for row in made.rows:
                head = f"{row.head} (untrained)" if row.untrained else row.head
                cells = [f"[bold]{c.text}[/]" if c.best else c.text for c in row.cells]
                style = "dim" if row.run is None else None
                table.add_row(
                    escape(row.name), *([head] if made.by_head else []), *cells, style=style
                )
            _screen().print(table)


def _print_comparison(content: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    names = [escape(name) for name in content["models"]]
    table = Table("set", "metric", *names, title=f"differences from {names[0]}")
    for row in content["rows"]:
        cells = [f"{row['values'][0]:.1f}"]
        for value, d in zip(row["values"][1:], row["differences"][1:], strict=True):
            interval = "" if d["low"] is None else f", {d['low']:+.1f} to {d['high']:+.1f}"
            cells.append(f"{value:.1f} ({d['difference']:+.1f}{interval})")
        table.add_row(escape(row["set"]), row["metric"], *cells)
    _screen().print(table)


def _print(text: str) -> None:
    _screen().print(text, highlight=False, markup=False, soft_wrap=True)


def _say_written(written: dict[str, Any]) -> None:
    for what, paths in written.items():
        _print(f"{what}: {', '.join(str(p) for p in paths)}")
