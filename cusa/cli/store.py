"""``cusa-store``: look at an embedding store, check it, put it together, take rows out and in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cusa.cli.console import fail, one_line_errors

if TYPE_CHECKING:
    from cusa.eval.inspection.soft_labels import Inspection

STORE = click.argument("store", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="cusa")
def main() -> None:
    """Look at an embedding store, check it, put it together, take rows out and in."""


@main.command()
@STORE
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@one_line_errors
def info(store: Path, as_json: bool) -> None:
    """Print what STORE holds: splits, teachers, rows, sizes, norms, provenance."""
    from cusa.cli.console import console
    from cusa.data.store.summary import summarize

    summary = summarize(store)
    if as_json:
        click.echo(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    from rich.markup import escape
    from rich.table import Table

    screen = console()
    dataset, image_root = escape(summary["dataset"]), escape(summary["image_root"])
    screen.print(
        f"{escape(str(store))}: data set [bold]{dataset}[/], images under {image_root}",
        soft_wrap=True,
    )
    splits = Table("split", "images", "captions", "known truth", "fingerprint")
    for name, s in summary["splits"].items():
        truth = "yes" if s["truth"] else "no"
        splits.add_row(
            escape(name), f"{s['images']:,}", f"{s['captions']:,}", truth, s["fingerprint"][:12]
        )
    screen.print(splits)
    teachers = Table(
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
    for name, t in summary["teachers"].items():
        for split, r in t["rows"].items():
            norms = " ".join(f"{v:.4f}" for v in r["norms"]) if r["norms"] else "-"
            counts = (
                f"{r['rows']:,}",
                str(t["dim"]),
                t["dtype"],
                f"{r['skipped']:,}",
                f"{r['shards']:,}",
            )
            teachers.add_row(
                escape(name), escape(split), *counts, f"{r['bytes'] / 1e6:,.1f}", norms
            )
    screen.print(teachers)
    for name, t in summary["teachers"].items():
        screen.print(
            f"{name}: {t['modality']} teacher {t['model_id']} from {t['source']}, weights sha256 "
            f"{t['weights_sha256']}, computed in {t['precision']}, caption normaliser {t['normalizer']}; "
            + ", ".join(f"{k} {v}" for k, v in t["versions"].items()),
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


@main.command()
@STORE
@click.option("--repair", is_flag=True, help="Rename damaged files to NAME.damaged, so that the next cusa-precompute "
              "makes exactly those again.")  # fmt: skip
@one_line_errors
def verify(store: Path, repair: bool) -> None:
    """Read every byte of STORE and compare it with the checksums; name what is damaged or missing."""
    from cusa.data.store.verify import set_aside
    from cusa.data.store.verify import verify as check

    n_files, damages = check(store)
    for damage in damages:
        click.echo(f"{damage.path}: {damage.problem}")
    if not damages:
        click.echo(f"{n_files} files are whole")
        return
    if repair:
        for path in set_aside(store, damages):
            click.echo(f"set aside: {path}")
        click.echo(
            "run the same cusa-precompute commands again to make what is missing (all that the store was made with, "
            "if its index was damaged); rows that were imported have to be imported again"
        )
        return
    fail(
        f"{len(damages)} of {n_files} files are damaged or missing; --repair lets cusa-precompute make them again"
    )


@main.command()
@STORE
@click.option("--teacher", "teachers", multiple=True, metavar="NAME|NAME=PATH",
              help="Only this one; with PATH, loaded from there.  [default: all, from where they were]")  # fmt: skip
@click.option(
    "--sample", type=click.IntRange(1), default=256, help="Rows of each teacher and split."
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the choice of rows.")
@click.option(
    "--least-cosine", type=click.FloatRange(-1, 1), default=0.999, help="What every row must reach."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@one_line_errors
def audit(
    store: Path, teachers: tuple[str, ...], sample: int, seed: int, least_cosine: float, device: str
) -> None:
    """Run the teachers again on random rows of STORE and compare: a wrong store shows before it is trained on."""
    from cusa.cli.console import console, pick_device, quiet_libraries
    from cusa.data.store.reader import EmbeddingStore

    opened = EmbeddingStore(store)
    quiet_libraries()
    from rich.markup import escape
    from rich.table import Table

    from cusa.precompute.audit import audit as compare

    table = Table("teacher", "split", "rows", "least cosine", "of row", "mean cosine", "")
    bad = 0
    for text in teachers or opened.teachers:
        name, _, source = text.partition("=")
        for a in compare(opened, name, source or None, sample, seed, pick_device(device)):
            good = a.least >= least_cosine
            bad += not good
            numbers = f"{a.n_rows:,}", f"{a.least:.6f}", f"{a.worst_row:,}", f"{a.mean:.6f}"
            notes = [
                *([] if good else ["WRONG"]),
                *(f"another teacher: {field}" for field in a.differing),
            ]
            table.add_row(escape(a.teacher), a.split, *numbers, escape("\n".join(notes)))
    console().print(table)
    if bad:
        fail(
            f"{bad} of {table.row_count} are wrong: rows differ from what the teacher gives (cosine < {least_cosine})"
        )


@main.command()
@STORE
@click.option("--split", default="train", help="Split whose pairs would be trained on.")
@click.option(
    "--image-teacher",
    help="The store's image teacher that gives the soft labels.  [default: the only one]",
)
@click.option(
    "--text-teacher",
    help="The store's text teacher that gives the soft labels.  [default: the only one]",
)
@click.option(
    "--batch-size", type=click.IntRange(2), default=128, help="Pairs of a training batch."
)
@click.option(
    "--batches", type=click.IntRange(1), default=100, help="Batches that figures are averaged over."
)
@click.option(
    "--pairs", type=click.IntRange(0), default=30, help="Strongest pairs shown of each kind."
)
@click.option(
    "--sample", type=click.IntRange(2), default=20_000, help="Images that those are searched among."
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the batches and of the sample.")
@click.option(
    "--image-root",
    type=click.Path(path_type=Path),
    help="Folder of the images, if not the store's own.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The page.  [default: STORE's name with .inspect.html]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@one_line_errors
def inspect(store: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Show what the soft labels of STORE say before training: how sharp they are, likely false negatives, in pictures.

    Batches are drawn as cusa-train draws them; no model is loaded.
    """
    from cusa.cli.console import console, progress
    from cusa.data.errors import CusaError
    from cusa.data.store.reader import EmbeddingStore

    opened = EmbeddingStore(store)
    out = out or store.with_suffix(".inspect.html")
    if out.is_dir() or out.resolve() == store.resolve():
        raise CusaError(
            f"--out {out} is {'a folder' if out.is_dir() else 'the store'}; pass the page's name, x.html"
        )
    out.parent.mkdir(parents=True, exist_ok=True)  # now, not after the work
    root = options["image_root"]
    if root is not None and not root.is_dir():
        raise CusaError(
            f"--image-root {root} is no folder; leave it out for a page without pictures"
        )
    from cusa.eval.inspection.soft_labels import Settings, write_inspection
    from cusa.eval.inspection.soft_labels import as_json as to_json
    from cusa.eval.inspection.soft_labels import inspect as look

    with progress(quiet=as_json) as bar:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total, unit="steps")
            bar.update(tasks[what], completed=done)

        found = look(opened, Settings(**options), advance)
    screen = console()
    if as_json:
        click.echo(
            json.dumps({**to_json(found), "page": str(out.resolve())}, indent=2, ensure_ascii=False)
        )
    else:
        _print_inspection(screen, found)
    unreadable = write_inspection(out, found)
    if not as_json:
        note = f" ({unreadable:,} of its pictures could not be read)" if unreadable else ""
        screen.print(f"page: {out.resolve()}{note}", highlight=False, markup=False, soft_wrap=True)


def _print_inspection(screen: Any, found: Inspection) -> None:
    from rich.table import Table

    def shown(value: float, digits: int) -> str:
        return "–" if math.isnan(value) else f"{value:,.{digits}f}"

    teachers, size = (found.image, found.text), found.settings.batch_size
    screen.print(
        f"{found.dataset}, split {found.settings.split}: {found.n_pairs:,} pairs of {found.n_images:,} images, "
        f"{found.n_left_out:,} left out; {found.settings.batches:,} batches of {size:,}\n"
        f"image teacher {found.image.name}, text teacher {found.text.name}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    columns = [
        f"{modality}: {what}"
        for modality in ("image", "text")
        for what in ("perplexity", "own", "other")
    ]
    labels = Table("tau_s", *columns, title="soft labels")
    labels.caption = f"perplexity: of {size:,}; own: label of the pair itself; other: greatest label of another image"
    for tau in found.image.sharpness:
        sharp = [t.sharpness[tau] for t in teachers]
        labels.add_row(
            f"{tau:g}",
            *(
                t
                for s in sharp
                for t in (shown(s.perplexity, 1), shown(s.own, 3), shown(s.other, 3))
            ),
        )
    screen.print(labels)
    negatives = Table(
        "cosine", *(f"{m}: {c}" for m in ("image", "text") for c in ("in a batch", "% of rows"))
    )
    negatives.title = "likely false negatives: pairs of different images with at least this cosine"
    for cosine in found.image.alike:
        alike = [t.alike[cosine] for t in teachers]
        negatives.add_row(
            f"{cosine:g}", *(t for a in alike for t in (f"{a.pairs:,.1f}", f"{100 * a.rows:.1f}"))
        )
    if math.isfinite(found.same_image_cosine):
        same = found.same_image_alike
        negatives.add_row(
            f"{found.same_image_cosine:.3f} *",
            "",
            "",
            f"{same.pairs:,.1f}",
            f"{100 * same.rows:.1f}",
        )
        negatives.caption = "* the median of two captions of the same image"
    screen.print(negatives)
    a = found.agreement
    screen.print(
        f"agreement of the teachers: Pearson {shown(a.pearson, 3)}, Spearman {shown(a.spearman, 3)}, nearest "
        f"neighbours in common {shown(100 * a.overlap, 1)} % (by chance {shown(100 * a.chance, 1)} %), KL at tau_s 1 "
        f"{a.kl:.4f}\n"
        f"likely duplicates: {found.n_duplicates:,} pairs among {found.n_searched:,} images",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("parts", type=click.Path(path_type=Path), nargs=-1, required=True)
@one_line_errors
def merge(out: Path, parts: tuple[Path, ...]) -> None:
    """Join PARTS into the store OUT: what jobs with --shard-range made, or stores with other teachers or splits."""
    from cusa.data.store.merge import merge as join

    index = join(out, parts)
    for name, entry in index.teachers.items():
        rows = sum(shard.stop - shard.start for shards in entry.shards.values() for shard in shards)
        click.echo(f"{name}: {rows:,} rows")
    click.echo(f"store: {out}")
    click.echo("it does not need the index files of the parts")


@main.command()
@STORE
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--teacher", required=True, help="Whose rows.")
@click.option("--split", required=True, help="Of which split.")
@one_line_errors
def export(store: Path, out: Path, teacher: str, split: str) -> None:
    """Write the rows of a teacher of STORE to OUT, NAME.npy or NAME.safetensors, and their ids to NAME.ids.json."""
    from cusa.data.store.import_export import export_rows
    from cusa.data.store.reader import EmbeddingStore

    ids = export_rows(EmbeddingStore(store), teacher, split, out)
    click.echo(f"rows: {out}\nids: {ids}")


@main.command("import")
@STORE
@click.argument("rows", type=click.Path(path_type=Path))
@click.option("--ids", type=click.Path(path_type=Path), help="Ids of the rows: .txt (one per line), .json (a list) or "
              ".npy.  [default: those in the .h5, or NAME.ids.json beside NAME.npy]")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help="ROWS is a dictionary of the published code ({split}_unicom.npy), "
              "a pickle; nothing but numpy arrays and torch tensors is admitted from it.")  # fmt: skip
@click.option("--teacher", required=True, help="Name for the teacher.")
@click.option("--split", required=True, help="Split that the rows are of.")
@click.option("--modality", type=click.Choice(["image", "text"]), default="image")
@click.option("--model-id", help="What model made the rows.  [default: the teacher's name]")
@click.option(
    "--normalizer",
    type=click.Choice(["albef", "none"]),
    default="albef",
    help="That captions went through.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    help="What rows are stored as.",
)
@click.option("--dataset", "datasets", multiple=True, metavar="coco|flickr30k|[SPLIT=]PATH",
              help="The data set, where STORE does not exist yet; as for cusa-precompute.")  # fmt: skip
@click.option(
    "--image-root", type=click.Path(path_type=Path), help="Folder that image paths are relative to."
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    default=Path("data"),
    help="Where named data sets lie.",
)
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail",
              help="On an image or caption without a row: stop, or record it as skipped.")  # fmt: skip
@one_line_errors
def import_(
    store: Path,
    rows: Path,
    ids: Path | None,
    allow_pickle: bool,
    teacher: str,
    split: str,
    modality: str,
    model_id: str | None,
    normalizer: str,
    dtype: str,
    datasets: tuple[str, ...],
    image_root: Path | None,
    data_root: Path,
    on_error: str,
) -> None:
    """Add ROWS from elsewhere to STORE: .npy, .safetensors or .h5, or the published code's."""
    from cusa.data.datasets import load_dataset
    from cusa.data.errors import CusaError
    from cusa.data.foreign.published import read_published_rows
    from cusa.data.foreign.rows import ForeignRows, read_rows
    from cusa.data.store.import_export import import_rows, index_for_import
    from cusa.data.store.schema import TeacherSettings, check_index_path

    check_index_path(store)
    if allow_pickle and ids is not None:
        raise CusaError(
            "--ids goes with an array, --allow-pickle with a dictionary of the published code; pass one"
        )
    foreign = (
        ForeignRows(*read_published_rows(rows), str(rows)) if allow_pickle else read_rows(rows, ids)
    )
    data = index_for_import(
        store, load_dataset(datasets, image_root, data_root) if datasets else None
    )
    settings = TeacherSettings(
        modality=modality,
        model_id=model_id or teacher,
        weights_sha256="unknown",
        transform={"imported": True},
        normalizer=normalizer if modality == "text" else "none",
        precision="unknown",
        dim=foreign.rows.shape[1],
        dtype=dtype,
        normalized=True,
    )
    skipped, unused = import_rows(
        store, data, split, teacher, settings, foreign, on_error == "skip"
    )
    click.echo(f"{teacher}: {split} imported from {rows}, {skipped:,} skipped")
    if unused:
        click.echo(f"note: {unused:,} rows of {rows} belong to nothing in split {split}")
    click.echo(f"store: {store}")
