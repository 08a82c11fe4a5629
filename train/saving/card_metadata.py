"""The metadata of a model card that model hubs read, and the figures that go into it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cusa.data.embeddings import Head
from cusa.data.hub import is_hub_name
from cusa.train.saving.student_folder import Origin

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

RECALL_NAMES = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")

# Recalls in percent by name, by data set and split; what was not measured is left out.
Scores = dict[tuple[str, str], dict[str, float]]

_LIBRARIES = {
    "cusa": "cusa",
    "hf": "transformers",
    "sentence-transformers": "sentence-transformers",
}


@dataclass(frozen=True)
class Usage:
    """What a folder is for.

    Attributes:
        kind: ``"cusa"`` (a run's ``best/``), ``"hf"`` or ``"sentence-transformers"`` (exports).
        head: The head of a sentence-transformers export.
        as_written: Whether it normalises texts itself; where not, the card says that its user has
            to.
    """

    kind: Literal["cusa", "hf", "sentence-transformers"] = "cusa"
    head: Head = "cross"
    as_written: bool = True


def card_scores(origin: Origin, metrics: Mapping[str, Any] | None) -> Scores:
    """Return the figures of a card: those of the validation split, and of metrics.json.

    Args:
        origin: Where the weights come from.
        metrics: Content of metrics.json (docs/METRICS.md), measured with these weights.
    """
    dataset = origin.provenance.dataset
    measured: dict[tuple[str, str], Mapping[str, Any]] = {}
    if origin.config.data.val_split is not None:
        measured[dataset, origin.config.data.val_split] = origin.val
    if metrics is not None:
        # cusa-eval may have measured another data set than the one that was trained on.
        split = metrics.get("dataset", dataset), metrics["split"]
        measured[split] = _flat_recalls(metrics["retrieval"])

    scores: Scores = {}
    for split, values in measured.items():
        finite: dict[str, float] = {}
        for name in RECALL_NAMES:
            value = values.get(name)
            if value is not None and math.isfinite(value):
                finite[name] = value
        # A split that was not measured has no row.
        if finite:
            scores[split] = finite
    return scores


def _flat_recalls(retrieval: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recalls of both tasks by one name each, such as ``"i2t_r1"``."""
    recalls: dict[str, Any] = {"rsum": retrieval["rsum"]}
    for task in ("i2t", "t2i"):
        for recall in ("r1", "r5", "r10"):
            recalls[f"{task}_{recall}"] = retrieval[task][recall]
    return recalls


def metadata_yaml(origin: Origin, usage: Usage, scores: Scores) -> str:
    """Return the YAML that begins a model card.

    Args:
        origin: Where the weights come from.
        usage: What the folder is for.
        scores: Of :func:`card_scores`.
    """
    from huggingface_hub import ModelCardData

    tags = ["image-text-retrieval", "cusa"]
    pipeline_tag = "feature-extraction"
    if usage.kind == "sentence-transformers":
        tags += ["sentence-transformers", "sentence-similarity"]
        pipeline_tag = "sentence-similarity"
    results = _eval_results(scores)
    name = origin.config.student.name
    data = ModelCardData(
        library_name=_LIBRARIES[usage.kind],
        pipeline_tag=pipeline_tag,
        tags=tags,
        base_model=name if _is_on_the_hub(name) else None,
        datasets=[_slug(origin.provenance.dataset)],
        metrics=["recall"] if results else None,
        model_name=card_title(origin) if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _eval_results(scores: Scores) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    results: list[EvalResult] = []
    for (dataset, split), values in scores.items():
        for name, value in values.items():
            result = EvalResult(
                task_type="image-text-retrieval",
                task_name="Image-text retrieval",
                dataset_type=_slug(dataset),
                dataset_name=dataset,
                dataset_split=split,
                metric_type="rsum" if name == "rsum" else "recall",
                metric_name=name,
                metric_value=round(value, 2),
            )
            results.append(result)
    return results


def _slug(dataset: str) -> str:
    # Names on a hub take letters, digits, dots, dashes and underscores.
    return re.sub(r"[^\w.-]+", "-", dataset).strip("-.") or "unnamed"


def _is_on_the_hub(student: str) -> bool:
    return is_hub_name(student) and not Path(student).exists()


def student_name(origin: Origin) -> str:
    """Return the student's name on the hub, that of its folder, or ``"adapter"``."""
    name = origin.config.student.name
    return name if _is_on_the_hub(name) else Path(name).name


def card_title(origin: Origin) -> str:
    """Return the title of a card: student, loss and data set."""
    terms = "+".join(origin.config.loss.terms)
    return f"{student_name(origin)} trained with {terms} on {origin.provenance.dataset}"
