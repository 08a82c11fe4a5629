"""The three suites: a model's embeddings to metrics.json, images.json and sts.json, and what its queries got."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cusa.data.datasets import KNOWN_SIZES
from cusa.data.embeddings import Head, SplitEmbeddings
from cusa.data.errors import CusaError
from cusa.data.records import SplitView
from cusa.eval.evaluators.images.data import ImageSet
from cusa.eval.evaluators.retrieval.coco import Judgements, coco_test
from cusa.eval.evaluators.retrieval.measure import evaluate
from cusa.eval.evaluators.sts.cxc import CxcTask, cxc_correlation
from cusa.eval.evaluators.sts.data import StsTask
from cusa.eval.evaluators.sts.measure import cosine, evaluate_sts, spearman
from cusa.eval.metrics.bootstrap import Bootstrap, interval, resampled
from cusa.eval.metrics.by_class import image_figures, image_search
from cusa.eval.metrics.metric_options import PLAIN, Scoring
from cusa.eval.metrics.per_query import Rankings, rank_all
from cusa.eval.metrics.ranks import cross_modal_relevance
from cusa.eval.models.embedding_providers import Source
from cusa.eval.queries import Judged
from cusa.eval.search.approximate import ApproximateKind, search_approximately

PAPER_IMAGES = ("cub", "sop", "inshop", "inaturalist")
PAPER_STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICKRelatedness")
IndexKind = Literal["exact", "hnsw", "ivf"]


@dataclass(frozen=True)
class Measure:
    """How everything is measured.

    Attributes:
        scoring: Ties, and the bootstrap.
        allow_partial: Whether counts other than the known ones are evaluated all the same.
        index: ``"exact"``, or an approximate index of FAISS to report beside the exact figures.
    """

    scoring: Scoring = PLAIN
    allow_partial: bool = False
    index: IndexKind = "exact"


@dataclass(frozen=True)
class RetrievalData:
    """A split to retrieve within.

    Attributes:
        dataset: Name of the data set.
        split: The split.
        image_root: Folder of its images.
        skipped: Image rows and caption rows that are left out, ascending.
    """

    dataset: str
    split: SplitView
    image_root: Path
    skipped: tuple[np.ndarray, np.ndarray]


def embed_split(source: Source, data: RetrievalData) -> SplitEmbeddings:
    """A model's embeddings of a split.

    Raises:
        CusaError: If the model lacks a modality, an input cannot be read, or none is left.
    """
    if missing := {"image", "text"} - source.modalities:
        raise CusaError(
            f"{source.name} embeds no {'s and no '.join(sorted(missing))}s; retrieval needs both"
        )
    split = data.split
    image_rows = np.setdiff1d(np.arange(split.n_images), data.skipped[0])
    text_rows = np.setdiff1d(np.arange(split.n_captions), data.skipped[1])
    if not len(image_rows) or not len(text_rows):
        raise CusaError(f"split {split.name!r} has no image or no caption that could be read")
    paths = [data.image_root / split.image_paths[r] for r in image_rows.tolist()]
    images = source.images([split.image_ids[r] for r in image_rows.tolist()], paths)
    texts = source.texts(
        *([column[r] for r in text_rows.tolist()] for column in (split.caption_ids, split.captions))
    )
    position = np.full(split.n_images, -1, np.int64)
    position[image_rows] = np.arange(len(image_rows))
    return SplitEmbeddings(
        images, texts, image_rows, text_rows, position[np.asarray(split.caption_image)[text_rows]]
    )


def check_counts(data: RetrievalData, allow_partial: bool) -> str | None:
    """Refuse a known test split of another size: its figures would stand beside others'.

    Returns:
        What is unlike the known split, where it is evaluated all the same; no one publishes figures of other splits.

    Raises:
        CusaError: If it is not as large as it should be.
    """
    known = KNOWN_SIZES.get(data.dataset, {}).get(data.split.name)
    n_images = data.split.n_images - len(data.skipped[0])
    if known is None or n_images == known:
        return None
    unlike = f"{data.dataset} {data.split.name} has {known:,} images, found {n_images:,}: figures do not compare with"
    if data.split.name == "test" and not allow_partial:
        raise CusaError(
            f"{unlike} others'; complete it, or pass --allow-partial to evaluate what is there"
        )
    return f"{unlike} others'"


def measure_retrieval(
    embeddings: SplitEmbeddings,
    data: RetrievalData,
    uni_head: Head,
    measure: Measure,
    judgements: Judgements,
) -> tuple[dict[str, Any], Mapping[str, Rankings]]:
    """Content of metrics.json but for what is said of the model, and what the queries got.

    Raises:
        CusaError: If plausible matches are asked for, and they or COCO's test are not there; or the
            split is not as large as it should be.
    """
    unlike = check_counts(data, measure.allow_partial)
    test = coco_test(embeddings, data.split, data.dataset, judgements)
    content, ranked = evaluate(embeddings, data.split, uni_head, test, measure.scoring)
    metrics = {
        "dataset": data.dataset,
        "split": data.split.name,
        "split_fingerprint": data.split.fingerprint,
        "n_images": len(embeddings.image_rows),
        "n_captions": len(embeddings.text_rows),
        "n_images_skipped": data.split.n_images - len(embeddings.image_rows),
        "n_captions_skipped": data.split.n_captions - len(embeddings.text_rows),
        "notes": [unlike] if unlike else [],
        **measure.scoring.plain(),
        **content,
    }
    if measure.index != "exact":
        i2t, t2i = cross_modal_relevance(embeddings.caption_image, len(embeddings.image_rows))
        sides = {h: (embeddings.image[h], embeddings.text[h]) for h in embeddings.image}
        metrics["approximate"] = _approximate(
            {h: {"i2t": (i, t, *i2t), "t2i": (t, i, *t2i)} for h, (i, t) in sides.items()},
            measure.index,
        )
    return metrics, ranked


def _approximate(
    searches: Mapping[Head, Mapping[str, tuple[Any, ...]]], index: ApproximateKind
) -> dict[str, Any]:
    heads: dict[str, Any] = {}
    used: dict[str, Any] = {}
    for head, by_task in searches.items():
        heads[head] = {}
        for task, parts in by_task.items():
            heads[head][task], used[task] = search_approximately(*parts, kind=index)
    return {"index": index, "settings": used, "heads": heads}


def measure_images(
    source: Source, sets: Sequence[ImageSet], measure: Measure
) -> tuple[dict[str, Any], dict[str, Rankings]]:
    """Content of images.json but for what is said of the model, and what the queries got.

    Raises:
        CusaError: If the model embeds no images, or one cannot be read.
    """
    if "image" not in source.modalities:
        raise CusaError(f"{source.name} embeds no images; image retrieval needs a model that does")
    by_set: dict[str, Any] = {}
    queries: dict[str, Rankings] = {}
    for image_set in sets:
        query_rows = source.images(image_set.queries.ids, image_set.queries.paths)
        gallery_rows = (
            source.images(image_set.gallery.ids, image_set.gallery.paths)
            if image_set.gallery
            else None
        )
        heads: dict[Head, dict[str, Any]] = {}
        searches: dict[Head, dict[str, tuple[Any, ...]]] = {}
        for head, rows in query_rows.items():
            gallery: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
            if image_set.gallery and gallery_rows:
                gallery = gallery_rows[head], image_set.gallery.labels
            searched = image_search(rows, image_set.queries.labels, *gallery)
            ranked = rank_all(*searched)
            heads[head] = image_figures(ranked, measure.scoring)
            queries[f"{image_set.name}/{head}/i2i"] = ranked
            searches[head] = {"i2i": searched}
        by_set[image_set.name] = {
            "fingerprint": image_set.fingerprint,
            "classes": image_set.n_classes,
            "notes": list(image_set.notes),
            "heads": heads,
        }
        if measure.index != "exact":
            by_set[image_set.name]["approximate"] = _approximate(searches, measure.index)
    content = {**measure.scoring.plain(), "head": source.uni_head, "sets": by_set}
    return {**content, "average": paper_average(content, source.heads)}, queries


def measure_sts(
    source: Source,
    tasks: Sequence[StsTask],
    cxc: Mapping[str, tuple[CxcTask, RetrievalData]],
    measure: Measure,
) -> tuple[dict[str, Any], dict[str, Judged]]:
    """Content of sts.json but for what is said of the model, and the judged pairs.

    Args:
        source: The model.
        tasks: The tasks.
        cxc: Tasks of Crisscrossed Captions by kind, with the split that has their images and captions
            (:func:`check_judged`).
        measure: How.

    Raises:
        CusaError: If the model embeds no texts, or a correlation is not defined.
    """
    if "text" not in source.modalities:
        raise CusaError(
            f"{source.name} embeds no texts; sentence similarity needs a model that does"
        )
    bootstrap = measure.scoring.bootstrap
    content: dict[str, Any] = {}
    judged: dict[str, Judged] = {}
    for task in tasks:
        sentences = task.sentences
        heads = {}
        for head, rows in source.texts(sentences, sentences).items():
            result = evaluate_sts(task, sentences, rows)
            scores = dict(result.scores)
            if result.headline_subsets:
                pairs = Judged(*(np.concatenate([of[s] for s in result.headline_subsets])
                                 for of in (result.cosines, result.gold)))  # fmt: skip
                judged[f"{task.name}/{head}/sts"] = pairs
                if (bounds := interval(resampled_spearman(pairs, bootstrap))) is not None:
                    scores["ci"] = {"headline": bounds}
            heads[head] = scores
        content[task.name] = {
            "fingerprint": task.fingerprint,
            "notes": list(task.notes),
            "heads": heads,
        }
    found_cxc = {
        kind: _measure_cxc(source, task, data, bootstrap.seed) for kind, (task, data) in cxc.items()
    }
    return {
        "bootstrap": measure.scoring.plain()["bootstrap"],
        "head": source.uni_head,
        "tasks": content,
        "average": paper_average({"tasks": content}, source.heads),
        **({"cxc": found_cxc} if found_cxc else {}),
    }, judged


def resampled_spearman(pairs: Judged, bootstrap: Bootstrap) -> np.ndarray:
    """100 x Spearman over resampled pairs, float64; NaN where a draw has no two different scores."""

    def of(picked: np.ndarray) -> float:
        try:
            return spearman(pairs.cosines[picked], pairs.gold[picked])
        except CusaError:
            return math.nan

    return resampled(of, len(pairs.gold), bootstrap)


def _measure_cxc(source: Source, task: CxcTask, data: RetrievalData, seed: int) -> dict[str, Any]:
    first, second = (_rows_of(source, ids, data) for ids in (task.first, task.second))
    try:
        heads = {
            h: cxc_correlation(cosine(first[h], second[h]), task.gold, list(task.first), seed)
            for h in first
        }
    except CusaError as error:
        raise CusaError(f"{source.name}, CxC {task.kind}: {error}") from None
    return {"heads": heads}


def check_judged(task: CxcTask, data: RetrievalData) -> None:
    """Refuse a split that lacks what CxC judges.

    Raises:
        CusaError: If it does; says how many and which is the first.
    """
    for ids in (task.first, task.second):
        row_of, wanted = _by_id(ids, data)
        if missing := [i for i in dict.fromkeys(wanted) if i not in row_of]:
            what = "captions" if isinstance(ids[0], int) else "images"
            raise CusaError(
                f"CxC judges {len(missing)} {what} that {data.dataset} {data.split.name} lacks, {missing[0]} the "
                "first; it needs COCO's test split under COCO's ids (Karpathy's json)"
            )


def _by_id(ids: Sequence[int | str], data: RetrievalData) -> tuple[dict[str, int], list[str]]:
    """The split's row of each caption or image, whichever the ids are of: captions have numbers, images texts."""
    known = data.split.caption_ids if isinstance(ids[0], int) else data.split.image_ids
    return {known[r]: r for r in range(len(known))}, [str(i) for i in ids]


def _rows_of(
    source: Source, ids: Sequence[int | str], data: RetrievalData
) -> dict[Head, np.ndarray]:
    """Embeddings of CxC's captions or images, in their order."""
    split = data.split
    row_of, wanted = _by_id(ids, data)
    distinct = list(dict.fromkeys(wanted))
    if isinstance(ids[0], int):
        rows = source.texts(distinct, [split.captions[row_of[i]] for i in distinct])
    else:
        rows = source.images(
            distinct, [data.image_root / split.image_paths[row_of[i]] for i in distinct]
        )
    place = {i: n for n, i in enumerate(distinct)}
    order = np.array([place[i] for i in wanted])
    return {head: found[order] for head, found in rows.items()}


def paper_average(content: Mapping[str, Any], heads: Sequence[Head]) -> dict[Head, float | None]:
    """Mean over the paper's data sets by head; ``None`` where one is missing.

    Args:
        content: Of images.json (``sets``) or sts.json (``tasks``).
        heads: The model's.
    """
    key, names, figure = (
        ("sets", PAPER_IMAGES, "r1") if "sets" in content else ("tasks", PAPER_STS, "headline")
    )
    averages: dict[Head, float | None] = {}
    for head in heads:
        values = [
            content[key].get(name, {}).get("heads", {}).get(head, {}).get(figure) for name in names
        ]
        known = [v for v in values if v is not None]
        averages[head] = sum(known) / len(known) if len(known) == len(names) else None
    return averages
