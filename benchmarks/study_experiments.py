"""What the study on Flickr8k compares."""

from __future__ import annotations

import itertools

from study_pairs import LABELS, SHUFFLED, TAUGHT
from study_runs import Variant
from study_variants import (
    BY_BOTH_FIVES,
    CONTRASTIVE,
    FOUR_EPOCHS,
    IMAGE_CSA,
    IMAGES_ALONE,
    PUBLISHED,
    RULES,
    SHARP,
    SIGMOID,
    STRONG,
    TEACHERS,
    TEMPERATURES,
    TENTHS,
    csa_by,
    dr_over_taus,
    hycd,
    last_of_15,
    rule,
    rule_beside,
    rule_in_3,
    soft,
    taught_alone,
    temperatures,
    weights,
)

# The study's own, and the preset's.
EPOCHS = 6
DROPOUT = 0.1

# Lines of the figure: experiments whose variants are temperatures.
CURVES = {
    "CUSA, published weights": temperatures(),
    "CUSA, alpha 1, beta 5": temperatures(*weights(1, 5)),
    "CUSA, alpha 1, beta 5, image labels in CSA": temperatures(
        *weights(1, 5), more=("loss.soft_label_source=image",)
    ),
    "xclr": {str(tau): rule("xclr", f"loss.xclr.tau={tau}") for tau in TEMPERATURES},
    "dr by 5 contrastive students": dr_over_taus("contrastive-5"),
    "dr by 5 students of image labels": dr_over_taus("image-5"),
}
LEVELS = {"contrastive": CONTRASTIVE, "cwcl, the 8 greatest": rule("cwcl", "loss.top_k=8")}


# Settings whose best number of epochs and dropout were looked for.
FAMILIES = {
    "contrastive": CONTRASTIVE.settings,
    "CUSA as published": (),
    "sharp": STRONG,
    "image labels": IMAGE_CSA,
}


def epochs_and_dropout() -> dict[str, Variant]:
    """Return variants of all families, by their names, numbers of epochs and dropout.

    Names say what a variant sets itself: with other --epochs, the others have these.
    """
    variants = {}
    places = itertools.product(FAMILIES.items(), (2, 3, 4, 6, 10), (0.1, 0.3, 0.5))
    for (name, settings), epochs, dropout in places:
        words = [name]
        # What all runs have anyway is left out: no run is taken twice.
        more = []
        if epochs != EPOCHS:
            words.append(f"{epochs} epochs")
            more.append(f"train.epochs={epochs}")
        if dropout != DROPOUT:
            words.append(f"dropout {dropout}")
            more.append(f"student.dropout={dropout}")
        variants[", ".join(words)] = Variant((*settings, *more))
    return variants


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
        "temperature 0.2": Variant((*weights(1, 5), *soft(0.2)), taught="image twice"),
        "temperature 0.5": Variant((*weights(1, 5), *soft(0.5)), taught="image twice"),
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
    # Each as the only term. In 6 epochs, those near to contrastive training overfit as it does.
    "other rules": {
        "cwcl": rule("cwcl"),
        **{f"cwcl, top {k}": rule("cwcl", f"loss.top_k={k}") for k in (2, 4, 8)},
        "guide, text, margin 0.1": rule("guide"),
        "guide, text, margin 0.3": rule("guide", "loss.guide.margin=0.3"),
        "guide, either, margin 0.1": rule("guide", "loss.guide.teacher=either"),
        "self-guide, margin 0.1": rule("self-guide", "loss.self_guide.margin=0.1"),
        "self-guide, margin -0.1": rule("self-guide", "loss.self_guide.margin=-0.1"),
        "features": rule("features"),
        "features, distance 8": rule("features", "loss.features.distance_weight=8"),
        "features, distance 100": rule("features", "loss.features.distance_weight=100"),
    },
    "other rules, 3 epochs": {
        "contrastive": Variant((*CONTRASTIVE.settings, "train.epochs=3")),
        **{name: rule_in_3(*settings) for name, settings in RULES.items()},
    },
    "rules beside image labels": {
        "none": Variant(IMAGE_CSA),
        **{name: rule_beside(*settings) for name, settings in RULES.items()},
    },
    "cross-modal teachers": {name: Variant(measured=name) for name in TEACHERS},
    "cross-modal rules": {
        "dr by contrastive-5 at its own temperature": taught_alone("dr", "contrastive-5"),
        "dr by contrastive-5 and image-5": BY_BOTH_FIVES,
        "dr by sharp-5 and image-5": taught_alone("dr", "[sharp-5, image-5]", TENTHS),
        "hycd by image-5, alpha 0.5": hycd(0.5),
        "hycd by image-5, alpha 0.1": hycd(0.1),
        "dr-sigmoid by image-5": taught_alone("dr-sigmoid", "image-5", *SIGMOID),
        "CSA by image-5, temperature 0.1": csa_by("image-5", 0.1),
        "CSA by image-5, temperature 0.2": csa_by("image-5", 0.2),
        "CSA by contrastive-5 and image-5, temperature 0.2": csa_by(
            "[contrastive-5, image-5]", 0.2
        ),
    },
    "text teachers beside image labels": {
        "mpnet": Variant((*IMAGE_CSA, "data.text_teacher=mpnet")),
    },
    "top k": {f"top {k}": Variant((*STRONG, f"loss.top_k={k}")) for k in (4, 16, 64)},
    "epochs and dropout": epochs_and_dropout(),
    "orders": {
        **{
            order: Variant(order=order)
            for order in (SHUFFLED, "together 2", "together 5", "in turn 240", "in turn 960")
        },
        "in turn 240, temperature 0.3, alpha 1, beta 5": Variant(STRONG, order="in turn 240"),
    },
    "finals": {
        "contrastive": CONTRASTIVE,
        "contrastive, 4 epochs": FOUR_EPOCHS,
        "contrastive, 2 epochs": Variant((*CONTRASTIVE.settings, "train.epochs=2")),
        "CUSA as published": PUBLISHED,
        "temperature 0.3, alpha 1, beta 5": Variant(STRONG),
        "the same, image labels in CSA": Variant(IMAGE_CSA),
        "the same, soft labels of images alone": Variant(IMAGES_ALONE),
        "temperature 0.3, alpha 1, beta 5, 4 epochs": Variant((*STRONG, "train.epochs=4")),
        "dr by contrastive-5 and image-5": BY_BOTH_FIVES,
    },
    # The student after the last of 15 epochs: val chooses nothing.
    "last of 15 epochs": {
        "contrastive": last_of_15(CONTRASTIVE),
        "temperature 0.3, alpha 1, beta 5, image labels in CSA": last_of_15(Variant(IMAGE_CSA)),
        "dr by contrastive-5 and image-5": last_of_15(BY_BOTH_FIVES),
    },
}
