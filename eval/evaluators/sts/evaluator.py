"""The suite "sts": similarity of sentences, and CxC's of captions and images; sts.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from cusa.data.embeddings import Head
from cusa.data.errors import CusaError
from cusa.eval.evaluators.protocol import Absent, Evaluator, SuiteResult, results_head
from cusa.eval.evaluators.published import published_row
from cusa.eval.evaluators.request import EvalRequest, MeasureOptions
from cusa.eval.evaluators.splits import EvaluatedSplit, SplitFinder
from cusa.eval.evaluators.sts.cxc import CxcTask, cxc_correlation, find_cxc
from cusa.eval.evaluators.sts.data import find_sts_tasks
from cusa.eval.evaluators.sts.measure import cosine, evaluate_sts
from cusa.eval.evaluators.sts.results import (
    STS_FILE,
    CxcKind,
    CxcResults,
    StsResults,
    StsScores,
    StsTaskResults,
    average_headline,
)
from cusa.eval.evaluators.sts.tables import sts_sections
from cusa.eval.evaluators.sts.tasks import NoStsDataError, StsTask
from cusa.eval.metrics.bootstrap import Bootstrap, interval
from cusa.eval.metrics.correlation import ScoredPairs, resampled_spearman
from cusa.eval.models.embedding_providers import Source
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.report.tables import NamedResult, Section


@dataclass(frozen=True)
class StsData:
    """What similarity is measured on.

    Attributes:
        folder: Where it was found.
        tasks: The tasks of sentences.
        cxc: Tasks of Crisscrossed Captions by kind.
        splits: Finds each model's split, which CxC judges captions and images of.
        notes: What its user should know.
        skip_absent: Whether CxC is left out, with a note, where the split lacks what it judges.
    """

    folder: Path
    tasks: Sequence[StsTask]
    cxc: Mapping[CxcKind, CxcTask]
    splits: SplitFinder
    notes: tuple[str, ...]
    skip_absent: bool


@dataclass(frozen=True)
class _JudgedSplit:
    """The tasks of CxC that a model can answer, and the split of what they judge."""

    tasks: Mapping[CxcKind, CxcTask]
    split: EvaluatedSplit | None
    notes: tuple[str, ...]


class StsEvaluator(Evaluator[StsData, StsResults]):
    """Sentence similarity by the paper's rule, and graded similarity of captions and images."""

    name = "sts"
    results_file = STS_FILE

    def find(self, request: EvalRequest, splits: SplitFinder) -> StsData | Absent:
        """Find the tasks that there are: of sentences, of CxC, or both.

        Raises:
            CusaError: If a task is malformed or not complete.
        """
        folder = request.sts_folder or request.split.data_root / "sts"
        tasks: list[StsTask] = []
        notes = []
        cxc = find_cxc(folder)
        try:
            tasks = find_sts_tasks(folder, request.options.allow_partial)
        except NoStsDataError as error:
            note = f"no STS tasks: {error}"
            if not cxc:
                return Absent(note, error)
            notes.append(note)
        return StsData(folder, tasks, cxc, splits, tuple(notes), request.skip_absent)

    def run(
        self, model: EvaluatedModel, data: StsData, options: MeasureOptions
    ) -> SuiteResult[StsResults] | Absent:
        """Measure a model on every task."""
        source = model.source
        if "text" not in source.modalities:
            return Absent(
                f"no sentence similarity for {model.title}: it embeds no texts",
                CusaError(
                    f"{source.name} embeds no texts; sentence similarity needs a model that does"
                ),
            )
        judged = _judged_split(model, data)
        if not data.tasks and not judged.tasks:
            return Absent("; ".join(judged.notes), error=None)

        bootstrap = options.scoring.bootstrap
        tasks: dict[str, StsTaskResults] = {}
        per_query: dict[str, ScoredPairs] = {}
        for task in data.tasks:
            tasks[task.name], pairs_by_head = measure_task(source, task, bootstrap)
            for head, pairs in pairs_by_head.items():
                per_query[f"{task.name}/{head}/sts"] = pairs
        cxc: dict[CxcKind, CxcResults] = {}
        if judged.split is not None:
            for kind, cxc_task in judged.tasks.items():
                cxc[kind] = _measure_cxc(source, cxc_task, judged.split, bootstrap.seed)

        content = cast(
            "StsResults",
            {
                **results_head(self.results_file, model),
                "bootstrap": options.scoring.plain()["bootstrap"],
                "head": source.uni_head,
                "tasks": tasks,
                "average": {head: average_headline(tasks, head) for head in source.heads},
            },
        )
        if cxc:
            content["cxc"] = cxc
        if row := published_row(model, "sts_spearman"):
            content["paper"] = row
        fingerprints = {task.name: task.fingerprint for task in data.tasks}
        return SuiteResult(content, fingerprints, per_query, (*data.notes, *judged.notes))

    def tables(self, results: Sequence[NamedResult[StsResults]]) -> list[Section]:
        """Make the tables of sentence similarity, and of CxC."""
        return sts_sections(results)


def measure_task(
    source: Source, task: StsTask, bootstrap: Bootstrap
) -> tuple[StsTaskResults, dict[Head, ScoredPairs]]:
    """Measure a model on one task.

    Args:
        source: The model; it embeds texts.
        task: The task.
        bootstrap: How the interval of the headline is made.

    Returns:
        Scores by head with what the task is, and the pairs behind the headline; a head whose
        headline's subset is missing has none.

    Raises:
        CusaError: If a correlation is not defined.
    """
    sentences = task.sentences
    heads: dict[Head, StsScores] = {}
    pairs_by_head: dict[Head, ScoredPairs] = {}
    for head, rows in source.texts(sentences, sentences).items():
        result = evaluate_sts(task, sentences, rows)
        heads[head] = result.scores
        if result.headline_subsets:
            pairs = ScoredPairs(
                np.concatenate([result.cosines[name] for name in result.headline_subsets]),
                np.concatenate([result.gold[name] for name in result.headline_subsets]),
            )
            pairs_by_head[head] = pairs
            bounds = interval(resampled_spearman(pairs, bootstrap))
            if bounds is not None:
                heads[head]["ci"] = {"headline": bounds}
    results: StsTaskResults = {
        "fingerprint": task.fingerprint,
        "notes": list(task.notes),
        "heads": heads,
    }
    return results, pairs_by_head


def _judged_split(model: EvaluatedModel, data: StsData) -> _JudgedSplit:
    """Find the tasks of CxC that a model can answer, with the split that has what they judge."""
    embeds_images = "image" in model.source.modalities
    tasks = {kind: task for kind, task in data.cxc.items() if kind == "sts" or embeds_images}
    notes = []
    if len(tasks) < len(data.cxc):
        unable = " and no ".join(kind for kind in data.cxc if kind not in tasks)
        notes.append(f"no {unable} of CxC for {model.title}: it embeds no images")
    if not tasks:
        return _JudgedSplit({}, None, tuple(notes))
    try:
        split = data.splits.find(model.run_dir)
        for task in tasks.values():
            _check_has_what_is_judged(split, task)
    except CusaError as error:
        if not data.skip_absent:
            raise CusaError(
                f"CxC in {data.folder}: {error}; or pass a folder without its csv files"
            ) from None
        notes.append(f"no CxC for {model.title}: {error}")
        return _JudgedSplit({}, None, tuple(notes))
    return _JudgedSplit(tasks, split, tuple(notes))


def _check_has_what_is_judged(split: EvaluatedSplit, task: CxcTask) -> None:
    """Refuse a split that lacks what CxC judges; says how many and which is the first."""
    for ids in (task.first, task.second):
        row_of = _row_by_id(ids, split)
        missing = [item for item in dict.fromkeys(map(str, ids)) if item not in row_of]
        if missing:
            modality = "captions" if isinstance(ids[0], int) else "images"
            raise CusaError(
                f"CxC judges {len(missing)} {modality} that {split.dataset} {split.view.name} "
                f"lacks, {missing[0]} the first; it needs COCO's test split under COCO's ids "
                "(Karpathy's json)"
            )


def _row_by_id(ids: Sequence[int | str], split: EvaluatedSplit) -> dict[str, int]:
    """The split's row of each caption or image: captions have numbers as ids, images texts."""
    known = split.view.caption_ids if isinstance(ids[0], int) else split.view.image_ids
    return {known[row]: row for row in range(len(known))}


def _measure_cxc(source: Source, task: CxcTask, split: EvaluatedSplit, seed: int) -> CxcResults:
    first = _embed_judged(source, task.first, split)
    second = _embed_judged(source, task.second, split)
    heads = {}
    try:
        for head in first:
            similarities = cosine(first[head], second[head])
            heads[head] = cxc_correlation(similarities, task.gold, list(task.first), seed)
    except CusaError as error:
        raise CusaError(f"{source.name}, CxC {task.kind}: {error}") from None
    return {"heads": heads}


def _embed_judged(
    source: Source, ids: Sequence[int | str], split: EvaluatedSplit
) -> dict[Head, np.ndarray]:
    """Embed CxC's captions or images, each once; rows in the order of the ids."""
    row_of = _row_by_id(ids, split)
    wanted = [str(item) for item in ids]
    distinct = list(dict.fromkeys(wanted))
    rows = [row_of[item] for item in distinct]
    if isinstance(ids[0], int):
        embedded = source.texts(distinct, [split.view.captions[row] for row in rows])
    else:
        paths = [split.image_root / split.view.image_paths[row] for row in rows]
        embedded = source.images(distinct, paths)
    position = {item: number for number, item in enumerate(distinct)}
    order = np.array([position[item] for item in wanted])
    return {head: embeddings[order] for head, embeddings in embedded.items()}
