"""The published row beside a run's figures."""

from __future__ import annotations

from typing import cast

from cusa.eval.evaluators.forms import PublishedFigures
from cusa.eval.models.evaluated_models import EvaluatedModel
from cusa.eval.report.paper import paper_row


def published_row(model: EvaluatedModel, table: str) -> PublishedFigures | None:
    """Return the row of a model's student and loss, if a table of the paper has it.

    Args:
        model: The model.
        table: As :func:`cusa.eval.report.paper.paper_row` takes it.
    """
    if model.origin is None:
        return None
    config = model.origin.config
    row = paper_row(config.student.name, config.loss.terms, table)
    return cast("PublishedFigures", row.to_dict()) if row else None
