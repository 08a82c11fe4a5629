"""What the study on Flickr8k compares: its experiments, and the teachers that it makes itself."""

from __future__ import annotations

from study_pairs import LABELS, SHUFFLED, TAUGHT, Taught
from study_runs import Variant
from study_teachers import StudentTeacher

TEMPERATURES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)


def soft(image: float, text: float | None = None) -> tuple[str, ...]:
    """Return the settings of soft-label temperatures; one for both modalities without ``text``."""
    settings = ["loss.tau_soft.shared=false"]
    for modality, tau in (("image", image), ("text", text or image)):
        settings.append(f"loss.tau_soft.{modality}.init={tau}")
        settings.append(f"loss.tau_soft.{modality}.min={min(tau, 0.1)}")
    return tuple(settings)


def weights(alpha: float, beta: float) -> tuple[str, ...]:
    """Return the settings of the weights of CSA and USA."""
    return f"loss.alpha={alpha}", f"loss.beta={beta}"


def temperatures(*settings: str, taught: Taught = "both") -> dict[str, Variant]:
    """Return a variant for each soft-label temperature, by its name."""
    variants = {}
    for tau in TEMPERATURES:
        variants[str(tau)] = Variant((*settings, *soft(tau)), taught=taught)
    # The default, as published: no run is taken twice.
    return variants | {"1.0": Variant(settings, taught=taught)}


def rule(name: str, *settings: str) -> Variant:
    """Return a variant that trains on a rule's term alone."""
    return Variant(("loss.terms=[]", f"loss.rule={name}", *settings))


CONTRASTIVE = Variant(("loss.terms=[contrastive]",))
PUBLISHED = Variant()
SHARP = soft(0.3)
STRONG = (*weights(1, 5), *SHARP)

IMAGE_CSA = (*STRONG, "loss.soft_label_source=image")
FOUR_EPOCHS = Variant((*CONTRASTIVE.settings, "train.epochs=4"))

# Cross-modal teachers that are made of students; seeds are none of those of the runs.
TEACHERS = {
    "contrastive-1": StudentTeacher(FOUR_EPOCHS, (100,)),
    "contrastive-5": StudentTeacher(FOUR_EPOCHS, tuple(range(100, 105))),
    "sharp-5": StudentTeacher(Variant(STRONG), tuple(range(100, 105))),
    "image-5": StudentTeacher(Variant(IMAGE_CSA), tuple(range(100, 105))),
}


def taught_by(teachers: str, *settings: str) -> Variant:
    """Return a variant with cross-modal teachers: the name of one, or ``[NAME, NAME]``."""
    return Variant((f"data.cross_teacher={teachers}", *settings))


def taught_alone(rule_name: str, teachers: str, *settings: str) -> Variant:
    """Return a variant that trains on the term of a rule with cross-modal teachers alone."""
    return taught_by(teachers, "loss.terms=[]", f"loss.rule={rule_name}", *settings)


# Lines of the figure: experiments whose variants are temperatures.
CURVES = {
    "CUSA, published weights": temperatures(),
    "CUSA, alpha 1, beta 5": temperatures(*weights(1, 5)),
    "CUSA, alpha 1, beta 5, image labels": temperatures(*weights(1, 5), taught="image twice"),
    "xclr": {str(tau): rule("xclr", f"loss.xclr.tau={tau}") for tau in TEMPERATURES},
}

EXPERIMENTS: dict[str, dict[str, Variant]] = {
    "losses": {
        "contrastive": CONTRASTIVE,
        "CSA": Variant(("loss.terms=[contrastive, csa]",)),
        "USA": Variant(("loss.terms=[contrastive, usa]",)),
        "CUSA as published": PUBLISHED,
    },
    # The adapter learns the training pairs by heart: fewer epochs, or less of a student.
    "contrastive": {
        "2 epochs": Variant((*CONTRASTIVE.settings, "train.epochs=2")),
        "4 epochs": Variant((*CONTRASTIVE.settings, "train.epochs=4")),
        "dropout 0.5": Variant((*CONTRASTIVE.settings, "student.dropout=0.5")),
        "tau 0.1": Variant((*CONTRASTIVE.settings, "loss.tau.init=0.1", "loss.tau.min=0.1")),
    },
    **CURVES,
    "temperature by modality": {
        "image 0.3, text 1.0": Variant(soft(0.3, 1.0)),
        "image 1.0, text 0.3": Variant(soft(1.0, 0.3)),
        "image 0.2, text 0.3": Variant(soft(0.2, 0.3)),
        "image 0.3, text 0.2": Variant(soft(0.3, 0.2)),
    },
    "weights": {
        "alpha 0.1, beta 0.5": Variant(SHARP),
        "alpha 1, beta 0.5": Variant((*SHARP, *weights(1, 0.5))),
        "alpha 10, beta 0.5": Variant((*SHARP, *weights(10, 0.5))),
        "alpha 0.1, beta 5": Variant((*SHARP, *weights(0.1, 5))),
        "alpha 1, beta 5": Variant(STRONG),
        "alpha 10, beta 10": Variant((*SHARP, *weights(10, 10))),
    },
    # For B = 128: the published weights relative to InfoNCE, and a tenth of them.
    "infonce": {
        "alpha 12.8, beta 64": Variant(("loss.contrastive_scaling=infonce", *weights(12.8, 64))),
        "alpha 1.28, beta 6.4": Variant(("loss.contrastive_scaling=infonce", *weights(1.28, 6.4))),
        "alpha 0.1, beta 0.5": Variant(("loss.contrastive_scaling=infonce",)),
    },
    "controls": {labels: Variant(STRONG, labels) for labels in LABELS},
    "teachers": {
        **{taught: Variant(STRONG, taught=taught) for taught in TAUGHT},
        "mpnet": Variant((*STRONG, "data.text_teacher=mpnet")),
        "minilm and mpnet": Variant((*STRONG, "data.text_teacher=[minilm, mpnet]")),
    },
    "image labels": {
        **{labels: Variant(STRONG, labels, "image") for labels in LABELS},
        "temperature 0.2": Variant((*weights(1, 5), *soft(0.2)), taught="image"),
        "temperature 0.5": Variant((*weights(1, 5), *soft(0.5)), taught="image"),
        "published weights": Variant(SHARP, taught="image"),
        "alpha 10, beta 5": Variant((*weights(10, 5), *SHARP), taught="image"),
        "CSA alone": Variant((*STRONG, "loss.terms=[contrastive, csa]"), taught="image"),
        "USA alone": Variant((*STRONG, "loss.terms=[contrastive, usa]"), taught="image"),
    },
    "image labels, both directions": {
        **{labels: Variant(STRONG, labels, "image twice") for labels in LABELS},
        "alpha 10, beta 5": Variant((*weights(10, 5), *SHARP), taught="image twice"),
        "alpha 1, beta 0.5": Variant((*weights(1, 0.5), *SHARP), taught="image twice"),
    },
    "sources": {
        "each": Variant(STRONG),
        "image": Variant((*STRONG, "loss.soft_label_source=image")),
        "image, no USA": Variant(
            (*STRONG, "loss.soft_label_source=image", "loss.terms=[contrastive, csa]")
        ),
        "add": Variant((*STRONG, "loss.soft_label_source=add")),
        "add, temperature 0.2": Variant((*weights(1, 5), *soft(0.2), "loss.soft_label_source=add")),
        "dot, temperature 0.2": Variant((*weights(1, 5), *soft(0.2), "loss.soft_label_source=dot")),
    },
    "other rules": {
        "cwcl": rule("cwcl"),
        "cwcl, top 8": rule("cwcl", "loss.top_k=8"),
        "guide, text, margin 0.1": rule("guide"),
        "guide, text, margin 0.3": rule("guide", "loss.guide.margin=0.3"),
        "guide, either, margin 0.1": rule("guide", "loss.guide.teacher=either"),
        "self-guide, margin 0.1": rule("self-guide", "loss.self_guide.margin=0.1"),
        "self-guide, margin -0.1": rule("self-guide", "loss.self_guide.margin=-0.1"),
    },
    "cross-modal teachers": {name: Variant(measured=name) for name in TEACHERS},
    "dr": {
        **{name: taught_alone("dr", name) for name in TEACHERS},
        **{
            f"{name}, temperature {tau}": taught_alone(
                "dr", name, f"loss.cross_teacher_taus=[{tau}]"
            )
            for name in ("contrastive-5", "image-5")
            for tau in (0.02, 0.05, 0.1, 0.2)
        },
    },
    "top k": {f"top {k}": Variant((*STRONG, f"loss.top_k={k}")) for k in (4, 16, 64)},
    "orders": {
        **{
            order: Variant(order=order)
            for order in (SHUFFLED, "together 2", "together 5", "in turn 240", "in turn 960")
        },
        "in turn 240, temperature 0.3, alpha 1, beta 5": Variant(STRONG, order="in turn 240"),
    },
    "finals": {
        "contrastive": CONTRASTIVE,
        "contrastive, 4 epochs": Variant((*CONTRASTIVE.settings, "train.epochs=4")),
        "CUSA as published": PUBLISHED,
        "temperature 0.3, alpha 1, beta 5": Variant(STRONG),
        "the same, image labels in CSA": Variant((*STRONG, "loss.soft_label_source=image")),
    },
}
