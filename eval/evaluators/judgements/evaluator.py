"""The suite "judgements": agreement of a model with people on a split's pairs; judgements.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from cusa.data.errors import CusaError, SettingError
from cusa.eval.evaluators.judgements.data import JudgementFile, JudgementKind, read_judgements
from cusa.eval.evaluators.judgements.matching import (
    SplitJudgements,
    match_judgements,
    rows_in_split,
)
from cusa.eval.evaluators.judgements.measure import labelled_pairs, measure_heads, with_positives
from cusa.eval.evaluators.judgements.results import (
    JUDGEMENTS_FILE,
    JudgementFacts,
    JudgementResults,
)
from cusa.eval.evaluators.judgements.tables import judgements_section
from cusa.eval.evaluators.protocol import (
    Absent,
    Evaluator,
    SuiteResult,
    absent_without,
    named_in_errors,
    results_head,
)
from cusa.eval.evaluators.request import EvalRequest, MeasureOptions
from cusa.eval.evaluators.split_embeddings import BOTH_MODALITIES, split_embeddings, split_facts
from cusa.eval.evaluators.splits import SplitFinder
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.report.tables import NamedResult, Section


@dataclass(frozen=True)
class JudgementData:
    """The data that agreement is measured on.

    Attributes:
        files: Files of judgements, at most one of each kind.
        splits: Finds each model's split, whose pairs were judged.
    """

    files: Sequence[JudgementFile]
    splits: SplitFinder


class JudgementsEvaluator(Evaluator[JudgementData, JudgementResults]):
    """Agreement with human judgements of image-caption pairs, and retrieval by these judgements."""

    name = "judgements"
    results_file = JUDGEMENTS_FILE

    def find(self, request: EvalRequest, splits: SplitFinder) -> JudgementData | Absent:
        """Read the files of judgements.

        Raises:
            CusaError: If a file is malformed, two are of the same kind, or their pairs are not in
                the split.
        """
        if not request.judgement_files:
            reason = "no human judgements were given"
            return Absent(
                reason, SettingError(f"{reason}; pass --judgements FILE", name="judgements")
            )
        files: dict[JudgementKind, JudgementFile] = {}
        for path in request.judgement_files:
            file = read_judgements(path)
            if file.kind in files:
                raise SettingError(
                    f"{files[file.kind].path} and {path} have the same form; pass at most one file "
                    "of the crowd's judgements and one of the experts'",
                    name="judgements",
                )
            files[file.kind] = file
        if not request.skip_absent:
            for split in splits.find_all():
                for file in files.values():
                    rows_in_split(file, split)
        return JudgementData(list(files.values()), splits)

    def run(
        self, model: EvaluatedModel, data: JudgementData, options: MeasureOptions
    ) -> SuiteResult[JudgementResults] | Absent:
        """Measure a model on the judged pairs of its split."""
        need = "judged pairs need both"
        if absent := absent_without(BOTH_MODALITIES, model, "human judgements", need):
            return absent
        try:
            split = data.splits.find(model.run_dir)
            rows_of_files = [rows_in_split(file, split) for file in data.files]
        except CusaError as error:
            return Absent(f"no human judgements for {model.title}: {error}", error)
        embeddings = split_embeddings(model, split)
        labelled = labelled_pairs(embeddings)
        judged: dict[JudgementKind, SplitJudgements] = {}
        facts: dict[JudgementKind, JudgementFacts] = {}
        for file, rows in zip(data.files, rows_of_files, strict=True):
            judged[file.kind] = match_judgements(file, split, rows, embeddings)
            facts[file.kind] = _facts(file, judged[file.kind], labelled)
        with named_in_errors(f"{model.name}, human judgements"):
            heads, per_query = measure_heads(embeddings, judged, split.title, options.scoring)
        content = {
            **results_head(self.results_file, model),
            **split_facts(split, embeddings),
            **options.scoring.to_dict(),
            "judgements": facts,
            "heads": heads,
        }
        fingerprints, notes = [split.view.fingerprint], []
        for kind_facts in facts.values():
            fingerprints.append(kind_facts["fingerprint"])
            notes += kind_facts["notes"]
        return SuiteResult(
            cast("JudgementResults", content),
            {split.title: " ".join(fingerprints)},
            per_query,
            tuple(notes),
        )

    def tables(self, results: Sequence[NamedResult[JudgementResults]]) -> list[Section]:
        """Make the tables of agreement, and of retrieval by human judgements."""
        return [judgements_section(results)]


def _facts(file: JudgementFile, judged: SplitJudgements, labelled: np.ndarray) -> JudgementFacts:
    """Describe a file's judgements, counting the pairs that have embeddings."""
    n_labelled = labelled.shape[1]
    return {
        "fingerprint": file.fingerprint,
        "pairs": len(judged.scores),
        "images": len(np.unique(judged.images)),
        "captions": len(np.unique(judged.captions)),
        "positives": int(judged.is_positive.sum()),
        "positives_beyond_labels": with_positives(labelled, judged).shape[1] - n_labelled,
        "notes": list(judged.notes),
    }
