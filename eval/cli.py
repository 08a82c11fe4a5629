"""``cusa-eval``: measure trained students, cross-modal and uni-modal, and show what they retrieve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.data.console import Besides, one_line_errors

if TYPE_CHECKING:
    from cusa.eval.relevance import Task
    from cusa.eval.report import RunReport
    from cusa.train.student import Head

METRICS_VERSION = (1, 1)


@click.command(cls=Besides, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--run", "runs", multiple=True, type=click.Path(path_type=Path),
              help="Run directory; repeat it to compare.  [default: the latest under runs/]")  # fmt: skip
@click.option("--split", default="test", help="Split of the store.")
@click.option("--embeddings", type=click.Path(path_type=Path), help="Another store than the run's own.")
@click.option("--image-root", type=click.Path(path_type=Path), help="Folder of the images, if not the store's own.")
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--batch-size", type=click.IntRange(1), default=256)
@click.option("--workers", type=click.IntRange(0), help="Processes that read inputs.  [default: cores, at most 8]")
@click.option("--out", type=click.Path(path_type=Path),
              help="Folder of report.html.  [default: RUN/eval, for several runs eval/ beside them]")  # fmt: skip
@click.option("--gallery", type=click.IntRange(0), default=6, help="Queries per task shown in the report.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the choice of those queries.")
@click.version_option(package_name="cusa")
@one_line_errors
def main(runs: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Encode a split with a trained student, rank exactly, print a table, write metrics.json and report.html."""
    from cusa.data.console import console, pick_device, quiet_libraries

    quiet_libraries()
    options["device"] = pick_device(options["device"])
    chosen = list(runs) or [_latest_run(Path("runs"))]
    reports = []
    for run in chosen:
        reports.append(_evaluate_run(run, **options))
        _check_same_split(reports)
        _write_json(run / "eval" / "metrics.json", reports[-1].metrics)
    from cusa.eval.report import write_report

    out = out or (chosen[0] / "eval" if len(chosen) == 1 else chosen[0].parent / "eval")
    write_report(out / "report.html", reports)
    _print_tables(console(), reports)
    _print(f"metrics: {', '.join(str(r / 'eval' / 'metrics.json') for r in chosen)}")
    _print(f"report: {(out / 'report.html').resolve()}")


_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}


@click.command(context_settings=_CONTEXT)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="Run, or exported folder.  [default: the latest]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the index.  [default: RUN/index]")
@click.option("--kind", type=click.Choice(["flat", "hnsw"]), default="flat", help="flat is exact; hnsw for millions.")
@click.option("--batch-size", type=click.IntRange(1), default=32)
@click.option("--workers", type=click.IntRange(1), help="Threads that read images.  [default: cores, at most 8]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@one_line_errors
def index(
    source: Path, run: Path | None, out: Path | None, kind: Any, batch_size: int, workers: int | None, device: str
) -> None:
    """Index a folder of images, or a .txt file of one text per line, for cusa-eval search."""
    from cusa.data.console import default_workers, pick_device, progress, quiet_libraries

    quiet_libraries()
    from cusa.eval.encoder import load_student
    from cusa.eval.index import IndexOptions, build_index

    run = run or _latest_run(Path("runs"))
    out = out or run / "index"
    student = load_student(run, pick_device(device))
    options = IndexOptions(kind, batch_size, workers or default_workers(inputs_are_stored=False))
    with progress() as bar:
        task = bar.add_task("index", total=None, unit="items")
        found = build_index(student, run, source, out, options, lambda n, of: bar.update(task, completed=n, total=of))
    left = f", {len(found.skipped):,} skipped (see index.json)" if found.skipped else ""
    left += f", {found.blank_lines:,} empty lines" if found.blank_lines else ""
    _print(f"index: {out.resolve()} ({found.count:,} {found.modality}s{left})\nnext: cusa-eval search QUERY")


@click.command(context_settings=_CONTEXT)
@click.argument("query")
@click.option("--index", "folder", type=click.Path(path_type=Path), help="[default: the latest under runs/]")
@click.option("--run", type=click.Path(path_type=Path), help="The student, if it has moved.  [default: the index's]")
@click.option("-k", type=click.IntRange(1), default=10, help="Hits.")
@click.option("--out", type=click.Path(path_type=Path), help="The page.  [default: search.html beside the index]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@one_line_errors
def search(query: str, folder: Path | None, run: Path | None, k: int, out: Path | None, device: str) -> None:
    """Search an index for a text, or for an image file."""
    from cusa.data.console import pick_device, quiet_libraries

    quiet_libraries()
    from cusa.eval.encoder import load_student
    from cusa.eval.index import latest_index
    from cusa.eval.search import SearchIndex, answer, write_contact_sheet

    opened = SearchIndex.open(folder or latest_index(Path("runs")))
    run = run or Path(opened.summary.student)
    found = answer(load_student(run, pick_device(device)), opened, query, k, str(run))
    for hit in found.hits:
        _print(f"{hit.rank:3} {hit.similarity:6.3f}  {hit.item.text}{'  (the query itself)' if hit.is_query else ''}")
    out = out or opened.folder.resolve().parent / "search.html"
    write_contact_sheet(out, found)
    _print(f"page: {out.resolve()}")


main.others |= {"index": index, "search": search}


def _print(text: str) -> None:
    from cusa.data.console import console

    console().print(text, highlight=False, markup=False, soft_wrap=True)


def _latest_run(folder: Path) -> Path:
    from cusa.data.errors import CusaError

    found = sorted(folder.glob("**/best/student.safetensors"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise CusaError(f"no trained run under {folder}/; train one with cusa-train, or pass --run")
    return found[-1].parent.parent


def _evaluate_run(
    run: Path,
    *,
    split: str,
    embeddings: Path | None,
    image_root: Path | None,
    checkpoint: str,
    device: str,
    batch_size: int,
    workers: int | None,
    gallery: int,
    seed: int,
) -> RunReport:
    from cusa.data.console import default_workers
    from cusa.data.store import EmbeddingStore
    from cusa.eval.gallery import make_gallery
    from cusa.eval.paper import paper_row
    from cusa.eval.report import RunReport
    from cusa.eval.retrieval import evaluate
    from cusa.train.encode import encode_split
    from cusa.train.run_dir import load_trained, read_metrics
    from cusa.train.setup import student_sources

    loaded = load_trained(run, checkpoint)
    origin = loaded.origin
    store = EmbeddingStore(embeddings or origin.config.data.embeddings)
    _check_store(store, origin.provenance, run, own=embeddings is None)
    if image_root is None and embeddings is None and origin.config.data.image_root:
        image_root = Path(origin.config.data.image_root)
    names = tuple(t.name for t in origin.provenance.encoders.values())
    data = replace(origin.config.data, image_root=str(image_root) if image_root else None)
    sources = student_sources(store, split, replace(origin.config, data=data), names, loaded.processors)
    if workers is None:
        workers = default_workers(inputs_are_stored=bool(names))
    found = encode_split(loaded.student.to(device), sources, device, batch_size, workers)
    metrics = {
        "format": "cusa-metrics",
        "format_version": list(METRICS_VERSION),
        "run": str(run),
        "checkpoint": checkpoint,
        "epoch": origin.epoch,
        "step": origin.step,
        "dataset": store.dataset,
        "split": split,
        "split_fingerprint": sources.split.fingerprint,
        "n_images": len(found.image_rows),
        "n_captions": len(found.text_rows),
        "n_images_skipped": sources.split.n_images - len(found.image_rows),
        "n_captions_skipped": sources.split.n_captions - len(found.text_rows),
        "loss_terms": list(origin.config.loss.terms),
        **evaluate(found, sources.split, origin.uni_head),
    }
    if row := paper_row(origin.config.student.name, origin.config.loss.terms, metrics):
        metrics["paper"] = {"host": row.host, "method": row.method, **row.scores}
    head_of: dict[Task, Head] = {"i2t": "cross", "t2i": "cross", "t2t": origin.uni_head}
    if sources.split.truth is not None:
        head_of["i2i"] = origin.uni_head
    shown = make_gallery(found, sources.split, image_root or store.image_root, head_of, gallery, seed)
    return RunReport(run.name, metrics, tuple(read_metrics(run)), shown)


def _check_same_split(reports: list[RunReport]) -> None:
    """Refuse to set side by side what was not measured on the same images and captions."""
    from cusa.data.errors import CusaError

    keys = ("split_fingerprint", "n_images", "n_captions")
    first, last = (reports[i].metrics for i in (0, -1))
    if any(first[k] != last[k] for k in keys):
        raise CusaError(
            f"{last['run']} and {first['run']} cannot be compared: they are measured on different data "
            f"({last['n_images']} and {first['n_images']} images); pass --embeddings with one store for all"
        )


def _check_store(store: Any, provenance: Any, run: Path, own: bool) -> None:
    from cusa.data.errors import CusaError

    fields = []
    if own:  # another store, named on purpose, may be of other data: its encoders must be the same all the same
        if store.dataset != provenance.dataset:
            fields.append(f"dataset ({store.dataset!r} / {provenance.dataset!r})")
        for name, fingerprint in provenance.splits.items():
            if name in store.splits and store.splits[name].fingerprint != fingerprint:
                fields.append(f"fingerprint of split {name!r}")
    for modality, encoder in provenance.encoders.items():
        store.pick_teacher(modality, encoder.name, "--embeddings of a store")
        fields += [f"{encoder.name}.{f}" for f in encoder.settings.differing(store.teachers[encoder.name])]
    if fields:
        raise CusaError(
            f"{store.path} is not the store that {run} was trained on: {'; '.join(fields)}; train again, or pass "
            "--embeddings"
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from cusa.data.files import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _print_tables(screen: Any, reports: list[RunReport]) -> None:
    from rich.table import Table

    first = reports[0].metrics
    where = f"{first['dataset']} {first['split']}: {first['n_images']:,} images, {first['n_captions']:,} captions"
    if first["n_images_skipped"] or first["n_captions_skipped"]:
        where += f" ({first['n_images_skipped']:,} and {first['n_captions_skipped']:,} skipped)"
    cuts = ("r1", "r5", "r10")
    cross = Table("run", *(f"{way} {c.upper()}" for way in ("i2t", "t2i") for c in cuts), "RSUM", title=where)
    uni = Table("run", "head", *(f"t2t {c.upper()}" for c in cuts))
    known = "truth" in first["heads"]["cross"]
    if known:
        cross.add_column("true t2i mAP@R")
        uni.add_column("i2i R1")
        uni.add_column("i2i mAP@R")
    for r in reports:
        retrieval = r.metrics["retrieval"]
        values = [retrieval[way][c] for way in ("i2t", "t2i") for c in cuts]
        values.append(retrieval["rsum"])
        if known:
            values.append(r.metrics["heads"]["cross"]["truth"]["t2i"]["map_at_r"])
        cross.add_row(r.name, *map(_percent, values))
        if paper := r.metrics.get("paper"):
            values = [paper[f"{way}_{c}"] for way in ("i2t", "t2i") for c in cuts] + [paper["rsum"]]
            cross.add_row(f"paper: {paper['host']}, {paper['method']}", *map(_percent, values), style="dim")
        for head, found in r.metrics["heads"].items():
            values = [found["unimodal"]["t2t"][c] for c in cuts]
            if known:
                values += [found["unimodal"]["i2i"]["r1"], found["unimodal"]["i2i"]["map_at_r"]]
            untrained = head == "uni" and "usa" not in r.metrics["loss_terms"]
            uni.add_row(r.name, f"{head} (untrained)" if untrained else head, *map(_percent, values))
    for table in (cross, uni):
        for column in table.columns[1:]:
            column.justify = "right"
        screen.print(table)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
