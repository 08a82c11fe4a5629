"""The sections of a report: which tables there are, and what was measured on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cusa.eval.report.tables import (
    PRECISIONS,
    RECALLS,
    TASKS,
    Found,
    Group,
    Kind,
    Metric,
    RunReport,
    Table,
    cross_modal,
    make_table,
    published_eccv,
    recalls_by_rank,
    ties_rule,
)

# As the paper names the columns of its tables 12 and 13.
PAPER_TASKS = {f"STS{year}": f"sts{year}" for year in range(12, 17)} | {
    "STSBenchmark": "stsb",
    "SICKRelatedness": "sickr",
}
SETS = {
    "cub": "CUB-200-2011",
    "cars": "Cars-196",
    "sop": "Stanford Online Products",
    "inshop": "In-Shop",
    "inaturalist": "iNaturalist 2018",
}
_SHORT = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R"}
_SIMILARITY = {"sts": "Captions (STS)", "sis": "Images (SIS)", "sits": "Images and captions (SITS)"}
_SELF = "Where queries are candidates, too, the query itself is none, told apart by its id and never by its rank."


@dataclass(frozen=True)
class Section:
    """Tables under one heading.

    Attributes:
        id: Its anchor.
        title: Its title.
        facts: What was measured, a line per data set.
        intervals: What the intervals are; empty where there are none.
        tables: Its tables.
        more: Tables for whoever looks further.
    """

    id: str
    title: str
    facts: tuple[str, ...]
    intervals: str
    tables: tuple[Table, ...]
    more: tuple[Table, ...] = ()


def make_sections(runs: Sequence[RunReport]) -> list[Section]:
    """All sections with a table, in the order shown."""
    made = (_retrieval(runs), _protocols(runs), _images(runs), _sts(runs), _graded(runs))
    return [section for section in made if section.tables or section.more]


def retrieval_kinds(runs: Sequence[RunReport]) -> dict[str, Kind]:
    """Tables of a split by name: ``cross``, ``ranks``, ``uni``, ``truth``."""
    ties = ties_rule(run.metrics for run in runs)
    by_rank = (
        Metric("median_rank", "Median", best="lowest"),
        Metric("mean_rank", "Mean", best="lowest"),
        Metric("tied", "Tied", best="none", digits=0),
    )
    i2i = Group(TASKS["i2i"], ("unimodal", "i2i"), PRECISIONS)
    ranked = [(TASKS[d], ("retrieval", d)) for d in ("i2t", "t2i")]
    ranked += [(TASKS[d], ("unimodal", d)) for d in ("t2t", "i2i")]
    both = ("cross", "uni")
    return {
        "cross": cross_modal(
            "Between images and captions",
            f"An image is right for the captions written for it, and they for it. {ties}",
            "retrieval",
            published=True,
        ),
        "uni": Kind(
            "Among captions and among images",
            f"Right are the other captions of the same image, and the other images with the same label. {_SELF} "
            f"A query that has no other does not count. {ties}",
            both,
            (recalls_by_rank(TASKS["t2t"], ("unimodal", "t2t")), i2i),
            _metrics,
        ),
        "truth": Kind(
            "Between images and captions, by the whole truth",
            "Counts every image that a caption is true of, not only the one it was written for.",
            ("cross",),
            tuple(Group(TASKS[d], ("truth", d), PRECISIONS) for d in ("i2t", "t2i")),
            _metrics,
        ),
        "ranks": Kind(
            "Median and mean rank",
            "Of the best right answer, 1 being first, over the queries that have one; lower is better. Tied: queries "
            "whose rank depends on how ties count.",
            both,
            tuple(Group(title, of, by_rank) for title, of in ranked),
            _metrics,
        ),
    }


def protocol_kinds(runs: Sequence[RunReport]) -> dict[str, Kind]:
    """Tables of the COCO test set's protocols by name, as metrics.json calls them."""
    ties = ties_rule(run.metrics for run in runs)
    eccv = tuple(
        Group(
            TASKS[d],
            ("protocols", "eccv", d),
            (
                Metric("map_at_r", "mAP@R"),
                Metric("r_precision", "R-Precision"),
                Metric("r1", "R@1"),
            ),
            {k: f"{d}_{k}" for k in ("map_at_r", "r_precision", "r1")},
        )
        for d in ("i2t", "t2i")
    )
    pmrp = tuple(
        Group(TASKS[d], ("protocols", "pmrp", d), (Metric("r_precision", "R-Precision"),))
        for d in ("i2t", "t2i")
    )
    return {
        "coco_5k": cross_modal(
            "COCO 5K",
            f"Five captions of each image: those of ECCV Caption's list of ids, or else the first. {ties}",
            "protocols",
            "coco_5k",
        ),
        "coco_1k": cross_modal(
            "COCO 1K",
            f"Means of five folds of 1,000 images with their captions. {ties}",
            "protocols",
            "coco_1k",
        ),
        "eccv": Kind(
            "ECCV Caption",
            "Right is what people called right (Chun et al., ECCV 2022), among the queries and candidates of the COCO "
            "test split, from full rankings.",
            ("cross",),
            eccv,
            _metrics,
            published_eccv,
        ),
        "cxc": cross_modal(
            "CxC",
            f"Right by Crisscrossed Captions (Parekh et al., EACL 2021). {ties}",
            "protocols",
            "cxc",
        ),
        "pmrp": Kind(
            "PMRP",
            "R-Precision where candidates are right that differ from the query's objects in at most zeta classes, mean "
            "over zeta (Chun et al., CVPR 2021).",
            ("cross",),
            pmrp,
            _metrics,
        ),
    }


def image_kinds(runs: Sequence[RunReport]) -> dict[str, Kind]:
    """Tables of image retrieval by name: ``sets`` (the paper's), ``recalls`` (more of each)."""
    names = list(dict.fromkeys(name for run in runs for name in (run.images or {}).get("sets", {})))
    names.sort(key=lambda name: list(SETS).index(name) if name in SETS else len(SETS))
    average = Group(
        "Average", ("average",), (Metric("r1", "R@1", "the paper's four"),), {"r1": "average"}
    )
    more = (
        Metric("r5", "R@5"),
        Metric("r10", "R@10"),
        Metric("precision_at_1", "P@1", "with a positive"),
    )
    ties = ties_rule(run.images for run in runs)
    return {
        "sets": Kind(
            "Image retrieval by data set",
            "Right are the other images of the same class. R@1 as in the paper: over all queries, so that an image "
            "alone in its class is a miss; R-Precision and mAP@R over the queries that have a right answer (Musgrave "
            f"et al., ECCV 2020). {_SELF} {ties}",
            ("cross", "uni"),
            (average, *(Group(SETS.get(n, n), (n,), PRECISIONS, {"r1": n}) for n in names)),
            _image_sets,
            lambda run: run.images.get("paper") if run.images else None,
        ),
        "recalls": Kind(
            "Image retrieval: more recalls",
            "R@5 and R@10 by the same rule; P@1 is R@1 over the queries that have a right answer.",
            ("cross", "uni"),
            tuple(Group(SETS.get(n, n), (n,), more) for n in names),
            _image_sets,
        ),
    }


def sts_kinds(runs: Sequence[RunReport]) -> dict[str, Kind]:
    """Tables of sentence similarity by name: ``tasks`` (the paper's), ``rules`` (other ones), ``cxc``."""
    known = {name: task for run in runs for name, task in (run.sts or {}).get("tasks", {}).items()}
    names = sorted(
        known,
        key=lambda name: list(PAPER_TASKS).index(name) if name in PAPER_TASKS else len(PAPER_TASKS),
    )
    pairs = {n: next(iter(known[n]["heads"].values()))["pairs"] for n in names}
    columns = [Metric(n, _SHORT.get(n, n), f"{pairs[n]:,} pairs") for n in names]
    columns.insert(0, Metric("average", "Average", "the paper's seven"))
    rules = (Metric("mean", "Mean"), Metric("wmean", "Weighted"), Metric("pearson", "Pearson"))
    similarity = (
        Metric("spearman_bootstrap", "Spearman"),
        Metric("std", "± std", best="none"),
        Metric("spearman", "All pairs"),
    )
    return {
        "tasks": Kind(
            "Sentence similarity by task",
            "100 × Spearman's rank correlation of cosines with people's scores, over all pairs of a task together "
            "(STS12 to STS16: its subsets joined), as in the paper.",
            ("cross", "uni"),
            (
                Group(
                    "100 × Spearman",
                    ("tasks",),
                    tuple(columns),
                    PAPER_TASKS | {"average": "average"},
                ),
            ),
            _sts_headlines,
            lambda run: run.sts.get("paper") if run.sts else None,
        ),
        "rules": Kind(
            "Sentence similarity by other rules",
            "Mean of the subsets' Spearman correlations, the same weighted by their pairs, and Pearson's correlation "
            "over all pairs; each times 100.",
            ("cross", "uni"),
            tuple(Group(n, (n,), rules) for n in names),
            _sts_rules,
        ),
        "cxc": Kind(
            "CxC: captions and images",
            "100 × Spearman's correlation with people's scores, mean and standard deviation over random halves of the "
            "queries with one pair each (Parekh et al., EACL 2021); and over all pairs.",
            ("cross", "uni"),
            tuple(Group(title, (kind,), similarity) for kind, title in _SIMILARITY.items()),
            _cxc_similarity,
        ),
    }


def _retrieval(runs: Sequence[RunReport]) -> Section:
    kinds = retrieval_kinds(runs)
    ranks = _tables(runs, [kinds["ranks"]])
    shown = _tables(
        runs, [kinds["cross"], kinds["uni"], kinds["truth"], _approximate_retrieval(runs)]
    )
    measured = [run.metrics for run in runs if run.metrics]
    facts = []
    if measured:
        about, hashes = measured[0], (m.get("split_fingerprint") for m in measured)
        counts = f"{about['n_images']:,} images, {about['n_captions']:,} captions"
        skipped = [about.get(f"n_{what}_skipped", 0) for what in ("images", "captions")]
        if any(skipped):
            counts += f" ({skipped[0]:,} and {skipped[1]:,} were skipped)"
        notes = [note for content in measured for note in content.get("notes") or ()]
        facts = [_fact(f"{about['dataset']}, split {about['split']}", counts, hashes, notes)]
    return Section(
        "tables", "Tables", tuple(facts), _bootstrap(run.metrics for run in runs), shown, ranks
    )


def _protocols(runs: Sequence[RunReport]) -> Section:
    tables = _tables(runs, protocol_kinds(runs).values())
    return Section(
        "protocols",
        "Protocols of the COCO test set",
        (),
        _bootstrap(run.metrics for run in runs),
        tables,
    )


def _images(runs: Sequence[RunReport]) -> Section:
    kinds = image_kinds(runs)
    facts = []
    for name, found in _by_name([run.images for run in runs], "sets").items():
        counts = next(scores for of_name in found for scores in of_name["heads"].values())
        with_positive, queries = counts["queries_with_positive"], counts["queries"]
        alone = (
            f", {queries - with_positive:,} queries without a right answer"
            if with_positive < queries
            else ""
        )
        about = f"{queries:,} queries, {counts['candidates']:,} candidates, {found[0]['classes']:,} classes{alone}"
        facts.append(
            _fact(SETS.get(name, name), about, (s["fingerprint"] for s in found), _notes(found))
        )
    shown = _tables(runs, [kinds["sets"], _approximate_images(runs)])
    more = _tables(runs, [kinds["recalls"]])
    return Section(
        "images",
        "Image retrieval",
        tuple(facts),
        _bootstrap(run.images for run in runs),
        shown,
        more,
    )


def _sts(runs: Sequence[RunReport]) -> Section:
    kinds = sts_kinds(runs)
    facts = []
    for name, found in _by_name([run.sts for run in runs], "tasks").items():
        result = next(scores for of_name in found for scores in of_name["heads"].values())
        about = f"{result['pairs']:,} pairs" + (
            f" in {n} subsets" if (n := len(result["subsets"])) > 1 else ""
        )
        facts.append(_fact(name, about, (task["fingerprint"] for task in found), _notes(found)))
    shown, more = (_tables(runs, [kinds[name]]) for name in ("tasks", "rules"))
    return Section(
        "sts", "Sentence similarity", tuple(facts), _bootstrap(run.sts for run in runs), shown, more
    )


def _graded(runs: Sequence[RunReport]) -> Section:
    facts = []
    for name, found in _by_name([run.sts for run in runs], "cxc").items():
        result = next(scores for of_name in found for scores in of_name["heads"].values())
        facts.append(_fact(_SIMILARITY[name], f"{result['pairs']:,} pairs", ()))
    tables = _tables(runs, [sts_kinds(runs)["cxc"]])
    return Section("cxc", "CxC: graded similarity", tuple(facts), "", tables)


def _approximate(
    searches: Sequence[Mapping[str, Any]], groups: Mapping[str, tuple[str, ...]], found: Any
) -> Kind:
    """The same queries through an approximate index, and what it loses.

    Args:
        searches: What was searched: index and settings.
        groups: Title of each group of columns, and where its figures are.
        found: Of a model, by head, what the groups look into.
    """
    used = dict.fromkeys(
        f"{s['index']} ({', '.join(f'{k} {v}' for k, v in settings.items())})"
        for s in searches
        for settings in s["settings"].values()
    )
    lost = Metric("recall_of_exact_top10", "Exact top 10", "that it finds")
    return Kind(
        "By approximate search",
        f"The same queries through {' and '.join(used)}: recalls by its hits, and how many of the exact first ten it "
        "finds.",
        ("cross", "uni"),
        tuple(Group(title, of, (*RECALLS, lost)) for title, of in groups.items()),
        found,
    )


def _approximate_retrieval(runs: Sequence[RunReport]) -> Kind:
    searches = [a for run in runs if run.metrics and (a := run.metrics.get("approximate"))]
    directions = {TASKS[d]: (d,) for d in ("i2t", "t2i")}
    return _approximate(
        searches,
        directions,
        lambda run: (run.metrics or {}).get("approximate", {}).get("heads", {}),
    )


def _approximate_images(runs: Sequence[RunReport]) -> Kind:
    def by_set(run: RunReport) -> dict[str, Any]:
        return {
            n: of["approximate"]
            for n, of in (run.images or {}).get("sets", {}).items()
            if "approximate" in of
        }

    def found(run: RunReport) -> dict[str, Any]:
        return _turned({"sets": by_set(run)}, "sets", lambda searched: searched["i2i"])

    searches = [search for run in runs for search in by_set(run).values()]
    names = dict.fromkeys(name for run in runs for name in by_set(run))
    return _approximate(searches, {SETS.get(name, name): (name,) for name in names}, found)


def _tables(runs: Sequence[RunReport], kinds: Any) -> tuple[Table, ...]:
    return tuple(table for kind in kinds if (table := make_table(runs, kind)))


def _metrics(run: RunReport) -> Found:
    return run.metrics["heads"] if run.metrics else {}


def _turned(
    content: Mapping[str, Any] | None,
    key: str,
    take: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """By head and name, where the file has it by name and head."""
    turned: dict[str, dict[str, Any]] = {}
    for name, of_name in ((content or {}).get(key) or {}).items():
        for head, found in of_name["heads"].items():
            turned.setdefault(head, {})[name] = take(found)
    return turned


def _image_sets(run: RunReport) -> Found:
    found = _turned(run.images, "sets", lambda scores: scores)
    for head, average in ((run.images or {}).get("average") or {}).items():
        found.setdefault(head, {})["average"] = {"r1": average}
    return found


def _sts_headlines(run: RunReport) -> Found:
    by_task = _turned(run.sts, "tasks", lambda result: result)
    average = (run.sts or {}).get("average") or {}
    return {
        head: {
            "tasks": {
                **{name: result["headline"] for name, result in results.items()},
                "average": average.get(head),
                "ci": {
                    name: ci["headline"]
                    for name, result in results.items()
                    if (ci := result.get("ci"))
                },
            }
        }
        for head, results in by_task.items()
    }


def _sts_rules(run: RunReport) -> Found:
    return _turned(
        run.sts,
        "tasks",
        lambda r: {
            "mean": r["spearman"]["mean"],
            "wmean": r["spearman"]["wmean"],
            "pearson": r["pearson"]["all"],
        },
    )


def _cxc_similarity(run: RunReport) -> Found:
    return _turned(run.sts, "cxc", lambda found: found)


def _by_name(
    contents: Sequence[Mapping[str, Any] | None], key: str
) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for content in contents:
        for name, of_name in ((content or {}).get(key) or {}).items():
            found.setdefault(name, []).append(of_name)
    return found


def _fact(
    name: str, about: str, fingerprints: Iterable[str | None], notes: Iterable[str] = ()
) -> str:
    """A line on what was measured: counts, hash, and what the reader of the data set has to say."""
    hashes = list(dict.fromkeys(f[:12] for f in fingerprints if f))
    if hashes:
        about += f", sha256 {' and '.join(hashes)}"
    if len(hashes) > 1:
        about += ". The models were measured on different data: their figures do not compare"
    return f"{name}: {'. '.join([about, *dict.fromkeys(note.rstrip('.') for note in notes)])}."


def _notes(found: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (note for of_name in found for note in of_name["notes"])


def _bootstrap(contents: Iterable[Mapping[str, Any] | None]) -> str:
    used = dict.fromkeys(
        f"{100 * b['level']:.0f} % bootstrap intervals over queries, {b['samples']:,} samples, seed {b['seed']}"
        for content in contents
        if content and (b := content.get("bootstrap"))
    )
    return "; ".join(used)
