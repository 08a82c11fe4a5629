"""The protocol of a suite: find its data once, measure each model, tabulate the results.

To add a suite, put a folder with its :class:`Evaluator` beside this file, and add a line to
:mod:`cusa.eval.evaluators.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import TypeAdapter

from cusa.data.environment import machine_name, versions
from cusa.data.errors import CusaError, StudentError
from cusa.eval.evaluators.request import EvalRequest, MeasureOptions
from cusa.eval.evaluators.splits import SplitFinder
from cusa.eval.metrics.correlation import ScoredPairs
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.models.evaluated_models import EvaluatedModel, training_facts
from cusa.eval.report.paper import paper_row
from cusa.eval.report.report import Examples
from cusa.eval.report.tables import NamedResult, Section

Data = TypeVar("Data")
Content = TypeVar("Content", bound=Mapping[str, Any])
PerQuery = Mapping[str, Rankings | ScoredPairs]


@dataclass(frozen=True)
class Absent:
    """A suite that has no data, or cannot measure a certain model.

    Attributes:
        note: Remark for the user, if suites may be left out.
        error: The error to raise if they may not; ``None`` if the remark suffices in any case.
    """

    note: str
    error: CusaError | None


@dataclass(frozen=True)
class SuiteResult(Generic[Content]):
    """The results of one model in a suite.

    Attributes:
        content: Content of the suite's results file, which begins with :func:`results_head`.
        fingerprints: Fingerprint of each data set, by name; begins with a sha256 (hex).
        per_query: Rankings, or scored pairs, by ``data set/head[/protocol]/task``.
        notes: Remarks for the user.
        examples: What the report shows beside tables, if the suite has examples.
    """

    content: Content
    fingerprints: Mapping[str, str]
    per_query: PerQuery
    notes: tuple[str, ...] = ()
    examples: Examples | None = None


@dataclass(frozen=True)
class ResultsFile:
    """Description of the results file of a suite.

    Attributes:
        name: File name, such as ``"metrics.json"``.
        command: The command that writes it, such as ``"cusa-eval retrieval"``.
        format: Value of its key ``format``, such as ``"cusa-metrics"``.
        version: Major and minor version of the format.
        form: Validator of its content.
        data_sets: The key under which it holds results by data set; empty if the suite has a single
            data set.
        merge: Merges the content of an earlier call with that of this one, in this order; ``None``
            if each call replaces the file.
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
        name: Name of the suite, which also names ``NAME-queries.npz`` beside its results.
        results_file: Its results file.
    """

    name: str
    results_file: ResultsFile

    def find(self, request: EvalRequest, splits: SplitFinder) -> Data | Absent:
        """Find the data that the suite measures on, once for all models.

        Args:
            request: The evaluation requested.
            splits: Finds each model's split; shared by the suites.

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
            data: The data that :meth:`find` returned.
            options: How to measure.

        Raises:
            CusaError: If an input cannot be read, or a figure is not defined.
        """
        ...

    def tables(self, results: Sequence[NamedResult[Content]]) -> list[Section]:
        """Make the tables of all models, for the terminal, the page and LaTeX alike.

        Args:
            results: The results of each model, in the order of the report.
        """
        ...

    def difference_of_data(self, first: Content, second: Content) -> str:
        """Describe how the data behind two models' results differ; empty if they do not."""
        return ""


def absent_without(
    modalities: frozenset[str],
    model: EvaluatedModel,
    measurement: str,
    need: str,
) -> Absent | None:
    """Check that a model embeds the modalities that a measurement needs.

    Args:
        modalities: The modalities needed: ``"image"``, ``"text"``, or both.
        model: The model.
        measurement: What is measured, in words.
        need: The need in words, which ends the error's line.

    Returns:
        The remark and the error for a model that does not; ``None`` for one that does.
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
    """Return the keys that every results file begins with."""
    description = dict(model.provider.description)
    if model.run_dir is not None:
        description["checkpoint"] = model.compute.checkpoint
    if model.sessions:
        description["training"] = training_facts(model.sessions)
    return {
        "format": file.format,
        "format_version": list(file.version),
        "name": model.name,
        "model": description,
        "measured": {"machine": machine_name(model.compute.device), "versions": versions()},
    }


def published_row(model: EvaluatedModel, table: str) -> dict[str, Any]:
    """Look up the published row of a model's student and loss.

    Args:
        model: The model.
        table: As :func:`cusa.eval.report.paper.paper_row` takes it.

    Returns:
        The row under the key ``paper``; an empty dict if the paper has none.
    """
    if model.origin is None:
        return {}
    config = model.origin.config
    row = paper_row(config.student.name, config.loss.term_titles, table)
    return {"paper": row.to_dict()} if row else {}


@contextmanager
def named_in_errors(name: str, path: Path | None = None) -> Iterator[None]:
    """Prefix the errors of a block with the name of what was being measured.

    Args:
        name: The name.
        path: The file that was being measured, for errors that have no path.
    """
    try:
        yield
    except CusaError as error:
        named_error = error.reworded(f"{name}: {error}", name)
        named_error.path = error.path or path
        raise named_error from None
