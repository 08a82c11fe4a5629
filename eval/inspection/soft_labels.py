"""What soft labels say before anything is trained: how sharp they are, where the false negatives may lie.

All figures are of batches as the trainer draws them, with the teachers' rows of a store; no model is loaded. Notation
as in :mod:`cusa.train.loss.functions`: B pairs of an image and a caption, ``similarity`` ``[B, B]`` the cosines of a
teacher's rows, ``image_ids`` int64 ``[B]`` the image of each pair. Two pairs are *of different images* if their ids
differ; two captions of one image are never counted as a false negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.stats import rankdata

from cusa.data.errors import CusaError
from cusa.data.store.reader import Embeddings, EmbeddingStore, Split
from cusa.data.unit_rows import unit_rows
from cusa.eval.inspection.pair_search import (
    DUPLICATE,
    MOST_CAPTIONS,
    Advance,
    Sample,
    draw_sample,
    same_image_cosine,
    strongest_pairs,
    teacher_rows,
)
from cusa.eval.report.gallery import Item
from cusa.eval.report.page import write_page
from cusa.train.loader import EpochOrder, Pairs
from cusa.train.loss.functions import fuse_similarities, soft_label_loss, soft_labels

TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
COSINES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
NEIGHBOURS = 10

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What to inspect.

    Attributes:
        split: The split.
        image_teacher: Image teacher, or ``None`` for the store's only one.
        text_teacher: Same for text.
        batch_size: B, at least 2.
        batches: Batches that figures are averaged over.
        pairs: Strongest pairs of each ranking.
        sample: Images that they are searched among, and that the captions' median is taken over.
        seed: Of the batches, which are those of a training run with this seed, and of the sample.
        image_root: Folder of the images, if not the store's own.
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
class Sharpness:
    """Soft labels of a teacher at one temperature, as means over rows.

    Attributes:
        perplexity: exp of a row's entropy: among how many pairs the label seems spread evenly; from 1 to B.
        own: The label of the pair itself, ``P_ii``.
        other: The greatest label of a pair of another image.
    """

    perplexity: float
    own: float
    other: float


@dataclass(frozen=True)
class Alike:
    """Likely false negatives in a batch: two pairs of different images with a cosine of at least some value.

    Attributes:
        pairs: How many there are in a batch, each two counted once.
        rows: Share of the B pairs that have at least one such partner.
    """

    pairs: float
    rows: float


@dataclass(frozen=True)
class Agreement:
    """How far the two teachers agree on pairs of different images.

    Attributes:
        pearson: Correlation of their cosines.
        spearman: Correlation of the cosines' ranks.
        overlap: Share of a pair's ten nearest others (fewer in a small batch) that both teachers name.
        chance: What that share would be if one of them drew at random.
        kl: ``KL(P^I || P^T)`` of the soft labels at temperature 1, in nats.
    """

    pearson: float
    spearman: float
    overlap: float
    chance: float
    kl: float


@dataclass(frozen=True)
class TeacherFigures:
    """A teacher's figures: sharpness by temperature, likely false negatives by cosine."""

    name: str
    model_id: str
    sharpness: dict[float, Sharpness]
    alike: dict[float, Alike]


@dataclass(frozen=True)
class StrongPair:
    """Two images that a teacher calls alike, and the most similar two of their captions.

    Attributes:
        images: The images.
        captions: A caption of each.
        image_cosine: Of the images, by the image teacher.
        text_cosine: Of the captions, by the text teacher.
        both: ``sqrt(max(image_cosine, 0) * max(text_cosine, 0))``, the ``dot`` source.
    """

    images: tuple[Item, Item]
    captions: tuple[str, str]
    image_cosine: float
    text_cosine: float
    both: float

    @property
    def duplicate(self) -> bool:
        """Whether the two are likely one picture."""
        return self.image_cosine >= DUPLICATE


@dataclass(frozen=True)
class Inspection:
    """All figures; NaN where there is nothing to average.

    Attributes:
        dataset: Name of the data set.
        settings: What was asked for.
        n_pairs: Trainable pairs of the split.
        n_images: Their images.
        n_left_out: Pairs that were left out, their image or caption being skipped.
        image: Figures of the image teacher.
        text: Figures of the text teacher.
        same_image_cosine: Median cosine of two captions of one image, by the text teacher; NaN if no image has two.
        same_image_alike: Likely false negatives from that cosine on.
        agreement: Of the two teachers.
        n_searched: Images among which the strongest pairs were searched.
        n_duplicates: Pairs of them that are likely one picture.
        strongest: Strongest pairs, strongest first, by image, text and both.
    """

    dataset: str
    settings: Settings
    n_pairs: int
    n_images: int
    n_left_out: int
    image: TeacherFigures
    text: TeacherFigures
    same_image_cosine: float
    same_image_alike: Alike
    agreement: Agreement
    n_searched: int
    n_duplicates: int
    strongest: dict[str, tuple[StrongPair, ...]]


def inspect(
    store: EmbeddingStore, settings: Settings, advance: Advance = lambda what, done, total: None
) -> Inspection:
    """Inspect the soft labels that a split of a store would give.

    Args:
        store: The store.
        settings: What to inspect.
        advance: Told how far the work is.

    Raises:
        CusaError: If split or teachers are not there, or the split has fewer pairs than a batch, or one image only.
    """
    split = store.split(settings.split)
    names = (
        store.pick_teacher("image", settings.image_teacher, "--image-teacher"),
        store.pick_teacher("text", settings.text_teacher, "--text-teacher"),
    )
    image, text = (store.embeddings(name, settings.split) for name in names)
    pairs = Pairs(split, _NoInputs(store.skipped(settings.split)), (image, text))
    order = EpochOrder(len(pairs), settings.batch_size, settings.seed)
    images, captions = pairs.rows(np.arange(len(pairs)))
    n_images = len(np.unique(images))
    if n_images < 2:
        raise CusaError(
            f"split {settings.split!r} has pairs of one image only; soft labels need at least two images"
        )
    sample = draw_sample(images, captions, settings.sample, settings.seed)
    median = same_image_cosine(text, sample)

    sharp: dict[str, dict[float, list[Sharpness]]] = {
        m: {t: [] for t in TEMPERATURES} for m in ("image", "text")
    }
    close: dict[str, dict[float, list[Alike]]] = {
        m: {c: [] for c in COSINES} for m in ("image", "text")
    }
    same: list[Alike] = []
    agree: list[Agreement] = []
    for number in range(settings.batches):
        order.epoch, place = divmod(number, len(order))
        if place == 0:
            numbers = list(order)
        batch = pairs[numbers[place].tolist()]
        assert batch.teacher_image is not None
        assert batch.teacher_text is not None
        similarity = {"image": _cosines(batch.teacher_image), "text": _cosines(batch.teacher_text)}
        for modality, cosines in similarity.items():
            for tau in TEMPERATURES:
                sharp[modality][tau].append(sharpness(cosines, batch.image_ids, tau))
            for cosine in COSINES:
                close[modality][cosine].append(alike(cosines, batch.image_ids, cosine))
        # A little below: sums in another order round otherwise, and equal captions must count.
        same.append(alike(similarity["text"], batch.image_ids, median - 1e-6))
        agree.append(agreement(similarity["image"], similarity["text"], batch.image_ids))
        advance("batches", number + 1, settings.batches)

    found, n_duplicates = strongest_pairs(image, text, sample, settings.pairs, advance=advance)
    root = settings.image_root or store.image_root
    teachers = {
        modality: TeacherFigures(
            name,
            store.teachers[name].model_id,
            {tau: _means(parts) for tau, parts in sharp[modality].items()},
            {cosine: _means(parts) for cosine, parts in close[modality].items()},
        )
        for modality, name in zip(("image", "text"), names, strict=True)
    }
    return Inspection(
        dataset=store.dataset,
        settings=settings,
        n_pairs=len(pairs),
        n_images=n_images,
        n_left_out=pairs.n_left_out,
        image=teachers["image"],
        text=teachers["text"],
        same_image_cosine=median,
        same_image_alike=Alike(math.nan, math.nan) if math.isnan(median) else _means(same),
        agreement=_means(agree),
        n_searched=len(sample.images),
        n_duplicates=n_duplicates,
        strongest={
            ranking: tuple(_shown(image, text, sample, i, j, split, root) for i, j in places)
            for ranking, places in found.items()
        },
    )


def write_inspection(path: Path, inspection: Inspection) -> int:
    """Write the page.

    Args:
        path: The HTML file; replaced as a whole.
        inspection: What it shows.

    Returns:
        How many of its images could not be read.
    """
    shown = [
        item for pairs in inspection.strongest.values() for pair in pairs for item in pair.images
    ]
    return write_page(
        path,
        "soft_labels.html.jinja",
        [item.image_path for item in shown if item.image_path],
        i=inspection,
        duplicate=DUPLICATE,
        neighbours=min(NEIGHBOURS, inspection.settings.batch_size - 1),
        most_captions=MOST_CAPTIONS,
        number=lambda value, digits: "–" if math.isnan(value) else f"{value:,.{digits}f}",
    )


def as_json(inspection: Inspection) -> dict[str, Any]:
    """The inspection as a JSON-compatible dictionary; ``None`` for NaN, image ids for images."""
    figures = {f.name: getattr(inspection, f.name) for f in fields(inspection)}
    for name in ("settings", "image", "text", "same_image_alike", "agreement"):
        figures[name] = asdict(figures[name])
    root = inspection.settings.image_root
    figures["settings"]["image_root"] = None if root is None else str(root)
    figures["strongest"] = {
        ranking: [
            {**vars(p), "images": [item.text for item in p.images], "duplicate": p.duplicate}
            for p in pairs
        ]
        for ranking, pairs in inspection.strongest.items()
    }
    return {name: _without_nan(value) for name, value in figures.items()}


def sharpness(similarity: torch.Tensor, image_ids: torch.Tensor, tau: float) -> Sharpness:
    """Sharpness of a batch's soft labels ``P = soft_labels(similarity, tau)`` (paper, section 3.2).

    ``other`` is over the rows that have a pair of another image; NaN without any.

    Args:
        similarity: float ``[B, B]``.
        image_ids: int64 ``[B]``.
        tau: Temperature.
    """
    labels = soft_labels(similarity.double(), tau)
    perplexity = torch.special.entr(labels).sum(dim=1).exp()
    others = labels.masked_fill(image_ids[:, None] == image_ids, -torch.inf).amax(dim=1)
    others = others[others.isfinite()]
    return Sharpness(
        float(perplexity.mean()), float(labels.diagonal().mean()), float(others.mean())
    )


def alike(similarity: torch.Tensor, image_ids: torch.Tensor, cosine: float) -> Alike:
    """Likely false negatives of a batch.

    Args:
        similarity: float ``[B, B]``, symmetric.
        image_ids: int64 ``[B]``.
        cosine: From which on two pairs count.
    """
    found = ((similarity >= cosine) & (image_ids[:, None] != image_ids)).triu(1)
    return Alike(float(found.sum()), float((found.any(dim=0) | found.any(dim=1)).double().mean()))


def agreement(image: torch.Tensor, text: torch.Tensor, image_ids: torch.Tensor) -> Agreement:
    """Agreement of the teachers in a batch; NaN where it has no two pairs of different images, or no two cosines.

    The correlations take each two pairs once. Of rows with n candidates and k = min(10, n) nearest ones, one named at
    random is among the k with probability k / n. KL is over whole rows, the pair itself included, as in the loss.

    Args:
        image: float ``[B, B]``, of the image teacher.
        text: float ``[B, B]``, of the text teacher.
        image_ids: int64 ``[B]``.
    """
    different = image_ids[:, None] != image_ids
    x, y = (s[different.triu(1)].double().numpy() for s in (image, text))
    sizes = different.sum(dim=1)
    rows = sizes > 0
    k = sizes[rows].clamp_max(NEIGHBOURS).double()
    common = (_nearest(image, different) & _nearest(text, different)).sum(dim=1)[rows]
    return Agreement(
        pearson=_correlation(x, y),
        # Captions of one image repeat its cosines, but for rounding that depends on the machine: these are ties.
        spearman=_correlation(rankdata(x.round(5)), rankdata(y.round(5))),
        overlap=float((common / k).mean()),
        chance=float((k / sizes[rows]).mean()),
        kl=float(soft_label_loss(text.double(), image.double(), tau=1.0, tau_soft=1.0)),
    )


class _NoInputs:
    """Stands for a student that reads files: it takes what no teacher had to skip; nothing is read here."""

    def __init__(self, skipped: tuple[np.ndarray, np.ndarray]) -> None:
        self._skipped = skipped

    def images(self, rows: np.ndarray) -> torch.Tensor:
        return torch.empty(len(rows), 0)

    def texts(self, rows: np.ndarray) -> torch.Tensor:
        return torch.empty(len(rows), 0)

    def missing(self) -> tuple[np.ndarray, np.ndarray]:
        return self._skipped


def _cosines(rows: torch.Tensor) -> torch.Tensor:
    """float32 ``[B, B]``, from rows ``[B, d]``."""
    unit = torch.from_numpy(unit_rows(rows.numpy()))
    return unit @ unit.T


def _shown(
    image_teacher: Embeddings,
    text_teacher: Embeddings,
    sample: Sample,
    i: int,
    j: int,
    split: Split,
    root: Path,
) -> StrongPair:
    both = [i, j]
    first, second = teacher_rows(image_teacher, sample.images[both])
    captions = teacher_rows(text_teacher, sample.captions[both])
    by_text = captions[0] @ captions[1].T
    c, d = np.unravel_index(int(by_text.argmax()), by_text.shape)
    by_image = first @ second
    rows = sample.images[both].tolist()
    one, other = (
        Item("image", split.image_ids[row], root / split.image_paths[row]) for row in rows
    )
    return StrongPair(
        images=(one, other),
        captions=(
            split.captions[int(sample.captions[i, c])],
            split.captions[int(sample.captions[j, d])],
        ),
        image_cosine=float(by_image),
        text_cosine=float(by_text.max()),
        both=_fused(by_image, by_text.max()),
    )


def _fused(by_image: torch.Tensor, by_text: torch.Tensor) -> float:
    """The fused similarity of one pair of images, from both of its cosines."""
    fused, _ = fuse_similarities(by_image.reshape(1, 1), by_text.reshape(1, 1), "dot")
    return fused.item()


def _nearest(similarity: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Which are each row's ten most similar candidates, or all if fewer: bool ``[B, B]``; of equal ones the first."""
    order = similarity.masked_fill(~candidates, -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    chosen = torch.zeros_like(candidates).scatter_(1, order[:, :NEIGHBOURS], True)
    return chosen & candidates


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN if one of them never varies."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def _means(parts: Sequence[T]) -> T:
    """Field by field, over the parts in which a field is not NaN."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    known = [[value for value in column if not math.isnan(value)] for column in columns]
    return type(parts[0])(*(fmean(values) if values else math.nan for values in known))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
