"""The suite "judgements": how a model agrees with people on a split's pairs; judgements.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from cusa.data.embeddings import Head, SplitEmbeddings
from cusa.data.errors import CusaError, SettingError, StudentError
from cusa.eval.evaluators.judgements.data import (
    JudgementFile,
    JudgementKind,
    read_judgements,
)
from cusa.eval.evaluators.judgements.matching import (
    SplitJudgements,
    check_is_of_split,
    match_judgements,
)
from cusa.eval.evaluators.judgements.measure import (
    labelled_pairs,
    measure_head,
)
from cusa.eval.evaluators.judgements.results import (
    JUDGEMENTS_FILE,
    HeadJudgements,
    JudgementFacts,
    JudgementResults,
)
from cusa.eval.evaluators.judgements.tables import judgements_section
from cusa.eval.evaluators.named_errors import named_in_errors
from cusa.eval.evaluators.protocol import Absent, Evaluator, SuiteResult, results_head
from cusa.eval.evaluators.request import EvalRequest, MeasureOptions
from cusa.eval.evaluators.split_embeddings import BOTH_MODALITIES, split_embeddings
from cusa.eval.evaluators.splits import EvaluatedSplit, SplitFinder
from cusa.eval.metrics.correlation import ScoredPairs
from cusa.eval.metrics.per_query import Rankings
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.report.tables import NamedResult, Section


@dataclass(frozen=True)
class JudgementData:
    """What agreement is measured on.

    Attributes:
        files: Judgements, one file of a kind.
        splits: Finds each model's split, whose pairs were judged.
    """

    files: Sequence[JudgementFile]
    splits: SplitFinder


class JudgementsEvaluator(Evaluator[JudgementData, JudgementResults]):
    """Agreement with people's judgements of image-caption pairs, and retrieval by their verdict."""

    name = "judgements"
    results_file = JUDGEMENTS_FILE

    def find(self, request: EvalRequest, splits: SplitFinder) -> JudgementData | Absent:
        """Read the files of judgements.

        Raises:
            CusaError: If one is malformed, two are of one kind, or they are of another split.
        """
        if not request.judgement_files:
            reason = "no human judgements are given"
            return Absent(reason, SettingError(f"{reason}; pass --judgements FILE"))
        files: dict[JudgementKind, JudgementFile] = {}
        for path in request.judgement_files:
            file = read_judgements(path)
            if file.kind in files:
                raise SettingError(
                    f"{files[file.kind].path} and {path} are of one form; pass one file of "
                    "each: of the crowd's judgements, and of the experts'",
                    name="--judgements",
                )
            files[file.kind] = file
        if not request.skip_absent:
            for split in splits.find_all():
                for file in files.values():
                    check_is_of_split(file, split)
        return JudgementData(list(files.values()), splits)

    def run(
        self, model: EvaluatedModel, data: JudgementData, options: MeasureOptions
    ) -> SuiteResult[JudgementResults] | Absent:
        """Measure a model on its split's judged pairs."""
        split = _judged_split(model, data)
        if isinstance(split, Absent):
            return split
        embeddings = split_embeddings(model, split)
        judged: dict[JudgementKind, SplitJudgements] = {}
        facts: dict[JudgementKind, JudgementFacts] = {}
        for file in data.files:
            judged[file.kind] = match_judgements(file, split, embeddings)
            facts[file.kind] = _facts(file, judged[file.kind], embeddings)
        heads: dict[Head, HeadJudgements] = {}
        per_query: dict[str, Rankings | ScoredPairs] = {}
        for head in embeddings.image:
            with named_in_errors(f"{model.name}, human judgements"):
                measured = measure_head(embeddings, head, judged, options.scoring)
            heads[head] = measured.figures
            for key, of_queries in measured.per_query.items():
                per_query[f"{split.title}/{head}/{key}"] = of_queries
        content = cast(
            "JudgementResults",
            {
                **results_head(self.results_file, model),
                "dataset": split.dataset,
                "split": split.view.name,
                "split_fingerprint": split.view.fingerprint,
                "n_images": len(embeddings.image_rows),
                "n_captions": len(embeddings.text_rows),
                **options.scoring.plain(),
                "judgements": facts,
                "heads": heads,
            },
        )
        fingerprints, notes = [split.view.fingerprint], []
        for of_kind in facts.values():
            fingerprints.append(of_kind["fingerprint"])
            notes += of_kind["notes"]
        return SuiteResult(content, {split.title: " ".join(fingerprints)}, per_query, tuple(notes))

    def tables(self, results: Sequence[NamedResult[JudgementResults]]) -> list[Section]:
        """Make the tables of agreement, and of retrieval by people's verdict."""
        return [judgements_section(results)]


def _judged_split(model: EvaluatedModel, data: JudgementData) -> EvaluatedSplit | Absent:
    """Find the model's split, if the judgements are of it and the model embeds both sides."""
    if missing := model.missing(BOTH_MODALITIES):
        lacking = "s and no ".join(missing)
        return Absent(
            f"no human judgements for {model.title}: it embeds no {lacking}s",
            StudentError(
                f"{model.name} embeds no {lacking}s; judged pairs need both", name=model.name
            ),
        )
    try:
        split = data.splits.find(model.run_dir)
        for file in data.files:
            check_is_of_split(file, split)
    except CusaError as error:
        return Absent(f"no human judgements for {model.title}: {error}", error)
    return split


def _facts(
    file: JudgementFile, judged: SplitJudgements, embeddings: SplitEmbeddings
) -> JudgementFacts:
    """Say what the judgements of a file are, of those pairs that have embeddings."""
    labelled = labelled_pairs(embeddings)
    return {
        "fingerprint": file.fingerprint,
        "pairs": len(judged.scores),
        "images": len(np.unique(judged.images)),
        "captions": len(np.unique(judged.captions)),
        "positives": int(judged.is_positive.sum()),
        "positives_beyond_labels": len(labelled.with_positives(judged)) - len(labelled),
        "notes": list(judged.notes),
    }
