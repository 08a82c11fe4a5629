"""Made-up contents of metrics.json, images.json, sts.json and comparison.json, in the form of
docs/METRICS.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cusa.eval.evaluate import make_sections
from cusa.eval.report.report import ModelReport, write_report

SUITE_TASKS = (*(f"STS{year}" for year in range(12, 17)), "STSBenchmark", "SICKRelatedness")
BOOTSTRAP = {"samples": 1000, "seed": 0, "level": 0.95}
MODEL = {"kind": "run", "source": "runs/made-up"}


def around(**figures: float) -> dict[str, list[float]]:
    """Intervals of half a point to both sides."""
    return {name: [value - 0.5, value + 0.5] for name, value in figures.items()}


def direction(r1: float, queries: int = 4, candidates: int = 1234, **more: float) -> dict[str, Any]:
    """One direction, the other recalls ten points apart; ``more``: precisions."""
    figures = {"r1": r1, "r5": r1 + 10, "r10": r1 + 20, "mean": r1 + 10, **more}
    curve = {"k": [1, 2, 5, 10, 20, 50], "recall": [r1, r1 + 5, r1 + 10, r1 + 20, r1 + 23, r1 + 25]}
    ranks = {"median_rank": 2.0, "mean_rank": 1500.25, "tied": 3}
    return {
        **figures,
        **ranks,
        "queries": queries,
        "candidates": candidates,
        "curve": curve,
        "ci": around(**figures),
    }


def both_ways(i2t: float, t2i: float) -> dict[str, Any]:
    """Both directions with their sum."""
    rsum = 3 * (i2t + t2i) + 60
    return {
        "i2t": direction(i2t),
        "t2i": direction(t2i),
        "mean": rsum / 6,
        "rsum": rsum,
        "ci": around(rsum=rsum),
    }


def protocols(base: float) -> dict[str, Any]:
    """Figures of the COCO test set's protocols, from a recall of COCO 5K on."""
    folds = {k: base + 11 * (i + 1) for i, k in enumerate(("r1", "r5", "r10"))}
    eccv = {"map_at_r": base - 20, "r_precision": base - 10, "r1": base + 20, "queries": 1332}
    return {
        "coco_5k": both_ways(base, base - 1),
        "coco_1k": {"i2t": folds, "t2i": folds, "mean": base, "rsum": 6 * base + 132, "folds": 5},
        "eccv": {"i2t": {**eccv, "ci": around(map_at_r=base - 20)}, "t2i": eccv},
        "cxc": both_ways(base + 2, base + 3),
        "pmrp": {d: {"r_precision": base - 5, "queries": 5000} for d in ("i2t", "t2i")},
    }


def metrics(
    name: str,
    terms: list[str],
    i2t: float,
    t2i: float,
    t2t: float,
    *,
    truth: bool = True,
    coco: bool = False,
) -> dict[str, Any]:
    """A metrics.json of 3 images and 1,234 captions; the uni head finds one point more among
    captions.
    """
    heads: dict[str, Any] = {}
    for head in ("cross", "uni"):
        heads[head] = {
            "retrieval": both_ways(i2t, t2i),
            "unimodal": {"t2t": direction(t2t + (head == "uni"))},
        }
        if truth:
            heads[head]["unimodal"]["i2i"] = direction(50.0, r_precision=33.33, map_at_r=22.22)
            heads[head]["truth"] = {
                "i2t": direction(71.0, r_precision=61.0, map_at_r=51.0),
                "t2i": direction(72.0, r_precision=62.0, map_at_r=52.0),
            }
        if coco:
            heads[head]["protocols"] = protocols(i2t)
    uni_head = "uni" if "usa" in terms else "cross"
    return {
        "name": name,
        "model": MODEL,
        "run": name,
        "checkpoint": "best",
        "epoch": 2,
        "loss_terms": terms,
        "dataset": "tiny",
        "split": "test",
        "split_fingerprint": "0123456789abcdef" * 4,
        "n_images": 3,
        "n_captions": 1234,
        "ties": "pessimistic",
        "bootstrap": BOOTSTRAP,
        "retrieval": heads["cross"]["retrieval"],
        "unimodal": heads[uni_head]["unimodal"],
        "unimodal_head": uni_head,
        "heads": heads,
    }


def image_scores(r1: float, queries: int = 5924, with_positive: int = 5900) -> dict[str, Any]:
    """One head's figures on an image retrieval set."""
    figures = {"r1": r1, "r_precision": r1 - 20, "map_at_r": r1 - 30}
    more = {
        "r5": r1 + 10,
        "r10": r1 + 15,
        "precision_at_1": r1 + 1,
        "tied": 0,
        "ci": around(**figures),
    }
    counts = {"queries": queries, "queries_with_positive": with_positive, "candidates": queries - 1}
    return {**figures, **more, **counts}


def images(name: str, base: float) -> dict[str, Any]:
    """An images.json of four sets; the uni head is two points better."""
    sets = {}
    for i, set_name in enumerate(("inaturalist", "cub", "sop", "inshop")):  # in no particular order
        sets[set_name] = {
            "fingerprint": f"{i}a" * 32,
            "classes": 100,
            "notes": ["12 images were not there"] if set_name == "sop" else [],
            "heads": {"cross": image_scores(base + i), "uni": image_scores(base + i + 2)},
        }
    average = {"cross": base + 1.5, "uni": base + 3.5}
    about = {
        "name": name,
        "model": MODEL,
        "ties": "pessimistic",
        "bootstrap": BOOTSTRAP,
        "head": "uni",
    }
    return {**about, "sets": sets, "average": average}


def sts(name: str, base: float, heads: tuple[str, ...] = ("cross",)) -> dict[str, Any]:
    """An sts.json of the seven tasks and of CxC's captions; the uni head is a point better."""

    def result(headline: float) -> dict[str, Any]:
        return {
            "headline": headline,
            "headline_rule": "all",
            "spearman": {"all": headline, "mean": headline - 1, "wmean": headline - 2},
            "pearson": {"all": headline + 1, "mean": headline, "wmean": headline},
            "subsets": {
                s: {"spearman": headline, "pearson": headline, "pairs": 750}
                for s in ("MSRpar", "MSRvid")
            },
            "pairs": 1500,
            "ci": around(headline=headline),
        }

    graded = {"spearman_bootstrap": base - 3, "std": 0.4, "spearman": base - 4, "pairs": 88054}
    tasks = {
        task: {
            "fingerprint": "5" * 64,
            "notes": [],
            "heads": {head: result(base + i + (head == "uni")) for head in heads},
        }
        for i, task in enumerate(SUITE_TASKS)
    }
    return {
        "name": name,
        "model": MODEL,
        "bootstrap": BOOTSTRAP,
        "head": heads[-1],
        "tasks": tasks,
        "average": {head: base + 3 + (head == "uni") for head in heads},
        "cxc": {"sts": {"heads": dict.fromkeys(heads, graded)}},
    }


def history(terms: list[str], rsums: list[float]) -> tuple[dict[str, Any], ...]:
    """Lines of a metrics.jsonl: a step and a validation per epoch."""
    lines: list[dict[str, Any]] = []
    for epoch, rsum in enumerate(rsums, 1):
        step = {"kind": "train", "step": 10 * epoch, "epoch": epoch, "loss": 1 / epoch, "lr": 0.1}
        lines.append(
            step | dict.fromkeys(terms, 0.5 / epoch) | {"tau": 0.05 / epoch, "tau_soft": 1.0}
        )
        lines.append(
            {"kind": "val", "step": 10 * epoch, "epoch": epoch, "best": False, "rsum": rsum}
        )
    return tuple(lines)


def comparison(names: list[str]) -> dict[str, Any]:
    """A comparison.json of two figures: the first clearly better than the base, the second not."""
    rows = []
    for metric, low in (("i2t r1", 0.4), ("t2i r1", -1.2)):
        difference = {"difference": 1.5, "low": low, "high": 2.6, "p_two_sided": 0.012}
        values, differences = (
            [40.0, *[41.5] * (len(names) - 1)],
            [None, *[difference] * (len(names) - 1)],
        )
        rows.append(
            {
                "suite": "retrieval",
                "set": "tiny test",
                "head": "cross",
                "metric": metric,
                "values": values,
                "differences": differences,
            }
        )
    return {"format": "cusa-comparison", "models": names, "base": names[0], "rows": rows}


def report(
    name: str,
    metrics: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    sts: dict[str, Any] | None = None,
    **examples: Any,
) -> ModelReport:
    """What a report shows of a model that was measured by some suites."""
    results = {"retrieval": metrics, "images": images, "sts": sts}
    measured = {suite: content for suite, content in results.items() if content is not None}
    return ModelReport(name, measured, **examples)


def write(path: Path, reports: list[ModelReport], comparison: dict[str, Any] | None = None) -> int:
    """Write the report of models with all their tables."""
    return write_report(path, reports, make_sections(reports), comparison)
