"""Settings and results of an inspection, and their conversion to JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from cusa.eval.inspection.batch_figures import (
    Agreement,
    FalseNegativeCount,
    Sharpness,
)
from cusa.eval.inspection.target_figures import TargetFigures, refuse_rules_without_targets
from cusa.eval.report.gallery import Item
from cusa.train.loss.config import LossConfig

TeacherKind = Literal["image", "text", "cross"]

# Keys in the JSON output that differ from the names of the fields.
_JSON_NAMES = {
    "own_label": "own",
    "greatest_other_label": "other",
    "false_negatives": "alike",
    "same_image_count": "same_image_alike",
    "fused_cosine": "both",
    "is_duplicate": "duplicate",
}


@dataclass(frozen=True)
class Settings:
    """Settings of an inspection.

    Attributes:
        split: Name of the split.
        image_teacher: Name of the image teacher; ``None`` for the store's only one.
        text_teacher: Name of the text teacher; ``None`` for the store's only one.
        cross_teacher: Names of the cross-modal teachers that ``loss`` needs; empty for the store's
            only one.
        batch_size: Number of pairs per batch, at least 2.
        batches: Number of batches to average figures over.
        pairs: Number of pairs in each ranking.
        sample: Number of images to draw; they are compared with each other, and the median cosine
            of two captions is taken over them.
        seed: Seed of the sample, and of the batches, which are those of a training run with this
            seed.
        image_root: Folder of the images; ``None`` for the store's own.
        loss: Settings of a loss whose targets are measured, too; ``None`` for none.
        judgements: File of people's judgements of the split's pairs, to fit temperatures to.
    """

    split: str = "train"
    image_teacher: str | None = None
    text_teacher: str | None = None
    cross_teacher: tuple[str, ...] = ()
    batch_size: int = 128
    batches: int = 100
    pairs: int = 30
    sample: int = 20_000
    seed: int = 0
    image_root: Path | None = None
    loss: LossConfig | None = None
    judgements: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a loss whose targets cannot be measured."""
        if self.loss is not None:
            refuse_rules_without_targets(self.loss)


@dataclass(frozen=True)
class TeacherFigures:
    """Figures of a teacher.

    Attributes:
        name: Name of the teacher in the store.
        model_id: Name of its model.
        sharpness: Sharpness of the soft labels by temperature.
        false_negatives: Likely false negatives by least cosine.
    """

    name: str
    model_id: str
    sharpness: dict[float, Sharpness]
    false_negatives: dict[float, FalseNegativeCount]


@dataclass(frozen=True)
class StrongPair:
    """Two images that a teacher finds similar, and the most similar two of their captions.

    Attributes:
        images: The two images.
        captions: A caption of each image.
        image_cosine: Cosine of the images, by the image teacher.
        text_cosine: Cosine of the captions, by the text teacher.
        fused_cosine: ``sqrt(max(image_cosine, 0) * max(text_cosine, 0))``, the ``dot`` source.
        is_duplicate: Whether the two images are likely one picture.
    """

    images: tuple[Item, Item]
    captions: tuple[str, str]
    image_cosine: float
    text_cosine: float
    fused_cosine: float
    is_duplicate: bool


@dataclass(frozen=True)
class ComparedTeacher:
    """A teacher among those that are compared.

    Attributes:
        name: Its name in the store.
        kind: ``"image"``, ``"text"`` or ``"cross"``.
        model_id: Name of its model.
        sharpness: Sharpness of its soft labels by temperature.
    """

    name: str
    kind: TeacherKind
    model_id: str
    sharpness: dict[float, Sharpness]


@dataclass(frozen=True)
class TeacherPair:
    """Two teachers.

    Attributes:
        first: Name of a teacher.
        second: Name of the other one.
        agreement: How far they agree.
        only_first: Of the likely false negatives of the first, the share that the second does not
            see, 0 to 1; see :func:`.seen_by_one`.
        only_second: Of those of the second, the share that the first does not see.
    """

    first: str
    second: str
    agreement: Agreement
    only_first: float
    only_second: float


@dataclass(frozen=True)
class Comparison:
    """A comparison of all teachers of a split.

    Attributes:
        teachers: The teachers.
        pairs: Each two of them.
        batch_size: Pairs of an image and a caption in a batch that they are compared on.
        n_batches: Number of these batches.
        n_images: Number of images in them.
        n_captions: Number of captions in them.
    """

    teachers: tuple[ComparedTeacher, ...]
    pairs: tuple[TeacherPair, ...]
    batch_size: int
    n_batches: int
    n_images: int
    n_captions: int


# The temperatures among which those that judgements support are sought.
LEAST_TEMPERATURE = 0.01
GREATEST_TEMPERATURE = 10.0


@dataclass(frozen=True)
class JudgedTemperature:
    """The temperature at which a teacher's soft labels fit people's judgements best.

    ``LEAST_TEMPERATURE`` and ``GREATEST_TEMPERATURE``, the ends of the search, stand for any
    temperature beyond them.

    Attributes:
        name: Name of the teacher.
        kind: ``"image"``, ``"text"`` or ``"cross"``.
        tau: The temperature.
        low: Lower end of a 95 % interval for it, from resampled captions.
        high: Its upper end.
        cross_entropy: Cross entropy of people's labels and the soft labels at that temperature, in
            nats per caption.
        at_one: The same at temperature 1.
        people: Entropy of people's labels, below which no soft labels can get.
        captions: Number of captions.
        pairs: Number of judged pairs.
    """

    name: str
    kind: TeacherKind
    tau: float
    low: float
    high: float
    cross_entropy: float
    at_one: float
    people: float
    captions: int
    pairs: int


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection; figures are NaN if there is nothing to average.

    Attributes:
        dataset: Name of the data set.
        settings: The settings.
        n_pairs: Number of trainable pairs of the split.
        n_images: Number of images of these pairs.
        n_left_out: Number of pairs left out because their image or caption was skipped.
        image: Figures of the image teacher.
        text: Figures of the text teacher.
        same_image_cosine: Median cosine of two captions of one image, by the text teacher; NaN if
            no image has two.
        same_image_count: Likely false negatives with at least that cosine.
        agreement: Agreement of the two teachers.
        n_searched: Number of images that were compared with each other.
        n_duplicates: Number of pairs of these images that are likely one picture.
        targets: What the terms of ``settings.loss`` would make of a batch, by the term's name and
            the modality of the queries.
        strongest: The most similar pairs by ranking (``"image"``, ``"text"``, ``"both"``), most
            similar first.
        comparison: Comparison of all teachers of the split; ``None`` if there are but two.
        temperatures: The temperatures that people's judgements support, by teacher; empty without
            judgements.
    """

    dataset: str
    settings: Settings
    n_pairs: int
    n_images: int
    n_left_out: int
    image: TeacherFigures
    text: TeacherFigures
    same_image_cosine: float
    same_image_count: FalseNegativeCount
    agreement: Agreement
    n_searched: int
    n_duplicates: int
    targets: dict[str, dict[str, TargetFigures]]
    strongest: dict[str, tuple[StrongPair, ...]]
    comparison: Comparison | None = None
    temperatures: tuple[JudgedTemperature, ...] = ()


def to_json(value: Any) -> Any:
    """Convert an inspection to JSON-compatible values: ``None`` for NaN, image ids for images."""
    if isinstance(value, Item):
        return value.text
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        return {_JSON_NAMES.get(name, name): to_json(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [to_json(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
