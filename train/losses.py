"""The losses of CUSA (Huang et al., AAAI 2024): contrastive, CSA and USA, on similarity matrices and on embeddings.

Notation, for B pairs: ``similarity`` is ``[B, B]``, row i the similarities of item i with every candidate j; a
temperature divides it. Soft labels are softmax distributions over the teacher's similarities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

Divergence = Literal["kl", "cross_entropy"]
Scaling = Literal["paper", "infonce"]
Source = Literal["each", "add", "dot"]
Term = Literal["contrastive", "csa", "usa"]

TERMS: dict[str, tuple[Term, ...]] = {
    "contrastive": ("contrastive",),
    "csa": ("contrastive", "csa"),
    "usa": ("contrastive", "usa"),
    "cusa": ("contrastive", "csa", "usa"),
}


def soft_labels(teacher_similarity: torch.Tensor, tau: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Soft labels ``P_ij = softmax_j(teacher_similarity_ij / tau)`` (paper, section 3.2).

    Args:
        teacher_similarity: float ``[B, B]``, cosine similarities of the teacher's embeddings.
        tau: Temperature.

    Returns:
        ``[B, B]``; every row sums to one.
    """
    return F.softmax(teacher_similarity / tau, dim=-1)


def fuse_similarities(
    image_similarity: torch.Tensor, text_similarity: torch.Tensor, source: Source
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher similarities that serve CSA's two directions (paper, ablation of the soft-label source).

    Args:
        image_similarity: float ``[B, B]`` of the image teacher.
        text_similarity: float ``[B, B]`` of the text teacher.
        source: ``"each"``: images for image-to-text, texts for text-to-image; ``"add"``: the mean of both for both;
            ``"dot"``: ``sqrt(max(s_I, 0) * max(s_T, 0))`` for both.

    Returns:
        Similarities for image-to-text and for text-to-image, ``[B, B]`` each.
    """
    if source == "each":
        return image_similarity, text_similarity
    if source == "add":
        both = (image_similarity + text_similarity) / 2
    else:
        both = (image_similarity.clamp_min(0) * text_similarity.clamp_min(0)).sqrt()
    return both, both


def soft_label_loss(
    similarity: torch.Tensor,
    teacher_similarity: torch.Tensor,
    tau: torch.Tensor | float,
    tau_soft: torch.Tensor | float = 1.0,
    divergence: Divergence = "kl",
    scaling: Scaling = "infonce",
) -> torch.Tensor:
    """Divergence of the student's distributions from the soft labels: one direction of CSA or USA.

    ``"kl"`` is ``KL(P || softmax_j(similarity_ij / tau))`` with ``P = soft_labels(teacher_similarity, tau_soft)``,
    summed over j and averaged over i (paper, equations for L_CSA and L_USA); ``"cross_entropy"`` leaves out P's
    entropy.

    Args:
        similarity: float ``[B, B]`` of the student.
        teacher_similarity: float ``[B, B]`` of the teacher.
        tau: The student's temperature.
        tau_soft: The soft labels' temperature.
        divergence: ``"kl"`` or ``"cross_entropy"``.
        scaling: For ``"cross_entropy"`` alone: ``"paper"`` divides by B once more, as the published code does.

    Returns:
        Scalar.
    """
    log_q = F.log_softmax(similarity / tau, dim=-1)
    if divergence == "kl":
        log_p = F.log_softmax(teacher_similarity / tau_soft, dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum() / len(similarity)
    return _soft_cross_entropy(soft_labels(teacher_similarity, tau_soft), log_q, scaling)


def contrastive_loss(
    similarity: torch.Tensor,
    tau: torch.Tensor | float,
    image_ids: torch.Tensor | None = None,
    scaling: Scaling = "infonce",
) -> torch.Tensor:
    """Cross entropy with every pair of the same image as a positive: one direction of L_con (DESIGN, section 2).

    Args:
        similarity: float ``[B, B]``: image-to-text, or its transpose.
        tau: Temperature.
        image_ids: int64 ``[B]``, the image of each pair; ``None``: all different.
        scaling: ``"infonce"``, or ``"paper"``, which divides by B once more, as the published code does.

    Returns:
        Scalar.
    """
    log_q = F.log_softmax(similarity / tau, dim=-1)
    if image_ids is None:
        targets = torch.eye(len(similarity), dtype=log_q.dtype, device=log_q.device)
    else:
        targets = (image_ids[:, None] == image_ids[None, :]).to(log_q.dtype)
        targets = targets / targets.sum(dim=-1, keepdim=True)
    return _soft_cross_entropy(targets, log_q, scaling)


def _soft_cross_entropy(targets: torch.Tensor, log_q: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    n = len(targets)
    return -(targets * log_q).sum() / (n * n if scaling == "paper" else n)


@dataclass(frozen=True)
class Temperature:
    """A temperature that divides similarities: start value, bounds, and whether it is learned."""

    init: float
    min: float
    max: float
    learnable: bool = True


@dataclass(frozen=True)
class TemperaturePair:
    """Temperatures of the image and of the text direction; ``shared`` makes them one, at the mean of both."""

    image: Temperature
    text: Temperature
    shared: bool


def _pair(init: float, low: float, high: float, learnable: bool, shared: bool) -> TemperaturePair:
    one = Temperature(init, low, high, learnable)
    return TemperaturePair(one, one, shared)


@dataclass(frozen=True)
class LossConfig:
    """Settings of :class:`CUSALoss`; the defaults are the paper's for CLIP.

    Attributes:
        terms: Which of contrastive, csa, usa are summed.
        alpha: Weight of CSA.
        beta: Weight of USA.
        contrastive_weight: Weight of the contrastive term.
        contrastive_scaling: ``"paper"`` (InfoNCE / B, as published, so that alpha and beta weigh B times more) or
            ``"infonce"``.
        soft_label_source: See :func:`fuse_similarities`; ``"add"`` and ``"dot"`` share CSA's temperatures.
        csa_divergence: ``"kl"`` or ``"cross_entropy"``.
        usa_divergence: Same, for USA.
        csa_scaling: Scaling of CSA's cross entropy; nothing to KL.
        usa_scaling: Same, for USA.
        tau: Temperature of the contrastive term.
        tau_csa: The student's temperatures in CSA.
        tau_usa: The student's temperatures in USA.
        usa_shares_csa: USA uses ``tau_csa`` instead of ``tau_usa``.
        tau_soft: Temperatures of the soft labels.
        tau_soft_usa: Temperatures of USA's soft labels, if not CSA's.
        usa_shares_soft: USA uses ``tau_soft`` instead of ``tau_soft_usa``.
    """

    terms: tuple[Term, ...] = TERMS["cusa"]
    alpha: float = 0.1
    beta: float = 0.5
    contrastive_weight: float = 1.0
    contrastive_scaling: Scaling = "paper"
    soft_label_source: Source = "each"
    csa_divergence: Divergence = "kl"
    usa_divergence: Divergence = "kl"
    csa_scaling: Scaling = "paper"
    usa_scaling: Scaling = "paper"
    tau: Temperature = Temperature(0.05, 0.01, 0.10)
    tau_csa: TemperaturePair = field(default_factory=lambda: _pair(0.45, 0.10, 0.99, True, True))
    tau_usa: TemperaturePair = field(default_factory=lambda: _pair(0.45, 0.10, 1.00, True, False))
    usa_shares_csa: bool = False
    tau_soft: TemperaturePair = field(default_factory=lambda: _pair(1.0, 0.1, 1.0, False, True))
    tau_soft_usa: TemperaturePair = field(default_factory=lambda: _pair(1.0, 0.1, 1.0, False, True))
    usa_shares_soft: bool = True

    def effective_weights(self, batch_size: int) -> dict[str, float]:
        """The terms' weights relative to an InfoNCE of weight one, for B = ``batch_size``."""

        def share(divergence: Divergence, scaling: Scaling) -> float:
            return 1 / batch_size if divergence == "cross_entropy" and scaling == "paper" else 1.0

        weights = {
            "contrastive": self.contrastive_weight * share("cross_entropy", self.contrastive_scaling),
            "csa": self.alpha * share(self.csa_divergence, self.csa_scaling),
            "usa": self.beta * share(self.usa_divergence, self.usa_scaling),
        }
        unit = share("cross_entropy", self.contrastive_scaling)
        return {term: weights[term] / unit for term in self.terms}


class LossTerms(NamedTuple):
    """A loss and what it is made of; every term carries its weight already, ``total`` is their sum. Scalars."""

    total: torch.Tensor
    contrastive: torch.Tensor
    csa: torch.Tensor
    usa: torch.Tensor


class CUSALoss(nn.Module):
    """The CUSA loss on embeddings; owns the temperatures.

    ``L = L_con + alpha * L_csa + beta * L_usa`` (paper, section 3; DESIGN, section 2). Temperatures are clamped to
    their bounds before every use; one that sits on a bound keeps its gradient.

    Args:
        config: Settings.
    """

    def __init__(self, config: LossConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or LossConfig()
        self._bounds: dict[str, tuple[float, float]] = {}
        csa, usa = "csa" in c.terms, "usa" in c.terms
        if "contrastive" in c.terms:
            self._add("tau", c.tau)
        fused = c.soft_label_source != "each"
        if csa or (usa and c.usa_shares_csa):
            self._add_pair("tau_csa", c.tau_csa, fused)
        if csa or (usa and c.usa_shares_soft):
            self._add_pair("tau_soft", c.tau_soft, fused)
        if usa and not c.usa_shares_csa:
            self._add_pair("tau_usa", c.tau_usa)
        if usa and not c.usa_shares_soft:
            self._add_pair("tau_soft_usa", c.tau_soft_usa)

    def _add(self, name: str, temperature: Temperature) -> None:
        value = torch.tensor(float(temperature.init))
        self._bounds[name] = (temperature.min, temperature.max)
        if temperature.learnable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _add_pair(self, name: str, pair: TemperaturePair, fused: bool = False) -> None:
        i, t = pair.image, pair.text
        if pair.shared or fused:
            mean = Temperature((i.init + t.init) / 2, (i.min + t.min) / 2, (i.max + t.max) / 2, i.learnable)
            self._add(name, mean)
        else:
            self._add(f"{name}_image", i)
            self._add(f"{name}_text", t)

    def temperatures(self) -> dict[str, float]:
        """The temperatures as they would be used now, by name."""
        return {k: min(max(getattr(self, k).item(), low), high) for k, (low, high) in self._bounds.items()}

    def _clamp(self) -> None:
        for name, (low, high) in self._bounds.items():
            # .data: an in-place change that a graph still waiting for its backward does not trip over.
            getattr(self, name).data.clamp_(low, high)

    def _taus(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        if name in self._bounds:
            return getattr(self, name), getattr(self, name)
        return getattr(self, f"{name}_image"), getattr(self, f"{name}_text")

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        uni_image_features: torch.Tensor | None = None,
        uni_text_features: torch.Tensor | None = None,
        teacher_image: torch.Tensor | None = None,
        teacher_text: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
    ) -> LossTerms:
        """The loss of B pairs. Features are L2-normalised here, in float32 or wider, also under autocast.

        Args:
            image_features: float ``[B, d]`` from the cross-modal image head.
            text_features: float ``[B, d]`` from the cross-modal text head.
            uni_image_features: float ``[B, d']`` from the uni-modal image head; USA needs it.
            uni_text_features: float ``[B, d'']`` from the uni-modal text head; USA needs it.
            teacher_image: float ``[B, e]`` of the image teacher; CSA and USA need it. No gradient flows into it.
            teacher_text: float ``[B, e']`` of the text teacher; CSA and USA need it.
            image_ids: int64 ``[B]``, the image of each pair; ``None``: all different.

        Raises:
            ValueError: If a term lacks an input.
        """
        self._clamp()
        with torch.autocast(image_features.device.type, enabled=False):
            sim = _cosines(image_features, text_features)
            zero = sim.new_zeros(())
            con = csa = usa = zero
            if "contrastive" in self.config.terms:
                con = self._contrastive(sim, image_ids)
            if "csa" in self.config.terms or "usa" in self.config.terms:
                if teacher_image is None or teacher_text is None:
                    raise ValueError("CSA and USA need teacher_image and teacher_text")
                image_sim = _cosines(teacher_image.detach().to(sim.dtype))
                text_sim = _cosines(teacher_text.detach().to(sim.dtype))
                if "csa" in self.config.terms:
                    csa = self._csa(sim, image_sim, text_sim)
                if "usa" in self.config.terms:
                    if uni_image_features is None or uni_text_features is None:
                        raise ValueError("USA needs uni_image_features and uni_text_features")
                    usa = self._usa(_cosines(uni_image_features), _cosines(uni_text_features), image_sim, text_sim)
            return LossTerms(con + csa + usa, con, csa, usa)

    def _contrastive(self, sim: torch.Tensor, image_ids: torch.Tensor | None) -> torch.Tensor:
        c = self.config
        tau, _ = self._taus("tau")
        i2t = contrastive_loss(sim, tau, image_ids, c.contrastive_scaling)
        t2i = contrastive_loss(sim.T, tau, image_ids, c.contrastive_scaling)
        return c.contrastive_weight * (i2t + t2i) / 2

    def _csa(self, sim: torch.Tensor, image_sim: torch.Tensor, text_sim: torch.Tensor) -> torch.Tensor:
        c = self.config
        (tau_image, tau_text), (soft_image, soft_text) = self._taus("tau_csa"), self._taus("tau_soft")
        for_images, for_texts = fuse_similarities(image_sim, text_sim, c.soft_label_source)
        i2t = soft_label_loss(sim, for_images, tau_image, soft_image, c.csa_divergence, c.csa_scaling)
        t2i = soft_label_loss(sim.T, for_texts, tau_text, soft_text, c.csa_divergence, c.csa_scaling)
        return c.alpha * (i2t + t2i) / 2

    def _usa(
        self, uni_image: torch.Tensor, uni_text: torch.Tensor, image_sim: torch.Tensor, text_sim: torch.Tensor
    ) -> torch.Tensor:
        c = self.config
        tau_image, tau_text = self._taus("tau_csa" if c.usa_shares_csa else "tau_usa")
        soft_image, soft_text = self._taus("tau_soft" if c.usa_shares_soft else "tau_soft_usa")
        i2i = soft_label_loss(uni_image, image_sim, tau_image, soft_image, c.usa_divergence, c.usa_scaling)
        t2t = soft_label_loss(uni_text, text_sim, tau_text, soft_text, c.usa_divergence, c.usa_scaling)
        return c.beta * (i2i + t2t) / 2


def _cosines(a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """``[B, B]`` cosine similarities, in float32 or wider."""
    a = F.normalize(a if a.dtype == torch.float64 else a.float(), dim=-1)
    b = a if b is None else F.normalize(b if b.dtype == torch.float64 else b.float(), dim=-1)
    return a @ b.T
