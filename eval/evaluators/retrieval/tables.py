"""Tables of retrieval: on the split, and by the protocols of the COCO test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cusa.data.embeddings import HEADS
from cusa.eval.evaluators.retrieval.results import RetrievalResults
from cusa.eval.evaluators.retrieval.teacher_scores import teachers_know_less
from cusa.eval.evaluators.splits import split_title
from cusa.eval.report.make_tables import make_tables
from cusa.eval.report.paper import paper_tables
from cusa.eval.report.shared_tables import (
    PRECISIONS,
    RECALLS,
    SELF_IS_NO_CANDIDATE,
    compared_figures,
    compared_headline,
    contents_of,
    fact,
    heads_of,
    intervals_rule,
    published,
    ties_rule,
)
from cusa.eval.report.tables import (
    TASKS,
    Group,
    Metric,
    NamedResult,
    Section,
    TableSpec,
)

Spec = TableSpec[RetrievalResults]
_R_PRECISION = Metric("r_precision", "R-Precision")
CROSS_MODAL_TASKS = ("i2t", "t2i")


def retrieval_sections(results: Sequence[NamedResult[RetrievalResults]]) -> list[Section]:
    """Make the sections of retrieval.

    Args:
        results: The results of each model, all measured on the same split.
    """
    contents = contents_of(results)
    headlines, remarks = {}, {}
    for position, result in enumerate(results):
        if result.content is None:
            continue
        rsum = result.content["heads"]["cross"]["retrieval"]["rsum"]
        if rsum is not None:
            compared_figure = _data_set(contents), "rsum"
            headlines[position] = compared_headline(
                result, "RSUM of 600, cross head", rsum, compared_figure
            )
        remarks[position] = teachers_know_less(result.content)
    intervals, ties, data_set = intervals_rule(contents), ties_rule(contents), _data_set(contents)
    split = ""
    if contents:
        split = f"{contents[0]['dataset']}, split {contents[0]['split']}"
    of_split = Section(
        "tables",
        "Retrieval",
        (_fact(contents),) if contents else (),
        intervals,
        make_tables(results, _split_specs(ties, data_set), split),
        make_tables(results, [_ranks_spec()], split),
        headlines=headlines,
        remarks=remarks,
    )
    protocols = Section(
        "protocols",
        "Protocols of the COCO test set",
        (),
        intervals,
        make_tables(results, _protocol_specs(ties, data_set), split),
    )
    return [of_split, protocols]


def _data_set(contents: Sequence[RetrievalResults]) -> str:
    """Return the name of the split in comparison.json; empty without results."""
    if not contents:
        return ""
    return split_title(contents[0]["dataset"], contents[0]["split"])


def _fact(contents: Sequence[RetrievalResults]) -> str:
    first = contents[0]
    counts = f"{first['n_images']:,} images, {first['n_captions']:,} captions"
    skipped = first.get("n_images_skipped", 0), first.get("n_captions_skipped", 0)
    if any(skipped):
        counts += f" ({skipped[0]:,} and {skipped[1]:,} were skipped)"
    fingerprints: list[str | None] = []
    notes: list[str] = []
    for content in contents:
        fingerprints.append(
            content.get("split_fingerprint")
        )  # missing in the first version of the format
        notes += content.get("notes", [])
    return fact(f"{first['dataset']}, split {first['split']}", counts, fingerprints, notes)


def _split_specs(ties: str, data_set: str) -> list[Spec]:
    """Describe the tables of a split.

    Args:
        ties: How ties count, in words.
        data_set: Name of the split in comparison.json.
    """
    across = _recalls_spec(
        "Between images and captions",
        f"An image and the captions written for it are right for each other. {ties}",
        ("retrieval",),
        data_set,
    )
    within: Spec = TableSpec(
        "Among captions and among images",
        "For a caption, the other captions of its image are right; for an image, the other images "
        f"with its label. {SELF_IS_NO_CANDIDATE} A query without a right answer does not count. "
        f"{ties}",
        HEADS,
        (
            _group("t2t", ("unimodal", "t2t"), RECALLS, data_set),
            _group("i2i", ("unimodal", "i2i"), PRECISIONS, data_set),
        ),
        heads_of,
    )
    by_truth = _two_way_spec(
        "Between images and captions, by the known truth",
        "Counts every image that a caption is true of, not only the one it was written for.",
        ("truth",),
        PRECISIONS,
        f"{data_set} truth",
    )
    return [replace(across, published_row=published), within, by_truth]


def _ranks_spec() -> Spec:
    by_rank = (
        Metric("median_rank", "Median", best="lowest"),
        Metric("mean_rank", "Mean", best="lowest"),
        Metric("tied", "Tied", best="none", digits=0),
    )
    groups = []
    for task, title in TASKS.items():
        measurement = "retrieval" if task in CROSS_MODAL_TASKS else "unimodal"
        groups.append(Group(title, (measurement, task), by_rank))
    return TableSpec(
        "Median and mean rank",
        "Rank of a query's first right answer (1 is best), over the queries that have one; lower "
        "is better. Tied: number of queries whose rank depends on how ties count.",
        HEADS,
        tuple(groups),
        heads_of,
        unit="rank, lower is better",
    )


def _protocol_specs(ties: str, data_set: str) -> list[Spec]:
    """Describe the tables of the COCO test set's protocols.

    Args:
        ties: How ties count, in words.
        data_set: Name of the split in comparison.json.
    """
    coco_5k = _recalls_spec(
        "COCO 5K",
        "Five captions of each image: those of ECCV Caption's list of ids, or else the first five. "
        f"{ties}",
        ("protocols", "coco_5k"),
        f"{data_set} coco_5k",
    )
    coco_1k = _recalls_spec(
        "COCO 1K",
        f"Means of five folds of 1,000 images with their captions. {ties}",
        ("protocols", "coco_1k"),
        f"{data_set} coco_1k",
    )
    cxc = _recalls_spec(
        "CxC",
        "Pairs that Crisscrossed Captions calls right count as right (Parekh et al., EACL 2021). "
        f"{ties}",
        ("protocols", "cxc"),
        f"{data_set} cxc",
    )
    pmrp = _two_way_spec(
        "PMRP",
        "R-Precision where a candidate is right if its objects differ from the query's in at most "
        "zeta classes; mean over zeta (Chun et al., CVPR 2021).",
        ("protocols", "pmrp"),
        (_R_PRECISION,),
        f"{data_set} pmrp",
    )
    return [coco_5k, coco_1k, _eccv_spec(data_set), cxc, pmrp]


def _eccv_spec(data_set: str) -> Spec:
    eccv = _two_way_spec(
        "ECCV Caption",
        "Pairs that people called right count as right (Chun et al., ECCV 2022), in full rankings "
        "of the COCO test split.",
        ("protocols", "eccv"),
        (Metric("map_at_r", "mAP@R"), _R_PRECISION, Metric("r1", "R@1")),
        f"{data_set} eccv",
    )
    return replace(eccv, published_row=_published_eccv)


def _recalls_spec(
    title: str,
    rule: str,
    path: tuple[str, ...],
    data_set: str,
) -> Spec:
    """Describe a table of the recalls of both directions and their sum; see `_two_way_spec`."""
    spec = _two_way_spec(title, rule, path, RECALLS, data_set)
    metrics = (Metric("rsum", "RSUM"),)
    rsum = Group("Sum", path, metrics, {"rsum": "rsum"}, {"rsum": (data_set, "rsum")})
    unit = "percent and, in RSUM, the sum of the six percentages; higher is better"
    return replace(spec, groups=(*spec.groups, rsum), unit=unit)


def _group(
    task: str,
    path: tuple[str, ...],
    metrics: tuple[Metric, ...],
    data_set: str,
) -> Group:
    """Describe the columns of one direction."""
    compared = compared_figures(data_set, task, metrics)
    return Group(TASKS[task], path, metrics, compared=compared)


def _two_way_spec(
    title: str,
    rule: str,
    path: tuple[str, ...],
    metrics: tuple[Metric, ...],
    data_set: str,
) -> Spec:
    """Describe a table of metrics of both directions.

    Args:
        title: Title of the table.
        rule: The rule behind its figures, in words.
        path: Keys that lead from a head's figures to those of both directions.
        metrics: The columns of each direction.
        data_set: Name of the data set, and protocol, in comparison.json.
    """
    groups = []
    for task in CROSS_MODAL_TASKS:
        paper_keys = {metric.key: f"{task}_{metric.key}" for metric in metrics}
        group = _group(task, (*path, task), metrics, data_set)
        groups.append(replace(group, paper_keys=paper_keys))
    return TableSpec(title, rule, ("cross",), tuple(groups), heads_of)


def _published_eccv(content: RetrievalResults) -> Mapping[str, Any] | None:
    """Return the published ECCV Caption row of the same host and method as the COCO row."""
    row = published(content)
    if not row:
        return None
    for eccv_row in paper_tables()["eccv_caption"]:
        if (eccv_row["host"], eccv_row["method"]) == (row["host"], row["method"]):
            return eccv_row
    return None
