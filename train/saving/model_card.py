"""The model card of a trained student: README.md with the metadata that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cusa.data.files import atomic_file
from cusa.train.loader import pairs_per_step
from cusa.train.loss.config import LossConfig, Temperature, TemperaturePair
from cusa.train.saving.card_metadata import (
    RECALL_NAMES,
    Scores,
    Usage,
    card_scores,
    card_title,
    metadata_yaml,
    student_name,
)
from cusa.train.saving.provenance import StoredTeacher
from cusa.train.saving.student_folder import Origin

__all__ = ["CARD_FILE", "Usage", "model_card", "write_card"]

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
_TEMPERATURE_TITLES = {
    "tau": "tau",
    "tau_csa": "tau of CSA",
    "tau_usa": "tau of USA",
    "tau_soft": "tau of the soft labels",
    "tau_soft_usa": "tau of USA's soft labels",
}
_HEAD_PURPOSES = {
    "cross": "comparing images with texts",
    "uni": "comparing images with images, or texts with texts",
}
_PAPER = "CUSA, [Huang et al., AAAI 2024](https://doi.org/10.1609/aaai.v38i16.29789)"


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
    origin: Origin,
    usage: Usage | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """Return a model card: YAML metadata, and a page about the model.

    Args:
        origin: Where the weights come from.
        usage: What the folder is for; ``None``: a run's ``best/``.
        metrics: Content of metrics.json (docs/METRICS.md), measured with these weights.
    """
    usage = usage or Usage()
    scores = card_scores(origin, metrics)
    sections = [
        f"# {card_title(origin)}",
        _summary(origin, usage),
        "## Results\n\n" + _results(scores),
        "## Which head\n\n" + _heads(origin, usage),
        "## How to load it\n\n" + _loading(origin, usage),
        "## How it was trained\n\n" + _training(origin),
        "## Provenance\n\n" + _provenance(origin),
    ]
    page = "\n\n".join(sections)
    return f"---\n{metadata_yaml(origin, usage, scores)}\n---\n\n{page}\n"


def _summary(origin: Origin, usage: Usage) -> str:
    body = f"The dual encoder {student_name(origin)}, fine-tuned"
    if origin.config.student.name == "adapter":
        encoders = origin.provenance.encoders
        body = (
            "MLPs on the embeddings of two frozen encoders, "
            f"{_teacher(encoders['image'])} for images and {_teacher(encoders['text'])} for texts; "
            "these are not part of it"
        )
    heads = "with a cross-modal and a uni-modal head (LayerNorm and Linear) on each side"
    if usage.kind == "sentence-transformers":
        heads += f", of which this folder holds `{usage.head}`"
    training = f"with soft labels from uni-modal teachers ({_PAPER})"
    if len(origin.config.loss.terms) == 1:
        training = "with a contrastive loss alone"
    return f"{body}, {heads}. It was trained for image-text retrieval {training}."


def _results(scores: Scores) -> str:
    if not scores:
        return "Not measured yet; `cusa-eval` does it."
    table_rows = [["data set", "split", *_RECALL_TITLES.values()]]
    for (dataset, split), values in scores.items():
        cells = [dataset, split]
        for name in RECALL_NAMES:
            cells.append(f"{values[name]:.2f}" if name in values else "")
        table_rows.append(cells)
    caption = "Percent, cross-modal heads, over all candidates of the split."
    return f"{caption}\n\n{_table(table_rows)}"


def _heads(origin: Origin, usage: Usage) -> str:
    has_uni_heads = "usa" in origin.config.loss.terms
    if usage.kind == "sentence-transformers":
        purpose = _HEAD_PURPOSES[usage.head]
        sentence = f"This folder has the `{usage.head}` heads, which are for {purpose}."
        if not has_uni_heads:
            within = "They also serve within a modality"
            return f"{sentence} {within}: this run trained no uni-modal heads."
        missing = "uni" if usage.head == "cross" else "cross"
        purpose = _HEAD_PURPOSES[missing]
        return f"{sentence} The `{missing}` heads, for {purpose}, are an export of their own."
    sentence = "`cross` to compare images with texts."
    if has_uni_heads:
        uni = "`uni` to compare images with images or texts with texts"
        return f"{sentence} {uni}: USA trained it for that."
    within = "`cross` within a modality, too"
    return f"{sentence} {within}: without USA, the `uni` heads were never trained."


def _loading(origin: Origin, usage: Usage) -> str:
    if usage.kind == "sentence-transformers":
        return _loading_sentence_transformers(origin, usage)
    section = _code(
        "from cusa import load_student",
        "",
        'student = load_student("PATH")  # this folder',
        'images = student.encode_image(["photo.jpg"], head="cross")  # paths or PIL images',
        'texts = student.encode_text(["a dog on the grass"], head="cross")',
        "similarity = texts @ images.T  # rows have length one",
    )
    if origin.config.student.name == "adapter":
        encoders = "It loads the frozen encoders from where they were"
        section += f"\n\n{encoders}; `encoders=` names another place."
    if usage.kind == "hf":
        code = _code(
            "from transformers import AutoModel",
            "",
            'backbone = AutoModel.from_pretrained("PATH")',
        )
        section += f"\n\nThe backbone alone, without the heads (`heads.safetensors`):\n\n{code}"
    return section


def _loading_sentence_transformers(origin: Origin, usage: Usage) -> str:
    code = _code(
        "from PIL import Image",
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("PATH")  # this folder',
        'images = model.encode([Image.open("photo.jpg").convert("RGB")])',
        'texts = model.encode(["a dog on the grass"])',
        "similarity = model.similarity(texts, images)",
    )
    name = origin.config.data.normalizer
    notes: list[str] = []
    if not usage.as_written:
        notes.append(
            "**Texts must be normalised first**, as in training, by `cusa.normalize_caption` "
            f'("{name}"); this tokeniser cannot do it.'
        )
    elif name != "none":
        notes.append(
            f'The tokeniser normalises texts as in training ("{name}": lower case, no punctuation).'
        )
    notes += [
        "Images and texts go in separate calls: sentence-transformers takes no list that mixes "
        "them.",
        "Convert images with transparency to RGB as above: it would be blended with white, here "
        "it is dropped.",
    ]
    listed = "\n".join(f"- {note}" for note in notes)
    return f"{code}\n\n{listed}"


def _training(origin: Origin) -> str:
    loss, optim, train = origin.config.loss, origin.config.optim, origin.config.train
    table_rows = [
        ["setting", "value"],
        ["loss", _weighted_terms(loss)],
        ["contrastive scaling", loss.contrastive_scaling],
    ]
    if "csa" in loss.terms:
        table_rows.append(["soft labels of CSA", loss.soft_label_source])
    table_rows += _temperatures(loss)
    for modality, teacher in origin.provenance.teachers.items():
        table_rows.append([f"teacher of {modality}s", _teacher(teacher)])
    table_rows += _beginning(origin)
    table_rows += [
        ["pairs", f"{origin.n_pairs}"],
        ["batch size", _batch_size(origin)],
        ["epochs", f"{origin.epoch} of {train.epochs} ({origin.step} steps)"],
        ["learning rate", _learning_rate(origin)],
        ["weight decay", f"{optim.weight_decay:g}"],
        ["gradient norm", f"clipped at {optim.grad_clip:g}" if optim.grad_clip else "not clipped"],
        ["precision, seed", f"{train.precision}, {train.seed}"],
        ["caption normaliser", _normalizer(origin)],
    ]
    return f"`cusa-train`, AdamW.\n\n{_table(table_rows)}"


def _weighted_terms(loss: LossConfig) -> str:
    weights = {"contrastive": loss.contrastive_weight, "csa": loss.alpha, "usa": loss.beta}
    return " + ".join(f"{weights[term]:g} * {term}" for term in loss.terms)


def _beginning(origin: Origin) -> list[list[str]]:
    """Return a row for the student that the run began with, if it began with one."""
    beginning = origin.provenance.beginning
    if beginning is None:
        return []
    # Not its path: that is a place on the author's machine.
    before = f"a student trained for {beginning.epoch} epochs on {beginning.dataset}"
    return [["begun with", f"{before} (sha256 `{beginning.sha256}`)"]]


def _learning_rate(origin: Origin) -> str:
    optim = origin.config.optim
    cosine = f"cosine by {optim.schedule} to {optim.min_lr:g}"
    if optim.schedule_epochs:
        cosine += f", over {optim.schedule_epochs} epochs"
    return f"{optim.lr:g}, {cosine}, warm-up {optim.warmup_epochs:g} epochs"


def _batch_size(origin: Origin) -> str:
    train = origin.config.train
    # All pairs, where there are fewer than a step asks for.
    size = pairs_per_step(origin.n_pairs, train.pairs_per_step, origin.processes)
    if origin.processes == 1:
        return f"{size}"
    loss = "one loss over all" if train.gather else "each its own loss"
    return f"{size} in each of {origin.processes} processes, {loss}"


def _normalizer(origin: Origin) -> str:
    if origin.config.student.name == "adapter":
        return origin.provenance.encoders["text"].settings.normalizer
    return origin.config.data.normalizer


def _temperatures(loss: LossConfig) -> list[list[str]]:
    """Return a row for each temperature that the terms use."""
    in_use = loss.temperatures_in_use()
    table_rows: list[list[str]] = []
    for name, title in _TEMPERATURE_TITLES.items():
        if name in in_use:
            table_rows.append([title, _temperature(in_use[name])])
    return table_rows


def _temperature(value: Temperature | TemperaturePair) -> str:
    if isinstance(value, Temperature):
        if not value.learnable:
            return f"{value.init:g}, fixed"
        return f"from {value.init:g} in [{value.min:g}, {value.max:g}]"
    image = _temperature(value.image)
    text = _temperature(value.text)
    if image == text:
        return f"{image}, shared" if value.shared else f"image and text each {image}"
    if value.shared:
        return f"mean of {image} and {text}, shared"
    return f"image {image}; text {text}"


def _provenance(origin: Origin) -> str:
    provenance = origin.provenance
    split_rows = [["split", "fingerprint"]]
    for split, fingerprint in provenance.splits.items():
        split_rows.append([split, f"`{fingerprint}`"])
    model_rows = [["frozen model", "name", "sha256 of its weights"]]
    for role, models in (("teacher", provenance.teachers), ("encoder", provenance.encoders)):
        for modality, model in models.items():
            sha256 = model.settings.weights_sha256
            model_rows.append([f"{modality} {role}", _teacher(model), f"`{sha256}`"])

    text = f"Data set `{provenance.dataset}`.\n\n{_table(split_rows)}"
    if len(model_rows) > 1:
        text += f"\n\n{_table(model_rows)}"
    return text


def _teacher(stored: StoredTeacher) -> str:
    model_id = stored.settings.model_id
    return f"`{model_id}`" if model_id == stored.name else f"`{stored.name}` (`{model_id}`)"


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _table(table_rows: Sequence[Sequence[str]]) -> str:
    lines: list[str] = []
    for row in table_rows:
        # A bar would end the cell.
        cells = [cell.replace("|", r"\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    lines.insert(1, "|" + "---|" * len(table_rows[0]))
    return "\n".join(lines)
