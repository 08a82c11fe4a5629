"""Models that were measured before, side by side: comparison.json and comparison.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cusa.data.errors import CusaError
from cusa.eval.compare import compare
from cusa.eval.evaluate import check_writable, write_pages
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.metrics.bootstrap import Bootstrap
from cusa.eval.report.report import ModelReport
from cusa.eval.results import distinct_names, read_queries, read_results, write_json
from cusa.train.saving.run_dir import begun


def compare_measured(
    models: Sequence[Path], bootstrap: int, seed: int, out: Path | None, latex: bool
) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """Compare models that were measured before; writes comparison.json and comparison.html.

    Args:
        models: Run directories, or folders of results; the first is what the others are compared
            to.
        bootstrap: Resamplings.
        seed: Their seed.
        out: Folder of what is written; ``None``: ``eval`` beside the first.
        latex: Whether to write comparison.tex.

    Raises:
        CusaError: If one was not measured, or they were measured on different data.
    """
    if len(models) < 2:
        raise CusaError("compare takes at least two models; name another run or folder of results")
    folders = []
    for model in models:
        places = [
            p
            for p in (model / "eval", model)
            if any((p / EVALUATORS[s].results_file.name).is_file() for s in EVALUATORS)
        ]
        if not places:
            raise CusaError(
                f"{model} holds no results of cusa-eval; run cusa-eval --run {model} first"
            )
        folders.append(places[0])
    first = folders[0].resolve()
    in_run = first.name == "eval" and begun(first.parent)
    out = (
        out
        or (first.parent.parent if in_run or first.parent.name == "eval" else first.parent) / "eval"
    )
    check_writable(out)
    results = [{s: c for s in EVALUATORS if (c := read_results(folder, s))} for folder in folders]
    queries = [
        {s: q for s in found if (q := read_queries(folder, s))}
        for folder, found in zip(folders, results, strict=True)
    ]
    places = [
        folder.parent if folder.name == "eval" and begun(folder.parent) else folder
        for folder in folders
    ]
    names = distinct_names([next(iter(found.values()))["name"] for found in results], places)
    named = [
        {s: replace(q, name=name) for s, q in of.items()}
        for of, name in zip(queries, names, strict=True)
    ]
    content = compare(named, Bootstrap(bootstrap, seed))
    reports = [ModelReport(name, found) for found, name in zip(results, names, strict=True)]
    written: dict[str, list[Path]] = {}
    write_json(out / "comparison.json", content)
    written["comparison"] = [out / "comparison.json"]
    write_pages(out, reports, written, latex, content)
    return content, written
