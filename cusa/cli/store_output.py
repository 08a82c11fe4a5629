"""Tables of ``cusa-store info`` and ``cusa-store audit``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from cusa.data.store.cross_teachers import CROSS_TEACHER
from cusa.screen.console import console, print_plain

if TYPE_CHECKING:
    # This imports torch, which a summary does not need.
    from cusa.precompute.audit import Audit

# Of a list of tars, as a set has thousands.
_SHOWN_NAMES = 8


def print_summary(store_path: Path, summary: dict[str, Any]) -> None:
    """Print the contents of a store.

    Args:
        store_path: The store's index.
        summary: The result of :func:`cusa.data.store.summary.summarize`.
    """
    screen = console()
    dataset = escape(summary["dataset"])
    image_root = escape(summary["image_root"])
    screen.print(
        f"{escape(str(store_path))}: data set [bold]{dataset}[/], images under {image_root}",
        soft_wrap=True,
    )
    screen.print(_splits_table(summary["splits"]))
    screen.print(_teachers_table(summary["teachers"]))
    for teacher_name, settings in summary["teachers"].items():
        versions = settings["versions"].items()
        libraries = ", ".join(f"{library} {version}" for library, version in versions)
        print_plain(f"{_provenance(teacher_name, settings)}; {libraries}")


def print_set_summary(summary: dict[str, Any]) -> None:
    """Print the contents of a set of tars, and what it lacks.

    Args:
        summary: The result of :func:`cusa.data.tars.summary.summarize_set`.
    """
    image_root = summary["image_root"] or "an unknown folder (pass --dataset to cusa-store index)"
    print_plain(
        f"{summary['set']}: {summary['tars']:,} tars in {image_root}, captions "
        f"{summary['caption']}\n"
        f"{summary['images']:,} images, {summary['captions']:,} captions, {summary['left_out']:,} "
        f"samples left out, {summary['tar_bytes'] / 1e9:,.3f} GB of tars"
    )
    table = Table("teacher", "rows", "dim", "dtype", "skipped", "MB")
    for teacher_name, settings in summary["teachers"].items():
        table.add_row(
            escape(teacher_name),
            f"{settings['rows']:,}",
            str(settings["dim"]),
            settings["dtype"],
            f"{settings['skipped']:,}",
            f"{settings['bytes'] / 1e6:,.1f}",
        )
    console().print(table)
    for teacher_name, settings in summary["teachers"].items():
        print_plain(_provenance(teacher_name, settings))
    lacking = {
        "damaged_tars": "tars were damaged, and their whole samples are kept",
        "not_indexed": "tars are finished, but not in the manifest; run cusa-store index",
        "missing_files": "files are missing; run cusa-precompute again",
        "tars_without_rows": "tars of that folder have no rows",
    }
    for field, problem in lacking.items():
        if summary[field]:
            print_plain(f"{len(summary[field]):,} {problem}: {_listed(summary[field])}")


def _provenance(
    teacher_name: str,
    settings: dict[str, Any],
) -> str:
    provenance = (
        f"{teacher_name}: {settings['modality']} teacher {settings['model_id']} "
        f"from {settings['source']}, weights sha256 {settings['weights_sha256']}, "
        f"computed in {settings['precision']}, caption normaliser {settings['normalizer']}"
    )
    cross_teacher = settings["transform"].get(CROSS_TEACHER)
    if cross_teacher is not None:
        provenance += f"; of the cross-modal teacher {cross_teacher}"
    return provenance


def _listed(names: Sequence[str]) -> str:
    """Return the first names of a list that may be long."""
    shown_names = ", ".join(names[:_SHOWN_NAMES])
    if len(names) > _SHOWN_NAMES:
        return f"{shown_names}, ..."
    return shown_names


def _splits_table(splits: dict[str, Any]) -> Table:
    table = Table("split", "images", "captions", "known truth", "fingerprint")
    for split_name, split in splits.items():
        table.add_row(
            escape(split_name),
            f"{split['images']:,}",
            f"{split['captions']:,}",
            "yes" if split["truth"] else "no",
            split["fingerprint"][:12],
        )
    return table


def _teachers_table(teachers: dict[str, Any]) -> Table:
    table = Table(
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
    for teacher_name, settings in teachers.items():
        for split_name, rows in settings["rows"].items():
            norms = " ".join(f"{norm:.4f}" for norm in rows["norms"] or ())
            table.add_row(
                escape(teacher_name),
                escape(split_name),
                f"{rows['rows']:,}",
                str(settings["dim"]),
                settings["dtype"],
                f"{rows['skipped']:,}",
                f"{rows['shards']:,}",
                f"{rows['bytes'] / 1e6:,.1f}",
                norms or "-",
            )
    return table


def audits_table(audits: Iterable[Audit], least_cosine: float) -> Table:
    """Make the table that compares stored rows with the teachers' new ones."""
    table = Table("teacher", "split", "rows", "least cosine", "of row", "mean cosine", "")
    for result in audits:
        notes = [f"another teacher: {field}" for field in result.differing]
        if result.least < least_cosine:
            notes.insert(0, "WRONG")
        table.add_row(
            escape(result.teacher),
            result.split,
            f"{result.n_rows:,}",
            f"{result.least:.6f}",
            f"{result.worst_row:,}",
            f"{result.mean:.6f}",
            escape("\n".join(notes)),
        )
    return table
