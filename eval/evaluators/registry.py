"""The suites of cusa-eval, in the order of the report; add a new one here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cusa.eval.evaluators.images.evaluator import ImagesEvaluator
from cusa.eval.evaluators.judgements.evaluator import JudgementsEvaluator
from cusa.eval.evaluators.protocol import Evaluator
from cusa.eval.evaluators.retrieval.evaluator import RetrievalEvaluator
from cusa.eval.evaluators.sts.evaluator import StsEvaluator

_IN_ORDER: tuple[Evaluator[Any, Any], ...] = (
    RetrievalEvaluator(),
    JudgementsEvaluator(),
    ImagesEvaluator(),
    StsEvaluator(),
)
EVALUATORS: Mapping[str, Evaluator[Any, Any]] = {
    evaluator.name: evaluator for evaluator in _IN_ORDER
}
