"""The output of ``cusa-store inspect``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from cusa.eval.inspection.results import (
    Comparison,
    FalseNegativeCount,
    Inspection,
    JudgedTemperature,
)
from cusa.eval.inspection.soft_labels import KINDS, format_figure, format_temperature
from cusa.screen.console import console, print_plain


def print_inspection(inspection: Inspection) -> None:
    """Print the sharpness of the soft labels, likely false negatives, and teacher agreement."""
    settings = inspection.settings
    print_plain(
        f"{inspection.dataset}, split {settings.split}: {inspection.n_pairs:,} pairs of "
        f"{inspection.n_images:,} images, {inspection.n_left_out:,} left out; "
        f"{settings.batches:,} batches of {settings.batch_size:,}\n"
        f"image teacher {inspection.image.name}, text teacher {inspection.text.name}"
    )
    screen = console()
    screen.print(_sharpness_table(inspection))
    screen.print(_false_negatives_table(inspection))
    if inspection.targets:
        screen.print(_targets_table(inspection))
    agreement = inspection.agreement
    print_plain(
        f"agreement of the teachers: Pearson {format_figure(agreement.pearson, 3)}, "
        f"Spearman {format_figure(agreement.spearman, 3)}, "
        f"nearest neighbours in common {format_figure(100 * agreement.overlap, 1)} % "
        f"(by chance {format_figure(100 * agreement.chance, 1)} %), "
        f"KL at tau_s 1 {agreement.kl:.4f}\n"
        f"likely duplicates: {inspection.n_duplicates:,} pairs among "
        f"{inspection.n_searched:,} images"
    )
    if inspection.comparison is not None:
        screen.print(_teachers_table(inspection.comparison))
        screen.print(_teacher_pairs_table(inspection.comparison))
    if inspection.temperatures:
        screen.print(_temperatures_table(inspection.temperatures))


def _teachers_table(comparison: Comparison) -> Table:
    temperatures = list(comparison.teachers[0].sharpness)
    columns = [f"tau_s {tau:g}" for tau in temperatures]
    table = Table("teacher", "of", *columns, title="all teachers: perplexity of the soft labels")
    table.caption = (
        f"perplexity: of {comparison.batch_size:,}; compared on {comparison.n_images:,} images and "
        f"{comparison.n_captions:,} captions in {comparison.n_batches:,} batches"
    )
    for teacher in comparison.teachers:
        cells = [teacher.name, KINDS[teacher.kind]]
        for tau in temperatures:
            cells.append(format_figure(teacher.sharpness[tau].perplexity, 1))
        table.add_row(*cells)
    return table


def _teacher_pairs_table(comparison: Comparison) -> Table:
    table = Table("teachers", "Spearman", "nearest in common", "only the first", "only the second")
    table.title = "agreement of each two teachers"
    table.caption = (
        "only: of the most similar 1 % of pairs of different images by one teacher, those that the "
        "other finds less similar than most; nearest in common: by chance in brackets"
    )
    for pair in comparison.pairs:
        agreement = pair.agreement
        overlap = format_figure(100 * agreement.overlap, 1)
        chance = format_figure(100 * agreement.chance, 1)
        table.add_row(
            f"{pair.first}, {pair.second}",
            format_figure(agreement.spearman, 3),
            f"{overlap} % ({chance} %)",
            f"{format_figure(100 * pair.only_first, 1)} %",
            f"{format_figure(100 * pair.only_second, 1)} %",
        )
    return table


def _temperatures_table(temperatures: Sequence[JudgedTemperature]) -> Table:
    captions = temperatures[0].captions
    judged = temperatures[0].pairs
    table = Table("teacher", "of", "tau_s", "95 % interval", "cross entropy", "at tau_s 1")
    table.title = "temperatures that people's judgements support"
    table.caption = (
        f"{judged:,} judged pairs of {captions:,} captions; people's own entropy "
        f"{temperatures[0].people:.3f}"
    )
    for fitted in temperatures:
        table.add_row(
            fitted.name,
            KINDS[fitted.kind],
            format_temperature(fitted.tau),
            f"{format_temperature(fitted.low)} to {format_temperature(fitted.high)}",
            f"{fitted.cross_entropy:.3f}",
            f"{fitted.at_one:.3f}",
        )
    return table


def _sharpness_table(inspection: Inspection) -> Table:
    teachers = (inspection.image, inspection.text)
    table = Table("tau_s", *_teacher_columns("perplexity", "own", "other"), title="soft labels")
    table.caption = (
        f"perplexity: of {inspection.settings.batch_size:,}; own: label of the pair itself; "
        "other: greatest label of another image"
    )
    for tau in inspection.image.sharpness:
        cells = [f"{tau:g}"]
        for teacher in teachers:
            figures = teacher.sharpness[tau]
            cells += [
                format_figure(figures.perplexity, 1),
                format_figure(figures.own_label, 3),
                format_figure(figures.greatest_other_label, 3),
            ]
        table.add_row(*cells)
    return table


def _false_negatives_table(inspection: Inspection) -> Table:
    table = Table("cosine", *_teacher_columns("in a batch", "% of rows"))
    table.title = "likely false negatives: pairs of different images with at least this cosine"
    # Both teachers have the same cosines.
    for least_cosine in inspection.image.false_negatives:
        cells = [f"{least_cosine:g}"]
        for teacher in (inspection.image, inspection.text):
            cells += _count_cells(teacher.false_negatives[least_cosine])
        table.add_row(*cells)
    if math.isfinite(inspection.same_image_cosine):
        cells = [f"{inspection.same_image_cosine:.3f} *", "", ""]
        table.add_row(*cells, *_count_cells(inspection.same_image_count))
        table.caption = "* the median of two captions of the same image"
    return table


def _targets_table(inspection: Inspection) -> Table:
    table = Table("term", "queries", "perplexity", "own", "other", "leaving", "% of rows")
    table.title = "targets of the loss"
    table.caption = (
        "leaving: candidates that a guide takes out of a row; of dr-sigmoid, own and other are "
        "signs from -1 to 1"
    )
    for term, by_modality in inspection.targets.items():
        for modality, figures in by_modality.items():
            table.add_row(
                term,
                modality,
                format_figure(figures.perplexity, 1),
                format_figure(figures.own_label, 3),
                format_figure(figures.greatest_other_label, 3),
                format_figure(figures.leaving, 2),
                format_figure(100 * figures.rows, 1),
            )
    return table


def _count_cells(count: FalseNegativeCount) -> list[str]:
    return [f"{count.pairs:,.1f}", f"{100 * count.rows:.1f}"]


def _teacher_columns(*titles: str) -> list[str]:
    return [f"{modality}: {title}" for modality in ("image", "text") for title in titles]
