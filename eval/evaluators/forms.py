"""What all files of results hold (docs/METRICS.md): pydantic checks it, readers rely on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from cusa.data.embeddings import Head
from cusa.eval.metrics.figures import Number

_NOT_MEASURED: dict[str, Any] = {"heads": {}}


class BootstrapUsed(TypedDict):
    """How intervals were made."""

    samples: int
    seed: int
    level: Number


class ModelDescription(TypedDict, total=False):
    """What a model is, and what else there is to say of it."""

    source: str | dict[str, str] | None
    weights_sha256: str | None
    loss_terms: list[str] | None


class PublishedFigures(TypedDict):
    """A row of the paper; its figures are beside these keys."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc] # pydantic's own name

    host: str
    method: str


def _has_figures_beside(row: PublishedFigures) -> PublishedFigures:
    for key, value in row.items():
        if key not in ("host", "method") and not isinstance(value, (int, float, type(None))):
            raise ValueError("a figure is no number")
    return row


PublishedRow = Annotated[PublishedFigures, AfterValidator(_has_figures_beside)]


class Results(TypedDict):
    """What every file of results begins with; keys of a later minor version are no fault."""

    format: NotRequired[str]
    format_version: NotRequired[list[int]]
    name: str
    model: ModelDescription
    bootstrap: NotRequired[BootstrapUsed | None]
    paper: NotRequired[PublishedRow | None]
    queries_sha256: NotRequired[str | None]


def form_of(
    results: Any,
    check: Callable[[Any], None],
) -> TypeAdapter[Any]:
    """Make the form of a suite's file of results.

    Args:
        results: The type of its content.
        check: Raises ``ValueError`` where content of that type is not complete.
    """

    def checked(content: Any) -> Any:
        version = content.get("format_version", [1, 0])
        if version[:1] != [1]:
            raise ValueError(f"format version {version} is not known here")
        check(content)
        return content

    return TypeAdapter(Annotated[results, AfterValidator(checked)])


def check_head_in_use(data_sets: Mapping[str, Any], head: Head) -> None:
    """Refuse results by data set where one lacks the figures of the head in use.

    Raises:
        ValueError: If one does; says which.
    """
    for name, result in data_sets.items():
        if head not in result["heads"]:
            raise ValueError(f"{name} lacks the head {head}")


def paper_averages(
    data_sets: Mapping[str, Any],
    names: Iterable[str],
    figure: str,
    heads: Iterable[Head],
) -> dict[Head, float | None]:
    """Compute the mean of a figure over the paper's data sets.

    Args:
        data_sets: Results by data set, each with its figures by head under ``heads``.
        names: The paper's data sets.
        figure: Key of the figure.
        heads: Heads to compute it for.

    Returns:
        The mean by head; ``None`` where a data set lacks the figure.
    """
    averages: dict[Head, float | None] = {}
    for head in heads:
        values = []
        for name in names:
            figures_by_head = data_sets.get(name, _NOT_MEASURED)["heads"]
            values.append(figures_by_head.get(head, {}).get(figure))
        averages[head] = None
        if None not in values:
            averages[head] = sum(values) / len(values)
    return averages
