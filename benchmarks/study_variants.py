"""Settings that the study's experiments put together, and the teachers that it makes itself."""

from __future__ import annotations

from dataclasses import replace

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


def temperatures(*settings: str, more: tuple[str, ...] = ()) -> dict[str, Variant]:
    """Return a variant for each soft-label temperature, by its name.

    Args:
        settings: Settings before the temperatures.
        more: Settings after them: runs with other settings, or in another order, are others.
    """
    variants = {}
    for tau in TEMPERATURES:
        variants[str(tau)] = Variant((*settings, *soft(tau), *more))
    # The default, as published: no run is taken twice.
    return variants | {"1.0": Variant((*settings, *more))}


def rule(name: str, *settings: str) -> Variant:
    """Return a variant that trains on a rule's term alone."""
    return Variant(("loss.terms=[]", f"loss.rule={name}", *settings))


CONTRASTIVE = Variant(("loss.terms=[contrastive]",))
PUBLISHED = Variant()
SHARP = soft(0.3)
STRONG = (*weights(1, 5), *SHARP)
IMAGE_CSA = (*STRONG, "loss.soft_label_source=image")
IMAGES_ALONE = (*STRONG, "loss.soft_label_modalities=[image]")
FOUR_EPOCHS = Variant((*CONTRASTIVE.settings, "train.epochs=4"))

# Cross-modal teachers that are made of students; seeds are none of those of the runs.
TEACHERS = {
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


# Rules with the settings that were tried in two places.
RULES = {
    "xclr, 0.3": ("xclr", "loss.xclr.tau=0.3"),
    "guide, text, margin 0.5": ("guide", "loss.guide.margin=0.5"),
    "guide, image, margin 0.5": ("guide", "loss.guide.teacher=image", "loss.guide.margin=0.5"),
    "guide, either, margin 0.4": ("guide", "loss.guide.teacher=either", "loss.guide.margin=0.4"),
    "self-guide, margin -0.1": ("self-guide", "loss.self_guide.margin=-0.1"),
    "cwcl, top 4": ("cwcl", "loss.top_k=4"),
    "features": ("features",),
    "dr by contrastive-5": (
        *("dr", "loss.cross_teacher_taus=[0.1]"),
        "data.cross_teacher=contrastive-5",
    ),
}


def rule_in_3(name: str, *settings: str) -> Variant:
    """Return a variant that trains on a rule's term alone, for three epochs."""
    return rule(name, *settings, "train.epochs=3")


def rule_beside(name: str, *settings: str) -> Variant:
    """Return a variant that adds a rule's term to CSA with the image teacher's labels, and USA."""
    return Variant((*IMAGE_CSA, f"loss.rule={name}", *settings))


def dr_over_taus(teachers: str) -> dict[str, Variant]:
    """Return a variant that trains on dr alone for each temperature, by its name."""
    variants = {}
    for tau in (0.02, 0.05, 0.1, 0.2, 0.3):
        variants[str(tau)] = taught_alone("dr", teachers, f"loss.cross_teacher_taus=[{tau}]")
    return variants


AT_A_TENTH = "loss.cross_teacher_taus=[0.1]"
TENTHS = "loss.cross_teacher_taus=[0.1, 0.1]"
BY_BOTH_FIVES = taught_alone("dr", "[contrastive-5, image-5]", TENTHS)
# Halfway between true pairs and others: their cosines are 0.49 and 0.09 on split train.
SIGMOID = (AT_A_TENTH, "loss.dr_sigmoid.teacher_bias=-3")


def hycd(alpha: float) -> Variant:
    """Return a variant that trains on hycd alone."""
    settings = (AT_A_TENTH, f"loss.hycd.alpha={alpha}")
    return taught_alone("hycd", "image-5", *settings)


def csa_by(teachers: str, tau: float) -> Variant:
    """Return a variant whose labels of CSA are cross-modal teachers', and those of USA as ever.

    USA's labels keep the temperature of 0.3.
    """
    usa = [setting.replace("tau_soft.", "tau_soft_usa.") for setting in SHARP]
    own = ("loss.soft_label_source=cross", "loss.usa_shares_soft=false")
    return taught_by(teachers, *weights(1, 5), *soft(tau), *usa, *own)


def last_of_15(variant: Variant) -> Variant:
    """Return a variant that trains for 15 epochs, and whose last student is measured."""
    return replace(variant, settings=(*variant.settings, "train.epochs=15", "data.val_split=null"))
