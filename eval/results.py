"""Results files beside a model: its figures and per-query results, merged over several calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cusa.data.errors import CusaError, FileFormatError, RunError, first_line
from cusa.data.files import atomic_file, file_digest
from cusa.data.parsing import read_json
from cusa.eval.evaluators.registry import EVALUATORS
from cusa.eval.queries import Queries, load_queries, queries_file, save_queries


def read_results(
    folder: Path,
    suite: str,
) -> dict[str, Any] | None:
    """Read the results of a suite; return ``None`` if there is no file.

    Args:
        folder: Folder of a model's results.
        suite: Name of the suite.

    Raises:
        RunError: If the file is damaged, or of another kind; ``location`` is the key at fault.
    """
    file = EVALUATORS[suite].results_file
    path = folder / file.name
    if not path.exists():
        return None
    location, problem = "", f"not a JSON object of format {file.format}"
    try:
        content = read_json(path)
        if isinstance(content, dict) and content.get("format") == file.format:
            file.form.validate_python(content, strict=True)
            return content
    except FileFormatError as error:
        location, problem = error.location, first_line(error).removeprefix(f"{path} ")
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, first["loc"]))
        problem = first["msg"]
    position = f"{location}: {problem}".removeprefix(": ")
    raise RunError(
        f"{path} is damaged, or not a results file of cusa-eval; remove it and run cusa-eval again "
        f"({position})",
        path=path,
        location=location,
    )


def read_queries(folder: Path, suite: str) -> Queries | None:
    """Read the per-query results behind a suite's figures; ``None`` if it was not measured.

    Args:
        folder: Folder of a model's results.
        suite: Name of the suite.

    Raises:
        RunError: If they are missing, damaged, or do not belong to the figures, as a full disk or a
            killed process may leave them.
    """
    content = read_results(folder, suite)
    if content is None:
        return None
    path = queries_file(folder, suite)
    file = EVALUATORS[suite].results_file
    if not path.is_file() or file_digest(path).hex() != content.get("queries_sha256"):
        message = f"{path} does not belong to {folder / file.name}; run {file.command} again"
        raise RunError(message, path=path)
    return load_queries(folder, suite)


def keep_results(
    folder: Path,
    suite: str,
    content: Mapping[str, Any],
    queries: Queries,
) -> tuple[dict[str, Any], Queries]:
    """Write the results of a suite, and the per-query results behind them.

    Image sets and STS tasks that an earlier call measured with the same weights and rules are kept.

    Args:
        folder: Folder of the model's results.
        suite: Name of the suite.
        content: Content of the results file.
        queries: The per-query results.

    Returns:
        The content and the queries as written.

    Raises:
        RunError: If the results file that is there is damaged, or of another kind.
        OSError: If a file cannot be written.
    """
    file = EVALUATORS[suite].results_file
    merged = dict(content)
    if file.merge is not None:
        earlier, earlier_queries = _earlier(folder, suite, content)
        if earlier is not None and earlier_queries is not None:
            merged = file.merge(earlier, content)
            queries = replace(
                queries,
                sets={**earlier_queries.sets, **queries.sets},
                per_query={**earlier_queries.per_query, **queries.per_query},
            )
    save_queries(folder, suite, queries)
    merged["queries_sha256"] = file_digest(queries_file(folder, suite)).hex()
    write_json(folder / file.name, merged)
    return merged, queries


def _earlier(
    folder: Path, suite: str, content: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, Queries | None]:
    """Read the earlier results that may be kept.

    None are kept if their weights or rules differ, or figures and queries do not belong together.
    """
    earlier = read_results(folder, suite)
    if earlier is None or _rules(earlier) != _rules(content):
        return None, None
    try:
        return earlier, read_queries(folder, suite)
    except CusaError:
        return None, None


def _rules(
    content: Mapping[str, Any],
) -> tuple[Any, ...]:
    """Return what figures must have in common to share a results file."""
    weights_sha256 = content["model"].get("weights_sha256")
    return weights_sha256, content.get("ties"), content.get("bootstrap")


def write_json(
    path: Path,
    content: Mapping[str, Any],
) -> None:
    """Write a results file atomically."""
    with atomic_file(path) as temporary:
        text = json.dumps(content, indent=2, allow_nan=False)
        temporary.write_text(f"{text}\n")


def distinct_names(
    names: Sequence[str],
    folders: Sequence[Path],
) -> list[str]:
    """Replace equal names by the ends of the models' paths that tell them apart.

    Args:
        names: Names of the models.
        folders: Folder of each model.

    Returns:
        A name for each model: its own, or the last two or more parts of its folder's path.
    """
    paths = [folder.resolve().parts for folder in folders]
    distinct = []
    for name, path in zip(names, paths, strict=True):
        namesakes = set()
        for other_name, other_path in zip(names, paths, strict=True):
            if other_name == name and other_path != path:
                namesakes.add(other_path)
        depth = 2
        while any(namesake[-depth:] == path[-depth:] for namesake in namesakes):
            depth += 1
        distinct.append("/".join(path[-depth:]) if namesakes else name)
    return distinct
