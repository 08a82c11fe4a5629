"""``cusa-store``: look at an embedding store."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cusa.data.console import one_line_errors


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="cusa")
def main() -> None:
    """Look at an embedding store."""


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@one_line_errors
def info(store: Path, as_json: bool) -> None:
    """Print what STORE holds: splits, teachers, rows, sizes, provenance."""
    from cusa.data.console import console

    summary = summarize(store)
    if as_json:
        click.echo(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    from rich.table import Table

    screen = console()
    screen.print(
        f"{store}: data set [bold]{summary['dataset']}[/], images under {summary['image_root']}", soft_wrap=True
    )
    splits = Table("split", "images", "captions", "known truth", "fingerprint")
    for name, s in summary["splits"].items():
        truth = "yes" if s["truth"] else "no"
        splits.add_row(name, f"{s['images']:,}", f"{s['captions']:,}", truth, s["fingerprint"][:12])
    screen.print(splits)
    teachers = Table("teacher", "modality", "model", "dim", "dtype", "computed in", "rows", "skipped", "shards", "MiB")
    for name, t in summary["teachers"].items():
        rows = "\n".join(f"{split} {r['rows']:,}" for split, r in t["rows"].items())
        total = {k: sum(r[k] for r in t["rows"].values()) for k in ("skipped", "shards", "bytes")}
        teachers.add_row(
            name,
            t["modality"],
            t["model_id"],
            str(t["dim"]),
            t["dtype"],
            t["precision"],
            rows,
            f"{total['skipped']:,}",
            str(total["shards"]),
            f"{total['bytes'] / 2**20:,.1f}",
        )
    screen.print(teachers)
    for name, t in summary["teachers"].items():
        screen.print(
            f"{name}: weights sha256 {t['weights_sha256']}, caption normaliser {t['normalizer']}", soft_wrap=True
        )


def summarize(path: Path) -> dict:
    """The contents of a store as a JSON-compatible dictionary.

    Raises:
        CusaError: If it cannot be read.
    """
    from dataclasses import asdict

    from cusa.data.store import EmbeddingStore

    store = EmbeddingStore(path)
    teachers = {}
    for name, settings in store.teachers.items():
        rows = {}
        for split in store.splits_of(name):
            e = store.embeddings(name, split)
            size = e.shape[0] * e.shape[1] * e.dtype.itemsize
            rows[split] = {"rows": len(e), "skipped": len(e.skipped), "shards": e.n_shards, "bytes": size}
        teachers[name] = {
            **asdict(settings),
            "source": store.sources[name],
            "versions": store.versions[name],
            "rows": rows,
        }
    return {
        "dataset": store.dataset,
        "image_root": str(store.image_root),
        "splits": {
            name: {
                "images": s.n_images,
                "captions": s.n_captions,
                "truth": s.truth is not None,
                "fingerprint": s.fingerprint,
            }
            for name, s in store.splits.items()
        },
        "teachers": teachers,
    }
