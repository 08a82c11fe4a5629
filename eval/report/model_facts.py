"""What a report says of each model beside its figures: settings, teachers, seed, machine, versions.

All of it is in the models' results files, so that a comparison of earlier results shows the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cusa.eval.report.tables import NONE

Description = Mapping[str, Any]

_KINDS = {
    "hf": "Hugging Face model",
    "sentence-transformers": "sentence-transformers model",
    "teacher": "teacher",
    "files": "embeddings in files",
    "scores": "scores in a file",
}
_NORMALIZERS = {
    "albef": "in lower case, without punctuation, cut to 64 words",
    "none": "as written",
}
_TITLES = {"image": "images", "text": "captions", "cross": "images with captions"}
_PACKAGES = {"cusa": "cusa", "torch": "PyTorch", "python": "Python"}
_HASH_LENGTH = 12


@dataclass(frozen=True)
class Fact:
    """A fact about every model.

    Attributes:
        title: What is told.
        values: The fact of each model; a dash where it is unknown.
    """

    title: str
    values: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Tell whether several models have the same."""
        return len(self.values) > 1 and len(set(self.values)) == 1


def model_facts(descriptions: Sequence[Description]) -> list[Fact]:
    """Tell what the models are, and how and where they were trained; unknown facts are left out.

    Args:
        descriptions: The key ``model`` of each model's results (docs/METRICS.md).
    """
    tellers = {
        "Model": _kind,
        "Loss": _loss,
        "Teachers": _teachers,
        "Encoders": _encoders,
        "Captions": _captions,
        "Training": _training,
        "Seed": _seed,
        "Weights": _weights,
        "Trained": _time,
        "Machine": _machine,
        "Versions": _versions,
    }
    facts = []
    for title, tell in tellers.items():
        values = list(map(tell, descriptions))
        if any(values):
            facts.append(Fact(title, tuple(value or NONE for value in values)))
    return facts


def settings_facts(descriptions: Sequence[Description]) -> list[Fact]:
    """List the runs' settings that decide what they compute; those that differ come first."""
    names: dict[str, None] = {}
    for description in descriptions:
        names |= dict.fromkeys(description.get("settings") or {})
    facts = []
    for name in names:
        values = []
        for description in descriptions:
            settings = description.get("settings") or {}
            values.append(_shown(settings[name]) if name in settings else NONE)
        facts.append(Fact(name, tuple(values)))
    return sorted(facts, key=lambda fact: fact.is_shared)


def _kind(description: Description) -> str:
    student = description.get("student")
    if student == "adapter":
        return "adapter: trained heads on frozen encoders"
    if student:
        return f"{student}, fine-tuned"
    kind = _KINDS.get(description.get("kind", ""), "")
    source = description.get("model_id") or description.get("source")
    return f"{kind}, {source}" if kind and isinstance(source, str) else kind


def _loss(description: Description) -> str:
    settings = description.get("settings") or {}
    terms = description.get("loss_terms") or []
    weights = []
    rule = settings.get("loss.rule")
    for term, name in (("csa", "alpha"), ("usa", "beta"), (rule, "rule_weight")):
        weight = settings.get(f"loss.{name}")
        if term in terms and weight is not None:
            weights.append(f"{name} {_shown(weight)}")
    formula = " + ".join(terms)
    if not weights:
        return formula
    return f"{formula} ({', '.join(weights)})"


def _teachers(description: Description) -> str:
    if "teachers" not in description:
        return ""
    return _by_modality(description["teachers"]) or "none: the loss uses no soft labels"


def _encoders(description: Description) -> str:
    return _by_modality(description.get("encoders") or {})


def _captions(description: Description) -> str:
    normalizer = description.get("normalizer")
    return _NORMALIZERS.get(normalizer, "") if isinstance(normalizer, str) else ""


def _by_modality(names: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({_TITLES.get(key, key)})" for key, name in names.items())


def _training(description: Description) -> str:
    settings = description.get("settings") or {}
    sentences = []
    if "n_pairs" in description:
        sentences.append(f"{description['n_pairs']:,} pairs of {description.get('dataset')}")
    for name, title in (("train.batch_size", "batch size"), ("optim.lr", "learning rate")):
        if name in settings:
            sentences.append(f"{title} {_shown(settings[name])}")
    return ", ".join(sentences)


def _seed(description: Description) -> str:
    settings = description.get("settings") or {}
    return _shown(settings["train.seed"]) if "train.seed" in settings else ""


def _weights(description: Description) -> str:
    facts = []
    if "epoch" in description:
        facts.append(_moment(description))
    if "checkpoint" in description:
        facts.append(f"{description['checkpoint']} checkpoint")
    if description.get("weights_sha256"):
        facts.append(f"sha256 {description['weights_sha256'][:_HASH_LENGTH]}")
    return ", ".join(facts)


def _moment(description: Description) -> str:
    """Tell after which epoch or, if the run counts steps, after which step the weights are."""
    settings = description.get("settings") or {}
    unit, total = "epoch", settings.get("train.epochs")
    if settings.get("train.steps") is not None and "step" in description:
        unit, total = "step", settings["train.steps"]
    moment = f"{unit} {_shown(description[unit])}"
    if total is not None:
        moment += f" of {_shown(total)}"
    return moment


def _time(description: Description) -> str:
    training = description.get("training")
    if not training:
        return ""
    sentences = [_date(training["began"]), duration(training["seconds"])]
    if training["sessions"] > 1:
        sentences.append(f"{training['sessions']} sessions")
    return ", ".join(sentences)


def _date(began: str) -> str:
    try:
        time = datetime.fromisoformat(began)
    except ValueError:
        return began
    return f"{time.day} {time:%B %Y}"


def duration(seconds: float) -> str:
    """Write a duration in the unit that fits it: ``"12 s"``, ``"3.4 min"``, ``"5.1 h"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6_000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3_600:.1f} h"


def _machine(description: Description) -> str:
    training = description.get("training")
    if not training:
        return ""
    machines = "; ".join(training["machines"])
    n_processes = training["processes"]
    if n_processes == 1:
        return machines
    return f"{n_processes} processes on {machines}"


def _versions(description: Description) -> str:
    training = description.get("training")
    return versions_in_words(training["versions"]) if training else ""


def versions_in_words(versions: Mapping[str, str]) -> str:
    """Name the versions that matter most: ``"cusa 0.1.0, PyTorch 2.9.1, Python 3.12.3"``."""
    titled = []
    for name, title in _PACKAGES.items():
        if name in versions:
            titled.append(f"{title} {versions[name]}")
    return ", ".join(titled)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)):
        return ", ".join(map(_shown, value))
    return str(value)
