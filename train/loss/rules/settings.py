"""Settings of the label rules, a section for each that has any; docs/rules.md has the formulas."""

from __future__ import annotations

from typing import Literal

from cusa.data.errors import SettingError
from cusa.train.loss.temperature_settings import GREATEST_TEMPERATURE, LEAST_TEMPERATURE
from cusa.train.settings import Field, Flag, Number, settings

RuleName = Literal[
    "cusa",
    "cwcl",
    "xclr",
    "hycd",
    "dr",
    "dr-sigmoid",
    "guide",
    "self-guide",
    "features",
]
# The rules whose targets are made of the cross-modal teachers' own logits, at the temperatures and
# with the bias that these were trained with.
RULES_OF_LOGITS: tuple[RuleName, ...] = ("hycd", "dr", "dr-sigmoid")
GuideTeacher = Literal["image", "text", "both", "either", "cross"]


@settings
class XclrConfig:
    """Settings of the rule xclr.

    Attributes:
        tau: Temperature of the soft labels, of every text teacher that ``text_teacher_taus`` does
            not name.
    """

    tau: Number = Field(default=0.1, ge=LEAST_TEMPERATURE, le=GREATEST_TEMPERATURE)


@settings
class HycdConfig:
    """Settings of the rule hycd.

    Attributes:
        alpha: Share of the true pairs in the targets.
        temperature: Divides the logits of teacher and student alike, beyond their own temperatures.
    """

    alpha: Number = Field(default=0.5, ge=0, le=1)
    temperature: Number = Field(default=1.0, ge=LEAST_TEMPERATURE, le=GREATEST_TEMPERATURE)


@settings
class Bias:
    """What is added to logits.

    Attributes:
        init: Initial value, clamped to the bounds like every later one.
        min: Lower bound.
        max: Upper bound.
        learnable: Whether it is trained.
    """

    init: Number = Field(ge=-1000, le=1000)
    min: Number = Field(ge=-1000, le=1000)
    max: Number = Field(ge=-1000, le=1000)
    learnable: Flag = True

    def __post_init__(self) -> None:
        """Refuse bounds in the wrong order."""
        if self.min > self.max:
            raise SettingError(f"must be at most max, {self.max}; got {self.min}", name="min")


@settings
class DrSigmoidConfig:
    """Settings of the rule dr-sigmoid.

    Attributes:
        bias: Added to the student's cosines over ``tau``.
        teacher_bias: Added to the cross-modal teachers' cosines over their temperatures; a
            constant. ``None``: the bias that the store records of them in a run, which needs one
            that is the same for all; -10, with which SigLIP's training begins, elsewhere.
    """

    bias: Bias = Bias(init=-10, min=-100, max=100)
    teacher_bias: Number | None = Field(default=None, ge=-1000, le=1000)


@settings
class GuideConfig:
    """Settings of the rule guide.

    Attributes:
        teacher: Whose cosines tell false negatives: the image teacher's, the text teacher's, those
            of both at once, of either, or the cross-modal teacher's.
        margin: How far below the cosine of the true pair a candidate's may be to leave.
        relative: Whether the margin is a share of the true pair's cosine.
    """

    teacher: GuideTeacher = "text"
    margin: Number = Field(default=0.1, ge=-2, le=2)
    relative: Flag = False


@settings
class SelfGuideConfig:
    """Settings of the rule self-guide.

    Attributes:
        margin: How far below the cosine of the true pair a candidate's may be to leave; below 0,
            how far above. At the beginning of training, all cosines are alike: a margin above 0
            would take out all negatives.
        relative: Whether the margin is a share of the true pair's cosine.
    """

    margin: Number = Field(default=-0.1, ge=-2, le=2)
    relative: Flag = False


@settings
class FeaturesConfig:
    """Settings of the rule features.

    Attributes:
        distance_weight: Weight of the squared distance from the projected teacher rows.
        interactive_weight: Weight of the interactive contrastive term.
    """

    distance_weight: Number = Field(default=1.0, ge=0, le=1_000_000)
    interactive_weight: Number = Field(default=1.0, ge=0, le=1_000_000)
