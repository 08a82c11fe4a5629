"""Inspection of soft labels before training: how sharp they are, and where false negatives lie.

All figures are measured on batches as the trainer draws them, from the teachers' rows of a store;
no model is loaded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cusa.data.store.embeddings import Embeddings
from cusa.data.store.reader import EmbeddingStore
from cusa.data.unit_rows import unit_rows
from cusa.eval.inspection.batch_figures import (
    NEIGHBOURS,
    FalseNegativeCount,
    agreement,
    count_false_negatives,
    mean_figures,
    sharpness,
)
from cusa.eval.inspection.judged_temperature import judged_temperatures
from cusa.eval.inspection.opened_split import OpenedSplit, open_split
from cusa.eval.inspection.pair_search import (
    DUPLICATE_COSINE,
    MAX_CAPTIONS,
    Advance,
    Sample,
    draw_sample,
    same_image_cosine,
    silent,
    strongest_pairs,
)
from cusa.eval.inspection.results import (
    GREATEST_TEMPERATURE,
    LEAST_TEMPERATURE,
    Inspection,
    JudgedTemperature,
    Settings,
    StrongPair,
    TeacherFigures,
)
from cusa.eval.inspection.split_teachers import SplitTeacher, teachers_of_split
from cusa.eval.inspection.target_figures import (
    TargetFigures,
    target_figures,
)
from cusa.eval.inspection.teacher_comparison import compare_teachers
from cusa.eval.report.page import write_page

TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# What the teachers of each kind compare.
KINDS = {"image": "images", "text": "captions", "cross": "images and captions"}
COSINES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

# Captions exactly as similar as the median must count, but the same sums in another order round
# differently; so cosines count that are smaller by up to this much.
_ROUNDING = 1e-6


def inspect(
    store: EmbeddingStore,
    settings: Settings,
    advance: Advance = silent,
) -> Inspection:
    """Inspect the soft labels that a split of a store would give.

    Args:
        store: The store.
        settings: What to inspect.
        advance: Called with the progress.

    Raises:
        CusaError: As :func:`cusa.eval.inspection.opened_split.open_split`.
    """
    split = open_split(store, settings)
    teachers = teachers_of_split(store, settings.split)
    # First, as a file of judgements may be refused.
    temperatures = _judged_temperatures(store, teachers, settings)
    sample = draw_sample(split.image_rows, split.caption_rows, settings.sample, settings.seed)
    median = same_image_cosine(split.text_teacher, sample)
    batches = _measure_batches(split, settings, median, advance)
    strongest, n_duplicates = _strongest(split, sample, settings.pairs, advance)
    comparison = None
    if len(teachers) > 2:  # of two, the figures above say it
        comparison = compare_teachers(split, teachers, settings.batches, TEMPERATURES, advance)
    return Inspection(
        dataset=store.dataset,
        settings=settings,
        n_pairs=len(split.pairs),
        n_images=split.n_images,
        n_left_out=split.pairs.n_left_out,
        image=_teacher_figures(batches, "image", split.image_teacher),
        text=_teacher_figures(batches, "text", split.text_teacher),
        same_image_cosine=median,
        same_image_count=mean_figures(batches["same image"]),
        agreement=mean_figures(batches["agreement"]),
        n_searched=len(sample.images),
        n_duplicates=n_duplicates,
        targets=_targets(batches),
        strongest=strongest,
        comparison=comparison,
        temperatures=temperatures,
    )


def _strongest(
    split: OpenedSplit,
    sample: Sample,
    n_pairs: int,
    advance: Advance,
) -> tuple[dict[str, tuple[StrongPair, ...]], int]:
    """Return the most similar pairs of each ranking, and how many pairs are likely one picture."""
    teachers = (split.image_teacher, split.text_teacher)
    ranked, n_duplicates = strongest_pairs(*teachers, sample, n_pairs, advance=advance)
    strongest = {}
    for ranking, positions in ranked.items():
        strongest[ranking] = tuple(split.read_pair(sample, pair) for pair in positions)
    return strongest, n_duplicates


def _judged_temperatures(
    store: EmbeddingStore,
    teachers: Sequence[SplitTeacher],
    settings: Settings,
) -> tuple[JudgedTemperature, ...]:
    if settings.judgements is None:
        return ()
    return judged_temperatures(
        store,
        settings.split,
        teachers,
        settings.judgements,
        settings.seed,
    )


def write_inspection(
    path: Path,
    inspection: Inspection,
) -> int:
    """Write an inspection as a page.

    Args:
        path: The HTML file, which is written atomically.
        inspection: The inspection.

    Returns:
        The number of images on the page that could not be read.
    """
    image_paths = []
    for pairs in inspection.strongest.values():
        for pair in pairs:
            image_paths += [item.image_path for item in pair.images if item.image_path]
    return write_page(
        path,
        "soft_labels.html.jinja",
        image_paths,
        inspection=inspection,
        duplicate_cosine=DUPLICATE_COSINE,
        neighbours=min(NEIGHBOURS, inspection.settings.batch_size - 1),
        max_captions=MAX_CAPTIONS,
        number=format_figure,
        temperature=format_temperature,
        kinds=KINDS,
    )


def format_temperature(tau: float) -> str:
    """Format a temperature that judgements support; at an end of the search, it is a bound."""
    if tau <= LEAST_TEMPERATURE:
        return f"at most {LEAST_TEMPERATURE:g}"
    if tau >= GREATEST_TEMPERATURE:
        return f"at least {GREATEST_TEMPERATURE:g}"
    return f"{tau:.2g}"


def format_figure(
    value: float,
    digits: int,
) -> str:
    """Format a figure for the page; NaN becomes a dash."""
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"


# Figures of every batch, by modality with temperature or least cosine, or by name for the text
# teacher's "same image" count and the teachers' "agreement"; by "targets", term and modality for
# those of a loss.
_BatchFigures = dict[Any, list[Any]]


def _measure_batches(
    split: OpenedSplit,
    settings: Settings,
    same_image_median: float,
    advance: Advance,
) -> _BatchFigures:
    """Measure the first batches of a training run."""
    figures: _BatchFigures = defaultdict(list)
    least_same_image_cosine = same_image_median - _ROUNDING
    n_batches = settings.batches
    for number, pair_numbers in enumerate(split.batches(n_batches), 1):
        batch = split.pairs[pair_numbers]
        assert isinstance(batch.teacher_image, torch.Tensor)
        assert isinstance(batch.teacher_text, torch.Tensor)
        image_cosines = _cosines(batch.teacher_image)
        text_cosines = _cosines(batch.teacher_text)
        image_ids = batch.image_ids
        if split.loss is not None:
            for name, targets in target_figures(batch, split.loss).items():
                figures["targets", *name].append(targets)
        for modality, cosines in (("image", image_cosines), ("text", text_cosines)):
            for tau in TEMPERATURES:
                figures[modality, "tau", tau].append(sharpness(cosines, image_ids, tau))
            for least_cosine in COSINES:
                count = count_false_negatives(cosines, image_ids, least_cosine)
                figures[modality, "cosine", least_cosine].append(count)
        same_image_count = FalseNegativeCount(math.nan, math.nan)
        if not math.isnan(same_image_median):
            same_image_count = count_false_negatives(
                text_cosines, image_ids, least_same_image_cosine
            )
        figures["same image"].append(same_image_count)
        figures["agreement"].append(agreement(image_cosines, text_cosines, image_ids))
        advance("batches", number, n_batches)
    return figures


def _teacher_figures(
    figures: _BatchFigures,
    modality: str,
    teacher: Embeddings,
) -> TeacherFigures:
    by_tau = {tau: mean_figures(figures[modality, "tau", tau]) for tau in TEMPERATURES}
    by_cosine = {cosine: mean_figures(figures[modality, "cosine", cosine]) for cosine in COSINES}
    return TeacherFigures(teacher.teacher, teacher.settings.model_id, by_tau, by_cosine)


def _targets(figures: _BatchFigures) -> dict[str, dict[str, TargetFigures]]:
    targets: dict[str, dict[str, TargetFigures]] = defaultdict(dict)
    for name, figures_of_batches in figures.items():
        if name[0] == "targets":
            _, term, modality = name
            targets[term][modality] = mean_figures(figures_of_batches)
    return dict(targets)


def _cosines(rows: torch.Tensor) -> torch.Tensor:
    """Compute float32 ``[B, B]`` cosines of rows ``[B, d]``."""
    unit = torch.from_numpy(unit_rows(rows.numpy()))
    return unit @ unit.T
