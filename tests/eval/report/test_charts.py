import numpy as np

from cusa.eval.report.charts import MOST_POINTS, best_validation, points


def test_a_long_curve_is_averaged_in_blocks():
    lines = [{"kind": "train", "step": i, "loss": float(i % 2)} for i in range(4 * MOST_POINTS)]
    x, y = points(lines, "train", "step", "loss")
    np.testing.assert_allclose(x, 1.5 + 4 * np.arange(MOST_POINTS))
    np.testing.assert_allclose(y, 0.5)
    assert len(points(lines, "val", "step", "loss")[0]) == 0


def test_best_validation_is_the_first_of_equals():
    history = [{"kind": "val", "epoch": e, "rsum": r} for e, r in ((1, 10.0), (2, 30.0), (3, 30.0))]
    assert best_validation(history) == ("epoch 2", 30.0)
    assert best_validation([]) is None
