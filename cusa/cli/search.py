"""``cusa-eval index`` and ``cusa-eval search``: find images or texts with a trained student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import DEVICE_OPTION, PATH, POSITIVE, choice_option, command, quiet_libraries
from cusa.data.shell import shell_command
from cusa.screen.console import counted, print_plain
from cusa.stages.machine import default_workers, pick_device

if TYPE_CHECKING:
    from cusa.eval.search.index_folder import IndexSummary


@command()
@click.argument("source", type=PATH)
@click.option(
    "--run",
    type=PATH,
    help="Run, exported folder, or OWNER/MODEL of a student on the hub.  [default: the latest]",
)
@click.option(
    "--out",
    type=PATH,
    help="Folder of the index.  [default: RUN/index; of a student on the hub, in runs/]",
)
@choice_option("--kind", "flat", "hnsw", "ivf", help="flat is exact; the others are for millions.")
@click.option("--batch-size", type=POSITIVE, default=32)
@click.option(
    "--workers", type=POSITIVE, help="Threads that read images.  [default: cores, at most 8]"
)
@DEVICE_OPTION
def index(
    source: Path,
    run: Path | None,
    out: Path | None,
    device: str,
    workers: int | None,
    **settings: Any,
) -> None:
    """Index a folder of images, or a .txt file of one text per line, for cusa-eval search."""
    from cusa.screen.progress import progress_display

    quiet_libraries()
    from cusa.eval.models.evaluated_models import latest_run
    from cusa.eval.models.student import load_student
    from cusa.eval.search.index import IndexOptions, build_index

    run = run or latest_run(Path("runs"))
    out = out or _folder_of_index(run)
    student = load_student(run, pick_device(device))
    readers = workers or default_workers(inputs_are_stored=False)
    options = IndexOptions(**settings, workers=readers)
    with progress_display() as progress_bar:
        task = progress_bar.add_task("index", total=None, unit="items")

        # The number of items is not known before the first of them is done.
        def advance(n_done: int, n_items: int) -> None:
            progress_bar.update(task, completed=n_done, total=n_items)

        summary = build_index(student, run, source, out, options, advance)
    print_plain(f"index: {out.resolve()} ({_describe(summary)})")
    next_command = shell_command("cusa-eval", "search", "a dog on a beach", "--index", out)
    print_plain(f"next: {next_command}")


def _folder_of_index(run: Path) -> Path:
    """Return the usual folder of a run's index; refuse a run that does not exist."""
    from cusa.data.hub import is_remote
    from cusa.eval.models.evaluated_models import check_local

    if is_remote(str(run)):
        return Path("runs") / "-".join(run.parts) / "index"
    check_local(str(run), is_run=True)
    return run / "index"


def _describe(summary: IndexSummary) -> str:
    words = [counted(summary.count, summary.modality)]
    if summary.skipped:
        words.append(f"{len(summary.skipped):,} skipped (see index.json)")
    if summary.blank_lines:
        words.append(counted(summary.blank_lines, "empty line"))
    if summary.recall_of_exact is not None:
        words.append(f"{summary.recall_of_exact:.1f} % of the exact ten nearest found")
    return ", ".join(words)


@command()
@click.argument("query")
@click.option("--index", "folder", type=PATH, help="[default: the latest under runs/]")
@click.option("--run", type=PATH, help="The student, if it has moved.  [default: the index's]")
@click.option("-k", "n_hits", type=POSITIVE, default=10, help="Number of hits.")
@click.option(
    "--out", type=PATH, help="HTML page to write.  [default: search.html beside the index]"
)
@DEVICE_OPTION
def search(
    query: str, folder: Path | None, run: Path | None, n_hits: int, out: Path | None, device: str
) -> None:
    """Search an index for a text, or for an image file."""
    quiet_libraries()
    from cusa.eval.models.student import load_student
    from cusa.eval.search.index_folder import latest_index
    from cusa.eval.search.search import answer, write_contact_sheet
    from cusa.eval.search.search_index import SearchIndex

    # The index records the student that made it.
    opened = SearchIndex(folder or latest_index(Path("runs")))
    run = run or Path(opened.summary.student)
    student = load_student(run, pick_device(device))
    hits = answer(student, opened, query, n_hits, str(run))
    for hit in hits.hits:
        note = "  (the query itself)" if hit.is_query else ""
        print_plain(f"{hit.rank:3} {hit.similarity:6.3f}  {hit.item.text}{note}")
    if hits.n_unnamed:
        print_plain(
            f"note: {hits.n_unnamed} more hits have damaged lines in items.jsonl; "
            "build the index again"
        )
    page = out or opened.folder.resolve().parent / "search.html"
    write_contact_sheet(page, hits)
    print_plain(f"page: {page.resolve()}")
