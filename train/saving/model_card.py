"""The model card of a trained student: README.md with the metadata that model hubs read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cusa.data.embeddings import Head
from cusa.data.files import atomic_file
from cusa.train.loader import pairs_per_step
from cusa.train.loss.config import LossConfig, Temperature, TemperaturePair
from cusa.train.saving.provenance import StoredTeacher
from cusa.train.saving.student_folder import Origin

CARD_FILE = "README.md"
# Recalls in percent by name, by data set and split; what was not measured is left out.
_Scores = dict[tuple[str, str], dict[str, float]]
_RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")


@dataclass(frozen=True)
class Usage:
    """What a folder is for.

    Attributes:
        kind: ``"cusa"`` (a run's ``best/``), ``"hf"`` or ``"sentence-transformers"`` (exports).
        head: The head of a sentence-transformers export.
        as_written: Whether it normalises texts itself; where not, the card says that its user has to.
    """

    kind: Literal["cusa", "hf", "sentence-transformers"] = "cusa"
    head: Head = "cross"
    as_written: bool = True


def write_card(
    folder: Path,
    origin: Origin,
    usage: Usage | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder's README.md, whole or not at all.

    Args:
        folder: The folder of the student.
        origin: Where its weights come from.
        usage: What the folder is for; ``None``: a run's ``best/``.
        metrics: Content of metrics.json (docs/METRICS.md), measured with these weights.
    """
    with atomic_file(folder / CARD_FILE) as temporary:
        temporary.write_text(model_card(origin, usage, metrics), encoding="utf-8")


def model_card(
    origin: Origin, usage: Usage | None = None, metrics: Mapping[str, Any] | None = None
) -> str:
    """A model card: YAML metadata, and a page about the model.

    Args:
        origin: Where the weights come from.
        usage: What the folder is for; ``None``: a run's ``best/``.
        metrics: Content of metrics.json (docs/METRICS.md), measured with these weights.
    """
    usage = usage or Usage()
    scores = _scores(origin, metrics)
    parts = [
        f"# {_title(origin)}",
        _what_it_is(origin, usage),
        "## Results\n\n" + _results(scores),
        "## Which head\n\n" + _heads(origin, usage),
        "## How to load it\n\n" + _loading(origin, usage),
        "## How it was trained\n\n" + _training(origin),
        "## Provenance\n\n" + _provenance(origin),
    ]
    return f"---\n{_metadata(origin, usage, scores)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _scores(origin: Origin, metrics: Mapping[str, Any] | None) -> _Scores:
    own = origin.provenance.dataset
    by_split: dict[tuple[str, str], dict[str, Any]] = {}
    if origin.config.data.val_split is not None:
        by_split[own, origin.config.data.val_split] = dict(origin.val)
    if metrics is not None:
        tasks = metrics["retrieval"]
        flat = {
            f"{task}_{recall}": tasks[task][recall]
            for task in ("i2t", "t2i")
            for recall in ("r1", "r5", "r10")
        }
        by_split[metrics.get("dataset", own), metrics["split"]] = {**flat, "rsum": tasks["rsum"]}
    return {
        split: known for split, scores in by_split.items() if (known := _finite_recalls(scores))
    }


def _finite_recalls(scores: Mapping[str, Any]) -> dict[str, float]:
    values = {name: scores.get(name) for name in _RECALLS}
    return {
        name: value for name, value in values.items() if value is not None and math.isfinite(value)
    }


def _metadata(origin: Origin, usage: Usage, scores: _Scores) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    name = origin.config.student.name
    results = [
        EvalResult(
            task_type="image-text-retrieval",
            task_name="Image-text retrieval",
            dataset_type=_slug(dataset),
            dataset_name=dataset,
            dataset_split=split,
            metric_type="rsum" if key == "rsum" else "recall",
            metric_name=key,
            metric_value=round(value, 2),
        )
        for (dataset, split), values in scores.items()
        for key, value in values.items()
    ]
    st = usage.kind == "sentence-transformers"
    library = {
        "cusa": "cusa",
        "hf": "transformers",
        "sentence-transformers": "sentence-transformers",
    }[usage.kind]
    data = ModelCardData(
        library_name=library,
        pipeline_tag="sentence-similarity" if st else "feature-extraction",
        tags=[
            "image-text-retrieval",
            "cusa",
            *(["sentence-transformers", "sentence-similarity"] if st else []),
        ],
        base_model=name if _on_the_hub(name) else None,
        datasets=[_slug(origin.provenance.dataset)],
        metrics=["recall"] if results else None,
        model_name=_title(origin) if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _slug(dataset: str) -> str:
    return re.sub(r"[^\w.-]+", "-", dataset).strip("-.") or "unnamed"


def _on_the_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _student(origin: Origin) -> str:
    name = origin.config.student.name
    return name if _on_the_hub(name) or name == "adapter" else Path(name).name


def _title(origin: Origin) -> str:
    return f"{_student(origin)} trained with {'+'.join(origin.config.loss.terms)} on {origin.provenance.dataset}"


def _what_it_is(origin: Origin, usage: Usage) -> str:
    if origin.config.student.name == "adapter":
        encoders = origin.provenance.encoders
        body = (
            f"MLPs on the embeddings of two frozen encoders, {_teacher(encoders['image'])} for images and "
            f"{_teacher(encoders['text'])} for texts; these are not part of it"
        )
    else:
        body = f"The dual encoder {_student(origin)}, fine-tuned"
    heads = (
        ""
        if usage.kind != "sentence-transformers"
        else f", of which this folder holds `{usage.head}`"
    )
    text = f"{body}, with a cross-modal and a uni-modal head (LayerNorm and Linear) on each side{heads}. "
    if len(origin.config.loss.terms) == 1:
        return f"{text}It was trained for image-text retrieval with a contrastive loss alone."
    paper = "CUSA, [Huang et al., AAAI 2024](https://doi.org/10.1609/aaai.v38i16.29789)"
    return f"{text}It was trained for image-text retrieval with soft labels from uni-modal teachers ({paper})."


def _results(scores: _Scores) -> str:
    if not scores:
        return "Not measured yet; `cusa-eval` does it."
    rows = [
        [*where, *(f"{v[k]:.2f}" if k in v else "" for k in _RECALLS)]
        for where, v in scores.items()
    ]
    titles = [
        "data set",
        "split",
        *(
            k.replace("i2t_r", "image to text R@").replace("t2i_r", "text to image R@")
            for k in _RECALLS
        ),
    ]
    caption = "Percent, cross-modal heads, over all candidates of the split."
    return f"{caption}\n\n{_table([[t.replace('rsum', 'RSUM') for t in titles], *rows])}"


def _heads(origin: Origin, usage: Usage) -> str:
    if usage.kind == "sentence-transformers":
        other = "uni" if usage.head == "cross" else "cross"
        good = {
            "cross": "comparing images with texts",
            "uni": "comparing images with images, or texts with texts",
        }
        text = f"This folder has the `{usage.head}` heads, which are for {good[usage.head]}."
        if "usa" in origin.config.loss.terms:
            return f"{text} The `{other}` heads, for {good[other]}, are an export of their own."
        return f"{text} They also serve within a modality: this run trained no uni-modal heads."
    text = "`cross` to compare images with texts."
    if "usa" in origin.config.loss.terms:
        return f"{text} `uni` to compare images with images or texts with texts: USA trained it for that."
    return (
        f"{text} `cross` within a modality, too: without USA, the `uni` heads were never trained."
    )


def _loading(origin: Origin, usage: Usage) -> str:
    if usage.kind == "sentence-transformers":
        return _loading_sentence_transformers(origin, usage)
    code = [
        "from cusa import load_student",
        "",
        'student = load_student("PATH")  # this folder',
        'images = student.encode_image(["photo.jpg"], head="cross")  # paths or PIL images',
        'texts = student.encode_text(["a dog on the grass"], head="cross")',
        "similarity = texts @ images.T  # rows have length one",
    ]
    text = _code(code)
    if origin.config.student.name == "adapter":
        text += "\n\nIt loads the frozen encoders from where they were; `encoders=` names another place."
    if usage.kind == "hf":
        more = [
            "from transformers import AutoModel",
            "",
            'backbone = AutoModel.from_pretrained("PATH")',
        ]
        text += "\n\nThe backbone alone, without the heads (`heads.safetensors`):\n\n" + _code(more)
    return text


def _loading_sentence_transformers(origin: Origin, usage: Usage) -> str:
    code = [
        "from PIL import Image",
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("PATH")  # this folder',
        'images = model.encode([Image.open("photo.jpg").convert("RGB")])',
        'texts = model.encode(["a dog on the grass"])',
        "similarity = model.similarity(texts, images)",
    ]
    notes = [
        "Images and texts go in separate calls: sentence-transformers takes no list that mixes them.",
        "Convert images with transparency to RGB as above: it would be blended with white, here it is dropped.",
    ]
    name = origin.config.data.normalizer
    if not usage.as_written:
        first = f'`cusa.normalize_caption` ("{name}")'
        notes.insert(
            0,
            f"**Texts must be normalised first**, as in training, by {first}; this tokeniser cannot do it.",
        )
    elif name != "none":
        notes.insert(
            0,
            f'The tokeniser normalises texts as in training ("{name}": lower case, no punctuation).',
        )
    return _code(code) + "\n\n" + "\n".join(f"- {note}" for note in notes)


def _training(origin: Origin) -> str:
    config = origin.config
    loss, optim, train = config.loss, config.optim, config.train
    weights = {"contrastive": loss.contrastive_weight, "csa": loss.alpha, "usa": loss.beta}
    rows = [
        ["setting", "value"],
        ["loss", " + ".join(f"{weights[term]:g} * {term}" for term in loss.terms)],
        ["contrastive scaling", loss.contrastive_scaling],
        *([["soft labels of CSA", loss.soft_label_source]] if "csa" in loss.terms else []),
        *_temperatures(loss),
        *([f"teacher of {m}s", _teacher(t)] for m, t in origin.provenance.teachers.items()),
        *_beginning(origin),
        ["pairs", f"{origin.n_pairs}"],
        ["batch size", _batch_size(origin)],
        ["epochs", f"{origin.epoch} of {train.epochs} ({origin.step} steps)"],
        ["learning rate", _learning_rate(origin)],
        ["weight decay", f"{optim.weight_decay:g}"],
        ["gradient norm", f"clipped at {optim.grad_clip:g}" if optim.grad_clip else "not clipped"],
        ["precision, seed", f"{train.precision}, {train.seed}"],
        ["caption normaliser", _normalizer(origin)],
    ]
    return "`cusa-train`, AdamW.\n\n" + _table(rows)


def _beginning(origin: Origin) -> list[list[str]]:
    """A row for the student that the run began with, if it did."""
    beginning = origin.provenance.beginning
    if beginning is None:
        return []
    before = f"a student trained for {beginning.epoch} epochs on {beginning.dataset}"
    return [["begun with", f"{before} (sha256 `{beginning.sha256}`)"]]


def _learning_rate(origin: Origin) -> str:
    optim = origin.config.optim
    length = f", over {optim.schedule_epochs} epochs" if optim.schedule_epochs else ""
    cosine = f"cosine by {optim.schedule} to {optim.min_lr:g}{length}"
    return f"{optim.lr:g}, {cosine}, warm-up {optim.warmup_epochs:g} epochs"


def _batch_size(origin: Origin) -> str:
    train, n = origin.config.train, origin.processes
    size = pairs_per_step(origin.n_pairs, train.pairs_per_step, n)
    if n == 1:
        return f"{size}"
    loss = "one loss over all" if train.gather else "each its own loss"
    return f"{size} in each of {n} processes, {loss}"


def _normalizer(origin: Origin) -> str:
    if origin.config.student.name == "adapter":
        return origin.provenance.encoders["text"].settings.normalizer
    return origin.config.data.normalizer


def _temperatures(loss: LossConfig) -> list[list[str]]:
    """A row for each that the terms use."""
    csa, usa = "csa" in loss.terms, "usa" in loss.terms
    used: dict[str, tuple[Temperature | TemperaturePair, bool]] = {
        "tau": (loss.tau, "contrastive" in loss.terms),
        "tau of CSA": (loss.tau_csa, csa or (usa and loss.usa_shares_csa)),
        "tau of USA": (loss.tau_usa, usa and not loss.usa_shares_csa),
        "tau of the soft labels": (loss.tau_soft, csa or (usa and loss.usa_shares_soft)),
        "tau of USA's soft labels": (loss.tau_soft_usa, usa and not loss.usa_shares_soft),
    }
    return [[name, _temperature(value)] for name, (value, is_used) in used.items() if is_used]


def _temperature(value: Temperature | TemperaturePair) -> str:
    if isinstance(value, Temperature):
        return (
            f"from {value.init:g} in [{value.min:g}, {value.max:g}]"
            if value.learnable
            else f"{value.init:g}, fixed"
        )
    image, text = _temperature(value.image), _temperature(value.text)
    if value.shared:
        return f"{image}, shared" if image == text else f"mean of {image} and {text}, shared"
    return f"image and text each {image}" if image == text else f"image {image}; text {text}"


def _provenance(origin: Origin) -> str:
    provenance = origin.provenance
    rows = [["split", "fingerprint"], *([s, f"`{f}`"] for s, f in provenance.splits.items())]
    text = f"Data set `{provenance.dataset}`.\n\n{_table(rows)}"
    stored = {f"{m} teacher": t for m, t in provenance.teachers.items()}
    stored |= {f"{m} encoder": t for m, t in provenance.encoders.items()}
    if stored:
        weights = [
            [name, _teacher(t), f"`{t.settings.weights_sha256}`"] for name, t in stored.items()
        ]
        text += "\n\n" + _table([["frozen model", "name", "sha256 of its weights"], *weights])
    return text


def _teacher(stored: StoredTeacher) -> str:
    model = stored.settings.model_id
    return f"`{model}`" if model == stored.name else f"`{stored.name}` (`{model}`)"


def _code(lines: list[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
