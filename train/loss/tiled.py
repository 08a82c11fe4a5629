"""The CUSA loss of embeddings, a few rows of the similarity matrices at a time.

One sweep per modality computes values and gradients together. A tile is the similarities of a few
queries and all candidates. Its soft labels serve both CSA and USA, and its gradient (of a softmax
cross entropy: ``(q - p) / tau``) is added to that of the features at once, as in fused linear
cross-entropy kernels. This works because the loss is a scalar: the backward pass only has to
multiply these gradients by one factor.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cusa.train.loss.batch import LossBatch
from cusa.train.loss.config import ALL_TERMS, LossConfig, Term
from cusa.train.loss.functions import fuse_similarities, same_image_targets
from cusa.train.loss.temperatures import UsedTemperatures

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
        Four scalars: their sum, which alone has a gradient, and the contrastive term, CSA and USA.
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
        negative_entropy: ``sum_j p log p``, wide ``[n]``; 0 for the contrastive term.
        logits: ``[n, m]``, whose softmax the probabilities are: the teacher's similarities divided
            by tau; ``None`` for the contrastive term.
        tau: The soft labels' temperature, a scalar; ``None`` for the contrastive term.
    """

    probabilities: Tensor
    negative_entropy: Tensor | float = 0.0
    logits: Tensor | None = None
    tau: Tensor | None = None


class _TileTerm(NamedTuple):
    """A term on one tile: its name, the student's temperature and the targets."""

    name: Term
    tau: Tensor
    targets: _Targets


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
        features = (batch.cross, batch.uni, batch.candidate_cross, batch.candidate_uni)
        distinct: dict[int, Tensor] = {}
        for pair in (*features, *itertools.chain(*self.taus.values())):
            for tensor in pair:
                if tensor is not None:
                    distinct[id(tensor)] = tensor
        self.inputs = list(distinct.values())

    def run(self, needs_gradient: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
        """Return the terms, ``[3]``, and the gradients of their sum.

        Args:
            needs_gradient: Whether each of the inputs needs its gradient.
        """
        image_features = self.batch.cross[0]
        self._gradients: dict[int, Tensor] = {}
        for tensor, is_needed in zip(self.inputs, needs_gradient, strict=True):
            if is_needed:
                self._gradients[id(tensor)] = torch.zeros_like(tensor)
        self._values: dict[Term, Tensor] = {}
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
        tile: slice,
    ) -> None:
        batch = self.batch
        targets = self._targets(modality, tile)
        terms: list[_TileTerm] = []
        for term in targets:
            terms.append(_TileTerm(term, self.taus[term].student[modality], targets[term]))
        cross_modal = [term for term in terms if term.name != "usa"]
        if cross_modal:
            queries = batch.cross[modality]
            self._add_terms(tile, queries, batch.candidate_cross[1 - modality], cross_modal)
        uni_queries = batch.uni[modality]
        uni_candidates = batch.candidate_uni[modality]
        if "usa" in targets and uni_queries is not None and uni_candidates is not None:
            self._add_terms(tile, uni_queries, uni_candidates, terms[-1:])

    def _targets(
        self,
        modality: int,
        tile: slice,
    ) -> dict[Term, _Targets]:
        """Return the targets of each term; terms with the same distributions share one object.

        CSA and USA are left out if there is no teacher of the queries' modality.
        """
        source = self.config.soft_label_source
        teacher = self.batch.teacher[modality]
        other_teacher = self.batch.teacher[1 - modality]
        targets: dict[Term, _Targets] = {}
        for term, taus in self.taus.items():
            if term == "contrastive":
                targets[term] = _Targets(self._hard_targets(tile))
                continue
            if teacher is None:
                continue
            tau = taus.soft_labels[modality]
            # CSA and USA have the same soft labels: take the softmax once.
            if source == "each" and "csa" in targets and targets["csa"].tau is tau:
                targets[term] = targets["csa"]
                continue
            logits = _tile_logits(teacher, tile, tau)
            if term == "csa" and source != "each":
                assert other_teacher is not None, "fusing needs both teachers"
                other_logits = _tile_logits(other_teacher, tile, tau)
                logits, _ = fuse_similarities(logits, other_logits, source)
            targets[term] = self._softmax_targets(self.batch.hide_absent(logits), tau)
        return targets

    def _hard_targets(self, tile: slice) -> Tensor:
        batch = self.batch
        candidates = batch.candidate_cross[0]
        if batch.image_ids is not None:
            return same_image_targets(batch.image_ids, tile, candidates.dtype, batch.mask)
        # All images differ: a query's own candidate is its only positive.
        probabilities = candidates.new_zeros(tile.stop - tile.start, len(candidates))
        probabilities.diagonal(tile.start).fill_(1)
        return probabilities

    def _softmax_targets(
        self,
        logits: Tensor,
        tau: Tensor,
    ) -> _Targets:
        probabilities, log_normalizer = self._softmax(logits)
        negative_entropy = self._row_sums(probabilities, logits) - log_normalizer
        return _Targets(probabilities, negative_entropy, logits, tau)

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
        tile: slice,
        queries: Tensor,
        candidates: Tensor,
        terms: list[_TileTerm],
    ) -> None:
        """Add the values and gradients of the terms that use one similarity matrix.

        Args:
            tile: The tile's queries, as positions in ``queries``.
            queries: Features ``[N, d]`` of the queries' modality.
            candidates: Features ``[M, d]`` of the candidates.
            terms: The terms.
        """
        first_tau = terms[0].tau
        # Divide [n, d] by the temperature, which is cheaper than dividing [n, m].
        first_logits = self.batch.hide_absent((queries[tile] / first_tau) @ candidates.T)
        gradient = None
        for term in terms:
            logits = first_logits
            # Rescaling the logits is cheaper than multiplying the features again.
            if term.tau is not first_tau:
                logits = first_logits * (first_tau / term.tau)
            term_gradient = self._add_term(logits, term)
            if gradient is None or term_gradient is None:
                gradient = term_gradient
            else:
                gradient.add_(term_gradient)
        if gradient is None:
            return

        to_queries = self._gradients.get(id(queries))
        if to_queries is not None:
            to_queries[tile].addmm_(gradient, candidates)
        to_candidates = self._gradients.get(id(candidates))
        if to_candidates is not None:
            to_candidates.addmm_(gradient.T, queries[tile])

    def _add_term(
        self,
        logits: Tensor,
        term: _TileTerm,
    ) -> Tensor | None:
        """Add a term's value and the gradients of its temperatures.

        Returns:
            The gradient of the similarities, ``[n, m]``; ``None`` if no gradient is needed.
        """
        targets = term.targets
        weight = self._weights[term.name]
        is_kl = self.config.divergence(term.name) == "kl"
        student, log_normalizer = self._softmax(logits)
        expected_logits = self._row_sums(targets.probabilities, logits)
        # A row's cross entropy is log z - sum_j p_j logit_j; KL subtracts the entropy of p.
        divergences = log_normalizer - expected_logits
        if is_kl:
            divergences = divergences + targets.negative_entropy
        self._values[term.name] += weight * divergences.sum()
        if not self._gradients:
            return None

        to_tau = self._gradients.get(id(term.tau))
        if to_tau is not None:
            # The logits are similarities over tau, so their derivative is -logits / tau.
            gap = expected_logits - self._row_sums(student, logits)
            to_tau += weight / term.tau * gap.sum()
        to_soft_tau = self._gradients.get(id(targets.tau))
        if to_soft_tau is not None and targets.tau is not None:
            covariances = self._covariances(targets, logits, is_kl)
            to_soft_tau += weight / targets.tau * covariances
        # In place: the student's probabilities are not needed again.
        return student.sub_(targets.probabilities).mul_(weight / term.tau)

    def _covariances(
        self,
        targets: _Targets,
        student_logits: Tensor,
        is_kl: bool,
    ) -> Tensor:
        """Return ``sum_i Cov_p(s - t, t)`` for KL, ``sum_i Cov_p(s, t)`` for the cross entropy.

        Here p are the targets, t their logits and s the student's logits. The value is tau_soft
        times the derivative of the divergences, unweighted, with respect to tau_soft.
        """
        assert targets.logits is not None
        weighted = targets.probabilities * targets.logits
        mean = self._row_sums(targets.probabilities, targets.logits)
        student_mean = self._row_sums(targets.probabilities, student_logits)
        with_student = self._row_sums(weighted, student_logits) - mean * student_mean
        with_teacher = self._row_sums(weighted, targets.logits) - mean**2
        return (with_student - with_teacher if is_kl else with_student).sum()


def _tile_logits(
    features: Tensor,
    tile: slice,
    tau: Tensor,
) -> Tensor:
    """Return the logits of a tile's rows with all rows: ``[n, m]``."""
    return (features[tile] / tau) @ features.T
