"""The form of files of results (docs/METRICS.md): what a reader of them relies on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cusa.data.embeddings import Head
from cusa.eval.metrics.per_query import Ties

Number = Annotated[float, Field(allow_inf_nan=False)]
Figure = Number | None
Interval = Annotated[list[Number], Field(min_length=2, max_length=2)]


class _Form(BaseModel):
    """Keys of a later minor version are no fault."""

    model_config = ConfigDict(extra="allow")


class _Curve(_Form):
    k: list[int]
    recall: list[Figure]

    @model_validator(mode="after")
    def _has_a_recall_for_each(self) -> _Curve:
        if len(self.k) != len(self.recall) or any(k < 1 for k in self.k):
            raise ValueError("k and recall are no curve")
        return self


class _Figures(_Form):
    """Of one direction, one image set, or one approximate search."""

    r1: Figure = None
    r5: Figure = None
    r10: Figure = None
    mean: Figure = None
    rsum: Figure = None
    r_precision: Figure = None
    map_at_r: Figure = None
    precision_at_1: Figure = None
    median_rank: Figure = None
    mean_rank: Figure = None
    recall_of_exact_top10: Figure = None
    queries: int | None = None
    candidates: int | None = None
    tied: int | None = None
    curve: _Curve | None = None
    ci: dict[str, Interval] = {}


class _TeacherFigures(_Figures):
    teacher: str


class _BothWays(_Figures):
    i2t: _Figures
    t2i: _Figures


class _Retrieval(_BothWays):
    rsum: Figure


class _Approximate(_Form):
    index: str
    settings: dict[str, dict[str, int]]
    heads: dict[Head, dict[str, _Figures]]


class _MetricsHead(_Form):
    retrieval: _Retrieval
    unimodal: dict[str, _Figures]
    truth: dict[str, _Figures] | None = None
    protocols: dict[str, _BothWays] | None = None


class _Bootstrap(_Form):
    samples: int
    seed: int
    level: Number


class _Model(_Form):
    source: str | dict[str, str] | None = None
    weights_sha256: str | None = None
    loss_terms: list[str] | None = None


class _Paper(_Form):
    """A published row; its figures are beside these."""

    host: str
    method: str

    @model_validator(mode="after")
    def _has_figures_beside(self) -> _Paper:
        if any(
            not isinstance(value, (int, float, type(None)))
            for value in (self.model_extra or {}).values()
        ):
            raise ValueError("a figure is no number")
        return self


class _Results(_Form):
    format_version: list[int] = [1, 0]
    name: str
    model: _Model
    bootstrap: _Bootstrap | None = None
    paper: _Paper | None = None
    queries_sha256: str | None = None

    @model_validator(mode="after")
    def _is_of_a_version_that_is_known(self) -> _Results:
        if self.format_version[:1] != [1]:
            raise ValueError(f"format version {self.format_version} is not known here")
        return self


class Metrics(_Results):
    """metrics.json."""

    dataset: str
    split: str
    split_fingerprint: str
    n_images: int
    n_captions: int
    n_images_skipped: int = 0
    n_captions_skipped: int = 0
    notes: list[str] = []
    checkpoint: str | None = None
    epoch: int | None = None
    loss_terms: list[str] = []
    ties: Ties = "pessimistic"
    retrieval: _Retrieval
    unimodal: dict[str, _Figures]
    heads: dict[Head, _MetricsHead]
    teachers: dict[str, _TeacherFigures] = {}
    approximate: _Approximate | None = None

    @model_validator(mode="after")
    def _has_the_head_that_all_models_have(self) -> Metrics:
        if "cross" not in self.heads:
            raise ValueError("there is no head cross")
        return self


class _ImageScores(_Figures):
    queries: int
    queries_with_positive: int
    candidates: int


class _ImageSet(_Form):
    fingerprint: str
    classes: int
    notes: list[str]
    heads: dict[Head, _ImageScores]
    approximate: _Approximate | None = None


class Images(_Results):
    """images.json."""

    head: Head
    ties: Ties = "pessimistic"
    sets: dict[str, _ImageSet]
    average: dict[Head, Figure]

    @model_validator(mode="after")
    def _has_the_head_in_use(self) -> Images:
        if any(self.head not in measured.heads for measured in self.sets.values()):
            raise ValueError(f"a set lacks the head {self.head}")
        return self


class _Correlations(_Form):
    all: Figure
    mean: Figure
    wmean: Figure


class _StsScores(_Form):
    headline: Figure
    spearman: _Correlations
    pearson: _Correlations
    subsets: dict[str, Any]
    pairs: int
    ci: dict[str, Interval] = {}

    @model_validator(mode="after")
    def _has_the_interval_of_its_headline(self) -> _StsScores:
        if self.ci and "headline" not in self.ci:
            raise ValueError("ci has no headline")
        return self


class _StsTask(_Form):
    fingerprint: str
    notes: list[str]
    heads: dict[Head, _StsScores]


class _CxcScores(_Form):
    spearman_bootstrap: Figure
    std: Figure
    spearman: Figure
    pairs: int


class _CxcKind(_Form):
    heads: dict[Head, _CxcScores]


class Sts(_Results):
    """sts.json."""

    head: Head
    tasks: dict[str, _StsTask]
    average: dict[Head, Figure]
    cxc: dict[Literal["sts", "sis", "sits"], _CxcKind] = {}

    @model_validator(mode="after")
    def _has_the_head_in_use(self) -> Sts:
        if any(self.head not in task.heads for task in self.tasks.values()):
            raise ValueError(f"a task lacks the head {self.head}")
        return self


def first_fault(form: type[BaseModel], content: Mapping[str, Any]) -> tuple[str, str] | None:
    """Find where content differs from a form, and how; ``None`` if it does not."""
    try:
        form.model_validate(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return ".".join(str(part) for part in first["loc"]), first["msg"]
    return None
