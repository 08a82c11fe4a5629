"""Features of length one against torch's own, in value, gradient and second derivative."""

import math

import numpy as np
import pytest
import torch

from cusa.precompute.teachers.base import Teacher
from cusa.train.encode_split import embed
from cusa.train.loss.unit_features import unit_features


@pytest.mark.parametrize("size", [1.0, 2.0**70, 2.0**-70])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 512), (0, 8)])
def test_values_and_gradients_are_those_of_torch(shape, size):
    generator = torch.Generator().manual_seed(0)
    features, weights = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    theirs = features.clone().requires_grad_()
    ours = (features * size).requires_grad_()
    unit = unit_features(ours)
    expected = torch.nn.functional.normalize(theirs, dim=-1)
    torch.testing.assert_close(unit, expected, rtol=1e-14, atol=0)
    (unit * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad * size, theirs.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("known", [True, False], ids=["usual", "unknown"])
def test_derivatives_are_those_of_finite_differences(known, monkeypatch):
    """Whether the lengths are known to be usual or not, as on a GPU."""
    monkeypatch.setattr("cusa.train.loss.unit_features._are_usual", lambda lengths: known)
    features = torch.randn(
        4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    assert torch.autograd.gradcheck(unit_features, features)
    assert torch.autograd.gradgradcheck(unit_features, features)


@pytest.mark.parametrize("size", [1e25, 1e-25, 1e-38])
def test_float32_features_of_any_length(size):
    features = (torch.tensor([[3.0, 4.0], [0.0, -2.0]]) * size).requires_grad_()
    unit = unit_features(features)
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.0, -1.0]]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("value", [3e38, 1e-45])
def test_lengths_that_float32_does_not_hold(value):
    """A row of the first is longer than its greatest number; of the second, near its least."""
    features = torch.full((1, 4), value).requires_grad_()
    unit = unit_features(features)
    torch.testing.assert_close(unit, torch.full((1, 4), 0.5))
    unit.sum().backward()
    assert features.grad.isfinite().all()


def test_zeros_stay_zeros_with_a_finite_gradient():
    features = torch.zeros(2, 3, requires_grad=True)
    unit = unit_features(features)
    assert not unit.any()
    (unit * torch.arange(6).view(2, 3)).sum().backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(
    ("size", "dtype"), [(260.0, torch.float16), (1e20, torch.float32), (1e-20, torch.float32)]
)
def test_students_and_teachers_give_rows_of_length_one(size, dtype):
    features = (torch.tensor([[3.0, 4.0], [0.0, -2.0]]) * size).to(dtype)
    expected = np.array([[0.6, 0.8], [0.0, -1.0]])
    for rows in embed(lambda inputs: (inputs, inputs), features, "cpu").values():
        np.testing.assert_allclose(rows, expected, rtol=1e-3)
    teacher = Teacher(
        "text", "made-up", "0" * 64, 2, {}, "", lambda inputs: inputs["x"], 2, tokenize=lambda _: {}
    )
    np.testing.assert_allclose(teacher.rows({"x": features}, "cpu", "fp32"), expected, rtol=1e-3)


@pytest.mark.parametrize("other", [0.0, 1e-30, 1e30, math.inf, math.nan])
def test_a_row_has_the_same_bits_beside_any_other(other):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(64, 512, generator=generator)
    alone = unit_features(rows)
    with_other = unit_features(torch.cat([rows, torch.full((1, 512), other)]))
    assert torch.equal(with_other[:64], alone)
