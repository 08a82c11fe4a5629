"""A batch beside a queue, and one teacher alone: against explicit loops, and against the batch."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from cusa.data.errors import EmbeddingsError
from cusa.train.loss.batch import Candidates
from cusa.train.loss.config import LossConfig, Temperature, TemperaturePair
from cusa.train.loss.cusa_loss import CUSALoss

SEPARATE = LossConfig(
    alpha=0.3,
    beta=0.7,
    tau_csa=TemperaturePair(Temperature(0.4, 0.1, 0.9), Temperature(0.6, 0.1, 0.9), False),
    tau_usa=TemperaturePair(Temperature(0.5, 0.1, 0.9), Temperature(0.3, 0.1, 0.9), False),
    tau_soft=TemperaturePair(Temperature(0.8, 0.1, 0.9), Temperature(0.2, 0.1, 0.9), False),
)
IMAGE, TEXT = 0, 1
METHODS = pytest.mark.parametrize("method", ["dense", "tiled"])


class Queued:
    """Four pairs, and three pairs and two empty slots behind them; the sixth is of image 7, too."""

    n_pairs = 4
    image_ids = torch.tensor([7, 1, 7, 2, 3, 7, 4, 7, 1])
    mask = torch.tensor([True, True, True, True, True, True, False, True, False])

    def __init__(self, dtype=torch.float64):
        rng = torch.Generator().manual_seed(0)

        def rows(n_rows, dim):
            return torch.randn(n_rows, dim, generator=rng, dtype=torch.float64).to(dtype)

        n_candidates = len(self.mask)
        self.features = [rows(self.n_pairs, dim) for dim in (6, 6, 4, 5)]
        self.others = [rows(n_candidates, dim) for dim in (6, 6, 4, 5)]
        self.teacher = [rows(n_candidates, dim) for dim in (7, 3)]

    def run(self, loss, *, mask=None, kept=slice(None), image_ids=True):
        """Terms, and the gradients of features, candidates and temperatures."""
        features = [x.clone().requires_grad_() for x in self.features]
        others = [x[kept].clone().requires_grad_() for x in self.others]
        terms = loss(
            *features,
            *[x[kept] for x in self.teacher],
            self.image_ids[kept] if image_ids else None,
            Candidates(*others, mask=mask),
        )
        leaves = [*features, *others, *loss.parameters()]
        gradients = torch.autograd.grad(terms.total, leaves, allow_unused=True)
        return terms, gradients


def _unit(rows):
    return [row / row.square().sum().sqrt() for row in rows]


def _divergence_of_row(similarity, labels, tau, tau_soft, kind):
    """One query: its similarities with the candidates, and its teacher's, as lists of scalars."""
    normalizer = sum((s / tau).exp() for s in similarity)
    label_normalizer = sum((s / tau_soft).exp() for s in labels)
    total = 0
    for own, label in zip(similarity, labels, strict=True):
        p = (label / tau_soft).exp() / label_normalizer
        q = (own / tau).exp() / normalizer
        total = total + (p * (p.log() - q.log()) if kind == "kl" else -p * q.log())
    return total


def _by_loops(config, loss, queued, features, others):
    """The loss in explicit loops over queries and the candidates that there are."""
    present = [j for j, is_there in enumerate(queued.mask.tolist()) if is_there]
    n, m = queued.n_pairs, len(present)
    own, candidates = [_unit(x) for x in features], [_unit(x) for x in others]
    teacher = [_unit(x) for x in queued.teacher]
    fuse = {
        "each": lambda same, _: same,
        "add": lambda same, other: (same + other) / 2,
        "dot": lambda same, other: (same.clamp(min=0) * other.clamp(min=0)).sqrt(),
    }[config.soft_label_source]

    def tau(name, modality):
        if hasattr(loss, name):
            return getattr(loss, name)
        return getattr(loss, f"{name}_{('image', 'text')[modality]}")

    total = 0
    for modality, i in itertools.product((IMAGE, TEXT), range(n)):
        cross = [own[modality][i] @ candidates[1 - modality][j] for j in present]
        uni = [own[2 + modality][i] @ candidates[2 + modality][j] for j in present]
        same = [teacher[modality][i] @ teacher[modality][j] for j in present]
        other = [teacher[1 - modality][i] @ teacher[1 - modality][j] for j in present]

        positives = [queued.image_ids[j] == queued.image_ids[i] for j in present]
        normalizer = sum((s / loss.tau).exp() for s in cross)
        for s, is_positive in zip(cross, positives, strict=True):
            if is_positive:
                cross_entropy = -((s / loss.tau).exp() / normalizer).log() / sum(positives)
                columns = m if config.contrastive_scaling == "paper" else 1
                total = total + cross_entropy / 2 / n / columns

        fused = [fuse(s, o) for s, o in zip(same, other, strict=True)]
        for kind, scaling, weight, student, labels, name in (
            (config.csa_divergence, config.csa_scaling, config.alpha, cross, fused, "tau_csa"),
            (config.usa_divergence, config.usa_scaling, config.beta, uni, same, "tau_usa"),
        ):
            row = _divergence_of_row(
                student, labels, tau(name, modality), tau("tau_soft", modality), kind
            )
            columns = m if kind == "cross_entropy" and scaling == "paper" else 1
            total = total + weight * row / 2 / n / columns
    return total


@METHODS
@pytest.mark.parametrize("source", ["each", "add", "dot"])
@pytest.mark.parametrize(
    ("divergence", "scaling"),
    [("kl", "paper"), ("cross_entropy", "paper"), ("cross_entropy", "infonce")],
)
def test_a_queue_with_empty_slots_equals_explicit_loops(method, source, divergence, scaling):
    """Values and all gradients, with two positives in the queue."""
    config = replace(
        SEPARATE,
        soft_label_source=source,
        csa_divergence=divergence,
        usa_divergence=divergence,
        csa_scaling=scaling,
        usa_scaling=scaling,
        contrastive_scaling=scaling,
    )
    queued = Queued()
    loss = CUSALoss(config, method=method, tile_rows=3).double()
    terms, gradients = queued.run(loss, mask=queued.mask)

    features = [x.clone().requires_grad_() for x in queued.features]
    others = [x.clone().requires_grad_() for x in queued.others]
    expected = _by_loops(config, loss, queued, features, others)
    leaves = [*features, *others, *loss.parameters()]
    expected_gradients = torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(terms.total, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-11)


TERMS = [
    ("contrastive",),
    ("csa",),
    ("usa",),
    ("contrastive", "csa"),
    ("contrastive", "csa", "usa"),
]


@METHODS
@pytest.mark.parametrize("terms", TERMS, ids="+".join)
@pytest.mark.parametrize("ids", [None, torch.tensor([3, 3, 5, 3])])
def test_the_batch_as_its_own_candidates_changes_nothing(method, terms, ids):
    queued = Queued()
    loss = CUSALoss(replace(SEPARATE, terms=terms), method=method, tile_rows=3).double()
    features = [x.clone().requires_grad_() for x in queued.features]
    teacher = [x[: queued.n_pairs] for x in queued.teacher]
    for mask in (None, torch.ones(queued.n_pairs, dtype=torch.bool), np.ones(queued.n_pairs, bool)):
        candidates = Candidates(*features, mask=mask)
        results = []
        for arguments in ((ids,), (ids, candidates)):
            values = loss(*features, *teacher, *arguments)
            leaves = [*features, *loss.parameters()]
            gradients = torch.autograd.grad(values.total, leaves, allow_unused=True)
            results.append((values, gradients))
        torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-12)


@METHODS
@pytest.mark.parametrize("terms", TERMS, ids="+".join)
@pytest.mark.parametrize("scaling", ["paper", "infonce"])
@pytest.mark.parametrize("filling", [0.0, float("nan"), float("inf")])
def test_empty_slots_are_as_if_they_were_not_there(method, terms, scaling, filling):
    config = replace(
        SEPARATE,
        terms=terms,
        contrastive_scaling=scaling,
        usa_divergence="cross_entropy",
        usa_scaling=scaling,
    )
    loss = CUSALoss(config, method=method, tile_rows=3).double()
    queued = Queued()
    for image_ids in (True, False):
        without = queued.run(loss, kept=queued.mask, image_ids=image_ids)
        for rows in (*queued.others, *queued.teacher):
            rows[~queued.mask] = filling
        terms_with, gradients = queued.run(loss, mask=queued.mask, image_ids=image_ids)
        torch.testing.assert_close(terms_with, without[0], rtol=1e-9, atol=1e-12)
        for number, (gradient, expected) in enumerate(zip(gradients, without[1], strict=True)):
            if gradient is not None and 4 <= number < 8:  # of the candidates
                assert not gradient[~queued.mask].any()
                gradient = gradient[queued.mask]
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@METHODS
def test_empty_slots_at_extreme_temperatures(method):
    """In float32, which holds neither the square of 1e20 nor 1e20 divided by 1e-20."""
    extremes = [Temperature(value, 1e-6, 1e6) for value in (1e-6, 1e6)]
    for tau, other in itertools.product(extremes, repeat=2):
        pair = TemperaturePair(other, tau, False)
        config = LossConfig(tau=tau, tau_csa=pair, tau_usa=pair, tau_soft=pair)
        queued = Queued(torch.float32)
        terms, gradients = queued.run(CUSALoss(config, method=method), mask=queued.mask)
        assert all(term.isfinite() for term in terms)
        assert all(gradient.isfinite().all() for gradient in gradients)


@METHODS
def test_compiled(method):
    """One graph with a mask, equal to the eager loss."""
    queued = Queued(torch.float32)
    loss = CUSALoss(SEPARATE, method=method, tile_rows=4)
    compiled = torch.compile(
        CUSALoss(SEPARATE, method=method, tile_rows=4), fullgraph=True, backend="aot_eager"
    )
    expected = queued.run(loss, mask=queued.mask)
    torch.testing.assert_close(
        queued.run(compiled, mask=queued.mask), expected, rtol=1e-5, atol=1e-7
    )


@METHODS
def test_a_pair_that_is_in_the_queue_is_a_positive_of_itself(method):
    features = torch.eye(4, dtype=torch.float64)[:2]
    others = features[[0, 1, 0]]
    config = LossConfig(terms=("contrastive",), contrastive_scaling="infonce")
    loss = CUSALoss(config, method=method).double()
    terms = loss(
        features,
        features,
        image_ids=torch.tensor([5, 6, 5]),
        candidates=Candidates(others, others),
    )
    tau = loss.tau.detach()
    # Cosines of the first query: 1, 0, 1; of the second: 0, 1, 0.
    first = (2 + (-1 / tau).exp()).log()
    second = (1 + 2 * (-1 / tau).exp()).log()
    torch.testing.assert_close(terms.total, (first + second) / 2, rtol=1e-12, atol=1e-15)


def _refused(queued, **changes):
    arguments = {
        "features": queued.features,
        "teacher": queued.teacher,
        "image_ids": queued.image_ids,
        "others": queued.others,
        "mask": queued.mask,
    } | changes
    candidates = Candidates(*arguments["others"], mask=arguments["mask"])
    with pytest.raises(EmbeddingsError) as error:
        CUSALoss()(
            *arguments["features"], *arguments["teacher"], arguments["image_ids"], candidates
        )
    return error.value


def test_candidates_that_do_not_fit_are_refused():
    queued = Queued()
    cut = [x[:-1] for x in queued.others]
    v, t, uni_v, uni_t = queued.others
    no_own = queued.mask.clone()
    no_own[2] = False
    for changes, name in (
        ({"others": [x[:3] for x in queued.others]}, "candidates.image_features"),
        ({"others": [v, t[:-1], uni_v, uni_t]}, "candidates.text_features"),
        ({"others": [v[:, 1:], t, uni_v, uni_t]}, "candidates.image_features"),
        ({"others": [v, t, None, uni_t]}, "candidates.uni_image_features"),
        ({"others": [v, t, uni_v, uni_t[:, 1:]]}, "candidates.uni_text_features"),
        ({"others": [v.numpy(), t, uni_v, uni_t]}, "candidates.image_features"),
        ({"others": [None, t, uni_v, uni_t]}, "candidates.image_features"),
        ({"others": [v, t.sum(), uni_v, uni_t]}, "candidates.text_features"),
        ({"features": [queued.features[0].sum(), *queued.features[1:]]}, "image_features"),
        ({"others": cut, "mask": queued.mask[:-1]}, "teacher_image"),
        ({"mask": queued.mask[:-1]}, "candidates.mask"),
        ({"teacher": [x[:4] for x in queued.teacher]}, "teacher_image"),
        ({"image_ids": queued.image_ids[:4]}, "image_ids"),
        ({"mask": queued.mask.int()}, "candidates.mask"),
        ({"mask": queued.mask.numpy().astype(int)}, "candidates.mask"),
        ({"mask": queued.mask.tolist()}, "candidates.mask"),
        ({"mask": no_own}, "candidates.mask"),
    ):
        assert _refused(queued, **changes).name == name, changes
    assert _refused(queued, mask=no_own).location == "rows 2"
    with pytest.raises(EmbeddingsError) as caught:
        CUSALoss()(*queued.features, *queued.teacher, None, (v, t))
    assert caught.value.name == "candidates"
    queued.teacher[1][5] = 0  # not an empty slot
    queued.teacher[1][6] = 0
    error = _refused(queued)
    assert (error.name, error.location) == ("teacher_text", "rows 5")


@METHODS
@pytest.mark.parametrize("queue", [False, True])
def test_the_losses_of_one_teacher_each_add_up_to_that_of_both(method, queue):
    queued = Queued()
    config = replace(SEPARATE, terms=("csa", "usa"))
    loss = CUSALoss(config, method=method, tile_rows=3).double()
    n_rows = len(queued.mask) if queue else queued.n_pairs
    results = []
    for kept in ((IMAGE, TEXT), (IMAGE,), (TEXT,)):
        teacher = [x[:n_rows] if i in kept else None for i, x in enumerate(queued.teacher)]
        features = [x.clone().requires_grad_() for x in queued.features]
        uni = [x if i in kept else None for i, x in enumerate(features[2:])]
        candidates = None
        if queue:
            uni_others = [x if i in kept else None for i, x in enumerate(queued.others[2:])]
            candidates = Candidates(*queued.others[:2], *uni_others, mask=queued.mask)
        terms = loss(*features[:2], *uni, *teacher, None, candidates)
        leaves = [*features, *loss.parameters()]
        gradients = torch.autograd.grad(
            terms.total, leaves, allow_unused=True, materialize_grads=True
        )
        results.append([*terms, *gradients])
    both, *alone = results
    for expected, image, text in zip(both, *alone, strict=True):
        torch.testing.assert_close(image + text, expected, rtol=1e-9, atol=1e-12)
    assert min(term.item() for result in results for term in (result[2], result[3])) > 0


@METHODS
def test_one_teacher_leaves_the_contrastive_term_and_gives_each_temperature_a_gradient(method):
    queued = Queued()
    teacher_image = queued.teacher[0][:4]
    loss = CUSALoss(SEPARATE, method=method, tile_rows=3).double()
    terms = loss(*queued.features[:3], teacher_image=teacher_image)
    alone = CUSALoss(replace(SEPARATE, terms=("contrastive",))).double()(*queued.features[:2])
    torch.testing.assert_close(terms.contrastive, alone.contrastive)
    terms.total.backward()
    unused = {"tau_csa_text", "tau_usa_text", "tau_soft_text"}
    for name, parameter in loss.named_parameters():
        assert bool(parameter.grad) == (name not in unused), name


def test_one_teacher_on_similarities():
    queued = Queued()
    loss = CUSALoss(SEPARATE).double()
    unit = [torch.nn.functional.normalize(x) for x in queued.features[:2]]
    uni_text, teacher_text = queued.features[3], queued.teacher[1][:4]
    torch.testing.assert_close(
        loss.on_similarities(unit[0] @ unit[1].T, None, uni_text, None, teacher_text),
        loss(*queued.features[:2], None, uni_text, None, teacher_text),
    )


@METHODS
def test_what_one_teacher_cannot_give_is_refused(method):
    queued = Queued()
    v, t, uni_v, uni_t = queued.features
    teacher_image, teacher_text = (x[:4] for x in queued.teacher)
    for changes, arguments, name in (
        ({}, (v, t, uni_v, uni_t, None, None), "teacher_image"),
        ({}, (v, t, None, uni_t, teacher_image, None), "uni_image_features"),
        ({}, (v, t, uni_v, None, None, teacher_text), "uni_text_features"),
        ({"soft_label_source": "add"}, (v, t, uni_v, None, teacher_image), "teacher_text"),
        ({"soft_label_source": "dot"}, (v, t, None, uni_t, None, teacher_text), "teacher_image"),
    ):
        with pytest.raises(EmbeddingsError) as error:
            CUSALoss(replace(SEPARATE, **changes), method=method)(*arguments)
        assert error.value.name == name
    usa_alone = LossConfig(terms=("usa",), soft_label_source="dot")
    assert CUSALoss(usa_alone, method=method)(v, t, uni_v, None, teacher_image).usa > 0
