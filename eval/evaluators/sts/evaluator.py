"""The suite "sts": similarity of sentences, and of captions and images (CxC); sts.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from cusa.data.embeddings import Head
from cusa.eval.evaluators.protocol import (
    Absent,
    Evaluator,
    SuiteResult,
    absent_without,
    published_row,
    results_head,
)
from cusa.eval.evaluators.request import EvalRequest, MeasureOptions
from cusa.eval.evaluators.splits import SplitFinder
from cusa.eval.evaluators.sts.cxc import find_cxc
from cusa.eval.evaluators.sts.cxc_evaluation import CxcData, measure_cxc
from cusa.eval.evaluators.sts.data import find_sts_tasks
from cusa.eval.evaluators.sts.measure import evaluate_sts
from cusa.eval.evaluators.sts.results import (
    STS_FILE,
    StsResults,
    StsScores,
    StsTaskResults,
    average_headline,
)
from cusa.eval.evaluators.sts.tables import sts_sections
from cusa.eval.evaluators.sts.tasks import NoStsDataError, StsTask
from cusa.eval.metrics.bootstrap import Bootstrap, interval
from cusa.eval.metrics.correlation import ScoredPairs, resampled_spearman
from cusa.eval.models.embedding_providers import EmbeddingProvider
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.report.tables import NamedResult, Section


@dataclass(frozen=True)
class StsData:
    """The data that similarity is measured on.

    Attributes:
        tasks: The tasks of sentence similarity.
        cxc: The tasks of Crisscrossed Captions.
        notes: Remarks for the user.
    """

    tasks: Sequence[StsTask]
    cxc: CxcData
    notes: tuple[str, ...]


class StsEvaluator(Evaluator[StsData, StsResults]):
    """Sentence similarity by the paper's rule, and graded similarity of captions and images."""

    name = "sts"
    results_file = STS_FILE

    def find(self, request: EvalRequest, splits: SplitFinder) -> StsData | Absent:
        """Find the tasks of sentence similarity, of CxC, or both.

        Raises:
            CusaError: If a task is malformed or incomplete.
        """
        folder = request.sts_folder or request.split.data_root / "sts"
        cxc = CxcData(find_cxc(folder), folder, splits, request.skip_absent)
        try:
            tasks = find_sts_tasks(folder, request.options.allow_partial)
        except NoStsDataError as error:
            note = f"no STS tasks: {error}"
            return StsData((), cxc, (note,)) if cxc.tasks else Absent(note, error)
        return StsData(tasks, cxc, ())

    def run(
        self,
        model: EvaluatedModel,
        data: StsData,
        options: MeasureOptions,
    ) -> SuiteResult[StsResults] | Absent:
        """Measure a model on every task."""
        need = "sentence similarity needs a model that does"
        if absent := absent_without(frozenset({"text"}), model, "sentence similarity", need):
            return absent
        bootstrap = options.scoring.bootstrap
        cxc, notes = measure_cxc(model, data.cxc, bootstrap.seed)
        if not data.tasks and not cxc:
            return Absent("; ".join(notes), error=None)

        tasks: dict[str, StsTaskResults] = {}
        fingerprints: dict[str, str] = {}
        per_query: dict[str, ScoredPairs] = {}
        for task in data.tasks:
            tasks[task.name], pairs_by_head = _measure_task(model.provider, task, bootstrap)
            fingerprints[task.name] = task.fingerprint
            for head, pairs in pairs_by_head.items():
                per_query[f"{task.name}/{head}/sts"] = pairs
        content = {
            **results_head(self.results_file, model),
            "bootstrap": options.scoring.to_dict()["bootstrap"],
            "head": model.provider.uni_head,
            "tasks": tasks,
            "average": average_headline(tasks, model.provider.heads),
            **({"cxc": cxc} if cxc else {}),
            **published_row(model, "sts_spearman"),
        }
        all_notes = (*data.notes, *notes)
        return SuiteResult(cast("StsResults", content), fingerprints, per_query, all_notes)

    def tables(self, results: Sequence[NamedResult[StsResults]]) -> list[Section]:
        """Make the tables of sentence similarity, and of CxC."""
        return sts_sections(results)


def _measure_task(
    provider: EmbeddingProvider, task: StsTask, bootstrap: Bootstrap
) -> tuple[StsTaskResults, dict[Head, ScoredPairs]]:
    """Return the results on a task, and the pairs behind its headline by head."""
    heads: dict[Head, StsScores] = {}
    pairs_by_head: dict[Head, ScoredPairs] = {}
    sentences = task.sentences
    for head, rows in provider.texts(sentences, sentences).items():
        heads[head], pairs = evaluate_sts(task, rows)
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
