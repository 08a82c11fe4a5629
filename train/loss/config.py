"""Settings of the CUSA loss: which terms, how they weigh, and their temperatures."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any, Literal, get_args

from cusa.data.errors import SettingError
from cusa.train.settings import Field, Flag, Number, settings

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


# Beyond these, float32 softmaxes are one-hot or flat whatever the similarities.
LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 1e-6, 1_000_000
GREATEST_WEIGHT = 1_000_000


def check_option(name: str, value: str, options: Any) -> None:
    """Refuse what is none of the options of a ``Literal``.

    Raises:
        SettingError: Names what was given, and what is legal.
    """
    if value not in get_args(options):
        raise SettingError(
            f"{name} must be one of {', '.join(get_args(options))}, got {value!r}",
            name=name,
        )


@settings
class Temperature:
    """A temperature that divides similarities.

    Attributes:
        init: Its value at the start, clamped to the bounds like any later one.
        min: Lower bound.
        max: Upper bound.
        learnable: Whether it is trained.
    """

    init: Number = Field(ge=LEAST_TEMPERATURE, le=GREATEST_TEMPERATURE)
    min: Number = Field(ge=LEAST_TEMPERATURE, le=GREATEST_TEMPERATURE)
    max: Number = Field(ge=LEAST_TEMPERATURE, le=GREATEST_TEMPERATURE)
    learnable: Flag = True

    def __post_init__(self) -> None:
        """Refuse bounds that are none.

        Raises:
            SettingError: Unless ``min <= max``.
        """
        if self.min > self.max:
            raise SettingError(f"must be at most max, {self.max}; got {self.min}", name="min")


@settings
class TemperaturePair:
    """Temperatures of the image and of the text direction; ``shared`` makes them one, at the mean of both."""

    image: Temperature
    text: Temperature
    shared: Flag


def _pair(init: float, low: float, high: float, learnable: bool, shared: bool) -> TemperaturePair:
    one = Temperature(init, low, high, learnable)
    return TemperaturePair(one, one, shared)


@settings
class LossConfig:
    """Settings of :class:`cusa.train.loss.cusa_loss.CUSALoss`; the defaults are the paper's for CLIP.

    Attributes:
        terms: Which of contrastive, csa, usa are summed.
        alpha: Weight of CSA.
        beta: Weight of USA.
        contrastive_weight: Weight of the contrastive term.
        contrastive_scaling: ``"paper"`` (InfoNCE / B, as published, so that alpha and beta weigh B times more) or
            ``"infonce"``.
        soft_label_source: See :func:`cusa.train.loss.cusa_loss.fuse_similarities`; ``"add"`` and ``"dot"`` share CSA's
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
    alpha: Number = Field(default=0.1, ge=0, le=GREATEST_WEIGHT)
    beta: Number = Field(default=0.5, ge=0, le=GREATEST_WEIGHT)
    contrastive_weight: Number = Field(default=1.0, ge=0, le=GREATEST_WEIGHT)
    contrastive_scaling: Scaling = "paper"
    soft_label_source: Source = "each"
    csa_divergence: Divergence = "kl"
    usa_divergence: Divergence = "kl"
    csa_scaling: Scaling = "paper"
    usa_scaling: Scaling = "paper"
    tau: Temperature = Temperature(0.05, 0.01, 0.10)
    tau_csa: TemperaturePair = field(default_factory=lambda: _pair(0.45, 0.10, 0.99, True, True))
    tau_usa: TemperaturePair = field(default_factory=lambda: _pair(0.45, 0.10, 1.00, True, False))
    usa_shares_csa: Flag = False
    tau_soft: TemperaturePair = field(default_factory=lambda: _pair(1.0, 0.1, 1.0, False, True))
    tau_soft_usa: TemperaturePair = field(default_factory=lambda: _pair(1.0, 0.1, 1.0, False, True))
    usa_shares_soft: Flag = True

    def __post_init__(self) -> None:
        """Refuse a loss without terms, or with one of them twice.

        Raises:
            SettingError: Names what was given, and what is legal.
        """
        if not self.terms or len(set(self.terms)) < len(self.terms):
            legal = f"at least one of {', '.join(get_args(Term))}, each at most once"
            raise SettingError(f"must be {legal}, got {list(self.terms)}", name="terms")

    def row_weights(self, n_pairs: int) -> dict[Term, float]:
        """What one row of one direction weighs in the total of B = ``n_pairs``, for each term in use.

        The two directions are averaged, and so are the B rows; ``"paper"`` scaling divides a cross entropy by B once
        more, as the published code does (it averages over the columns, too).
        """
        weights = {"contrastive": self.contrastive_weight, "csa": self.alpha, "usa": self.beta}
        scalings = {
            "contrastive": self.contrastive_scaling,
            "csa": self.csa_scaling,
            "usa": self.usa_scaling,
        }
        again = {
            t: self.divergence(t) == "cross_entropy" and scalings[t] == "paper" for t in self.terms
        }
        return {t: weights[t] / 2 / n_pairs / (n_pairs if again[t] else 1) for t in self.terms}

    def divergence(self, term: Term) -> Divergence:
        """How a term measures the student's distributions against their targets."""
        return {
            "contrastive": "cross_entropy",
            "csa": self.csa_divergence,
            "usa": self.usa_divergence,
        }[term]

    def effective_weights(self, batch_size: int) -> dict[str, float]:
        """The terms' weights relative to this contrastive term at weight one, for B = ``batch_size``.

        With the published scaling, what alpha and beta would have to be beside an InfoNCE that is not divided by B.
        """
        unit = replace(self, terms=("contrastive",), contrastive_weight=1.0).row_weights(
            batch_size
        )["contrastive"]
        return {term: weight / unit for term, weight in self.row_weights(batch_size).items()}
