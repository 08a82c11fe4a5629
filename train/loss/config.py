"""Settings of the CUSA loss: its terms, their weights and their temperatures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from cusa.data.errors import SettingError
from cusa.train.loss.rules.settings import (
    RULES_OF_LOGITS,
    DrSigmoidConfig,
    FeaturesConfig,
    GuideConfig,
    HycdConfig,
    RuleName,
    SelfGuideConfig,
    XclrConfig,
)
from cusa.train.loss.temperature_settings import (
    GREATEST_TEMPERATURE,
    LEAST_TEMPERATURE,
    Temperature,
    TemperaturePair,
)
from cusa.train.settings import Field, Flag, Number, WholeNumber, settings, shown, validate

if TYPE_CHECKING:  # settings are read without torch
    from torch import Tensor

Divergence = Literal["kl", "cross_entropy"]
Scaling = Literal["paper", "infonce"]
Fusion = Literal["each", "add", "dot"]
Source = Literal["each", "image", "text", "add", "dot", "cross"]
Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
_SAME_LABELS = ("image", "text", "add", "dot")  # in both directions of CSA
# The modalities whose soft labels a source of CSA needs; the others can do with either.
_MODALITIES_OF_SOURCE: dict[Source, tuple[Modality, ...]] = {
    "image": ("image",),
    "text": ("text",),
    "add": MODALITIES,
    "dot": MODALITIES,
}
TeacherMean = Literal["labels", "similarities"]
Term = Literal["contrastive", "csa", "usa"]
SummedTerm = Literal["contrastive", "csa", "usa", "rule"]

ALL_TERMS: tuple[SummedTerm, ...] = get_args(SummedTerm)
TERMS: dict[str, tuple[Term, ...]] = {
    "contrastive": ("contrastive",),
    "csa": ("contrastive", "csa"),
    "usa": ("contrastive", "usa"),
    "cusa": ("contrastive", "csa", "usa"),
    "rule": (),  # that of loss.rule alone
}

GREATEST_WEIGHT = 1_000_000

Weights = tuple[Annotated[Number, Field(gt=0, le=GREATEST_WEIGHT)], ...]
Taus = tuple[Annotated[Number, Field(ge=LEAST_TEMPERATURE, le=GREATEST_TEMPERATURE)], ...]


def check_option(
    name: str,
    value: str,
    options: Any,
) -> None:
    """Refuse a value that is not among the options of a ``Literal``.

    Args:
        name: The argument.
        value: Its value.
        options: The ``Literal``.

    Raises:
        SettingError: If the value is illegal; the message lists the legal ones.
    """
    legal = get_args(options)
    if value not in legal:
        raise SettingError(f"{name} must be one of {', '.join(legal)}, got {value!r}", name=name)


def column_divisor(
    divergence: Divergence,
    scaling: Scaling,
    n_candidates: int | Tensor,
) -> int | Tensor:
    """Return what ``scaling`` divides a loss by, beyond the average over its queries.

    The published code averages a cross entropy over the columns of the similarity matrix (its
    candidates), too; ``"paper"`` does the same. KL is never divided again.

    Args:
        divergence: The loss.
        scaling: Its scaling.
        n_candidates: Columns of the similarity matrix: a whole number, or a scalar.
    """
    if divergence == "cross_entropy" and scaling == "paper":
        return n_candidates
    return 1


_TAU_CSA = Temperature(0.45, 0.10, 0.99)
_TAU_USA = Temperature(0.45, 0.10, 1.00)
_TAU_SOFT = Temperature(1.0, 0.1, 1.0, learnable=False)
# As published for CLIP, where the temperatures of soft labels are not trained.
_PAPER_TAU_CSA = TemperaturePair(_TAU_CSA, _TAU_CSA, shared=True)
_PAPER_TAU_USA = TemperaturePair(_TAU_USA, _TAU_USA, shared=False)
_PAPER_TAU_SOFT = TemperaturePair(_TAU_SOFT, _TAU_SOFT, shared=True)


@settings
class LossConfig:
    """Settings of :class:`cusa.CUSALoss`.

    The defaults are the paper's for CLIP.

    Attributes:
        terms: Which of contrastive, csa, usa are summed.
        alpha: Weight of CSA.
        beta: Weight of USA.
        contrastive_weight: Weight of the contrastive term.
        contrastive_scaling: ``"paper"`` (InfoNCE / B, as published, so that alpha and beta weigh B
            times more) or ``"infonce"``.
        rule: The label rule of a further term, see docs/rules.md; ``"cusa"``: there is none.
        rule_weight: Weight of the rule's term, a mean over rows whatever the scalings.
        soft_label_modalities: Whose soft labels CSA, USA and the rule cwcl use: those of images, of
            captions, or of both. Those of one modality teach the direction whose queries are of it,
            which then weighs what it weighs beside the other, and rows of the other modality's
            teachers are not read for them.
        soft_label_source: Which teacher gives CSA's soft labels, see
            :func:`cusa.train.loss.functions.fuse_similarities`; ``"image"`` or ``"text"``: that
            one's in both directions; ``"cross"``: the cross-modal teachers. With ``"image"``,
            ``"text"``, ``"add"`` and ``"dot"``, both directions have the same labels, and share the
            temperatures of CSA.
        top_k: Soft labels keep the so many greatest of each row, and those that equal the last of
            them; ``None``: all.
        teacher_mean: What is averaged over several teachers of a modality: their soft ``"labels"``
            or, before these, their ``"similarities"``.
        image_teacher_weights: Weights of the image teachers, in their order; empty: equal ones.
        text_teacher_weights: Weights of the text teachers, in their order; empty: equal ones.
        cross_teacher_weights: Weights of the cross-modal teachers, in their order; empty: equal
            ones.
        image_teacher_taus: Temperatures of the image teachers' soft labels, constants; empty:
            ``tau_soft``, or that of the rule, for each.
        text_teacher_taus: Temperatures of the text teachers' soft labels, constants; empty:
            ``tau_soft``, or that of the rule, for each.
        cross_teacher_taus: The temperatures that the cross-modal teachers were trained with, for
            rules that take their logits; empty: CLIP's 0.01 for each. CSA has ``tau_soft``.
        csa_divergence: How CSA compares distributions: ``"kl"`` or ``"cross_entropy"``.
        usa_divergence: How USA compares distributions: ``"kl"`` or ``"cross_entropy"``.
        csa_scaling: Scaling of CSA's cross entropy; ignored for KL.
        usa_scaling: Scaling of USA's cross entropy; ignored for KL.
        tau: Temperature of the contrastive term.
        tau_csa: The student's temperatures in CSA.
        tau_usa: The student's temperatures in USA.
        usa_shares_csa: Whether USA uses ``tau_csa`` instead of ``tau_usa``.
        tau_soft: Temperatures of the soft labels.
        tau_soft_usa: Temperatures of USA's soft labels, if not CSA's.
        usa_shares_soft: Whether USA uses ``tau_soft`` instead of ``tau_soft_usa``.
        xclr: Settings of the rule xclr.
        hycd: Settings of the rule hycd.
        dr_sigmoid: Settings of the rule dr-sigmoid.
        guide: Settings of the rule guide.
        self_guide: Settings of the rule self-guide.
        features: Settings of the rule features.
    """

    terms: tuple[Term, ...] = TERMS["cusa"]
    alpha: Number = Field(default=0.1, ge=0, le=GREATEST_WEIGHT)
    beta: Number = Field(default=0.5, ge=0, le=GREATEST_WEIGHT)
    contrastive_weight: Number = Field(default=1.0, ge=0, le=GREATEST_WEIGHT)
    contrastive_scaling: Scaling = "paper"
    rule: RuleName = "cusa"
    rule_weight: Number = Field(default=1.0, ge=0, le=GREATEST_WEIGHT)
    soft_label_modalities: tuple[Modality, ...] = MODALITIES
    soft_label_source: Source = "each"
    top_k: WholeNumber | None = Field(default=None, ge=1, le=1_000_000)
    teacher_mean: TeacherMean = "labels"
    image_teacher_weights: Weights = ()
    text_teacher_weights: Weights = ()
    cross_teacher_weights: Weights = ()
    image_teacher_taus: Taus = ()
    text_teacher_taus: Taus = ()
    cross_teacher_taus: Taus = ()
    csa_divergence: Divergence = "kl"
    usa_divergence: Divergence = "kl"
    csa_scaling: Scaling = "paper"
    usa_scaling: Scaling = "paper"
    tau: Temperature = Temperature(0.05, 0.01, 0.10)
    tau_csa: TemperaturePair = _PAPER_TAU_CSA
    tau_usa: TemperaturePair = _PAPER_TAU_USA
    usa_shares_csa: Flag = False
    tau_soft: TemperaturePair = _PAPER_TAU_SOFT
    tau_soft_usa: TemperaturePair = _PAPER_TAU_SOFT
    usa_shares_soft: Flag = True
    xclr: XclrConfig = XclrConfig()
    hycd: HycdConfig = HycdConfig()
    dr_sigmoid: DrSigmoidConfig = DrSigmoidConfig()
    guide: GuideConfig = GuideConfig()
    self_guide: SelfGuideConfig = SelfGuideConfig()
    features: FeaturesConfig = FeaturesConfig()

    def __post_init__(self) -> None:
        """Refuse a loss without terms or with a term twice, and settings without a use."""
        if not self.summed_terms:
            rules = [rule for rule in get_args(RuleName) if rule != "cusa"]
            raise SettingError(
                "is empty (as with --loss rule), and loss.rule=cusa adds no term; set loss.rule to "
                f"one of {', '.join(rules)}, or give terms: one or several of "
                f"{', '.join(get_args(Term))}",
                name="terms",
            )
        if len(set(self.terms)) < len(self.terms):
            raise SettingError(
                f"must be some of {', '.join(get_args(Term))}, each at most once, got "
                f"{list(self.terms)}",
                name="terms",
            )
        if self.rule == "features" and not self.terms and not self.features.interactive_weight:
            raise SettingError(
                "must be above 0 where the rule features is the whole loss: the distance alone is "
                "least with all pairs at one point; or add terms, such as contrastive",
                name="features.interactive_weight",
            )
        self._check_modalities()
        self._check_cross_teacher_taus()
        for modality in MODALITIES:
            name = f"{modality}_teacher_taus"
            if getattr(self, name) and self.teacher_mean == "similarities":
                raise SettingError(
                    "must be empty with teacher_mean=similarities, where all teachers of a "
                    "modality have one temperature",
                    name=name,
                )

    def _check_modalities(self) -> None:
        """Refuse soft labels of no modality, and a source of CSA that they are too few for."""
        modalities = self.soft_label_modalities
        if not modalities or len(set(modalities)) < len(modalities):
            raise SettingError(
                f"must be [image], [text] or [image, text], got [{', '.join(modalities)}]; for a "
                "loss without soft labels, pass --loss contrastive",
                name="soft_label_modalities",
            )
        source_needs = _MODALITIES_OF_SOURCE.get(self.soft_label_source, ())
        if "csa" in self.terms and not set(source_needs) <= set(modalities):
            raise SettingError(
                f"is {self.soft_label_source}, which takes soft labels of "
                f"{'s and '.join(source_needs)}s, and soft_label_modalities is "
                f"[{', '.join(modalities)}]; set soft_label_source to each, {modalities[0]} or "
                "cross, or soft_label_modalities to [image, text]",
                name="soft_label_source",
            )

    def _check_cross_teacher_taus(self) -> None:
        """Refuse temperatures of cross-modal teachers that CSA, which has its own, would ignore."""
        is_of_cross_teachers = "csa" in self.terms and self.soft_label_source == "cross"
        has_logits = self.rule in RULES_OF_LOGITS
        if self.cross_teacher_taus and is_of_cross_teachers and not has_logits:
            raise SettingError(
                f"are temperatures for the rules {', '.join(RULES_OF_LOGITS)}, and rule is "
                f"{self.rule}; CSA with soft_label_source=cross has tau_soft: set tau_soft, or "
                "leave cross_teacher_taus out",
                name="cross_teacher_taus",
            )

    @property
    def summed_terms(self) -> tuple[SummedTerm, ...]:
        """Return the terms that are summed: ``terms``, and that of a rule other than cusa."""
        return self.terms if self.rule == "cusa" else (*self.terms, "rule")

    @property
    def term_titles(self) -> tuple[str, ...]:
        """Return the summed terms by name, a rule's by that of the rule."""
        return self.terms if self.rule == "cusa" else (*self.terms, self.rule)

    @property
    def terms_by_modality(self) -> tuple[str, ...]:
        """Return the names of the terms that take soft labels by ``soft_label_modalities``."""
        names = {"usa", "cwcl"}
        if self.soft_label_source == "each":
            names.add("csa")
        return tuple(name for name in self.term_titles if name in names)

    @property
    def only_modality(self) -> Modality | None:
        """Return the modality that alone gives CSA, USA or cwcl soft labels, if it is one alone."""
        if self.terms_by_modality and len(self.soft_label_modalities) == 1:
            return self.soft_label_modalities[0]
        return None

    @classmethod
    def from_published(cls, settings: Path | str | Mapping[str, Any]) -> LossConfig:
        """Convert the settings of the published code, to train with the loss of its files.

        Everything outside of its ``loss_config`` (data, model, optimizer, ``is_all_gather``) is no
        matter of the loss, and left to the caller.

        Args:
            settings: A YAML file of the published code, such as ``configs/vitb32/coco/cusa.yaml``;
                or what it holds as nested dictionaries, or its ``loss_config`` alone.

        Raises:
            FileFormatError: If the file cannot be read, or holds no settings.
            SettingError: If a setting is unknown, missing or illegal; ``name`` is its name in
                ``loss_config``, such as ``"cross_softlabel.rate"``.
        """
        from cusa.train.loss.published import loss_config_from_published

        return loss_config_from_published(settings)

    def row_weights(
        self,
        n_pairs: int,
        n_candidates: int | Tensor,
    ) -> dict[SummedTerm, float | Tensor]:
        """Return the weight of one row of one direction in the total, for each term in use.

        The two directions are averaged, and so are the B rows; see also :func:`column_divisor`.

        Args:
            n_pairs: The number of pairs B.
            n_candidates: The number of candidates of each, a whole number or a scalar.
        """
        row_weights: dict[SummedTerm, float | Tensor] = {}
        for term in self.terms:
            divisor = column_divisor(
                self.divergence(term), getattr(self, f"{term}_scaling"), n_candidates
            )
            # Divide one after another: dividing by the product would round differently.
            row_weights[term] = self.weights[term] / 2 / n_pairs / divisor
        if self.rule != "cusa":
            row_weights["rule"] = self.rule_weight / 2 / n_pairs
        if self.rule == "hycd":
            row_weights["rule"] *= self.hycd.temperature**2
        if self.rule == "features":
            row_weights["rule"] *= self.features.interactive_weight
        return row_weights

    @property
    def weights(self) -> dict[SummedTerm, float]:
        """Return the weights of all terms, whether they are summed or not."""
        return {
            "contrastive": self.contrastive_weight,
            "csa": self.alpha,
            "usa": self.beta,
            "rule": self.rule_weight,
        }

    def divergence(self, term: Term) -> Divergence:
        """Return how a term compares the student's distributions with their targets."""
        if term == "csa":
            return self.csa_divergence
        if term == "usa":
            return self.usa_divergence
        return "cross_entropy"

    def effective_weights(self, batch_size: int) -> dict[str, float]:
        """Return the terms' weights relative to the contrastive term at a weight of one.

        A rule's is that of its whole term, as docs/rules.md has the formulas.

        With the published scaling, these are the alpha and beta that an InfoNCE that is not divided
        by B would need beside it.

        Args:
            batch_size: The number of pairs B.
        """
        contrastive_alone = replace(
            self, terms=("contrastive",), contrastive_weight=1.0, rule="cusa"
        )
        unit = float(contrastive_alone.row_weights(batch_size, batch_size)["contrastive"])
        weights = self.row_weights(batch_size, batch_size)
        if "rule" in weights:
            # Without the factors that are part of a rule's own formula.
            weights["rule"] = self.rule_weight / 2 / batch_size
        return {term: float(weight) / unit for term, weight in weights.items()}

    def temperature_names(self, term: SummedTerm) -> tuple[str, str]:
        """Return the names of a term's temperatures: the student's and the soft labels'.

        The contrastive term has no soft labels, and those of a rule have constant temperatures, so
        that both are the student's.
        """
        if term in ("contrastive", "rule"):
            return "tau", "tau"
        if term == "csa":
            return "tau_csa", "tau_soft"
        student = "tau_csa" if self.usa_shares_csa else "tau_usa"
        return student, "tau_soft" if self.usa_shares_soft else "tau_soft_usa"

    def temperatures_in_use(self) -> dict[str, Temperature | TemperaturePair]:
        """Return the temperatures that the terms use, by the names of their settings.

        Pairs are marked as shared where the loss shares them: fused soft labels are the same in
        both directions, and so are the temperatures that CSA uses with them.
        """
        names_in_use: set[str] = set()
        for term in self.summed_terms:
            names_in_use.update(self.temperature_names(term))
        temperatures: dict[str, Temperature | TemperaturePair] = {}
        if "tau" in names_in_use:
            temperatures["tau"] = self.tau
        for name in ("tau_csa", "tau_soft", "tau_usa", "tau_soft_usa"):
            if name not in names_in_use:
                continue
            pair: TemperaturePair = getattr(self, name)
            # Both directions have the same labels: two temperatures could only disagree.
            if self.soft_label_source in _SAME_LABELS and name in ("tau_csa", "tau_soft"):
                pair = replace(pair, shared=True)
            temperatures[name] = pair
        return temperatures


# Settings, or values by name in nested mappings; None: the defaults.
GivenLoss: TypeAlias = LossConfig | Mapping[str, Any] | None


def given_loss(config: GivenLoss) -> LossConfig:
    """Return settings of the loss as callers of the library give them.

    Args:
        config: The settings; or values by name, such as ``{"alpha": 1, "tau_soft": {...}}``;
            ``None``: the defaults.

    Raises:
        SettingError: If a name is unknown, a value is illegal, or it is none of these.
    """
    if config is None:
        return LossConfig()
    if not isinstance(config, LossConfig | Mapping):
        raise SettingError(
            "config must be a cusa.LossConfig, or values by name such as {'alpha': 1}; got "
            f"{shown(config)}",
            name="config",
        )
    return validate(LossConfig, config)
