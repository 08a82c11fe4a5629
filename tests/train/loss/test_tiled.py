"""The tiled loss against the dense one: values and gradients, at uneven sizes, in any precision."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cusa.data.errors import SettingError
from cusa.train.loss.config import LossConfig, Temperature, TemperaturePair
from cusa.train.loss.cusa_loss import CUSALoss

SEPARATE = TemperaturePair(Temperature(0.4, 0.1, 0.9), Temperature(0.6, 0.1, 0.7), False)
SOFT = TemperaturePair(Temperature(0.8, 0.1, 0.9), Temperature(0.3, 0.1, 0.7), False)
FIXED = TemperaturePair(Temperature(0.8, 0.1, 0.9, False), Temperature(0.3, 0.1, 0.7, False), True)


def _inputs(b, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    rows = [torch.randn(b, d, generator=rng, dtype=torch.float64) for d in (6, 6, 4, 5, 7, 3)]
    rows[1] += rows[0]
    return [x.to(dtype) for x in rows]


def _run(loss, inputs, ids, factor=1.0):
    """Terms, and gradients of features and temperatures."""
    features = [x.clone().requires_grad_() for x in inputs[:4]]
    loss.zero_grad()
    terms = loss(*features, *inputs[4:], ids)
    (factor * terms.total).backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in features]
    return [x.detach() for x in terms], gradients, [p.grad.clone() for p in loss.parameters()]


def _both(config, tile_rows):
    pair = [
        CUSALoss(config, method=m, tile_rows=tile_rows if m == "tiled" else None)
        for m in ("dense", "tiled")
    ]
    return pair


OPTIONS = [
    LossConfig(
        soft_label_source=source,
        csa_divergence=csa,
        usa_divergence=usa,
        csa_scaling=s,
        contrastive_scaling=s,
    )
    for source, csa, usa, s in itertools.product(
        ("each", "add", "dot"),
        ("kl", "cross_entropy"),
        ("kl", "cross_entropy"),
        ("paper", "infonce"),
    )
]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    "config", OPTIONS, ids=lambda c: f"{c.soft_label_source}-{c.csa_divergence}-{c.usa_divergence}"
)
def test_every_option_equals_the_dense_loss(config, learned):
    soft = SOFT if learned else FIXED
    for shares_csa, shares_soft in itertools.product((False, True), repeat=2):
        c = replace(
            config,
            contrastive_weight=1.5,
            tau_csa=SEPARATE,
            tau_soft=soft,
            tau_soft_usa=replace(soft, shared=False),
            usa_shares_csa=shares_csa,
            usa_shares_soft=shares_soft,
        )
        dense, tiled = (loss.double() for loss in _both(c, 4))
        inputs = _inputs(11)
        want, got = (
            _run(loss, inputs, torch.arange(11) // 2, factor=3.0) for loss in (dense, tiled)
        )
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        assert len(got[2]) == len([p for p in tiled.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    "terms", [("contrastive",), ("csa",), ("usa",), ("contrastive", "usa"), ("csa", "usa")]
)
@pytest.mark.parametrize("shared", [False, True])
def test_any_terms(terms, shared):
    config = LossConfig(terms=terms, usa_shares_csa=shared, usa_shares_soft=shared)
    dense, tiled = (loss.double() for loss in _both(config, 3))
    want, got = (_run(loss, _inputs(8), None) for loss in (dense, tiled))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 25), st.integers(1, 20), st.integers(0, 5))
def test_any_batch_tile_and_ids(b, tile_rows, n_images, seed):
    """B = 1 and 2, tiles larger than the batch, all images equal, all different."""
    ids = torch.randint(0, n_images, (b,), generator=torch.Generator().manual_seed(seed))
    dense, tiled = (loss.double() for loss in _both(LossConfig(), tile_rows))
    want, got = (_run(loss, _inputs(b, seed=seed), ids) for loss in (dense, tiled))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


# Of the largest number: bf16 features have eight bits, and the loss computes on them in float32
# (docs/hosts.md).
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("method", ["dense", "tiled"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_lower_precision_against_float64(dtype, method):
    inputs = _inputs(50)
    want = _run(CUSALoss(method="dense").double(), inputs, torch.arange(50) // 2)
    got = _run(
        CUSALoss(method=method, tile_rows=8), [x.to(dtype) for x in inputs], torch.arange(50) // 2
    )
    for part, exact in zip(
        (*got[0], *got[1], *got[2]), (*want[0], *want[1], *want[2]), strict=True
    ):
        assert (part.double() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max()


@pytest.mark.parametrize("method", ["dense", "tiled"])
def test_float32_against_float64_at_usual_sizes(method):
    """d = 512, features that lean to one side, as real ones do."""
    rng = torch.Generator().manual_seed(0)
    rows = [
        torch.randn(300, 512, generator=rng) + torch.randn(512, generator=rng) for _ in range(6)
    ]
    ids = torch.arange(300) // 5
    want = _run(CUSALoss(method="dense").double(), [x.double() for x in rows], ids)
    got = _run(CUSALoss(method=method, tile_rows=64), rows, ids)
    for part, exact in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
        assert (part.double() - exact).abs().max() <= 2e-5 * exact.abs().max()


def test_float32_tiles_equal_float32_dense_at_paper_temperatures_and_on_the_lower_bounds():
    for tau in (0.05, 0.01):
        config = replace(
            LossConfig(), tau=Temperature(tau, 0.01, 0.1), tau_csa=replace(SEPARATE, shared=True)
        )
        want, got = (
            _run(loss, _inputs(300, torch.float32), torch.arange(300) // 5)
            for loss in _both(config, 64)
        )
        for part, exact in zip(
            (*got[0], *got[1], *got[2]), (*want[0], *want[1], *want[2]), strict=True
        ):
            # Each is within 6.4e-6 of float64 here, the uni-modal gradients of texts.
            assert (part - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_under_autocast_the_loss_is_computed_in_float32():
    loss, inputs = CUSALoss(method="tiled", tile_rows=4), _inputs(10, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = _run(loss, inputs, None)
    torch.testing.assert_close(inside, _run(loss, inputs, None), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["dense", "tiled"])
def test_the_terms_are_for_logs_and_the_total_alone_carries_gradients(method):
    loss = CUSALoss(method=method, tile_rows=3)
    x = [t.requires_grad_() for t in _inputs(7, torch.float32)]
    terms = loss(*x)
    assert terms.total.requires_grad
    assert not any(t.requires_grad for t in terms[1:])
    torch.testing.assert_close(terms.total, terms.contrastive + terms.csa + terms.usa)
    with torch.no_grad():
        assert not loss(*x).total.requires_grad


def test_only_wanted_gradients_are_formed():
    """A frozen image tower: its features want none, the others get theirs."""
    products = 0

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal products
            products += function is torch.ops.aten.addmm_.default
            return function(*args, **(kwargs or {}))

    inputs = _inputs(9)
    results = []
    for loss in _both(LossConfig(), 9):
        loss.double()
        text = inputs[1].clone().requires_grad_()
        with Products():
            loss(inputs[0], text, *inputs[2:]).total.backward()
        results.append(text.grad)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
    assert (
        products == 2
    )  # of images as queries and of texts as queries, to the texts; all four features: eight


def test_a_second_backward_pass_gives_the_same_and_a_second_derivative_is_refused():
    loss = CUSALoss(method="tiled")
    x = [t.requires_grad_() for t in _inputs(6, torch.float32)]
    total = loss(*x).total
    first = torch.autograd.grad(total, x[0], retain_graph=True)[0]
    torch.testing.assert_close(
        torch.autograd.grad(total, x[0], retain_graph=True)[0], first, rtol=0, atol=0
    )
    with pytest.raises(RuntimeError):
        torch.autograd.grad(total, x[0], create_graph=True)


def test_no_matrix_of_the_batch_is_held():
    """No tensor that the sweeps make has more numbers than a tile or the features."""
    b, largest = 200, 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    sizes = {}
    for method in ("dense", "tiled"):
        largest = 0
        loss = CUSALoss(method=method, tile_rows=8)
        with Largest():
            _run(loss, _inputs(b, torch.float32), None)
        sizes[method] = largest
    assert sizes == {"dense": b * b, "tiled": max(8 * b, 7 * b)}


def test_auto_tiles_large_batches(monkeypatch):
    used = []
    monkeypatch.setattr("cusa.train.loss.cusa_loss.TILED_FROM", 10)

    def tiled_loss(*arguments):
        used.append(arguments)
        return [torch.zeros(())] * 5

    monkeypatch.setattr("cusa.train.loss.cusa_loss.tiled_loss", tiled_loss)
    CUSALoss()(*_inputs(9, torch.float32))
    CUSALoss(LossConfig(terms=("contrastive",)))(*_inputs(79, torch.float32))
    CUSALoss(method="dense")(*_inputs(90, torch.float32))
    assert not used
    CUSALoss()(*_inputs(10, torch.float32))
    CUSALoss(LossConfig(terms=("contrastive",)))(*_inputs(80, torch.float32))
    CUSALoss(method="tiled")(*_inputs(2, torch.float32))
    assert len(used) == 3


@pytest.mark.parametrize("method", ["dense", "tiled"])
def test_normalised_features_may_be_taken_as_they_are(method):
    inputs = _inputs(9)
    unit = [torch.nn.functional.normalize(x) for x in inputs[:4]]
    taken = _run(CUSALoss(method=method, normalize=False).double(), [*unit, *inputs[4:]], None)
    divided = _run(CUSALoss(method=method).double(), inputs, None)
    torch.testing.assert_close(taken[0], divided[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(taken[2], divided[2], rtol=1e-9, atol=1e-12)
    for x, free, tangent in zip(
        unit,
        taken[1],
        _run(CUSALoss(method=method).double(), [*unit, *inputs[4:]], None)[1],
        strict=True,
    ):
        along = (free * x).sum(1, keepdim=True) * x
        torch.testing.assert_close(free - along, tangent, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "value"), [("method", "fast"), ("tile_rows", 0), ("tile_rows", -1)]
)
def test_illegal_arguments(name, value):
    with pytest.raises(SettingError) as error:
        CUSALoss(**{name: value})
    assert error.value.name == name


@pytest.mark.parametrize("method", ["dense", "tiled"])
def test_compiled(method):
    """One graph, equal to the eager loss, temperatures outside their bounds included."""
    config = replace(LossConfig(), tau=Temperature(0.5, 0.01, 0.10))
    inputs, ids = _inputs(12, torch.float32), torch.arange(12) // 2
    loss = CUSALoss(config, method=method, tile_rows=8)
    want = _run(loss, inputs, ids)
    compiled = torch.compile(
        CUSALoss(config, method=method, tile_rows=8), fullgraph=True, backend="aot_eager"
    )
    got = _run(compiled, inputs, ids)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
