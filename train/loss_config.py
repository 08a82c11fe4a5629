"""Settings of the CUSA loss: which terms, how they weigh, and their temperatures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

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


def check_option(name: str, value: str, options: Any) -> None:
    """Refuse what is none of the options of a ``Literal``.

    Raises:
        ValueError: Names what was given, and what is legal.
    """
    if value not in get_args(options):
        raise ValueError(f"{name} must be one of {', '.join(get_args(options))}, got {value!r}")


@dataclass(frozen=True)
class Temperature:
    """A temperature that divides similarities: start value, bounds, and whether it is learned."""

    init: float
    min: float
    max: float
    learnable: bool = True

    def __post_init__(self) -> None:
        """Refuse bounds that are none.

        Raises:
            ValueError: Unless ``0 < min <= max``.
        """
        if not 0 < self.min <= self.max:
            raise ValueError(f"bounds must be 0 < min <= max, found {self.min} and {self.max}")


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
    """Settings of :class:`cusa.train.losses.CUSALoss`; the defaults are the paper's for CLIP.

    Attributes:
        terms: Which of contrastive, csa, usa are summed.
        alpha: Weight of CSA.
        beta: Weight of USA.
        contrastive_weight: Weight of the contrastive term.
        contrastive_scaling: ``"paper"`` (InfoNCE / B, as published, so that alpha and beta weigh B times more) or
            ``"infonce"``.
        soft_label_source: See :func:`cusa.train.losses.fuse_similarities`; ``"add"`` and ``"dot"`` share CSA's
            temperatures.
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

    def __post_init__(self) -> None:
        """Refuse what is none of the options.

        Raises:
            ValueError: Names the setting, what was given, and what is legal.
        """
        legal = {"soft_label_source": Source}
        legal |= {f"{term}_scaling": Scaling for term in ("contrastive", "csa", "usa")}
        legal |= {f"{term}_divergence": Divergence for term in ("csa", "usa")}
        for name, options in legal.items():
            check_option(name, getattr(self, name), options)
        for term in self.terms:
            check_option("terms", term, Term)
        if not self.terms:
            raise ValueError(f"terms must name at least one of {', '.join(get_args(Term))}")

    def row_weights(self, n_pairs: int) -> dict[Term, float]:
        """What one row of one direction weighs in the total of B = ``n_pairs``, for each term in use.

        The two directions are averaged, and so are the B rows; ``"paper"`` scaling divides a cross entropy by B once
        more, as the published code does (it averages over the columns, too).
        """
        weights = {"contrastive": self.contrastive_weight, "csa": self.alpha, "usa": self.beta}
        scalings = {"contrastive": self.contrastive_scaling, "csa": self.csa_scaling, "usa": self.usa_scaling}
        again = {t: self.divergence(t) == "cross_entropy" and scalings[t] == "paper" for t in self.terms}
        return {t: weights[t] / 2 / n_pairs / (n_pairs if again[t] else 1) for t in self.terms}

    def divergence(self, term: Term) -> Divergence:
        """How a term measures the student's distributions against their targets."""
        return {"contrastive": "cross_entropy", "csa": self.csa_divergence, "usa": self.usa_divergence}[term]

    def effective_weights(self, batch_size: int) -> dict[str, float]:
        """The terms' weights relative to this contrastive term at weight one, for B = ``batch_size``.

        With the published scaling, what alpha and beta would have to be beside an InfoNCE that is not divided by B.
        """
        unit = replace(self, terms=("contrastive",), contrastive_weight=1.0).row_weights(batch_size)["contrastive"]
        return {term: weight / unit for term, weight in self.row_weights(batch_size).items()}
