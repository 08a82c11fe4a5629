"""Gradient caching against the plain large batch."""

import weakref
from typing import NamedTuple

import pytest
import torch
from torch import nn

from cusa.train.gradient_cache import encode_in_micro_batches
from cusa.train.loss.cusa_loss import CUSALoss


class Heads(NamedTuple):
    cross: torch.Tensor
    uni: torch.Tensor


class Encoder(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Dropout(dropout), nn.GELU()).double()
        self.cross, self.uni = nn.Linear(16, 5).double(), nn.Linear(16, 5).double()
        self.largest = 0

    def forward(self, inputs):
        x = inputs if isinstance(inputs, torch.Tensor) else inputs["x"] + inputs["y"]
        self.largest = max(self.largest, len(x))
        x = self.trunk(x)
        return Heads(self.cross(x), self.uni(x))


def _train(dropout, encode, inputs):
    """Loss and gradients of a step; ``encode`` is how an encoder is called on a batch."""
    image, text, loss = Encoder(dropout), Encoder(dropout), CUSALoss().double()
    torch.manual_seed(5)
    v, t = encode(image, inputs), encode(text, inputs)
    rng = torch.Generator().manual_seed(2)
    teachers = [torch.randn(len(v.cross), 4, generator=rng, dtype=torch.float64) for _ in range(2)]
    terms = loss(v.cross, t.cross, v.uni, t.uni, *teachers)
    terms.total.backward()
    parameters = [p for m in (image, text, loss) for p in m.parameters()]
    return [terms.total.detach(), *(p.grad for p in parameters)], image.largest


@pytest.mark.parametrize("size", [1, 4, 11, 50])
@pytest.mark.parametrize("kind", ["tensor", "mapping"])
def test_gradients_are_those_of_the_whole_batch(size, kind):
    x = torch.randn(11, 6, dtype=torch.float64)
    inputs = x if kind == "tensor" else {"x": x, "y": x.flip(0)}
    want, _ = _train(0.0, lambda encoder, x: encoder(x), inputs)
    got, largest = _train(0.0, lambda encoder, x: encode_in_micro_batches(encoder, x, size), inputs)
    assert largest == min(size, 11)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)


def test_dropout_is_replayed():
    x = torch.randn(11, 6, dtype=torch.float64)

    def parts(encoder, x):
        return Heads(*(torch.cat(c) for c in zip(*(encoder(p) for p in x.split(4)), strict=True)))

    want, _ = _train(0.5, parts, x)
    got, _ = _train(0.5, lambda encoder, x: encode_in_micro_batches(encoder, x, 4, device="cpu"), x)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_single_tensor_comes_back_as_one():
    encoder = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    torch.testing.assert_close(encode_in_micro_batches(encoder, x, 2), encoder(x))
    with pytest.raises(ValueError, match="at least one row, got size 0"):
        encode_in_micro_batches(encoder, x, 0)
    with pytest.raises(ValueError, match=r"equally many rows and at least one, got \[5, 4\]"):
        encode_in_micro_batches(lambda part: encoder(part["x"]), {"x": x, "y": x[:4]}, 2)
    with pytest.raises(ValueError, match=r"at least one, got \[0\]"):
        encode_in_micro_batches(encoder, x[:0], 2)
    with pytest.raises(ValueError, match="a row for each of its 5 rows in all, got 3"):
        encode_in_micro_batches(lambda part: encoder(part).mean(0, keepdim=True), x, 2)


def test_one_micro_batch_of_activations_lives_at_a_time():
    alive: list[weakref.ref] = []
    most = 0
    linear = nn.Linear(6, 5)

    def encode(x):
        nonlocal most
        activation = linear(x).sin()
        alive.append(weakref.ref(activation))
        most = max(most, sum(ref() is not None for ref in alive))
        return activation.sin()  # keeps the activation for the backward pass

    encode_in_micro_batches(encode, torch.randn(40, 6), 8).sum().backward()
    assert len(alive) == 10  # five micro-batches, twice
    assert most == 1
    alive.clear()
    most = 0
    torch.cat([encode(x) for x in torch.randn(40, 6).split(8)]).sum().backward()
    assert most == 5
