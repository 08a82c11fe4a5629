"""The model card of a trained student: a README.md with the metadata that model hubs read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cusa.data.embeddings import Head
from cusa.data.files import atomic_file
from cusa.data.hub import is_hub_name
from cusa.train.length import run_span, schedule_span, warmup_span
from cusa.train.loader import pairs_per_step
from cusa.train.saving import loss_facts
from cusa.train.saving.student_folder import Origin
from cusa.train.student_config import MODALITIES, Modality, StudentConfig

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

CARD_FILE = "README.md"

_RECALL_TITLES = {
    "i2t_r1": "image to text R@1",
    "i2t_r5": "image to text R@5",
    "i2t_r10": "image to text R@10",
    "t2i_r1": "text to image R@1",
    "t2i_r5": "text to image R@5",
    "t2i_r10": "text to image R@10",
    "rsum": "RSUM",
}

# Recalls in percent by name, for each data set and split; those not measured are left out.
_Scores = dict[tuple[str, str], dict[str, float]]

_LIBRARIES = {
    "cusa": "cusa",
    "hf": "transformers",
    "sentence-transformers": "sentence-transformers",
}


@dataclass(frozen=True)
class Usage:
    """What a student's folder is for.

    Attributes:
        kind: ``"cusa"`` (a run's ``best/``), ``"hf"`` or ``"sentence-transformers"`` (exports).
        head: The head of a sentence-transformers export.
        as_written: Whether its tokeniser normalises texts; if not, the card tells users to do so.
        needs_cusa: Whether it has modules of cusa, which must then be installed.
    """

    kind: Literal["cusa", "hf", "sentence-transformers"] = "cusa"
    head: Head = "cross"
    as_written: bool = True
    needs_cusa: bool = False


def write_card(
    folder: Path,
    origin: Origin,
    usage: Usage | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder's README.md, completely or not at all; see :func:`model_card`."""
    with atomic_file(folder / CARD_FILE) as temporary:
        temporary.write_text(model_card(origin, usage, metrics), encoding="utf-8")


def model_card(
    origin: Origin,
    usage: Usage | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """Return a model card: YAML metadata, then a page about the model.

    Args:
        origin: Where the weights come from.
        usage: What the folder is for; ``None``: it is a run's ``best/``.
        metrics: Content of metrics.json (docs/METRICS.md), measured with these weights.
    """
    from huggingface_hub import ModelCard

    usage = usage or Usage()
    scores = _card_scores(origin, metrics)
    config = origin.config
    template_file = resources.files(__package__) / "model_card.md.jinja"
    card = ModelCard.from_template(
        _card_data(origin, usage, scores),
        template_str=template_file.read_text("utf-8"),
        origin=origin,
        usage=usage,
        scores=scores,
        recall_titles=_RECALL_TITLES,
        title=_card_title(origin),
        student_name=_student_name(origin),
        models=_models(config.student),
        training=_training(config.student),
        weighted_terms=loss_facts.weighted_terms(config.loss),
        rule_settings=loss_facts.rule_settings(config.loss),
        soft_label_teachers=loss_facts.soft_label_teachers(config.loss),
        temperatures=loss_facts.temperature_ranges(config.loss),
        span=run_span(config),
        schedule=schedule_span(config),
        warmup=warmup_span(config),
        # A step takes all pairs if there are fewer than the settings ask for.
        batch_size=pairs_per_step(origin.n_pairs, config.train.pairs_per_step, origin.processes),
    )
    return str(card)


def _card_scores(origin: Origin, metrics: Mapping[str, Any] | None) -> _Scores:
    """Return the recalls that a card shows: of the validation split and from metrics.json."""
    dataset = origin.provenance.dataset
    measured = {}
    validation = origin.provenance.validation
    if validation is not None:
        measured[validation.dataset, validation.split] = origin.val
    elif origin.config.data.val_split is not None:
        measured[dataset, origin.config.data.val_split] = origin.val
    if metrics is not None:
        # cusa-eval may have measured another data set than that of the training.
        split = metrics.get("dataset", dataset), metrics["split"]
        measured[split] = _flat_recalls(metrics["retrieval"])

    scores = {}
    for split, values in measured.items():
        finite = {}
        for name in _RECALL_TITLES:
            value = values.get(name)
            if value is not None and math.isfinite(value):
                finite[name] = value
        # A split that was not measured has no row.
        if finite:
            scores[split] = finite
    return scores


def _flat_recalls(retrieval: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recalls of both directions by flat names such as ``"i2t_r1"``."""
    recalls: dict[str, Any] = {"rsum": retrieval["rsum"]}
    for task in ("i2t", "t2i"):
        for recall in ("r1", "r5", "r10"):
            recalls[f"{task}_{recall}"] = retrieval[task][recall]
    return recalls


def _card_data(origin: Origin, usage: Usage, scores: _Scores) -> ModelCardData:
    """Return the metadata at the head of a model card; ``scores`` are of :func:`_card_scores`."""
    from huggingface_hub import ModelCardData

    tags = ["image-text-retrieval", "cusa"]
    pipeline_tag = "feature-extraction"
    if usage.kind == "sentence-transformers":
        tags += ["sentence-transformers", "sentence-similarity"]
        pipeline_tag = "sentence-similarity"
    results = _eval_results(scores)
    hub_names = _hub_names(origin.config.student)
    return ModelCardData(
        library_name=_LIBRARIES[usage.kind],
        pipeline_tag=pipeline_tag,
        tags=tags,
        base_model=hub_names[0] if len(hub_names) == 1 else hub_names or None,
        datasets=[_slug(origin.provenance.dataset)],
        metrics=["recall"] if results else None,
        model_name=_card_title(origin) if results else None,
        eval_results=results or None,
    )


def _eval_results(scores: _Scores) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    results = []
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
    # Names on a hub consist of letters, digits, dots, dashes and underscores.
    return re.sub(r"[^\w.-]+", "-", dataset).strip("-.") or "unnamed"


def _is_on_the_hub(student: str) -> bool:
    return is_hub_name(student) and not Path(student).exists()


def _hub_names(student: StudentConfig) -> list[str]:
    """Return the names of the towers' models that are on the hub, each once."""
    names: dict[str, None] = {}
    for tower in student.towers.values():
        if tower.kind in ("hf", "st") and _is_on_the_hub(tower.name):
            names[tower.name] = None
    return list(names)


def _models(student: StudentConfig) -> dict[Modality, str]:
    """Return the names of the models of both towers."""
    names: dict[Modality, str] = {}
    for modality, tower in student.towers.items():
        name = tower.name or tower.kind
        if not _is_on_the_hub(name):
            name = Path(name).name
        names[modality] = name
    return names


def _training(student: StudentConfig) -> dict[Modality, str]:
    """Describe how the model of each tower was trained."""
    descriptions: dict[Modality, str] = {}
    for modality in MODALITIES:
        descriptions[modality] = "fine-tuned"
        if modality in student.freeze:
            descriptions[modality] = "frozen"
        elif modality in student.lora.towers:
            descriptions[modality] = f"with LoRA adapters of rank {student.lora.r}"
    return descriptions


def _student_name(origin: Origin) -> str:
    """Return the student's name on the hub, that of its folder, or those of its towers."""
    name = origin.config.student.title
    return name if _is_on_the_hub(name) else Path(name).name


def _card_title(origin: Origin) -> str:
    """Return the title of a card: student, loss and data set."""
    terms = "+".join(origin.config.loss.term_titles)
    return f"{_student_name(origin)} trained with {terms} on {origin.provenance.dataset}"
