"""The label rules against explicit loops: values and all gradients, dense and tiled."""

import itertools
from dataclasses import dataclass, field, replace

import pytest
import torch

from cusa.data.errors import EmbeddingsError, SettingError
from cusa.train.loss.batch import Candidates
from cusa.train.loss.config import LossConfig, Temperature, TemperaturePair
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.loss.features import FeatureDims
from cusa.train.loss.rules.settings import (
    Bias,
    DrSigmoidConfig,
    FeaturesConfig,
    GuideConfig,
    HycdConfig,
    SelfGuideConfig,
    XclrConfig,
)

METHODS = pytest.mark.parametrize("method", ["dense", "tiled"])
LEARNED = TemperaturePair(Temperature(0.7, 0.1, 0.9), Temperature(0.3, 0.1, 0.9), False)


def rule_config(rule, **settings):
    return LossConfig(terms=(), rule=rule, rule_weight=1.5, **settings)


def guide_config(teacher, margin, relative=False):
    return rule_config("guide", guide=GuideConfig(teacher, margin, relative))


SIGMOID = DrSigmoidConfig(bias=Bias(-2, -5, 5), teacher_bias=-3)
GUIDES = ("guide", "self-guide")
TAUS = {"cross_teacher_taus": (0.2, 0.5), "cross_teacher_weights": (1, 3)}
CONFIGS = {
    "cwcl": rule_config("cwcl", image_teacher_weights=(1, 2)),
    "cwcl, two labels": rule_config("cwcl", top_k=2),
    "xclr": rule_config("xclr", xclr=XclrConfig(0.3)),
    "xclr, own temperatures": rule_config(
        "xclr", text_teacher_taus=(0.2, 0.6), text_teacher_weights=(3, 1)
    ),
    "xclr, mean similarities": rule_config(
        "xclr", teacher_mean="similarities", text_teacher_weights=(3, 1)
    ),
    "xclr, three labels": rule_config("xclr", top_k=3),
    "hycd": rule_config("hycd", hycd=HycdConfig(0.3, 2), **TAUS),
    "hycd, two labels": rule_config("hycd", top_k=2, **TAUS),
    "hycd, truth alone": rule_config("hycd", hycd=HycdConfig(1, 0.5), **TAUS),
    "hycd, teacher alone": rule_config("hycd", hycd=HycdConfig(0, 1)),
    "dr": rule_config("dr", **TAUS),
    "dr, CLIP's temperature": rule_config("dr"),
    "dr, two labels": rule_config("dr", top_k=2, **TAUS),
    "dr-sigmoid": rule_config("dr-sigmoid", dr_sigmoid=SIGMOID, **TAUS),
    "guide by images": guide_config("image", 0.8),
    "guide by captions": guide_config("text", 0.7, True),
    "guide by both": guide_config("both", 1.1),
    "guide by either": guide_config("either", 0.9),
    "guide by pairs": guide_config("cross", 0.3),
    "guide by pairs, relative": guide_config("cross", 0.5, True),
    "self-guide": rule_config("self-guide", self_guide=SelfGuideConfig(0.2)),
    "self-guide, relative": rule_config("self-guide", self_guide=SelfGuideConfig(0.5, True)),
    "features": rule_config("features", features=FeaturesConfig(0.3, 2)),
    "features, mean similarities": rule_config(
        "features", teacher_mean="similarities", image_teacher_weights=(3, 1)
    ),
    "CSA of pairs": LossConfig(terms=("csa",), soft_label_source="cross", tau_soft=LEARNED),
    "CSA of pairs beside a rule with temperatures of the same": LossConfig(
        terms=("csa",), soft_label_source="cross", tau_soft=LEARNED, rule="dr", **TAUS
    ),
    "CSA and USA of several": LossConfig(
        terms=("csa", "usa"), tau_soft=LEARNED, image_teacher_weights=(1, 4)
    ),
    "CSA and USA, mean similarities": LossConfig(
        terms=("csa", "usa"), teacher_mean="similarities", tau_soft=LEARNED
    ),
    "CSA and USA, two labels": LossConfig(
        terms=("csa", "usa"), top_k=2, tau_soft=LEARNED, usa_divergence="cross_entropy"
    ),
    "CSA of images alone": LossConfig(
        terms=("csa", "usa"), soft_label_source="image", tau_soft=LEARNED, top_k=3
    ),
    "CSA of captions alone": LossConfig(
        terms=("csa",), soft_label_source="text", tau_soft=LEARNED, text_teacher_weights=(2, 1)
    ),
    "CSA and USA, labels of images": LossConfig(
        terms=("csa", "usa"), soft_label_modalities=("image",), tau_soft=LEARNED
    ),
    "CSA of images, USA of their labels alone": LossConfig(
        terms=("csa", "usa"),
        soft_label_modalities=("image",),
        soft_label_source="image",
        tau_soft=LEARNED,
    ),
    "labels of captions beside a guide by images": LossConfig(
        terms=("csa", "usa"),
        soft_label_modalities=("text",),
        rule="guide",
        guide=GuideConfig("image", 0.8),
    ),
    "cwcl, labels of captions": rule_config("cwcl", soft_label_modalities=("text",)),
    "CSA of fused teachers": LossConfig(
        terms=("csa",), soft_label_source="dot", tau_soft=LEARNED, text_teacher_weights=(2, 1)
    ),
}


@dataclass
class Data:
    """Four pairs; behind them, in a queue, three more and two empty slots."""

    n_pairs: int = 4
    image_ids: list[int] = field(default_factory=lambda: [7, 1, 7, 2, 3, 7, 4, 7, 1])
    mask: list[bool] = field(default_factory=lambda: [True] * 6 + [False, True, False])

    def __post_init__(self):
        rng = torch.Generator().manual_seed(5)

        def rows(n_rows, dim):
            return torch.randn(n_rows, dim, generator=rng, dtype=torch.float64)

        n_candidates = len(self.mask)
        self.features = [rows(self.n_pairs, dim) for dim in (6, 6, 4, 5)]
        self.candidates = [rows(n_candidates, dim) for dim in (6, 6, 4, 5)]
        # Teachers of one modality, then of the other, then image and text rows of dual encoders.
        self.uni = [[rows(n_candidates, dim) for dim in (7, 3)] for _ in range(2)]
        image_rows = [rows(n_candidates, dim) for dim in (4, 6)]
        text_rows = [0.7 * images + rows(*images.shape) for images in image_rows]
        self.cross = [image_rows, text_rows]

    def without_queue(self):
        """The four pairs alone."""
        alone = Data(image_ids=self.image_ids[: self.n_pairs], mask=[True] * self.n_pairs)
        alone.features = alone.candidates = self.features
        alone.uni = [[rows[: self.n_pairs] for rows in teachers] for teachers in self.uni]
        alone.cross = [[rows[: self.n_pairs] for rows in teachers] for teachers in self.cross]
        return alone

    def run(self, loss, uni=None):
        """The terms, and the gradients of features, candidates and temperatures."""
        features = [rows.clone().requires_grad_() for rows in self.features]
        candidates = features
        queue = None
        if self.candidates is not self.features:
            candidates = [rows.clone().requires_grad_() for rows in self.candidates]
            queue = Candidates(*candidates, mask=torch.tensor(self.mask))
        terms = loss(
            *features,
            *(uni or self.uni),
            torch.tensor(self.image_ids),
            queue,
            cross_teachers=list(zip(*self.cross, strict=True)),
        )
        leaves = [*features, *loss.parameters()]
        if queue is not None:
            leaves += candidates
        return terms, torch.autograd.grad(terms.total, leaves, allow_unused=True)


def make_loss(config, method="dense"):
    """The loss for the features of ``Data``, in float64."""
    torch.manual_seed(2)
    dims = FeatureDims(6, 10, 10)
    return CUSALoss(config, method=method, tile_rows=3, feature_dims=dims).double()


def _softmax(values):
    greatest = max(values)
    exponentials = [(value - greatest).exp() for value in values]
    return [exponential / sum(exponentials) for exponential in exponentials]


def _greatest(labels, k):
    if k is None:
        return labels
    kept = sorted(range(len(labels)), key=lambda j: labels[j].item(), reverse=True)[:k]
    total = sum(labels[j] for j in kept)
    return [labels[j] / total if j in kept else 0 * labels[j] for j in range(len(labels))]


class Loops:
    """A loss in loops over queries and candidates, each number a scalar."""

    def __init__(self, config, loss, data, features, candidates):
        self.config, self.loss, self.data = config, loss, data
        self.present = [j for j, is_there in enumerate(data.mask) if is_there]
        self.own = [self._unit(rows) for rows in features]
        self.others = [self._unit(rows) for rows in candidates]
        self.uni = [[self._unit(rows) for rows in teachers] for teachers in data.uni]
        self.cross = [[self._unit(rows) for rows in teachers] for teachers in data.cross]

    def _unit(self, rows):
        return [row / row.square().sum().sqrt() for row in rows]

    def _weights(self, kind, n):
        given = getattr(self.config, f"{kind}_teacher_weights") or [1] * n
        return [weight / sum(given) for weight in given]

    def _tau(self, name, modality):
        if hasattr(self.loss, name):
            return getattr(self.loss, name)
        return getattr(self.loss, f"{name}_{('image', 'text')[modality]}")

    def _cosines(self, kind, modality, i):
        """Of each teacher: its cosines of query i with the candidates that there are."""
        if kind == "cross":
            pairs = zip(self.cross[modality], self.cross[1 - modality], strict=True)
        else:
            teachers = self.uni[("image", "text").index(kind)]
            pairs = zip(teachers, teachers, strict=True)
        return [[queries[i] @ others[j] for j in self.present] for queries, others in pairs]

    def _mean_cosines(self, kind, modality, i):
        cosines = self._cosines(kind, modality, i)
        weights = self._weights(kind, len(cosines))
        return [
            sum(w * row[j] for w, row in zip(weights, cosines, strict=True))
            for j in range(len(self.present))
        ]

    def _labels(self, kind, modality, i, tau, in_csa=False):
        if self.config.teacher_mean == "similarities" and kind != "cross":
            mean = self._mean_cosines(kind, modality, i)
            return _greatest(_softmax([cosine / tau for cosine in mean]), self.config.top_k)
        cosines = self._cosines(kind, modality, i)
        taus = getattr(self.config, f"{kind}_teacher_taus") or [tau] * len(cosines)
        if kind == "cross" and in_csa:
            taus = [tau] * len(cosines)
        weights = self._weights(kind, len(cosines))
        each = [
            _softmax([cosine / own_tau for cosine in row])
            for row, own_tau in zip(cosines, taus, strict=True)
        ]
        mean = [
            sum(w * labels[j] for w, labels in zip(weights, each, strict=True))
            for j in range(len(self.present))
        ]
        return _greatest(mean, self.config.top_k)

    def _hard(self, i):
        ids = self.data.image_ids
        positives = [float(ids[j] == ids[i]) for j in self.present]
        return [torch.tensor(p / sum(positives), dtype=torch.float64) for p in positives]

    def _leaves(self, cosines, own, margin, relative):
        limit = own - margin * (abs(own) if relative else 1)
        return [bool(cosine > limit) for cosine in cosines]

    def _kept(self, modality, i, student):
        guide = self.config.guide
        if self.config.rule == "self-guide":
            guide = self.config.self_guide
        position = self.present.index(i)

        def by(cosines):
            return self._leaves(cosines, cosines[position], guide.margin, guide.relative)

        if self.config.rule == "self-guide":
            leaves = by([cosine.detach() for cosine in student])
        elif guide.teacher in ("image", "text", "cross"):
            leaves = by(self._mean_cosines(guide.teacher, modality, i))
        else:
            pairs = zip(
                by(self._mean_cosines("image", modality, i)),
                by(self._mean_cosines("text", modality, i)),
                strict=True,
            )
            leaves = [all(pair) if guide.teacher == "both" else any(pair) for pair in pairs]
        hard = self._hard(i)
        return [j for j, leave in enumerate(leaves) if not leave or hard[j] > 0]

    def _rule_of_row(self, modality, i, student):
        config, tau = self.config, self.loss.tau
        own = ("image", "text")[modality]
        hard = self._hard(i)
        logits = [cosine / tau for cosine in student]
        match config.rule:
            case "cwcl" if own not in config.soft_label_modalities:
                labels = hard
            case "cwcl":
                weights = [(s + 1) / 2 for s in self._mean_cosines(own, modality, i)]
                labels = _greatest([w / sum(weights) for w in weights], config.top_k)
            case "xclr":
                labels = self._labels("text", modality, i, config.xclr.tau)
            case "hycd":
                t = config.hycd.temperature
                taus = config.cross_teacher_taus or [0.01, 0.01]
                config_at_t = replace(config, cross_teacher_taus=[own_tau * t for own_tau in taus])
                loops = Loops(config_at_t, self.loss, self.data, [], [])
                soft = loops._labels("cross", modality, i, None)
                a = config.hycd.alpha
                labels = [a * h + (1 - a) * p for h, p in zip(hard, soft, strict=True)]
                probabilities = _softmax([logit / t for logit in logits])
                divergence = 0
                for p, q in zip(labels, probabilities, strict=True):
                    if p > 0:
                        divergence = divergence + p * (p.log() - q.log())
                return t**2 * divergence
            case "dr":
                labels = self._labels("cross", modality, i, 0.01)
            case "dr-sigmoid":
                return self._sigmoid_of_row(modality, i, logits)
            case "features":
                return self._features_of_row(modality, i)
            case "guide" | "self-guide":
                kept = self._kept(modality, i, student)
                probabilities = _softmax([logits[j] for j in kept])
                pairs = zip([hard[j] for j in kept], probabilities, strict=True)
                return sum(-h * q.log() for h, q in pairs)
        pairs = zip(labels, _softmax(logits), strict=True)
        return sum(-p * q.log() for p, q in pairs)

    def _projected(self, modality, j):
        """The teacher rows of a candidate, side by side, in the student's space."""
        config, teachers = self.config, self.uni[modality]
        pieces = [rows[j] for rows in teachers]
        if config.teacher_mean == "similarities":
            weights = self._weights(("image", "text")[modality], len(teachers))
            pieces = [w**0.5 * piece for w, piece in zip(weights, pieces, strict=True)]
        projections = (self.loss.projections.image, self.loss.projections.text)
        projected = projections[modality].weight @ torch.cat(pieces)
        return projected / projected.square().sum().sqrt()

    def _features_of_row(self, modality, i):
        settings, query = self.config.features, self.own[modality][i]
        logits = [query @ self._projected(1 - modality, j) / self.loss.tau for j in self.present]
        pairs = zip(self._hard(i), _softmax(logits), strict=True)
        interactive = sum(-h * q.log() for h, q in pairs)
        distance = (query - self._projected(modality, i)).square().sum()
        return settings.distance_weight * distance + settings.interactive_weight * interactive

    def _sigmoid_of_row(self, modality, i, logits):
        config = self.config
        each = self._cosines("cross", modality, i)
        weights = self._weights("cross", len(each))
        total = 0
        for j, logit in enumerate(logits):
            sign = 0
            for weight, row, tau in zip(weights, each, config.cross_teacher_taus, strict=True):
                teacher_logit = row[j] / tau + config.dr_sigmoid.teacher_bias
                sign = sign + weight * (2 / (1 + (-teacher_logit).exp()) - 1)
            probability = 1 / (1 + (-sign * (logit + self.loss.sigmoid_bias)).exp())
            total = total - probability.log()
        return total

    def _soft_label_row(self, term, modality, i, student):
        config = self.config
        own = ("image", "text")[modality]
        source = config.soft_label_source if term == "csa" else "each"
        tau_soft = self._tau("tau_soft", modality)
        if source == "each" and own not in config.soft_label_modalities:
            return 0
        if source in ("cross", "image", "text"):
            labels = self._labels(source, modality, i, tau_soft, in_csa=True)
        elif source == "each":
            labels = self._labels(own, modality, i, tau_soft)
        else:
            by_image = self._mean_cosines("image", modality, i)
            by_text = self._mean_cosines("text", modality, i)
            fused = [
                (a.clamp(min=0) * b.clamp(min=0)).sqrt()
                for a, b in zip(by_image, by_text, strict=True)
            ]
            labels = _greatest(_softmax([s / tau_soft for s in fused]), config.top_k)
        tau = self._tau(f"tau_{term}", modality)
        pairs = zip(labels, _softmax([cosine / tau for cosine in student]), strict=True)
        if config.divergence(term) == "kl":
            return sum(p * (p.log() - q.log()) if p > 0 else 0 for p, q in pairs)
        return sum(-p * q.log() for p, q in pairs) / len(self.present)

    def total(self):
        config = self.config
        total = 0
        weights = {"csa": config.alpha, "usa": config.beta, "rule": config.rule_weight}
        for modality, i in itertools.product((0, 1), range(self.data.n_pairs)):
            query, uni_query = self.own[modality][i], self.own[2 + modality][i]
            cross = [query @ self.others[1 - modality][j] for j in self.present]
            uni = [uni_query @ self.others[2 + modality][j] for j in self.present]
            for term in config.summed_terms:
                if term == "rule":
                    row = self._rule_of_row(modality, i, cross)
                else:
                    student = cross if term == "csa" else uni
                    row = self._soft_label_row(term, modality, i, student)
                total = total + weights[term] * row / 2 / self.data.n_pairs
        return total


@METHODS
@pytest.mark.parametrize("queue", [False, True], ids=["batch", "queue"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_rule_equals_explicit_loops(name, queue, method):
    config = CONFIGS[name]
    data = Data() if queue else Data().without_queue()
    loss = make_loss(config, method)
    terms, gradients = data.run(loss)

    features = [rows.clone().requires_grad_() for rows in data.features]
    candidates = [rows.clone().requires_grad_() for rows in data.candidates] if queue else features
    expected = Loops(config, loss, data, features, candidates).total()
    leaves = [*features, *loss.parameters()]
    if queue:
        leaves += candidates
    expected_gradients = torch.autograd.grad(expected, leaves, allow_unused=True)
    torch.testing.assert_close(terms.total, expected, rtol=1e-9, atol=1e-12)
    for got, want in zip(gradients, expected_gradients, strict=True):
        if want is None:
            assert got is None or not got.any()
        else:
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    if not config.terms:
        assert terms.rule == terms.total


@METHODS
@pytest.mark.parametrize("modality", [0, 1])
def test_labels_of_one_modality_are_those_without_the_other_ones_teacher(modality, method):
    data = Data()
    config = LossConfig(rule="cwcl", tau_soft=LEARNED)
    uni = [None, None]
    uni[modality] = data.uni[modality]
    expected = data.run(make_loss(config, method), uni)
    alone = replace(config, soft_label_modalities=(("image", "text")[modality],))
    terms, gradients = data.run(make_loss(alone, method))
    assert terms == expected[0]
    for got, want in zip(gradients, expected[1], strict=True):
        assert (got is None and want is None) or torch.equal(got, want)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("soft_label_modalities", {"soft_label_modalities": ()}),
        ("soft_label_modalities", {"soft_label_modalities": ("text", "text")}),
        ("soft_label_modalities", {"soft_label_modalities": ("sound",)}),
        ("soft_label_source", {"soft_label_modalities": ("image",), "soft_label_source": "dot"}),
        ("soft_label_source", {"soft_label_modalities": ("image",), "soft_label_source": "text"}),
    ],
)
def test_modalities_that_give_no_labels_or_too_few_are_refused(name, settings):
    with pytest.raises(SettingError) as error:
        LossConfig(**settings)
    assert error.value.name == name
    # Without CSA, its source has no effect.
    if name == "soft_label_source":
        LossConfig(terms=("usa",), **settings)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith(GUIDES)])
def test_a_guide_takes_out_some_false_negatives_and_no_positive(name):
    """Otherwise the comparison with the loops would say nothing."""
    data = Data()
    contrastive = CUSALoss(rule_config("guide", guide=GuideConfig("text", -2))).double()
    guided, everything = (
        data.run(loss)[0].rule for loss in (make_loss(CONFIGS[name]), contrastive)
    )
    assert guided < everything
    all_leave = replace(
        CONFIGS[name],
        guide=replace(CONFIGS[name].guide, margin=2.0, relative=False),
        self_guide=SelfGuideConfig(2.0),
    )
    assert 0 < data.run(make_loss(all_leave))[0].rule < guided


@METHODS
@pytest.mark.parametrize("name", ["hycd", "guide by either", "self-guide", "features"])
def test_a_rule_is_added_to_the_other_terms(name, method):
    data = Data()
    rule = data.run(make_loss(CONFIGS[name], method))
    cusa = data.run(make_loss(LossConfig(tau=Temperature(0.05, 0.01, 0.1)), method))
    terms, gradients = data.run(
        make_loss(replace(CONFIGS[name], terms=("contrastive", "csa", "usa")), method)
    )
    torch.testing.assert_close(terms.total, rule[0].total + cusa[0].total, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(terms[1:4], cusa[0][1:4], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(terms.rule, rule[0].total, rtol=1e-9, atol=1e-12)
    for number in range(4):  # of the features
        sums = [g[number] for g in (rule[1], cusa[1]) if g[number] is not None]
        torch.testing.assert_close(gradients[number], sum(sums), rtol=1e-9, atol=1e-12)
    assert not terms.rule.requires_grad


# Of the largest number, for features of this type; docs/rules.md.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
# Masks jump where a cosine crosses the threshold: whether it does depends on the precision.
SMOOTH = [name for name in CONFIGS if "guide" not in name]


@METHODS
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SMOOTH)
def test_lower_precision_against_float64(name, dtype, method):
    """The student's features are rounded, the teachers' rows are as stores have them: float16."""
    data = Data()
    for teachers in (*data.uni, *data.cross):
        teachers[:] = [rows.half() for rows in teachers]
    exact_terms, exact = data.run(make_loss(CONFIGS[name]))
    data.features = [rows.to(dtype) for rows in data.features]
    data.candidates = [rows.to(dtype) for rows in data.candidates]
    terms, gradients = data.run(make_loss(CONFIGS[name], method).float())
    assert terms.total.dtype == torch.float32
    pairs = zip((terms.total, *gradients), (exact_terms.total, *exact), strict=True)
    for rounded, value in pairs:
        if value is not None and rounded is not None:
            difference = (rounded.double() - value).abs().max()
            assert difference <= TOLERANCE[dtype] * value.abs().max()


@METHODS
def test_labels_that_tie_with_the_last_are_all_in(method):
    """Copies of a caption: their cosines differ by rounding alone, in one method or another."""
    torch.manual_seed(0)
    rows = torch.randn(6, 5, dtype=torch.float64)
    rows[3:] = 3 * rows[:3]
    features = [torch.randn(6, 4, dtype=torch.float64) for _ in range(2)]
    totals = []
    for top_k in (1, 2):  # itself, and its copy
        config = rule_config("xclr", top_k=top_k)
        loss = CUSALoss(config, method=method, tile_rows=2).double()
        totals.append(loss(*features, teacher_text=rows).total)
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-12, atol=0)
    # The other captions do count if they may.
    everything = CUSALoss(rule_config("xclr"), method=method).double()
    total = everything(*features, teacher_text=rows).total
    assert total.item() != pytest.approx(totals[0].item())


@METHODS
def test_labels_close_to_the_last_are_out(method):
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(300, 8, dtype=torch.float64))
    features = torch.nn.functional.normalize(torch.randn(300, 4, dtype=torch.float64))
    weights = (rows @ rows.T + 1) / 2
    least = weights.topk(100, dim=1).values[:, -1:]
    labels = weights * (weights >= least)
    labels = labels / labels.sum(dim=1, keepdim=True)
    loss = CUSALoss(rule_config("cwcl", top_k=100), method=method, tile_rows=50).double()
    total = loss(features, features, teacher_image=rows, teacher_text=rows).total
    log_student = (features @ features.T / loss.tau).log_softmax(dim=1)
    expected = -1.5 * (labels * log_student).sum(dim=1).mean()
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=0)


@METHODS
@pytest.mark.parametrize("modality", [0, 1])
def test_cwcl_with_one_teacher_is_contrastive_in_the_other_direction(method, modality):
    data = Data().without_queue()
    uni = [None, None]
    uni[modality] = data.uni[modality]
    loss = make_loss(rule_config("cwcl"), method)
    total = data.run(loss, uni)[0].total
    loops = Loops(loss.config, loss, data, data.features, data.features)
    own = sum(
        loops._rule_of_row(
            modality, i, [loops.own[modality][i] @ c for c in loops.others[1 - modality]]
        )
        for i in range(data.n_pairs)
    )
    other_logits = torch.stack(loops.own[1 - modality]) @ torch.stack(loops.others[modality]).T
    hard = torch.stack([torch.stack(loops._hard(i)) for i in range(data.n_pairs)])
    other = torch.nn.functional.cross_entropy(other_logits / loss.tau, hard)
    expected = loss.config.rule_weight / 2 * (own / data.n_pairs + other)
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
PAIR = (X, X)


@pytest.mark.parametrize(
    ("settings", "rows", "name"),
    [
        ({"rule": "xclr"}, {"teacher_image": X}, "teacher_text"),
        ({"rule": "cwcl"}, {"cross_teachers": [PAIR]}, "teacher_image"),
        ({"rule": "dr"}, {"teacher_image": X, "teacher_text": X}, "cross_teachers"),
        ({"rule": "hycd"}, {}, "cross_teachers"),
        ({"rule": "dr-sigmoid"}, {"teacher_image": X}, "cross_teachers"),
        ({"rule": "guide", "guide": {"teacher": "either"}}, {"teacher_text": X}, "teacher_image"),
        ({"rule": "guide", "guide": {"teacher": "cross"}}, {"teacher_text": X}, "cross_teachers"),
        ({"terms": ("csa",), "soft_label_source": "cross"}, {}, "cross_teachers"),
        (
            {"terms": ("csa",), "soft_label_source": "image"},
            {"teacher_text": X},
            "teacher_image",
        ),
        (
            {"rule": "cwcl", "soft_label_modalities": ("image",)},
            {"teacher_text": X},
            "teacher_image",
        ),
        ({"rule": "dr"}, {"cross_teachers": [X]}, "cross_teachers"),
        ({"rule": "dr"}, {"cross_teachers": X}, "cross_teachers"),
        ({"rule": "dr"}, {"cross_teachers": 1}, "cross_teachers"),
        ({"rule": "dr"}, {"cross_teachers": [(X, X[:, :2])]}, "cross_teachers[0][1]"),
        ({"rule": "dr"}, {"cross_teachers": [PAIR, (X[:3], X)]}, "cross_teachers[1][0]"),
        ({"rule": "dr"}, {"cross_teachers": [(X, 0 * X)]}, "cross_teachers[0][1]"),
        ({"rule": "xclr"}, {"teacher_text": [X, X.long()]}, "teacher_text[1]"),
        ({"rule": "xclr"}, {"teacher_text": [X, "rows"]}, "teacher_text[1]"),
        ({"rule": "xclr"}, {"teacher_text": 17 * [X]}, "teacher_image"),
        ({"rule": "xclr"}, {"teacher_text": []}, "teacher_text"),
        (
            {"rule": "xclr", "text_teacher_weights": (1, 2)},
            {"teacher_text": X},
            "text_teacher_weights",
        ),
        (
            {"rule": "dr", "cross_teacher_taus": (0.1,)},
            {"cross_teachers": [PAIR, PAIR]},
            "cross_teacher_taus",
        ),
    ],
)
def test_rows_that_a_rule_lacks_or_cannot_use_are_refused(settings, rows, name):
    config = LossConfig(**{"terms": (), **settings})
    for method in ("dense", "tiled"):
        with pytest.raises(EmbeddingsError) as error:
            CUSALoss(config, method=method)(X, X, **rows)
        assert error.value.name == name
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"terms": ()}, "terms"),
        ({"terms": ("rule",)}, "terms"),
        ({"rule": "xcrl"}, "rule"),
        ({"rule_weight": -1}, "rule_weight"),
        ({"top_k": 0}, "top_k"),
        ({"text_teacher_weights": (1, 0)}, "text_teacher_weights"),
        ({"cross_teacher_taus": (0.0,)}, "cross_teacher_taus"),
        ({"cross_teacher_taus": (0.1,), "soft_label_source": "cross"}, "cross_teacher_taus"),
        (
            {"cross_teacher_taus": (0.1,), "soft_label_source": "cross", "rule": "guide"},
            "cross_teacher_taus",
        ),
        ({"image_teacher_taus": (0.1,), "teacher_mean": "similarities"}, "image_teacher_taus"),
        ({"hycd": {"alpha": 1.1}}, "hycd.alpha"),
        (
            {"rule": "features", "terms": (), "features": {"interactive_weight": 0}},
            "features.interactive_weight",
        ),
        ({"guide": {"margin": float("nan")}}, "guide.margin"),
        ({"dr_sigmoid": {"bias": {"init": 0, "min": 1, "max": 0}}}, "dr_sigmoid.bias.min"),
    ],
)
def test_illegal_settings_are_refused(settings, name):
    with pytest.raises(SettingError) as error:
        LossConfig(**settings)
    assert error.value.name == name


def test_the_rule_features_needs_dimensions_that_fit():
    config = LossConfig(terms=(), rule="features")
    for dims in (None, (3, 3, 4), FeatureDims(3, 0, 4), FeatureDims(3, 3.0, 4)):
        with pytest.raises(SettingError) as error:
            CUSALoss(config, feature_dims=dims)
        assert error.value.name == "feature_dims"
    loss = CUSALoss(config, feature_dims=FeatureDims(3, 3, 4))
    with pytest.raises(EmbeddingsError) as error:
        loss(X, X, teacher_image=X, teacher_text=X)
    assert error.value.name == "feature_dims"
    with pytest.raises(EmbeddingsError) as error:
        loss.on_similarities(X @ X.T, teacher_image=X, teacher_text=X)
    assert error.value.name == "similarity"
    # Projections are decayed as other matrices are, temperatures are not.
    temperatures, projections = loss.param_groups(lr=0.1)
    assert temperatures == {"params": [loss.tau], "weight_decay": 0.0, "lr": 0.1}
    assert projections == {"params": list(loss.projections.parameters())}


@pytest.mark.parametrize("name", ["cwcl", "dr", "dr-sigmoid", "guide by both", "self-guide"])
def test_a_rule_on_similarities_is_that_on_features(name):
    data = Data().without_queue()
    loss = make_loss(CONFIGS[name])
    expected = data.run(loss)[0]
    image, text = (torch.nn.functional.normalize(rows) for rows in data.features[:2])
    terms = loss.on_similarities(
        image @ text.T,
        None,
        None,
        *data.uni,
        torch.tensor(data.image_ids),
        list(zip(*data.cross, strict=True)),
    )
    torch.testing.assert_close(terms, expected, rtol=1e-9, atol=1e-12)


def test_a_rule_compiles():
    config = rule_config("guide", guide=GuideConfig("either", 0.9))
    data = Data().without_queue()
    expected = data.run(make_loss(config))
    loss = CUSALoss(config, method="tiled").double()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(data.run(compiled)[0], expected[0], rtol=1e-9, atol=1e-12)


def _gradient(config, rows, method="dense", with_ids=True):
    """The gradient of the features, and the total, of a loss on the batch of ``rows``."""
    features = [matrix.clone().requires_grad_() for matrix in rows["features"]]
    ids = torch.tensor([7, 1, 7, 2]) if with_ids else None
    total = make_loss(config, method)(*features, image_ids=ids, **rows["teachers"]).total
    gradients = torch.autograd.grad(total, features[:2])
    return gradients, total


@pytest.fixture
def rows():
    data = Data().without_queue()
    cross = [(data.cross[0][0], data.cross[1][0])]
    uni = {"teacher_image": data.uni[0][0], "teacher_text": data.uni[1][0]}
    return {"features": data.features, "teachers": {**uni, "cross_teachers": cross}}


def test_rules_become_their_neighbours(rows):
    """What docs/rules.md says of how they are related."""
    tau = Temperature(0.05, 0.01, 0.1)
    contrastive = LossConfig(terms=("contrastive",), contrastive_scaling="infonce", tau=tau)
    at_tau = TemperaturePair(tau, tau, True)
    soft = Temperature(0.3, 0.1, 1, learnable=False)
    as_csa = LossConfig(
        terms=("csa",),
        alpha=1,
        csa_divergence="cross_entropy",
        csa_scaling="infonce",
        tau_csa=at_tau,
        tau_soft=TemperaturePair(soft, soft, True),
    )
    captions_alone = {**rows, "teachers": {**rows["teachers"]}}
    captions_alone["teachers"]["teacher_image"] = rows["teachers"]["teacher_text"]
    alone = {"terms": (), "tau": tau}
    pairs = [
        (LossConfig(rule="hycd", hycd=HycdConfig(1, 1), **alone), contrastive, rows),
        (
            LossConfig(rule="hycd", hycd=HycdConfig(0, 1), **alone),
            LossConfig(rule="dr", **alone),
            rows,
        ),
        (
            LossConfig(rule="dr", cross_teacher_taus=(0.3,), **alone),
            replace(as_csa, soft_label_source="cross"),
            rows,
        ),
        (LossConfig(rule="xclr", xclr=XclrConfig(0.3), **alone), as_csa, captions_alone),
        (LossConfig(rule="guide", guide=GuideConfig("either", -2), **alone), contrastive, rows),
    ]
    for config, neighbour, batch in pairs:
        gradients, _ = _gradient(config, batch)
        torch.testing.assert_close(gradients, _gradient(neighbour, batch)[0])
    # Without shared images, the sharpest labels are the true pairs.
    sharp = LossConfig(rule="xclr", xclr=XclrConfig(1e-4), **alone)
    gradients, _ = _gradient(sharp, rows, with_ids=False)
    torch.testing.assert_close(gradients, _gradient(contrastive, rows, with_ids=False)[0])


@METHODS
def test_a_certain_teacher_makes_dr_sigmoid_siglip_s_loss(method):
    """transformers writes SigLIP's loss as a mean over rows of sums over candidates."""
    torch.manual_seed(0)
    image, text = (torch.randn(5, 4, dtype=torch.float64) for _ in range(2))
    # Pairs have a cosine of 1 and others of 0: logits of 500 and -500 at a bias of -500.
    basis = torch.eye(5, dtype=torch.float64)
    config = LossConfig(
        terms=(),
        rule="dr-sigmoid",
        cross_teacher_taus=(0.001,),
        dr_sigmoid=DrSigmoidConfig(bias=Bias(-3, -5, 5), teacher_bias=-500),
    )
    loss = CUSALoss(config, method=method, tile_rows=2).double()
    total = loss(image, text, cross_teachers=[(basis, basis)]).total
    unit_image, unit_text = (torch.nn.functional.normalize(x) for x in (image, text))
    logits = unit_text @ unit_image.T / loss.tau + loss.sigmoid_bias
    signed = logits * (2 * basis - 1)
    expected = -torch.nn.functional.logsigmoid(signed).sum(dim=-1).mean()
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)


@METHODS
@pytest.mark.parametrize("name", CONFIGS)
def test_what_lies_in_empty_slots_counts_for_nothing(name, method):
    data = Data()
    expected = data.run(make_loss(CONFIGS[name], method))
    absent = ~torch.tensor(data.mask)
    for matrix in itertools.chain(data.candidates, *data.uni, *data.cross):
        matrix[absent] = float("nan")
    terms, gradients = data.run(make_loss(CONFIGS[name], method))
    torch.testing.assert_close(terms, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(gradients[:2], expected[1][:2], rtol=0, atol=0)
