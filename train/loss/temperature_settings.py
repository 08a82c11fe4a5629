"""Settings of temperatures and of the bias beside one."""

from __future__ import annotations

from cusa.data.errors import SettingError
from cusa.train.settings import Field, Flag, Number, settings

# Beyond these, float32 softmaxes are one-hot or flat whatever the similarities.
LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 1e-6, 1_000_000


@settings
class Temperature:
    """A temperature that divides similarities.

    Attributes:
        init: Initial value, clamped to the bounds like every later one.
        min: Lower bound.
        max: Upper bound.
        learnable: Whether it is trained.
    """

    init: Number = Field(ge=LEAST_TEMPERATURE, le=GREATEST_TEMPERATURE)
    min: Number = Field(ge=LEAST_TEMPERATURE, le=GREATEST_TEMPERATURE)
    max: Number = Field(ge=LEAST_TEMPERATURE, le=GREATEST_TEMPERATURE)
    learnable: Flag = True

    def __post_init__(self) -> None:
        """Refuse bounds in the wrong order."""
        if self.min > self.max:
            raise SettingError(f"must be at most max, {self.max}; got {self.min}", name="min")


@settings
class TemperaturePair:
    """Temperatures of the image and the text direction.

    Attributes:
        image: With images as queries.
        text: With captions as queries.
        shared: Whether both directions have one temperature, the mean of the two.
    """

    image: Temperature
    text: Temperature
    shared: Flag

    def mean(self) -> Temperature:
        """Return the mean of the two, as a shared pair uses it; learnable if either is."""
        image, text = self.image, self.text
        return Temperature(
            init=(image.init + text.init) / 2,
            min=(image.min + text.min) / 2,
            max=(image.max + text.max) / 2,
            learnable=image.learnable or text.learnable,
        )
