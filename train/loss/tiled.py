"""The CUSA loss of embeddings, a few rows of the similarity matrices at a time.

One sweep per modality computes values and gradients together. A tile is the similarities of a few
queries and all candidates. Its soft labels serve both CSA and USA, and its gradient (of a softmax
cross entropy: ``(q - p) / tau``) is added to that of the features at once, as in fused linear
cross-entropy kernels. This works because the loss is a scalar: the backward pass only has to
multiply these gradients by one factor.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cusa.train.loss.batch import LossBatch
from cusa.train.loss.config import ALL_TERMS, Divergence, LossConfig, SummedTerm
from cusa.train.loss.rules.registry import RULES
from cusa.train.loss.rules.soft_labels import csa_labels, label_slope, own_teachers, usa_labels
from cusa.train.loss.rules.tile import HIDDEN, Tile
from cusa.train.loss.temperatures import UsedTemperatures
from cusa.train.loss.tiles import as_product, make_tile

_LEAST_TILE_ROWS = 16
_CPU_TILE_NUMBERS = 2**21  # similarities in a tile that fits a CPU's caches
_MOST_CPU_TILE_ROWS = 256
_DEVICE_TILE_NUMBERS = 2**26  # similarities in a tile that keeps another device busy


def tiled_loss(
    batch: LossBatch,
    taus: UsedTemperatures,
    config: LossConfig,
    tile_rows: int | None,
) -> tuple[Tensor, ...]:
    """Return what some queries add to the loss; see :class:`cusa.train.loss.cusa_loss.CUSALoss`.

    Args:
        batch: L2-normalised, of one dtype, float32 or float64.
        taus: Temperatures, in the features' dtype.
        config: Settings.
        tile_rows: Rows of a tile; ``None``: as many as suit the device.

    Returns:
        Five scalars: their sum, which alone has a gradient, and the terms in the order of
        ``ALL_TERMS``.
    """
    if tile_rows is None:
        candidates = batch.candidate_cross[0]
        tile_rows = default_tile_rows(len(candidates), candidates.device)
    sweeps = _Sweeps(batch, taus, config, tile_rows)
    total, terms = _TiledLoss.apply(sweeps, torch.is_grad_enabled(), *sweeps.inputs)
    return total, *terms


def default_tile_rows(
    n_candidates: int,
    device: torch.device,
) -> int:
    """Return the number of rows in a tile: the fastest on a CPU, or enough for another device."""
    if device.type == "cpu":
        rows = min(_MOST_CPU_TILE_ROWS, _CPU_TILE_NUMBERS // n_candidates)
    else:
        rows = _DEVICE_TILE_NUMBERS // n_candidates
    return max(_LEAST_TILE_ROWS, rows)


class _TiledLoss(torch.autograd.Function):
    """Saves the gradients, which the sweeps compute in the forward pass, for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        sweeps: _Sweeps,
        differentiate: bool,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[2:]
        terms, gradients = sweeps.run([differentiate and needed for needed in needs_gradient])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    def backward(
        ctx: Any,
        factor: Tensor,
        _: Tensor,
    ) -> tuple[Tensor | None, ...]:
        # create_graph=True; with once_differentiable, the gradients would be wrong in silence.
        if torch.is_grad_enabled():
            raise RuntimeError("the tiled loss has no second derivative; pass method='dense'")
        gradients = []
        for gradient in ctx.saved_tensors:
            gradients.append(None if gradient is None else gradient * factor)
        return None, None, *gradients


class _Targets(NamedTuple):
    """The target distributions of a tile's queries.

    Attributes:
        probabilities: ``[n, m]``.
        negative_entropy: ``sum_j p log p``, wide ``[n]``; 0 for hard labels.
        logits: ``[n, m]``, whose softmax the probabilities are; ``None`` for hard labels.
        slope: ``[n, m]``: tau times the derivative of the logits with respect to tau; ``None`` if
            no gradient is needed.
        tau: The soft labels' temperature, a scalar, if it may be learnable.
        kept: bool ``[n, m]``: the candidates that stay in the softmax; ``None``: all.
    """

    probabilities: Tensor
    negative_entropy: Tensor | float = 0.0
    logits: Tensor | None = None
    slope: Tensor | None = None
    tau: Tensor | None = None
    kept: Tensor | None = None


@dataclass
class _Sweeps:
    """The sweeps of one loss; the fields are the arguments of :func:`tiled_loss`.

    Sums over a row are combined in float64 if the device has it; docstrings call this dtype wide.

    Attributes:
        inputs: The tensors that may need a gradient, each once.
    """

    batch: LossBatch
    taus: UsedTemperatures
    config: LossConfig
    tile_rows: int

    def __post_init__(self) -> None:
        batch = self.batch
        self._weights = self.config.row_weights(len(batch.cross[0]), batch.n_candidates)
        self._wide = torch.float64
        if batch.cross[0].device.type == "mps":
            self._wide = torch.float32

        # A tensor may occur twice, such as a temperature that both directions share, but autograd
        # takes one gradient for each input.
        features = (
            batch.cross,
            batch.uni,
            batch.candidate_cross,
            batch.candidate_uni,
            batch.projected,
        )
        distinct: dict[int, Tensor] = {}
        scalars: list[Tensor | None] = []
        for student_taus, soft_taus, bias in self.taus.values():
            scalars += [*student_taus, *soft_taus, bias]
        for tensor in (*itertools.chain(*features), *scalars):
            if tensor is not None:
                distinct[id(tensor)] = tensor
        self.inputs = list(distinct.values())

    def run(self, needs_gradient: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
        """Return the terms, ``[4]``, and the gradients of their sum.

        Args:
            needs_gradient: Whether each of the inputs needs its gradient.
        """
        image_features = self.batch.cross[0]
        self._gradients: dict[int, Tensor] = {}
        for tensor, is_needed in zip(self.inputs, needs_gradient, strict=True):
            if is_needed:
                self._gradients[id(tensor)] = torch.zeros_like(tensor)
        self._values: dict[SummedTerm, Tensor] = {}
        for term in self._weights:
            self._values[term] = image_features.new_zeros((), dtype=self._wide)

        for modality in (0, 1):  # of the queries: images, then texts
            rows = self.batch.rows
            for start in range(rows.start, rows.stop, self.tile_rows):
                stop = min(start + self.tile_rows, rows.stop)
                self._add_tile(modality, slice(start, stop))

        gradients = [self._gradients.get(id(tensor)) for tensor in self.inputs]
        return self._term_values(), gradients

    def _term_values(self) -> Tensor:
        zero = self.batch.cross[0].new_zeros(())
        return torch.stack([self._values.get(term, zero).to(zero.dtype) for term in ALL_TERMS])

    def _add_tile(
        self,
        modality: int,
        queries: slice,
    ) -> None:
        batch = self.batch
        tile = make_tile(batch, self.config, modality, queries, as_product)
        terms = list(self.taus)
        if not own_teachers(tile, self.config).cosines:
            # No teacher of the queries' modality gives these their soft labels.
            without_labels = {"usa"}
            if self.config.soft_label_source == "each":
                without_labels.add("csa")
            terms = [term for term in terms if term not in without_labels]
        shared_targets: dict[int, _Targets] = {}
        features = batch.cross[modality]
        candidates = batch.candidate_cross[1 - modality]
        rule_candidates = batch.rule_candidates(modality)
        with_other_candidates = {"usa"}
        if rule_candidates is not candidates:
            with_other_candidates.add("rule")
        cross_modal = [term for term in terms if term not in with_other_candidates]
        if cross_modal:
            self._add_terms(tile, features, candidates, cross_modal, shared_targets)
        if "rule" in with_other_candidates:
            self._add_terms(tile, features, rule_candidates, ["rule"], shared_targets)
        uni_features = batch.uni[modality]
        uni_candidates = batch.candidate_uni[modality]
        if "usa" in terms and uni_features is not None and uni_candidates is not None:
            self._add_terms(tile, uni_features, uni_candidates, ["usa"], shared_targets)

    def _targets(
        self,
        term: SummedTerm,
        tile: Tile,
        shared_targets: dict[int, _Targets],
    ) -> _Targets:
        """Return the targets of a term.

        Args:
            term: The term.
            tile: The tile.
            shared_targets: Soft labels of the queries' own teachers, by the identity of their
                temperature; added to.
        """
        config = self.config
        if term == "contrastive":
            return _Targets(tile.hard_labels())
        if term == "rule":
            rule = RULES[config.rule]
            rule_output = rule.function(tile, config)
            if rule.gives == "labels":
                return self._softmax_targets(rule_output)
            if rule.gives == "distributions":
                return _Targets(rule_output)
            return _Targets(tile.hard_labels(), kept=rule_output)

        tau = self.taus[term].soft_labels[tile.modality]
        # CSA and USA have the same soft labels: take the softmax once.
        if id(tau) in shared_targets:
            return shared_targets[id(tau)]
        labels_of_tile = csa_labels if term == "csa" else usa_labels
        logits = labels_of_tile(tile, config, tau)
        assert logits is not None, "terms without labels are left out"
        slope = None
        if id(tau) in self._gradients:
            slope = label_slope(tile, config, term, tau)
        targets = self._softmax_targets(logits)._replace(slope=slope, tau=tau)
        if config.soft_label_source == "each" or term == "usa":
            shared_targets[id(tau)] = targets
        return targets

    def _softmax_targets(self, logits: Tensor) -> _Targets:
        probabilities, log_normalizer = self._softmax(logits)
        negative_entropy = self._row_sums(probabilities, logits) - log_normalizer
        return _Targets(probabilities, negative_entropy, logits)

    def _softmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the softmax, ``[n, m]``, and each row's log-normaliser log z, wide ``[n]``."""
        probabilities = torch.softmax(logits, dim=1)
        # log z = max_j logit_j - log max_j p_j
        greatest_logits = logits.amax(dim=1).to(self._wide)
        greatest_probabilities = probabilities.amax(dim=1).to(self._wide)
        return probabilities, greatest_logits - greatest_probabilities.log()

    def _row_sums(
        self,
        weights: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Return ``sum_j weights_ij values_ij``, wide ``[n]``."""
        return torch.linalg.vecdot(weights, values).to(self._wide)

    def _add_terms(
        self,
        tile: Tile,
        features: Tensor,
        candidates: Tensor,
        terms: Sequence[SummedTerm],
        shared_targets: dict[int, _Targets],
    ) -> None:
        """Add the values and gradients of the terms that use one similarity matrix.

        Args:
            tile: The tile.
            features: ``[N, d]`` of the queries' modality.
            candidates: Features ``[M, d]`` of the candidates.
            terms: The terms.
            shared_targets: As of :meth:`_targets`.
        """
        queries = tile.queries
        first_tau = self.taus[terms[0]].student[tile.modality]
        # Divide [n, d] by the temperature, which is cheaper than dividing [n, m].
        first_logits = self.batch.hide_absent((features[queries] / first_tau) @ candidates.T)
        if self.config.rule == "self-guide":
            tile = tile._replace(student=first_logits * first_tau)
        gradient = None
        for term in terms:
            tau = self.taus[term].student[tile.modality]
            logits = first_logits
            # Rescaling the logits is cheaper than multiplying the features again.
            if tau is not first_tau:
                logits = first_logits * (first_tau / tau)
            if self._is_sigmoid(term):
                term_gradient = self._add_sigmoid_term(logits, tau, tile)
            else:
                targets = self._targets(term, tile, shared_targets)
                term_gradient = self._add_term(term, logits, tau, targets)
            if gradient is None or term_gradient is None:
                gradient = term_gradient
            else:
                gradient.add_(term_gradient)
        if gradient is not None:
            self._add_gradient(gradient, queries, features, candidates)

    def _add_gradient(
        self,
        gradient: Tensor,
        queries: slice,
        features: Tensor,
        candidates: Tensor,
    ) -> None:
        """Add the gradient of similarities, ``[n, m]``, to those of the features."""
        to_queries = self._gradients.get(id(features))
        if to_queries is not None:
            to_queries[queries].addmm_(gradient, candidates)
        to_candidates = self._gradients.get(id(candidates))
        if to_candidates is not None:
            to_candidates.addmm_(gradient.T, features[queries])

    def _add_term(
        self,
        term: SummedTerm,
        logits: Tensor,
        tau: Tensor,
        targets: _Targets,
    ) -> Tensor | None:
        """Add a term's value and the gradients of its temperatures.

        Returns:
            The gradient of the similarities, ``[n, m]``; ``None`` if no gradient is needed.
        """
        weight = self._weights[term]
        is_kl = self._divergence(term) == "kl"
        if targets.kept is not None:
            logits = logits.masked_fill(~targets.kept, HIDDEN)
        student, log_normalizer = self._softmax(logits)
        expected_logits = self._row_sums(targets.probabilities, logits)
        # A row's cross entropy is log z - sum_j p_j logit_j; KL subtracts the entropy of p.
        divergences = log_normalizer - expected_logits
        if is_kl:
            divergences = divergences + targets.negative_entropy
        self._values[term] += weight * divergences.sum()
        if not self._gradients:
            return None

        to_tau = self._gradients.get(id(tau))
        if to_tau is not None:
            # The logits are similarities over tau, so their derivative is -logits / tau.
            gap = expected_logits - self._row_sums(student, logits)
            to_tau += weight / tau * gap.sum()
        if targets.slope is not None and targets.tau is not None:
            to_soft_tau = self._gradients[id(targets.tau)]
            to_soft_tau += weight / targets.tau * self._covariances(targets, logits, is_kl)
        # In place: the student's probabilities are not needed again.
        return student.sub_(targets.probabilities).mul_(weight / tau)

    def _is_sigmoid(self, term: SummedTerm) -> bool:
        return term == "rule" and RULES[self.config.rule].gives == "signs"

    def _divergence(self, term: SummedTerm) -> Divergence:
        if term == "rule":
            return RULES[self.config.rule].divergence
        return self.config.divergence(term)

    def _covariances(
        self,
        targets: _Targets,
        student_logits: Tensor,
        is_kl: bool,
    ) -> Tensor:
        """Return ``sum_i Cov_p(u, t - s)`` for KL, ``sum_i Cov_p(u, -s)`` for the cross entropy.

        Here p are the targets, t their logits, u the slope of these and s the student's logits. The
        value is tau_soft times the derivative of the divergences, unweighted, with respect to
        tau_soft.
        """
        assert targets.logits is not None
        assert targets.slope is not None
        weighted_slope = targets.probabilities * targets.slope
        mean_slope = self._row_sums(targets.probabilities, targets.slope)
        mean_student = self._row_sums(targets.probabilities, student_logits)
        with_student = self._row_sums(weighted_slope, student_logits) - mean_slope * mean_student
        if not is_kl:
            return -with_student.sum()
        mean_labels = self._row_sums(targets.probabilities, targets.logits)
        with_labels = self._row_sums(weighted_slope, targets.logits) - mean_slope * mean_labels
        return (with_labels - with_student).sum()

    def _add_sigmoid_term(
        self,
        cosines_over_tau: Tensor,
        tau: Tensor,
        tile: Tile,
    ) -> Tensor | None:
        """Add the value of a sigmoid rule and the gradients of its temperature and its bias.

        Returns:
            The gradient of the similarities, ``[n, m]``; ``None`` if no gradient is needed.
        """
        weight = self._weights["rule"]
        bias = self.taus["rule"].bias
        assert bias is not None
        signs = RULES[self.config.rule].function(tile, self.config)
        signed_logits = signs * (cosines_over_tau + bias)
        losses = -F.logsigmoid(signed_logits)
        if tile.mask is not None:
            losses = losses.masked_fill(~tile.mask, 0)
        self._values["rule"] += weight * losses.sum(dtype=self._wide)
        if not self._gradients:
            return None

        # Of the logits; the signs of empty slots are 0.
        gradient = torch.sigmoid(-signed_logits).mul_(signs).mul_(-weight)
        to_bias = self._gradients.get(id(bias))
        if to_bias is not None:
            to_bias += gradient.sum(dtype=self._wide)
        to_tau = self._gradients.get(id(tau))
        if to_tau is not None:
            to_tau -= self._row_sums(gradient, cosines_over_tau).sum() / tau
        return gradient.div_(tau)
