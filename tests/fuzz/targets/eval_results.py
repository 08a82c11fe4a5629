"""Files of results: figures, the queries behind them, a log that a report draws."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cusa.eval.compare import compare
from cusa.eval.evaluate import make_sections
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.metrics.bootstrap import Bootstrap
from cusa.eval.metrics.correlation import ScoredPairs
from cusa.eval.metrics.per_query import Bounds, Rankings
from cusa.eval.metrics.ranks import RankBounds
from cusa.eval.queries import Queries, load_queries, queries_file, save_queries
from cusa.eval.report.charts import best_validation, learning_charts
from cusa.eval.report.latex import latex_tables
from cusa.eval.report.report import ModelReport, write_report
from cusa.eval.results import keep_results, read_queries, read_results
from cusa.train.saving.run_dir import METRICS_FILE, read_history
from tests.eval import made_up
from tests.fuzz.harness import Target
from tests.fuzz.mutations import (
    BYTE_MUTATORS,
    Mutator,
    mutate_json,
    mutate_json_lines,
    mutate_npy,
    mutate_zip,
)
from tests.fuzz.readings import is_same, json_of

_CONTENTS: Mapping[str, dict[str, Any]] = {
    "retrieval": {
        "format": "cusa-metrics",
        **made_up.metrics("a", ["usa"], 40.0, 30.0, 20.0, coco=True),
    },
    "images": {"format": "cusa-images", **made_up.images("a", 40.0)},
    "sts": {"format": "cusa-sts", **made_up.sts("a", 70.0, ("cross", "uni"))},
}


# --- figures


def make_results(suite: str) -> Callable[[Path], Path]:
    """A maker of the figures of a suite."""

    def make(folder: Path) -> Path:
        path = folder / EVALUATORS[suite].results_file.name
        path.write_text(json.dumps(_CONTENTS[suite], indent=2))
        return path

    return make


def read_and_show(suite: str) -> Callable[[Path], Any]:
    """A reader of the figures of a suite, which also makes the report and the tables of them beside
    others.
    """

    def read(path: Path) -> Any:
        content = read_results(path.parent, suite)
        assert content is not None
        reports = [
            ModelReport("a", {suite: content}),
            ModelReport("b", {suite: _CONTENTS[suite]}),
        ]
        sections = make_sections(reports)
        write_report(path.with_name("report.html"), reports, sections)
        assert latex_tables(sections)
        return content

    return read


def is_json_as_written(valid: Any, read: Any, path: Path) -> bool:
    """Whether it is what JSON's own parser reads."""
    return is_same(read, json_of(path))


# --- the log


def make_log(folder: Path) -> Path:
    """Two steps and two validations."""
    path = folder / METRICS_FILE
    lines = [json.dumps(line) for line in made_up.history([], [50.0, 60.0])]
    path.write_text("\n".join(lines) + "\n")
    return path


def read_and_draw(path: Path) -> list[str]:
    """The curves of a log as a report draws them, as SVG; its lines are compared by
    another target.
    """
    lines = read_history(path.parent).lines
    best_validation(lines)
    return [svg for charts in learning_charts([lines]).values() for _, svg in charts]


def is_drawn(valid: Any, read: list[str], path: Path) -> bool:
    """Whether every curve is a whole drawing without a coordinate that is no number."""
    return all(
        svg.rstrip().endswith("</svg>") and "nan" not in svg and "inf" not in svg for svg in read
    )


# --- queries


def queries_of() -> Queries:
    """Rankings with and without precisions and clusters, and judged pairs."""
    ranks = RankBounds(np.array([0, 3, 1, 0]), np.array([2, 3, 1, 0]))
    shares = Bounds(np.array([1.0, 1 / 3, 0.0, 0.25]), np.array([0.5, 1 / 3, 0.0, 0.25]))
    answers = {
        "coco test/cross/retrieval/i2t": Rankings(ranks, 10),
        "coco test/cross/retrieval/t2i": Rankings(ranks, 12, clusters=np.array([0, 0, 1, 1])),
        "coco test/cross/eccv/i2t": Rankings(ranks, 9, shares, shares),
        "cub/uni/i2i": Rankings(ranks, 4, shares),
        "STS12/uni/sts": ScoredPairs(np.array([0.5, -0.25, 0.75]), np.array([0.0, 5.0, 2.5])),
    }
    return Queries(
        "a", "uni", "pessimistic", {"coco test": "f00d", "cub": "1", "STS12": "2"}, answers
    )


def make_queries(folder: Path) -> Path:
    """Queries, without figures."""
    save_queries(folder, "sts", queries_of())
    return queries_file(folder, "sts")


def make_measured(folder: Path) -> Path:
    """Queries beside their figures, which hold their checksum."""
    keep_results(folder, "sts", _CONTENTS["sts"], queries_of())
    return queries_file(folder, "sts")


def plain(queries: Queries) -> dict[str, Any]:
    """Queries as arrays by their names in the file, and what is beside them."""
    arrays: dict[str, Any] = {}
    candidates: dict[str, int] = {}
    for key, answers in queries.per_query.items():
        if isinstance(answers, ScoredPairs):
            arrays |= {
                f"{key}:cosines": answers.similarities.tolist(),
                f"{key}:gold": answers.human_scores.tolist(),
            }
            continue
        candidates[key] = answers.candidates
        bounds = {"ranks": answers.best, "r_precision": answers.r_precision}
        bounds["average_precision"] = answers.average_precision
        for name, pair in bounds.items():
            if pair is not None:
                arrays[f"{key}:{name}"] = np.stack(pair).tolist()
        if answers.clusters is not None:
            arrays[f"{key}:clusters"] = answers.clusters.tolist()
    about = {"name": queries.name, "uni_head": queries.uni_head, "ties": queries.ties}
    return {**about, "sets": dict(queries.sets), "candidates": candidates, "arrays": arrays}


def read_unsealed(path: Path) -> dict[str, Any]:
    """Queries alone, which are then compared with themselves as ``cusa-eval compare`` does."""
    queries = load_queries(path.parent, "sts")
    assert queries is not None
    compare([{"sts": queries}, {"sts": queries}], Bootstrap(10, 0))
    return plain(queries)


def read_sealed(path: Path) -> dict[str, Any]:
    """Queries that belong to the figures beside them."""
    queries = read_queries(path.parent, "sts")
    assert queries is not None
    return plain(queries)


def are_arrays_as_written(valid: Any, read: dict[str, Any], path: Path) -> bool:
    """Whether all is as numpy and JSON's own parser read it; arrays that nothing names may be left
    out.
    """
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    about = json.loads(str(arrays.pop("about")))
    candidates = {key: about["candidates"][key] for key in read["candidates"]}
    same_about = all(
        is_same(read[name], about[name]) for name in ("name", "uni_head", "ties", "sets")
    )
    same_arrays = all(
        is_same(values, arrays[name].tolist()) for name, values in read["arrays"].items()
    )
    mains = {name for name in arrays if name.endswith((":ranks", ":cosines"))}
    return (
        same_about
        and same_arrays
        and is_same(read["candidates"], candidates)
        and mains <= read["arrays"].keys()
    )


def is_unchanged(valid: Any, read: Any, path: Path) -> bool:
    """Whether what was read is what the valid file holds: its checksum leaves nothing else."""
    return is_same(read, valid)


_JSON: tuple[Mutator, ...] = (*BYTE_MUTATORS, *(mutate_json,) * 12)
_ARCHIVE: tuple[Mutator, ...] = (*BYTE_MUTATORS, *(mutate_zip(mutate_npy),) * 6)

TARGETS = (
    *(
        Target(
            f"results/{suite}", make_results(suite), _JSON, read_and_show(suite), is_json_as_written
        )
        for suite in _CONTENTS
    ),
    Target(
        "results/log",
        make_log,
        (*BYTE_MUTATORS, *(mutate_json_lines,) * 8),
        read_and_draw,
        is_drawn,
    ),
    Target("results/queries", make_measured, BYTE_MUTATORS, read_sealed, is_unchanged),
    Target(
        "results/queries-unsealed",
        make_queries,
        _ARCHIVE,
        read_unsealed,
        are_arrays_as_written,
        weight=2,
    ),
)
