"""The protocol of a suite: find its data once, measure each model, make tables of the results.

A new suite is a folder beside this file with an :class:`Evaluator`, and a line in
:mod:`cusa.eval.evaluators.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pydantic import TypeAdapter

from cusa.data.errors import CusaError, StudentError
from cusa.eval.evaluators.request import EvalRequest, MeasureOptions
from cusa.eval.evaluators.splits import SplitFinder
from cusa.eval.metrics.correlation import ScoredPairs
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.report.paper import paper_row
from cusa.eval.report.report import Examples
from cusa.eval.report.tables import NamedResult, Section

Data = TypeVar("Data")
Content = TypeVar("Content", bound=Mapping[str, Any])
PerQuery = Mapping[str, Rankings | ScoredPairs]


@dataclass(frozen=True)
class Absent:
    """A suite that cannot be measured, or not by some model.

    Attributes:
        note: Says so where suites may be left out.
        error: Is raised where they may not; ``None``: the note is enough.
    """

    note: str
    error: CusaError | None


@dataclass(frozen=True)
class SuiteResult(Generic[Content]):
    """What a suite measured of one model.

    Attributes:
        content: Content of its file of results, which begins with :func:`results_head`.
        fingerprints: sha256 (hex) of each data set that it was measured on.
        per_query: What every query or pair got, by ``data set/head[/protocol]/task``.
        notes: What its user should know.
        examples: What the report shows beside tables, if the suite has any.
    """

    content: Content
    fingerprints: Mapping[str, str]
    per_query: PerQuery
    notes: tuple[str, ...] = ()
    examples: Examples | None = None


@dataclass(frozen=True)
class ResultsFile:
    """The file of a suite's results.

    Attributes:
        name: Its name, such as ``"metrics.json"``.
        command: The command that writes it, such as ``"cusa-eval retrieval"``.
        format: What it says that it is, such as ``"cusa-metrics"``.
        version: Its major and minor version.
        form: What it must hold.
        data_sets: Key of what it holds by data set; empty: it is of one data set.
        merge: Joins the data sets of an earlier call with those of this one; ``None``: these
            replace those.
    """

    name: str
    command: str
    format: str
    version: tuple[int, int]
    form: TypeAdapter[Any]
    data_sets: str = ""
    merge: Callable[[Any, Any], Any] | None = None


class Evaluator(Protocol[Data, Content]):
    """A suite of an evaluation; it knows nothing of other suites.

    Attributes:
        name: Its name; that of ``NAME-queries.npz`` beside its results, too.
        results_file: Its file of results.
    """

    name: str
    results_file: ResultsFile

    def find(self, request: EvalRequest, splits: SplitFinder) -> Data | Absent:
        """Find what it measures models on, once for all of them.

        Args:
            request: What is asked for.
            splits: Finds each model's split, which suites share.

        Raises:
            CusaError: If data are malformed.
        """
        ...

    def run(
        self,
        model: EvaluatedModel,
        data: Data,
        options: MeasureOptions,
    ) -> SuiteResult[Content] | Absent:
        """Measure one model.

        Args:
            model: The model.
            data: What :meth:`find` found.
            options: How.

        Raises:
            CusaError: If an input cannot be read, or a figure is not defined.
        """
        ...

    def tables(self, results: Sequence[NamedResult[Content]]) -> list[Section]:
        """Make the tables of all models, for terminal, page and LaTeX alike.

        Args:
            results: Of each model, in the order shown.
        """
        ...

    def difference_of_data(self, first: Content, second: Content) -> str:
        """Say why two models' results cannot stand side by side; nothing if they can."""
        return ""


def absent_without(
    modalities: frozenset[str],
    model: EvaluatedModel,
    measurement: str,
    need: str,
) -> Absent | None:
    """Say that a model does not embed what a measurement needs; ``None`` if it does.

    Args:
        modalities: What the measurement needs: ``"image"``, ``"text"``, or both.
        model: The model.
        measurement: Its name in words.
        need: Says that the measurement needs them.
    """
    missing = sorted(modalities - model.provider.modalities)
    if not missing:
        return None
    problem = f"embeds no {'s and no '.join(missing)}s"
    return Absent(
        f"no {measurement} for {model.title}: it {problem}",
        StudentError(f"{model.name} {problem}; {need}", name=model.name),
    )


def results_head(file: ResultsFile, model: EvaluatedModel) -> dict[str, Any]:
    """Return what every file of results begins with."""
    return {
        "format": file.format,
        "format_version": list(file.version),
        "name": model.name,
        "model": dict(model.provider.description),
    }


def published_row(model: EvaluatedModel, table: str) -> dict[str, Any]:
    """Return the row of a model's student and loss as ``paper``; nothing if the paper has none.

    Args:
        model: The model.
        table: As :func:`cusa.eval.report.paper.paper_row` takes it.
    """
    if model.origin is None:
        return {}
    config = model.origin.config
    row = paper_row(config.student.name, config.loss.terms, table)
    return {"paper": row.to_dict()} if row else {}


@contextmanager
def named_in_errors(name: str) -> Iterator[None]:
    """Begin an error's line with what it happened in."""
    try:
        yield
    except CusaError as error:
        line = f"{name}: {error}"
        raise type(error)(line, path=error.path, location=error.location, name=name) from None
