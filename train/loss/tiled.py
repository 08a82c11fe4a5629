"""The CUSA loss of embeddings a few rows of the similarity matrices at a time, with its gradient in the same sweep.

One sweep per modality. A tile is a few queries against all candidates; its soft labels serve CSA and USA alike, and its
gradient (of a softmax cross entropy: ``(q - p) / tau``) goes to the features at once, as in fused linear cross-entropy
kernels: the loss being a scalar, what comes down to it in the backward pass is one factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from cusa.train.loss.config import LossConfig, Term
from cusa.train.loss.functions import fuse_similarities, hard_targets

Pair = tuple[torch.Tensor, torch.Tensor]


# glibc hands freed memory back to the system above twice the largest block that was freed before, and each tile would
# have its pages mapped anew, for a quarter of the time. A block of nearly 32 MB, never touched, makes that 64 MB.
_BLOCK = 2**23 - 2**12


class Sides(NamedTuple):
    """What a loss is computed from, of the image side and of the text side each.

    Embeddings ``[B, d]``; or similarities ``[n, m]`` of n queries with m candidates.

    Attributes:
        cross: Of the cross-modal heads; as similarities, image-to-text and text-to-image.
        uni: Of the uni-modal heads, if a term needs them.
        teacher: Of the teachers, if a term needs them.
    """

    cross: Pair
    uni: Pair | None
    teacher: Pair | None

    def all(self) -> list[torch.Tensor]:
        """The tensors that are there."""
        return [x for pair in self if pair is not None for x in pair]

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Sides:
        """A function of each tensor."""
        cross, uni, teacher = (
            None if pair is None else (function(pair[0]), function(pair[1])) for pair in self
        )
        assert cross is not None
        return Sides(cross, uni, teacher)


class Taus(NamedTuple):
    """Temperatures of the image and the text direction, scalars; what no term needs is ``None``."""

    contrastive: Pair | None
    csa: Pair | None
    csa_soft: Pair | None
    usa: Pair | None
    usa_soft: Pair | None


def tiled_loss(
    features: Sides,
    image_ids: torch.Tensor | None,
    taus: Taus,
    config: LossConfig,
    rows: slice,
    tile_rows: int | None,
) -> tuple[torch.Tensor, ...]:
    """The share of some rows of the similarity matrices in the loss (DESIGN, section 2).

    Args:
        features: L2-normalised float32 or float64 ``[N, d]``, of all candidates.
        image_ids: int64 ``[N]``; ``None``: all different.
        taus: Temperatures, of the features' dtype.
        config: Settings.
        rows: The queries.
        tile_rows: Rows of a tile; ``None``: as many as suit the device.

    Returns:
        The share, a scalar with a gradient; and its parts of contrastive, CSA and USA, scalars without.
    """
    if tile_rows is None:
        tile_rows = default_tile_rows(len(features.cross[0]), features.cross[0].device)
    sweeps = _Sweeps(features, image_ids, taus, config, rows, tile_rows)
    total, terms = _TiledLoss.apply(sweeps, torch.is_grad_enabled(), *sweeps.inputs)
    return total, *terms


def default_tile_rows(n_candidates: int, device: torch.device) -> int:
    """Rows of a tile: what was fastest on a CPU, of its caches' size; elsewhere enough to keep the device busy."""
    return max(
        16, min(256, 2**21 // n_candidates) if device.type == "cpu" else 2**26 // n_candidates
    )


class _TiledLoss(torch.autograd.Function):
    """Keeps the gradients that the sweeps form in the forward pass for the backward pass."""

    @staticmethod
    def forward(ctx: Any, sweeps: _Sweeps, differentiate: bool, *inputs: torch.Tensor) -> Pair:
        terms, gradients = sweeps.run([differentiate and need for need in ctx.needs_input_grad[2:]])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    def backward(
        ctx: Any, factor: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        if (
            torch.is_grad_enabled()
        ):  # create_graph=True: once_differentiable would let it pass and be wrong
            raise RuntimeError("the tiled loss has no second derivative; pass method='dense'")
        return None, None, *(None if g is None else g * factor for g in ctx.saved_tensors)


class _Targets(NamedTuple):
    """Distributions that queries are pulled to.

    Attributes:
        p: ``[n, m]``.
        negative_entropy: ``sum_j p log p``, wide ``[n]``; not given for hard targets, as what follows.
        logits: ``[n, m]`` that p is the softmax of: the teacher's similarities over tau.
        tau: Scalar.
    """

    p: torch.Tensor
    negative_entropy: torch.Tensor | float = 0.0
    logits: torch.Tensor | None = None
    tau: torch.Tensor | None = None


class _Sweeps:
    """The sweeps of one loss. What is summed over a row is combined in float64, where the device has it.

    Attributes:
        inputs: The tensors that may want a gradient, each once.
    """

    def __init__(
        self,
        features: Sides,
        image_ids: torch.Tensor | None,
        taus: Taus,
        config: LossConfig,
        rows: slice,
        tile_rows: int,
    ) -> None:
        self._features, self._ids, self._taus, self._config = features, image_ids, taus, config
        self._rows, self._tile_rows = rows, tile_rows
        self._weights = config.row_weights(len(features.cross[0]))
        self._wide = torch.float32 if features.cross[0].device.type == "mps" else torch.float64
        pairs = (features.cross, features.uni, *taus)
        self.inputs = list({id(x): x for pair in pairs if pair is not None for x in pair}.values())

    def run(self, wanted: list[bool]) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """The terms, ``[3]``, and the gradients of their sum to those of the inputs that want one."""
        if self._features.cross[0].device.type == "cpu":
            torch.empty(_BLOCK, dtype=torch.float32)
        self._gradients = {
            id(x): torch.zeros_like(x) for x, want in zip(self.inputs, wanted, strict=True) if want
        }
        self._values = {
            term: self._features.cross[0].new_zeros((), dtype=self._wide) for term in self._weights
        }
        for side in (0, 1):  # the queries are images, texts
            for start in range(self._rows.start, self._rows.stop, self._tile_rows):
                self._add_tile(side, slice(start, min(start + self._tile_rows, self._rows.stop)))
        zero = self._features.cross[0].new_zeros(())
        names: tuple[Term, ...] = ("contrastive", "csa", "usa")
        terms = torch.stack([self._values.get(name, zero).to(zero.dtype) for name in names])
        return terms, [self._gradients.get(id(x)) for x in self.inputs]

    def _add_tile(self, side: int, tile: slice) -> None:
        f, taus = self._features, self._taus
        csa, usa = self._soft_targets(side, tile)
        across: list[tuple[Term, torch.Tensor, _Targets]] = []
        if taus.contrastive is not None:
            across.append(("contrastive", taus.contrastive[side], self._hard_targets(tile)))
        if csa is not None and taus.csa is not None:
            across.append(("csa", taus.csa[side], csa))
        if across:
            self._pull(tile, f.cross[side], f.cross[1 - side], across)
        if usa is not None and taus.usa is not None and f.uni is not None:
            self._pull(tile, f.uni[side], f.uni[side], [("usa", taus.usa[side], usa)])

    def _hard_targets(self, tile: slice) -> _Targets:
        like = self._features.cross[0]
        if self._ids is not None:
            return _Targets(hard_targets(self._ids, tile, like.dtype))
        p = like.new_zeros(tile.stop - tile.start, len(like))
        p.diagonal(tile.start).fill_(1)
        return _Targets(p)

    def _soft_targets(self, side: int, tile: slice) -> tuple[_Targets | None, _Targets | None]:
        """Of CSA and of USA: the same object where they are the same distributions."""
        taus, source = self._taus, self._config.soft_label_source
        if self._features.teacher is None:
            return None, None
        own, other = self._features.teacher[side], self._features.teacher[1 - side]
        for_csa = None if taus.csa_soft is None else taus.csa_soft[side]
        for_usa = None if taus.usa_soft is None else taus.usa_soft[side]
        csa = usa = None
        if for_csa is not None:
            logits = (own[tile] / for_csa) @ own.T
            if source != "each":
                logits, _ = fuse_similarities(logits, (other[tile] / for_csa) @ other.T, source)
            csa = self._softmax_targets(logits, for_csa)
        if for_usa is not None:
            shared = source == "each" and for_usa is for_csa
            usa = csa if shared else self._softmax_targets((own[tile] / for_usa) @ own.T, for_usa)
        return csa, usa

    def _softmax_targets(self, logits: torch.Tensor, tau: torch.Tensor) -> _Targets:
        p, log_z = self._softmax(logits)
        return _Targets(p, self._row_sums(p, logits) - log_z, logits, tau)

    def _softmax(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[n, m]``, and the logarithm of what each row was divided by, ``[n]``, wide."""
        q = torch.softmax(logits, dim=1)
        # The greatest of a row is exp(0) over the sum of the row.
        return q, logits.amax(dim=1).to(self._wide) - q.amax(dim=1).to(self._wide).log()

    def _row_sums(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """``sum_j a_ij b_ij``, ``[n]``, wide."""
        return torch.linalg.vecdot(a, b).to(self._wide)

    def _pull(
        self,
        tile: slice,
        queries: torch.Tensor,
        candidates: torch.Tensor,
        terms: list[tuple[Term, torch.Tensor, _Targets]],
    ) -> None:
        """Add the terms of one similarity matrix: values, and gradients to features and temperatures."""
        first = terms[0][1]
        logits = (queries[tile] / first) @ candidates.T  # a temperature divides [n, d], not [n, m]
        gradient: torch.Tensor | None = None
        for name, tau, targets in terms:
            part = self._add_term(
                logits if tau is first else logits * (first / tau), name, tau, targets
            )
            gradient = part if gradient is None or part is None else gradient.add_(part)
        if gradient is None:
            return
        if (to_queries := self._gradients.get(id(queries))) is not None:
            to_queries[tile].addmm_(gradient, candidates)
        if (to_candidates := self._gradients.get(id(candidates))) is not None:
            to_candidates.addmm_(gradient.T, queries[tile])

    def _add_term(
        self, logits: torch.Tensor, name: Term, tau: torch.Tensor, targets: _Targets
    ) -> torch.Tensor | None:
        """Add a term's value and its gradient to the temperatures; its gradient to the similarity, if any is wanted."""
        weight, kl = self._weights[name], self._config.divergence(name) == "kl"
        q, log_z = self._softmax(logits)
        expected = self._row_sums(targets.p, logits)
        rows = log_z - expected + (targets.negative_entropy if kl else 0)
        self._values[name] += weight * rows.sum()
        if not self._gradients:
            return None
        if (to_tau := self._gradients.get(id(tau))) is not None:
            to_tau += weight / tau * (expected - self._row_sums(q, logits)).sum()
        to_soft = self._gradients.get(id(targets.tau))
        if to_soft is not None and targets.tau is not None and targets.logits is not None:
            to_soft += (
                weight / targets.tau * self._covariances(targets.p, targets.logits, logits, kl)
            )
        return q.sub_(targets.p).mul_(weight / tau)

    def _covariances(
        self, p: torch.Tensor, t: torch.Tensor, s: torch.Tensor, kl: bool
    ) -> torch.Tensor:
        """``sum_i Cov_p(s - t, t)``, t alone where the entropy counts: -tau_s times the gradient to tau_s in p."""
        weighted, mean = p * t, self._row_sums(p, t)
        with_s = self._row_sums(weighted, s) - mean * self._row_sums(p, s)
        with_t = self._row_sums(weighted, t) - mean**2
        return (with_s - with_t if kl else with_s).sum()
