"""Losses against the golden figures and against explicit loops."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cusa.data.errors import EmbeddingsError, SettingError
from cusa.train.loss.config import LossConfig, Temperature, TemperaturePair
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.loss.functions import (
    contrastive_loss,
    fuse_similarities,
    soft_label_loss,
    soft_labels,
)
from cusa.train.loss.rules.settings import FeaturesConfig, HycdConfig
from tests.helpers import GOLDEN

CASES = json.loads((GOLDEN / "losses.json").read_text())
# The reference's temperature names -> ours.
TAU_NAMES = {
    "tau": "tau",
    "cross_tau": "tau_csa",
    "cross_tau_image": "tau_csa_image",
    "cross_tau_text": "tau_csa_text",
    "cross_the_softlabel_tau": "tau_soft",
    "cross_the_softlabel_tau_image": "tau_soft_image",
    "cross_the_softlabel_tau_text": "tau_soft_text",
    "uni_tau": "tau_usa",
    "uni_tau_image": "tau_usa_image",
    "uni_tau_text": "tau_usa_text",
    "uni_the_softlabel_tau": "tau_soft_usa",
    "uni_the_softlabel_tau_image": "tau_soft_usa_image",
    "uni_the_softlabel_tau_text": "tau_soft_usa_text",
}


@pytest.mark.parametrize("method", ["dense", "tiled"])
@pytest.mark.parametrize("name", CASES)
def test_golden_values_and_gradients(name, method):
    case = CASES[name]
    data = np.load(GOLDEN / case["file"], allow_pickle=False)
    loss = CUSALoss(
        LossConfig.from_published(case["loss_config"]), method=method, tile_rows=5
    ).double()
    for ref, init in case[
        "tau_init"
    ].items():  # float64 start values, as the reference's double run had
        getattr(loss, TAU_NAMES[ref]).data.fill_(init)
    inputs = {
        k: torch.from_numpy(data[k]).double()
        for k in ("cross_image", "cross_text", "uni_image", "uni_text")
    }
    for x in inputs.values():
        x.requires_grad_()
    ids = torch.from_numpy(data["idx"]) if "idx" in data else None
    teachers = [torch.from_numpy(data[k]).double() for k in ("teacher_image", "teacher_text")]

    terms = loss(*inputs.values(), *teachers, ids)
    terms.total.backward()

    for ours, ref in (
        ("csa", "cross_modal"),
        ("usa", "uni_modal"),
        ("contrastive", "contrastive"),
        ("total", "total"),
    ):
        want = float(data[f"loss_{ref}__pure64"])
        assert getattr(terms, ours).item() == pytest.approx(want, rel=1e-9, abs=1e-12), ours
    for key, x in inputs.items():
        want = data[f"grad_{key}__pure64"] if f"grad_{key}__pure64" in data else data[f"grad_{key}"]
        got = np.zeros_like(want) if x.grad is None else x.grad.numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)
    assert {TAU_NAMES[t] for t in case["tau_learnable"]} == {n for n, _ in loss.named_parameters()}
    for ref in case["tau_learnable"]:
        key = f"grad_tau__{ref}"
        want = data[f"{key}__pure64"] if f"{key}__pure64" in data else data[key]
        assert float(getattr(loss, TAU_NAMES[ref]).grad) == pytest.approx(
            float(want), rel=1e-8, abs=1e-9
        ), ref
    assert loss.temperatures() == pytest.approx(
        {TAU_NAMES[k]: v for k, v in case["tau_used_after_clamp"].items()}
    )


@pytest.mark.parametrize("method", ["dense", "tiled"])
@pytest.mark.parametrize("name", CASES)
def test_golden_float32(name, method):
    case = CASES[name]
    data = np.load(GOLDEN / case["file"], allow_pickle=False)
    loss = CUSALoss(LossConfig.from_published(case["loss_config"]), method=method, tile_rows=5)
    ids = torch.from_numpy(data["idx"]) if "idx" in data else None
    keys = ("cross_image", "cross_text", "uni_image", "uni_text", "teacher_image", "teacher_text")
    terms = loss(*(torch.from_numpy(data[k]) for k in keys), ids)
    assert terms.total.item() == pytest.approx(float(data["loss_total"]), rel=4e-6)


def _loop_soft_label_loss(sim, teacher, tau, tau_soft, divergence, scaling):
    n, total = len(sim), 0.0
    for i in range(n):
        z_student = sum(math.exp(sim[i][j] / tau) for j in range(n))
        z_teacher = sum(math.exp(teacher[i][j] / tau_soft) for j in range(n))
        for j in range(n):
            p = math.exp(teacher[i][j] / tau_soft) / z_teacher
            q = math.exp(sim[i][j] / tau) / z_student
            total += p * (math.log(p) - math.log(q)) if divergence == "kl" else -p * math.log(q)
    return total / (n * n if divergence == "cross_entropy" and scaling == "paper" else n)


def _loop_contrastive(sim, tau, ids, scaling):
    n, total = len(sim), 0.0
    for i in range(n):
        z = sum(math.exp(sim[i][j] / tau) for j in range(n))
        positives = [j for j in range(n) if ids[j] == ids[i]]
        total += sum(-math.log(math.exp(sim[i][j] / tau) / z) / len(positives) for j in positives)
    return total / (n * n if scaling == "paper" else n)


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
@pytest.mark.parametrize("scaling", ["paper", "infonce"])
@pytest.mark.parametrize("source", ["each", "add", "dot"])
def test_all_options_equal_explicit_loops(divergence, scaling, source):
    """Every option, with separate and learnable temperatures, against plain Python."""
    rng = np.random.default_rng(3)
    n = 5
    v, t, uv, ut, a, b = (torch.from_numpy(rng.normal(size=(n, 6))) for _ in range(6))
    ids = [4, 4, 7, 1, 4]

    def pair(x, y):
        return TemperaturePair(Temperature(x, 0.1, 0.9), Temperature(y, 0.1, 0.7), False)

    config = LossConfig(
        alpha=0.3,
        beta=0.7,
        contrastive_weight=1.5,
        contrastive_scaling=scaling,
        soft_label_source=source,
        csa_divergence=divergence,
        usa_divergence=divergence,
        csa_scaling=scaling,
        usa_scaling=scaling,
        tau_csa=pair(0.4, 0.6),
        tau_usa=pair(0.5, 0.3),
        tau_soft=pair(0.8, 0.2),
        tau_soft_usa=pair(0.7, 0.6),
        usa_shares_soft=False,
    )
    loss = CUSALoss(config).double()
    for name, value in loss.temperatures().items():
        getattr(loss, name).data.fill_(round(value, 6))
    terms = loss(v, t, uv, ut, a, b, torch.tensor(ids))

    def cos(x, y):
        x, y = x.numpy(), y.numpy()
        return [[float(p @ q / np.linalg.norm(p) / np.linalg.norm(q)) for q in y] for p in x]

    def transpose(m):
        return [list(r) for r in zip(*m, strict=True)]

    sim, si, st_ = cos(v, t), cos(a, a), cos(b, b)
    if source == "each":
        fi, ft, taus, softs = si, st_, (0.4, 0.6), (0.8, 0.2)
    else:
        fuse = {
            "add": lambda x, y: (x + y) / 2,
            "dot": lambda x, y: math.sqrt(max(x, 0) * max(y, 0)),
        }[source]
        fi = ft = [
            [fuse(x, y) for x, y in zip(r, s, strict=True)] for r, s in zip(si, st_, strict=True)
        ]
        taus, softs = (0.5, 0.5), (0.5, 0.5)
    con = (
        _loop_contrastive(sim, 0.05, ids, scaling)
        + _loop_contrastive(transpose(sim), 0.05, ids, scaling)
    ) / 2
    csa = (
        _loop_soft_label_loss(sim, fi, taus[0], softs[0], divergence, scaling)
        + _loop_soft_label_loss(transpose(sim), ft, taus[1], softs[1], divergence, scaling)
    ) / 2
    usa = (
        _loop_soft_label_loss(cos(uv, uv), si, 0.5, 0.7, divergence, scaling)
        + _loop_soft_label_loss(cos(ut, ut), st_, 0.3, 0.6, divergence, scaling)
    ) / 2
    assert terms.contrastive.item() == pytest.approx(1.5 * con, rel=1e-9)
    assert terms.csa.item() == pytest.approx(0.3 * csa, rel=1e-9)
    assert terms.usa.item() == pytest.approx(0.7 * usa, rel=1e-9)
    assert terms.total.item() == pytest.approx(1.5 * con + 0.3 * csa + 0.7 * usa, rel=1e-9)


matrices = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.floats(-1, 1), min_size=n * n, max_size=n * n).map(
        lambda v: torch.tensor(v, dtype=torch.float64).view(n, n)
    )
)


@settings(max_examples=50)
@given(matrices, st.floats(0.05, 2))
def test_kl_of_a_distribution_with_itself_is_zero(sim, tau):
    assert float(soft_label_loss(sim, sim, tau, tau)) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(soft_labels(sim, tau).sum(-1), torch.ones(len(sim), dtype=sim.dtype))


@settings(max_examples=50)
@given(matrices, matrices, st.floats(0.05, 2))
def test_kl_is_never_negative(sim, teacher, tau):
    n = min(len(sim), len(teacher))
    assert float(soft_label_loss(sim[:n, :n], teacher[:n, :n], tau)) >= -1e-12


def _random(n, seed):
    """Features of both heads and modalities, teacher rows, and image ids with repeats."""
    rng = np.random.default_rng(seed)
    rows = [torch.from_numpy(rng.normal(size=(n, d))) for d in (6, 6, 4, 5, 7, 3)]
    return rows, torch.from_numpy(rng.integers(0, max(1, n // 2), n))


METHODS = pytest.mark.parametrize("method", ["dense", "tiled"])
SEPARATE = LossConfig(
    tau_csa=TemperaturePair(Temperature(0.4, 0.1, 0.9), Temperature(0.6, 0.1, 0.9), False),
    tau_usa=TemperaturePair(Temperature(0.5, 0.1, 0.9), Temperature(0.3, 0.1, 0.9), False),
    tau_soft=TemperaturePair(Temperature(0.8, 0.1, 0.9), Temperature(0.2, 0.1, 0.9), False),
)


def _values(loss, rows, ids):
    features = [x.clone().requires_grad_() for x in rows[:4]]
    terms = loss(*features, *rows[4:], ids)
    terms.total.backward()
    return [x.item() for x in terms], [x.grad for x in features]


@METHODS
@settings(max_examples=25)
@given(n=st.integers(1, 12), seed=st.integers(0, 99), random=st.randoms())
def test_the_order_of_the_batch_does_not_matter(method, n, seed, random):
    """Terms stay as they are, and gradients go with their rows."""
    rows, ids = _random(n, seed)
    loss = CUSALoss(SEPARATE, method=method, tile_rows=5).double()
    values, gradients = _values(loss, rows, ids)
    order = random.sample(range(n), n)
    again, moved = _values(loss, [x[order] for x in rows], ids[order])
    assert again == pytest.approx(values, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(moved, [x[order] for x in gradients], rtol=1e-9, atol=1e-12)


@METHODS
@settings(max_examples=25)
@given(n=st.integers(1, 12), seed=st.integers(0, 99))
def test_swapping_the_modalities_swaps_the_terms(method, n, seed):
    """With images and texts exchanged everywhere, every term stays as it is."""
    rows, ids = _random(n, seed)

    def swapped(pair):
        return TemperaturePair(pair.text, pair.image, pair.shared)

    c = SEPARATE
    other = replace(
        c, tau_csa=swapped(c.tau_csa), tau_usa=swapped(c.tau_usa), tau_soft=swapped(c.tau_soft)
    )
    values, gradients = _values(CUSALoss(c, method=method, tile_rows=5).double(), rows, ids)
    exchanged = [rows[i] for i in (1, 0, 3, 2, 5, 4)]
    again, crossed = _values(CUSALoss(other, method=method, tile_rows=5).double(), exchanged, ids)
    assert again == pytest.approx(values, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(crossed, [gradients[i] for i in (1, 0, 3, 2)], rtol=1e-9, atol=1e-12)


@settings(max_examples=25)
@given(n=st.integers(1, 12), seed=st.integers(0, 99))
def test_one_direction_of_csa_is_the_other_with_the_matrix_transposed(n, seed):
    """On similarity matrices: image-to-text of S^T with the text teacher is text-to-image of S."""
    rng = np.random.default_rng(seed)
    sim, a, b = (torch.from_numpy(rng.uniform(-1, 1, (n, m))) for m in (n, 4, 5))
    loss = CUSALoss(replace(LossConfig(), terms=("csa",))).double()
    one = loss.on_similarities(sim, teacher_image=a, teacher_text=b)
    two = loss.on_similarities(sim.T, teacher_image=b, teacher_text=a)
    assert one.total.item() == pytest.approx(two.total.item(), rel=1e-9)


@METHODS
@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
def test_soft_labels_of_a_one_hot_teacher_reduce_csa_to_the_contrastive_loss(method, divergence):
    """Teacher rows equal for captions of one image, orthogonal otherwise, at a small temperature.

    The soft labels are the contrastive targets then, and KL lacks only their entropy, log(captions
    of the image in the batch).
    """
    rows, _ = _random(8, 0)
    ids = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4])
    one_hot = torch.nn.functional.one_hot(ids).double()
    tau = TemperaturePair(Temperature(0.07, 0.01, 0.1), Temperature(0.07, 0.01, 0.1), True)
    sharp = TemperaturePair(
        Temperature(0.01, 0.01, 0.1, False), Temperature(0.01, 0.01, 0.1, False), True
    )
    csa = LossConfig(
        terms=("csa",),
        alpha=1.0,
        tau_csa=tau,
        tau_soft=sharp,
        csa_divergence=divergence,
        csa_scaling="infonce",
    )
    con = LossConfig(terms=("contrastive",), contrastive_scaling="infonce", tau=tau.image)
    soft, soft_gradients = _values(
        CUSALoss(csa, method=method).double(), [*rows[:4], one_hot, one_hot], ids
    )
    hard, hard_gradients = _values(CUSALoss(con, method=method).double(), rows, ids)
    entropy = sum(math.log((ids == i).sum()) for i in ids) / 8 if divergence == "kl" else 0
    assert soft[0] == pytest.approx(hard[0] - entropy, rel=1e-9)
    torch.testing.assert_close(soft_gradients[:2], hard_gradients[:2], rtol=1e-9, atol=1e-12)


@METHODS
@pytest.mark.parametrize("ids", ["equal", "distinct", None])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_small_batches_and_extreme_ids_equal_loops(method, ids, n):
    rows, _ = _random(n, 1)
    given_ids = {"equal": torch.full((n,), 3), "distinct": torch.arange(n).flip(0), None: None}[ids]
    config = replace(LossConfig(), terms=("contrastive",), contrastive_scaling="infonce")
    values, gradients = _values(CUSALoss(config, method=method).double(), rows, given_ids)
    unit = [torch.nn.functional.normalize(x) for x in rows[:2]]
    sim = (unit[0] @ unit[1].T).tolist()
    as_list = list(range(n)) if given_ids is None else given_ids.tolist()
    columns = [list(c) for c in zip(*sim, strict=True)]
    want = sum(_loop_contrastive(s, 0.05, as_list, "infonce") for s in (sim, columns)) / 2
    assert values[0] == pytest.approx(
        want, rel=1e-6, abs=1e-12
    )  # the start value 0.05 is a float32
    if n == 1:
        assert all(g is None or not g.any() for g in gradients)


@METHODS
@pytest.mark.parametrize(
    ("fill", "modality"), [(0.0, "image"), (math.nan, "text"), (math.inf, "image")]
)
def test_teacher_rows_of_zeros_or_nan_are_named(method, fill, modality):
    rows, ids = _random(30, 2)
    teacher = rows[4 if modality == "image" else 5]
    teacher[[4, 9]] = fill
    with pytest.raises(EmbeddingsError) as error:
        CUSALoss(method=method)(*rows, ids)
    assert error.value.name == f"teacher_{modality}"
    assert error.value.location == "rows 4, 9"
    contrastive = CUSALoss(LossConfig(terms=("contrastive",)), method=method)
    assert contrastive(*rows, ids).total.isfinite()  # uses no teacher


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda rows, ids: ([*rows[:5], rows[5][:-1]], ids), "teacher_text"),
        (lambda rows, ids: ([rows[0], rows[3], *rows[2:]], ids), "text_features"),
        (lambda rows, ids: (rows, ids[:-1]), "image_ids"),
        (lambda rows, ids: ([rows[0][0], *rows[1:]], ids), "image_features"),
        (lambda rows, ids: ([x[:0] for x in rows], ids[:0]), "image_features"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, name):
    rows, ids = change(*_random(6, 0))
    with pytest.raises(EmbeddingsError) as error:
        CUSALoss()(*rows, ids)
    assert error.value.name == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("csa_divergence", "KL"),
        ("soft_label_source", "mean"),
        ("contrastive_scaling", "sum"),
        ("terms", ("csa", "itm")),
        ("terms", ("csa", "csa")),
        ("terms", ()),
    ],
)
def test_unknown_options_are_refused(name, value):
    with pytest.raises(SettingError) as error:
        LossConfig(**{name: value})
    assert error.value.name == name


def test_the_functions_refuse_unknown_options_too():
    similarity = torch.eye(3)
    calls = {
        "source": lambda: fuse_similarities(similarity, similarity, "mean"),
        "divergence": lambda: soft_label_loss(similarity, similarity, 1.0, divergence="KL"),
        "scaling": lambda: contrastive_loss(similarity, 1.0, scaling="sum"),
        "min": lambda: Temperature(0.5, 0.0, 1.0),
    }
    for name, call in calls.items():
        with pytest.raises(SettingError) as error:
            call()
        assert error.value.name == name


def test_the_student_decides_the_dtype():
    rows = [x.float() for x in _random(5, 0)[0]]
    assert CUSALoss()(*rows[:4], *(x.double() for x in rows[4:])).total.dtype == torch.float32
    assert CUSALoss()(*(x.double() for x in rows[:4]), *rows[4:]).total.dtype == torch.float64


def test_the_form_on_similarities_equals_the_form_on_embeddings():
    rows, ids = _random(9, 4)
    similarity = torch.nn.functional.normalize(rows[0]) @ torch.nn.functional.normalize(rows[1]).T
    similarity.requires_grad_()
    rows[4].requires_grad_()
    loss = CUSALoss(SEPARATE).double()
    terms = loss.on_similarities(similarity, *rows[2:], ids)
    torch.testing.assert_close(terms, loss(*rows, ids), rtol=1e-9, atol=1e-12)
    terms.total.backward()
    assert similarity.grad is not None
    assert rows[4].grad is None  # the teacher's
    for wrong in (similarity[:, :-1], similarity[:-1], similarity[0], similarity[:0, :0]):
        with pytest.raises(EmbeddingsError) as error:
            loss.on_similarities(wrong, *rows[2:], ids)
        assert error.value.name == "similarity"
    rows[5][3] = 0
    with pytest.raises(EmbeddingsError) as error:
        loss.on_similarities(similarity, *rows[2:], ids)
    assert (error.value.name, error.value.location) == ("teacher_text", "rows 3")


def test_teacher_gets_no_gradient_and_missing_inputs_are_named():
    x = torch.randn(4, 8)
    teacher = torch.randn(4, 8, requires_grad=True)
    CUSALoss()(x.clone().requires_grad_(), x, x, x, teacher, teacher).total.backward()
    assert teacher.grad is None
    with pytest.raises(EmbeddingsError) as error:
        CUSALoss()(x, x, x, x)
    assert error.value.name == "teacher_image"
    with pytest.raises(EmbeddingsError) as error:
        CUSALoss()(x, x, teacher_image=x, teacher_text=x)
    assert error.value.name == "uni_image_features"


def test_temperatures_are_clamped_before_use_and_keep_their_gradient_on_the_bound():
    config = replace(LossConfig(), terms=("contrastive",), tau=Temperature(0.5, 0.01, 0.10))
    loss = CUSALoss(config)
    x, y = torch.randn(4, 8), torch.randn(4, 8)
    terms = loss(x, y)
    sim = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T
    want = (
        contrastive_loss(sim, 0.10, None, "paper") + contrastive_loss(sim.T, 0.10, None, "paper")
    ) / 2
    torch.testing.assert_close(terms.total, want)
    terms.total.backward()
    assert float(loss.tau.detach()) == pytest.approx(0.10)
    assert float(loss.tau.grad) != 0


def test_two_forwards_before_a_backward():
    loss, x = CUSALoss(replace(LossConfig(), terms=("contrastive",))), torch.randn(4, 8)
    (loss(x, -x).total + loss(-x, x).total).backward()
    assert loss.tau.grad is not None


def test_autocast_computes_the_loss_in_float32():
    loss, x = CUSALoss(), torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(x, x.flip(0), x, x, x, x.flip(1)).total
    torch.testing.assert_close(inside, loss(x, x.flip(0), x, x, x, x.flip(1)).total, rtol=0, atol=0)
    assert inside.dtype == torch.float32


@METHODS
@pytest.mark.parametrize("size", [1e20, 1e-20, 1e-30])
def test_the_length_of_features_and_teacher_rows_changes_nothing(method, size):
    """Their squares are none of float32's: lengths are taken in float64."""
    rows, ids = _random(7, 3)
    rows = [x.float() for x in rows]
    loss = CUSALoss(SEPARATE, method=method, tile_rows=5)
    values, gradients = _values(loss, rows, ids)
    again, scaled = _values(loss, [x * size for x in rows], ids)
    assert again == pytest.approx(values, rel=1e-5)
    torch.testing.assert_close([g * size for g in scaled], gradients, rtol=1e-3, atol=1e-6)


@METHODS
def test_features_of_zeros_have_a_finite_gradient(method):
    rows, ids = _random(6, 3)
    rows[0][2] = 0
    values, gradients = _values(CUSALoss(SEPARATE, method=method, tile_rows=5).double(), rows, ids)
    assert all(math.isfinite(value) for value in values)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_effective_weights():
    assert LossConfig().effective_weights(128) == pytest.approx(
        {"contrastive": 1, "csa": 12.8, "usa": 64}
    )
    assert LossConfig(contrastive_scaling="infonce", terms=("usa",)).effective_weights(128) == {
        "usa": 0.5
    }
    as_cross_entropy = LossConfig(csa_divergence="cross_entropy").effective_weights(128)
    assert as_cross_entropy == pytest.approx({"contrastive": 1, "csa": 0.1, "usa": 64})
    # The factors within a rule's formula are no part of its weight.
    for rule in (
        {"rule": "hycd", "hycd": HycdConfig(temperature=2)},
        {"rule": "features", "features": FeaturesConfig(interactive_weight=0)},
    ):
        weights = LossConfig(terms=("usa",), rule_weight=3, **rule).effective_weights(128)
        assert weights == {"usa": 64, "rule": 384}


def test_dot_source_ignores_negative_similarities():
    a, b = torch.tensor([[1.0, -0.5]]), torch.tensor([[0.25, 0.8]])
    i2t, t2i = fuse_similarities(a, b, "dot")
    assert i2t is t2i
    assert i2t.tolist() == [[0.5, 0.0]]


def test_param_groups_hold_the_learnable_temperatures_without_decay():
    for config, names in (
        (LossConfig(), {"tau", "tau_csa", "tau_usa_image", "tau_usa_text"}),
        (LossConfig(terms=("contrastive",), tau=Temperature(0.05, 0.01, 0.1, False)), set()),
    ):
        loss = CUSALoss(config)
        assert loss.no_weight_decay() == names
        parameters = [getattr(loss, name) for name in names]
        (group,) = loss.param_groups(lr=0.5) or [{"params": []}]
        assert {id(p) for p in group["params"]} == {id(p) for p in parameters}
    weight = torch.nn.Parameter(torch.ones(2, 2))
    loss = CUSALoss()
    groups = [{"params": [weight]}, *loss.param_groups()]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (1e-3, 0.1),
        (1e-3, 0.0),
    ]
    assert loss.param_groups(lr=0.5)[0]["lr"] == 0.5


def test_second_derivatives_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(6)]
    features = [row.requires_grad_() for row in rows[:4]]
    loss = CUSALoss(method="dense").double()

    def total(*features):
        return loss(*features, *rows[4:], torch.tensor([0, 1, 1, 2])).total

    assert torch.autograd.gradcheck(total, features)
    assert torch.autograd.gradgradcheck(total, features)
