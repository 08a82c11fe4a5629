"""The suite "retrieval": retrieval on a split, across and within modalities; metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from cusa.data.embeddings import SplitItems
from cusa.data.errors import CusaError
from cusa.eval.evaluators.protocol import (
    Absent,
    Evaluator,
    SuiteResult,
    absent_without,
    results_head,
)
from cusa.eval.evaluators.request import EvalRequest, MeasureOptions
from cusa.eval.evaluators.retrieval.coco import CocoTruths
from cusa.eval.evaluators.retrieval.measured import measure
from cusa.eval.evaluators.retrieval.results import (
    RETRIEVAL_FILE,
    RetrievalResults,
)
from cusa.eval.evaluators.retrieval.tables import retrieval_sections
from cusa.eval.evaluators.retrieval.teacher_scores import teachers_know_less
from cusa.eval.evaluators.split_embeddings import (
    BOTH_MODALITIES,
    split_facts,
)
from cusa.eval.evaluators.splits import EvaluatedSplit, SplitFinder, check_counts
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.report.disagreements import AnsweredSplit
from cusa.eval.report.paper import paper_retrieval
from cusa.eval.report.tables import NamedResult, Section


@dataclass(frozen=True)
class RetrievalData:
    """The data that retrieval is measured on.

    Attributes:
        splits: Finds each model's split.
        coco_truths: Ground truths of COCO's test.
        first_answers: The answers of the first model that is measured, kept to be compared with the
            others'; empty before, and ``None`` if there is only one model.
    """

    splits: SplitFinder
    coco_truths: CocoTruths
    first_answers: list[AnsweredSplit] | None


class RetrievalEvaluator(Evaluator[RetrievalData, RetrievalResults]):
    """Image-text retrieval on a split, and uni-modal retrieval of its captions and images."""

    name = "retrieval"
    results_file = RETRIEVAL_FILE

    def find(self, request: EvalRequest, splits: SplitFinder) -> RetrievalData:
        """Find every model's split, so that a missing one is reported before anything is measured.

        Raises:
            CusaError: If a split cannot be found, or is a known test split of another size.
        """
        if not request.skip_absent:
            for split in splits.find_all():
                check_counts(split, request.options.allow_partial)
        n_models = len(request.models) + any(request.embedding_files)
        first_answers: list[AnsweredSplit] | None = [] if n_models > 1 else None
        return RetrievalData(splits, CocoTruths(request.pmrp), first_answers)

    def run(
        self,
        model: EvaluatedModel,
        data: RetrievalData,
        options: MeasureOptions,
    ) -> SuiteResult[RetrievalResults] | Absent:
        """Measure a model on its split."""
        split = _split_of(model, data.splits)
        if isinstance(split, Absent):
            return split
        difference = check_counts(split, options.allow_partial)
        measured = measure(model, split, data.coco_truths, data.first_answers, options)
        content = {
            **results_head(self.results_file, model),
            **_run_of(model),
            **_facts(split, measured.items),
            "teachers": measured.teachers,
            "notes": list(filter(None, (difference, measured.note_on_figures))),
            **options.scoring.to_dict(),
            **measured.figures,
        }
        content |= _paper_row(model, content)
        explanation = teachers_know_less(content)
        if explanation:
            explanation = f"{model.title}: {explanation}"
        notes = (*content["notes"], explanation, measured.note)
        counts = f"{content['n_images']} {content['n_captions']}"
        return SuiteResult(
            cast("RetrievalResults", content),
            {split.title: f"{split.view.fingerprint} {counts}"},
            {f"{split.title}/{key}": ranked for key, ranked in measured.per_query.items()},
            tuple(filter(None, notes)),
            measured.examples,
        )

    def tables(self, results: Sequence[NamedResult[RetrievalResults]]) -> list[Section]:
        """Make the tables of the split, and of COCO's test protocols."""
        return retrieval_sections(results)

    def difference_of_data(self, first: RetrievalResults, second: RetrievalResults) -> str:
        """Describe how the splits behind two models' results differ; empty if they do not."""
        if _identity(first) == _identity(second):
            return ""
        return (
            f"{second['n_images']} and {first['n_images']} images, "
            f"{second['n_captions']} and {first['n_captions']} captions"
        )


def _split_of(model: EvaluatedModel, splits: SplitFinder) -> EvaluatedSplit | Absent:
    """Find the split that a model is measured on, if it embeds or scores images and texts."""
    absent = absent_without(BOTH_MODALITIES, model, "retrieval", "retrieval needs both")
    if absent is not None and model.scores is None:
        return absent
    try:
        return splits.find(model.run_dir)
    except CusaError as error:
        return Absent(f"no retrieval for {model.title}: {error}", error)


def _identity(content: RetrievalResults) -> tuple[str, int, int]:
    """Return what two models' results must have in common to be comparable."""
    return content["split_fingerprint"], content["n_images"], content["n_captions"]


def _run_of(model: EvaluatedModel) -> dict[str, Any]:
    """Return the keys of metrics.json that identify a model's run and checkpoint, if it has one."""
    origin = model.origin
    return {
        "run": str(model.run_dir) if model.run_dir else None,
        "checkpoint": model.compute.checkpoint if origin else None,
        "epoch": origin.epoch if origin else None,
        "step": origin.step if origin else None,
        "loss_terms": list(origin.config.loss.term_titles) if origin else [],
    }


def _facts(split: EvaluatedSplit, items: SplitItems) -> dict[str, Any]:
    facts = split_facts(split, items)
    return {
        **facts,
        "n_images_skipped": split.view.n_images - facts["n_images"],
        "n_captions_skipped": split.view.n_captions - facts["n_captions"],
    }


def _paper_row(
    model: EvaluatedModel,
    content: dict[str, Any],
) -> dict[str, Any]:
    """Return the published row under the key ``paper``; empty if the paper has none."""
    if model.origin is None:
        return {}
    config = model.origin.config
    row = paper_retrieval(config.student.name, config.loss.term_titles, content)
    return {"paper": row} if row else {}
