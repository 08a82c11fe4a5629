"""What all files of results hold (docs/METRICS.md): pydantic checks it, readers rely on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from cusa.eval.metrics.figures import Number


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


def is_of_a_known_version(results: Any) -> Any:
    """Refuse results of another major version: a validator of each form."""
    version = results.get("format_version", [1, 0])
    if version[:1] != [1]:
        raise ValueError(f"format version {version} is not known here")
    return results


def mean_if_complete(values: Sequence[float | None]) -> float | None:
    """Compute the mean of figures; ``None`` where one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def first_fault(form: TypeAdapter[Any], content: Mapping[str, Any]) -> tuple[str, str] | None:
    """Find where content differs from a form, and how; ``None`` if it does not."""
    try:
        form.validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return ".".join(map(str, first["loc"])), first["msg"]
    return None
