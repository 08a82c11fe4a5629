"""The suite "sts": similarity of sentences, and CxC's of captions and images; sts.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cusa.data.embeddings import Head
from cusa.data.errors import StudentError
from cusa.eval.evaluators.protocol import Absent, Evaluator, SuiteResult, results_head
from cusa.eval.evaluators.published import published_row
from cusa.eval.evaluators.request import EvalRequest, MeasureOptions
from cusa.eval.evaluators.splits import SplitFinder
from cusa.eval.evaluators.sts.cxc import CxcTask, find_cxc
from cusa.eval.evaluators.sts.cxc_evaluation import find_judged_split, measure_cxc
from cusa.eval.evaluators.sts.data import find_sts_tasks
from cusa.eval.evaluators.sts.measure import evaluate_sts
from cusa.eval.evaluators.sts.results import (
    STS_FILE,
    CxcKind,
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
                StudentError(
                    f"{source.name} embeds no texts; sentence similarity needs a model that does",
                    name=source.name,
                ),
            )
        judged = find_judged_split(model, data.cxc, data.splits, data.folder, data.skip_absent)
        if not data.tasks and not judged.tasks:
            return Absent("; ".join(judged.notes), error=None)

        bootstrap = options.scoring.bootstrap
        tasks: dict[str, StsTaskResults] = {}
        fingerprints: dict[str, str] = {}
        per_query: dict[str, ScoredPairs] = {}
        for task in data.tasks:
            tasks[task.name], pairs_by_head = measure_task(source, task, bootstrap)
            fingerprints[task.name] = task.fingerprint
            for head, pairs in pairs_by_head.items():
                per_query[f"{task.name}/{head}/sts"] = pairs
        cxc = measure_cxc(source, judged, bootstrap.seed)

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
        pairs = result.headline_pairs
        if pairs is not None:
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
