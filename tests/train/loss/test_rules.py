"""The label rules against explicit loops: values and all gradients, dense and tiled."""

import itertools
from dataclasses import dataclass, field, replace

import pytest
import torch

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
    XclrConfig,
)

METHODS = pytest.mark.parametrize("method", ["dense", "tiled"])
LEARNED = TemperaturePair(Temperature(0.7, 0.1, 0.9), Temperature(0.3, 0.1, 0.9), False)


def rule_config(rule, **settings):
    return LossConfig(terms=(), rule=rule, rule_weight=1.5, **settings)


def guide_config(teacher, margin, relative=False):
    return rule_config("guide", guide=GuideConfig(teacher, margin, relative))


SIGMOID = DrSigmoidConfig(bias=Bias(-2, -5, 5), teacher_bias=-3)
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
    "self-guide": rule_config("self-guide", guide=GuideConfig(margin=0.2)),
    "self-guide, relative": rule_config("self-guide", guide=GuideConfig("text", 0.5, True)),
    "features": rule_config("features", features=FeaturesConfig(0.3, 2)),
    "features, mean similarities": rule_config(
        "features", teacher_mean="similarities", image_teacher_weights=(3, 1)
    ),
    "CSA of pairs": LossConfig(terms=("csa",), soft_label_source="cross", tau_soft=LEARNED),
    "CSA of pairs, own temperatures": LossConfig(
        terms=("csa",), soft_label_source="cross", tau_soft=LEARNED, **TAUS
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

    def _labels(self, kind, modality, i, tau):
        if self.config.teacher_mean == "similarities" and kind != "cross":
            mean = self._mean_cosines(kind, modality, i)
            return _greatest(_softmax([cosine / tau for cosine in mean]), self.config.top_k)
        cosines = self._cosines(kind, modality, i)
        taus = getattr(self.config, f"{kind}_teacher_taus") or [tau] * len(cosines)
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
        limit = own * (1 - margin) if relative else own - margin
        return [bool(cosine > limit) for cosine in cosines]

    def _kept(self, modality, i, student):
        guide = self.config.guide
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
        if source == "cross":
            labels = self._labels("cross", modality, i, tau_soft)
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
    if config.rule != "cusa":
        assert terms.rule == terms.total
