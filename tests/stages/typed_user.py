"""A user's script, which ``make types`` checks: wrong arguments must be errors of the types."""

from typing import assert_type

import cusa
import cusa.train.loss.cusa_loss
from cusa.precompute.run import Run


def main() -> None:
    """Run the three stages."""
    store = cusa.precompute("pictures/", teacher=["efficientnet-lite0", "minilm"], out="a.h5")
    assert_type(store, cusa.PrecomputedStore)
    cusa.Teachers(store, "train")
    run = cusa.train(store, student="adapter", loss="cusa", settings={"epochs": 5}, seed=0)
    assert_type(run, cusa.TrainedRun)
    assert_type(cusa.load_student(run), cusa.StudentEncoder)
    assert_type(cusa.evaluate([run, "minilm"], split="test", out="report"), cusa.Evaluation)
    assert_type(cusa.train.__name__, str)
    print(Run, cusa.train.loss)  # type: ignore[attr-defined]

    cusa.train(store, sed=0)  # type: ignore[call-arg]
    cusa.train(store, loss="nope")  # type: ignore[arg-type]
    cusa.precompute("pictures/", limit="3")  # type: ignore[arg-type]
    cusa.evaluate(run, ties=0)  # type: ignore[arg-type]
