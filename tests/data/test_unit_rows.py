"""Lengths in float64: rows that float16 or float32 could not divide by their lengths."""

import math

import numpy as np
import pytest

from cusa.data.unit_rows import unit_rows


def _expected(row):
    """The row by its length, in Python's own arithmetic, scaled so that no square is lost."""
    greatest = max(abs(float(x)) for x in row)
    scaled = [float(x) / greatest for x in row]
    length = math.sqrt(math.fsum(x * x for x in scaled))
    return [x / length for x in scaled]


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (np.float16, 260.0),
        (np.float16, 60_000.0),
        (np.float16, 6e-8),
        (np.float32, 1e20),
        (np.float32, 3e38),
        (np.float32, 1e-20),
        (np.float32, 1e-40),
        (np.float64, 1e300),
        (np.float64, 1e-300),
        (np.float64, 5e-324),
        (np.longdouble, 1.0),
        (np.int64, 3.0),
        (">f4", 1.0),
    ],
)
def test_rows_of_any_size_and_type_have_length_one(dtype, size):
    rows = (np.array([[1.0, -0.5, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]]) * size).astype(dtype)
    unit = unit_rows(rows, np.float64)
    np.testing.assert_allclose(unit, [_expected(row) for row in rows], rtol=1e-14)
    assert unit_rows(rows).dtype == np.float32


def test_zeros_stay_zeros_and_what_is_not_finite_becomes_nan():
    rows = np.array([[0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0], [3.0, 4.0]], np.float32)
    unit = unit_rows(rows)
    assert unit[0].tolist() == [0, 0]
    assert np.isnan(unit[1]).any()
    assert np.isnan(unit[2]).all()
    np.testing.assert_array_equal(unit[3], np.array([0.6, 0.8], np.float32))
    assert unit_rows(rows[:0]).shape == (0, 2)
    assert unit_rows(np.zeros((3, 0))).shape == (3, 0)


@pytest.mark.parametrize("dim", [1, 2, 7, 384])
def test_equal_rows_stay_equal_wherever_they_stand(dim):
    """4,097 rows: the last one is a block of its own."""
    rows = np.tile(np.random.default_rng(0).normal(size=dim).astype(np.float32), (4097, 1))
    unit = unit_rows(rows)
    assert (unit == unit[0]).all()
