"""The embedded data set `demo`: rendered scenes, with the scenes that each caption is true of.

The world. A scene shows one to three things in a setting (on grass, before a brick wall, ...). A
thing has a kind (circle, star, ...), a colour, a size and a cell of a 3 x 3 grid. As in
photographs, contents recur: most scenes show one of `N_CASTS` casts (a cast is a multiset of kinds
and colours), each time with other sizes, cells and settings; the other scenes have casts of their
own. Images with the same cast share their image label.

The captions. Every image gets five, from one that names nearly everything to "two shapes, one of
them green". Each puts a `Claim` into words, with synonyms and hypernyms, and the claim is evaluated
on every scene of the split, so that the images that a caption is true of are known, not guessed. A
claim says what is present, not what is absent: "a red star" is true of every scene with a red star;
only a number ("two shapes") is exact. A vague caption is true of dozens of images, and a
contrastive loss treats nearly all of them as negatives: the false negatives that soft labels are
meant for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from cusa.data.demo_set.vocabulary import COLOURS, KINDS, SETTINGS, SIZES
from cusa.data.records import SPLITS

Value = TypeVar("Value")
Cast = tuple[tuple[str, str], ...]
"""The kind and colour of each thing of a scene."""

N_CASTS = 80
# Share of scenes whose cast is drawn freely.
P_FREE = 0.1
GRID = 3  # cells on a side
# The coordinate that is smaller for the first thing of a relation than for the second.
AXES = {"above": "row", "left of": "column"}
_N_THINGS = (1, 2, 3)
_P_N_THINGS = (0.3, 0.4, 0.3)
_GENERATOR_USES = ("scene", "captions", "pixels")


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape of a scene; ``row`` and ``column`` count the grid's cells from the top left."""

    kind: str
    colour: str
    size: str
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of an image: one to three things, each in a cell of its own, in a setting."""

    things: tuple[Thing, ...]
    setting: str

    @property
    def cast(self) -> Cast:
        """Return the kinds and colours shown, sorted: images that share them are relevant."""
        return tuple(sorted((thing.kind, thing.colour) for thing in self.things))


@dataclass(frozen=True, slots=True)
class Description:
    """What a claim says of one thing; an empty tuple or None leaves an attribute open."""

    kinds: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    size: str | None = None
    row: int | None = None
    column: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The meaning of a caption, which is true of a scene if all fields hold.

    Attributes:
        descriptions: One to three descriptions, which different things of the scene fit.
        relation: ``"above"`` or ``"left of"``, from the first described thing to the second;
            ``""`` for none.
        count: The exact number of things in the scene, or None.
        settings: The setting is one of these; empty for any setting.
    """

    descriptions: tuple[Description, ...]
    relation: str = ""
    count: int | None = None
    settings: tuple[str, ...] = ()


def draw_scenes(
    split_name: str,
    n_scenes: int,
    seed: int,
) -> list[Scene]:
    """Draw the first scenes of a split.

    Each scene has a random stream of its own, so that a longer split begins with a shorter one.
    """
    casts_generator = np.random.default_rng([seed, 0])
    casts = [_draw_cast(casts_generator) for _ in range(N_CASTS)]
    scenes = []
    for image_number in range(n_scenes):
        generator = image_generator(seed, split_name, image_number, "scene")
        scenes.append(_draw_scene(casts, generator))
    return scenes


def image_generator(
    seed: int,
    split_name: str,
    image_number: int,
    use: str,
) -> Generator:
    """Return an image's random generator for one use: "scene", "captions" or "pixels"."""
    # The casts are drawn with 0 in place of the split's number.
    split_number = 1 + SPLITS.index(split_name)
    return np.random.default_rng([seed, split_number, image_number, _GENERATOR_USES.index(use)])


def pick(
    generator: Generator,
    values: Sequence[Value],
) -> Value:
    """Draw one of the values, each with the same probability."""
    return values[int(generator.integers(len(values)))]


def _draw_cast(generator: Generator) -> Cast:
    n_things = int(generator.choice(_N_THINGS, p=_P_N_THINGS))
    cast = []
    for _ in range(n_things):
        kind = pick(generator, tuple(KINDS))
        colour = pick(generator, tuple(COLOURS))
        cast.append((kind, colour))
    return tuple(cast)


def _draw_scene(
    casts: Sequence[Cast],
    generator: Generator,
) -> Scene:
    is_free = generator.random() < P_FREE
    cast = _draw_cast(generator) if is_free else pick(generator, casts)
    cells = generator.choice(GRID * GRID, len(cast), replace=False).tolist()
    things = []
    for (kind, colour), cell in zip(cast, cells, strict=True):
        size = pick(generator, tuple(SIZES))
        things.append(Thing(kind, colour, size, *divmod(cell, GRID)))
    return Scene(tuple(things), pick(generator, tuple(SETTINGS)))
