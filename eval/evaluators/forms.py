"""The form that all results files share (docs/METRICS.md), which pydantic validates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from cusa.data.embeddings import Head
from cusa.eval.metrics.figures import Figure, Number

_NOT_MEASURED: dict[str, Any] = {"heads": {}}


class BootstrapUsed(TypedDict):
    """The bootstrap behind the intervals."""

    samples: int
    seed: int
    level: Number


class Training(TypedDict):
    """When, for how long and on what a run was trained."""

    began: str
    seconds: Number
    sessions: int
    machines: list[str]
    processes: int
    versions: dict[str, str]


class ModelDescription(TypedDict, total=False):
    """Description of a model; it may have more keys."""

    kind: str
    source: str | dict[str, str] | None
    weights_sha256: str | None
    student: str
    loss_terms: list[str] | None
    epoch: int | float
    checkpoint: str
    dataset: str
    n_pairs: int
    teachers: dict[str, str]
    encoders: dict[str, str]
    settings: dict[str, Any]
    training: Training


class Measured(TypedDict):
    """What a model was measured with."""

    machine: str
    versions: dict[str, str]


class FigureDifference(TypedDict):
    """The paired difference of a figure from that of another model."""

    set: str
    head: str
    metric: str
    difference: Number
    low: Figure
    high: Figure
    p_two_sided: Figure


class Differences(TypedDict):
    """The differences of a model from the first one that it was reported with."""

    base: str
    base_weights_sha256: str | None
    figures: list[FigureDifference]


class PublishedFigures(TypedDict):
    """A row of the paper's tables; its figures stand beside these keys."""

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
    """The keys that every results file begins with; later minor versions may add keys."""

    format: NotRequired[str]
    format_version: NotRequired[list[int]]
    name: str
    model: ModelDescription
    measured: NotRequired[Measured]
    differences: NotRequired[Differences]
    bootstrap: NotRequired[BootstrapUsed | None]
    paper: NotRequired[PublishedRow | None]
    queries_sha256: NotRequired[str | None]


def form_of(
    results: Any,
    check: Callable[[Any], None],
) -> TypeAdapter[Any]:
    """Make the validator of a suite's results file.

    Args:
        results: The type of its content.
        check: Raises ``ValueError`` if content of that type is incomplete.
    """

    def checked(content: Any) -> Any:
        version = content.get("format_version", [1, 0])
        if version[:1] != [1]:
            raise ValueError(f"format version {version} is unknown to this version of cusa")
        check(content)
        return content

    return TypeAdapter(Annotated[results, AfterValidator(checked)])


def check_head_in_use(data_sets: Mapping[str, Any], head: Head) -> None:
    """Refuse results in which a data set lacks the figures of the head in use.

    Raises:
        ValueError: If a data set does; the message names it.
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
        data_sets: Results by data set, each with figures by head under ``heads``.
        names: The paper's data sets.
        figure: Key of the figure.
        heads: Heads to compute the mean for.

    Returns:
        The mean by head; ``None`` if a data set lacks the figure.
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
