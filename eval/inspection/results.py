"""Settings and results of an inspection, and the results as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from cusa.eval.inspection.batch_figures import (
    Agreement,
    FalseNegativeCount,
    Sharpness,
)
from cusa.eval.report.gallery import Item

# Names in the JSON output, where they differ from the fields'.
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
    """What to inspect.

    Attributes:
        split: The split.
        image_teacher: Image teacher, or ``None`` for the store's only one.
        text_teacher: Text teacher, or ``None`` for the store's only one.
        batch_size: B, at least 2.
        batches: Number of batches that figures are averaged over.
        pairs: Number of pairs listed in each ranking.
        sample: Number of images that are compared with each other, and that the median over
            captions is taken over.
        seed: Seed of the batches, which are those of a training run with this seed, and of the
            sample.
        image_root: Folder of the images, or ``None`` for the store's own.
    """

    split: str = "train"
    image_teacher: str | None = None
    text_teacher: str | None = None
    batch_size: int = 128
    batches: int = 100
    pairs: int = 30
    sample: int = 20_000
    seed: int = 0
    image_root: Path | None = None


@dataclass(frozen=True)
class TeacherFigures:
    """Figures of a teacher: sharpness by temperature, likely false negatives by least cosine."""

    name: str
    model_id: str
    sharpness: dict[float, Sharpness]
    false_negatives: dict[float, FalseNegativeCount]


@dataclass(frozen=True)
class StrongPair:
    """Two images that a teacher finds similar, and the most similar two of their captions.

    Attributes:
        images: The images.
        captions: A caption of each.
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
class Inspection:
    """All figures; NaN where there is nothing to average.

    Attributes:
        dataset: Name of the data set.
        settings: The settings.
        n_pairs: Trainable pairs of the split.
        n_images: Images of these pairs.
        n_left_out: Pairs left out because their image or caption was skipped.
        image: Figures of the image teacher.
        text: Figures of the text teacher.
        same_image_cosine: Median cosine of two captions of one image, by the text teacher; NaN if
            no image has two.
        same_image_count: Likely false negatives from that cosine on.
        agreement: Agreement of the two teachers.
        n_searched: Images that were compared with each other.
        n_duplicates: Pairs of these that are likely one picture.
        strongest: The most similar pairs, most similar first, by image, text and both.
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
    strongest: dict[str, tuple[StrongPair, ...]]


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
