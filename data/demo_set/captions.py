"""Captions of the demo data set's scenes: claims that are true of a scene, and words for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cusa.data.demo_set.vocabulary import (
    COLOUR_FAMILIES,
    COLOURS,
    KIND_FAMILIES,
    KINDS,
    SETTING_FAMILIES,
    SETTINGS,
    SIZES,
)
from cusa.data.demo_set.world import Claim, Description, Scene, Thing, pick

_P_SETTING_FAMILY = 0.2  # of a setting that is named: by a hypernym


def draw_captions(scene: Scene, rng: np.random.Generator) -> dict[str, Claim]:
    """Draw five differently worded captions, from specific to vague, each with its claim."""
    captions: dict[str, Claim] = {}
    draws = (_full_claim, _cast_claim, _layout_claim, _one_claim, _vague_claim)
    for n_captions, draw in enumerate(draws, 1):
        # A text that is there already is drawn again.
        while len(captions) < n_captions:
            claim = draw(scene, rng)
            captions.setdefault(_in_words(claim, rng), claim)
    return captions


# --- claims


def _full_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """Name nearly all: "a large red star in the top left corner and a blue ring at the beach"."""
    things = _shuffled(scene.things, rng)
    descriptions = [_describe(thing, rng, size=0.9, cell=0.5) for thing in things]
    return Claim(tuple(descriptions), settings=_settings(scene, rng, 0.9))


def _cast_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """Name every thing by kind and colour: "a red star and a blue ring"."""
    things = _shuffled(scene.things, rng)
    descriptions = [_describe(thing, rng, size=0.2) for thing in things]
    return Claim(tuple(descriptions), settings=_settings(scene, rng, 0.3))


def _layout_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """Relate two things: "a star above something blue"; of one alone, say where it is."""
    things = _shuffled(scene.things, rng)
    if len(things) == 1:
        return Claim((_describe(things[0], rng, kind=0.8, colour=0.8, cell=1),))

    first, second = things[:2]
    relation = "left of"
    if first.col == second.col or (first.row != second.row and rng.random() < 0.5):
        relation = "above"
    if relation == "above":
        is_reversed = first.row > second.row
    else:
        is_reversed = first.col > second.col
    if is_reversed:
        first, second = second, first
    descriptions = []
    for thing in (first, second):
        descriptions.append(_describe(thing, rng, kind=0.7, colour=0.8, family=0.1))
    return Claim(tuple(descriptions), relation)


def _one_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """Name one thing, whatever else there is: "a big star"."""
    thing = pick(rng, scene.things)
    description = _describe(thing, rng, kind=0.9, colour=0.6, size=0.3, family=0.1)
    return Claim((description,), settings=_settings(scene, rng, 0.4))


def _vague_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """Name hardly anything: "three shapes, one of them green", "something round outdoors"."""
    thing = pick(rng, scene.things)
    description = _describe(thing, rng, kind=0.4, colour=0.5, size=0.1, family=0.5)
    if rng.random() < 0.4:
        return Claim((description,), count=len(scene.things))
    return Claim((description,), settings=_settings(scene, rng, 0.7))


def _shuffled(things: Sequence[Thing], rng: np.random.Generator) -> list[Thing]:
    return [things[number] for number in rng.permutation(len(things))]


def _describe(
    thing: Thing,
    rng: np.random.Generator,
    *,
    kind: float = 1,
    colour: float = 1,
    size: float = 0,
    cell: float = 0,
    family: float = 0,
) -> Description:
    """Describe a thing, truly.

    Args:
        thing: The thing.
        rng: Random numbers.
        kind: Probability that its kind is named.
        colour: Probability that its colour is named.
        size: Probability that its size is named, unless that is medium.
        cell: Probability that its place is named.
        family: Probability of a hypernym for a kind or colour that has one.
    """
    kinds: tuple[str, ...] = ()
    if rng.random() < kind:
        kinds = _widened(thing.kind, KIND_FAMILIES, rng, family)
    colours: tuple[str, ...] = ()
    if rng.random() < colour:
        colours = _widened(thing.colour, COLOUR_FAMILIES, rng, family)
    named_size = None
    if SIZES[thing.size] and rng.random() < size:
        named_size = thing.size
    if rng.random() >= cell:
        return Description(kinds, colours, named_size)

    # "at the top" says no more than the row; nobody says "at the top, in the middle".
    row: int | None = thing.row
    col: int | None = thing.col
    if thing.row == 1 and thing.col != 1:
        row = None
    if thing.col == 1 and thing.row != 1:
        col = None
    return Description(kinds, colours, named_size, row, col)


def _settings(
    scene: Scene,
    rng: np.random.Generator,
    probability: float,
) -> tuple[str, ...]:
    """Return the setting, or those of its family, with a probability that it is named."""
    if rng.random() >= probability:
        return ()
    return _widened(scene.setting, SETTING_FAMILIES, rng, _P_SETTING_FAMILY)


def _widened(
    value: str,
    families: Mapping[str, tuple[str, ...]],
    rng: np.random.Generator,
    probability: float,
) -> tuple[str, ...]:
    """Return the value alone or, with a probability, a family that holds it."""
    candidates = [members for members in families.values() if value in members]
    if candidates and rng.random() < probability:
        return pick(rng, candidates)
    return (value,)


# --- words

_LISTS = ("{}", "{}", "a picture of {}", "an image with {}", "there is {}", "you can see {}")
_CELLS: dict[tuple[int | None, int | None], tuple[str, str]] = {
    (0, None): ("at the top", "at the upper edge"),
    (2, None): ("at the bottom", "at the lower edge"),
    (None, 0): ("on the left", "on the left side"),
    (None, 2): ("on the right", "on the right side"),
    (0, 0): ("in the top left", "in the upper left corner"),
    (0, 2): ("in the top right", "in the upper right corner"),
    (2, 0): ("in the bottom left", "in the lower left corner"),
    (2, 2): ("in the bottom right", "in the lower right corner"),
    (1, 1): ("in the middle", "in the centre"),
}
_RELATIONS = {
    "above": (
        "{0} above {1}",
        "{0} over {1}",
        "{1} below {0}",
        "{1} underneath {0}",
        "{0} higher up than {1}",
    ),
    "left of": (
        "{0} to the left of {1}",
        "{0} left of {1}",
        "{1} to the right of {0}",
        "{1} right of {0}",
    ),
}
_COUNTS = {
    1: ("only one {noun}: {thing}", "a single {noun}: {thing}", "nothing but {thing}"),
    2: ("two {noun}s, one of them {thing}", "a pair of {noun}s, one is {thing}"),
    3: ("three {noun}s, one of them {thing}", "a trio of {noun}s, one is {thing}"),
}
_NOUNS = ("shape", "object", "thing", "figure")


def _in_words(claim: Claim, rng: np.random.Generator) -> str:
    things = [_description_in_words(description, rng) for description in claim.descriptions]
    if claim.count is not None:
        template = pick(rng, _COUNTS[claim.count])
        text = template.format(noun=pick(rng, _NOUNS), thing=things[0])
    elif claim.relation:
        text = pick(rng, _RELATIONS[claim.relation]).format(*things)
    else:
        text = pick(rng, _LISTS).format(_listed(things))
    setting_words = _word_of(claim.settings, SETTINGS, SETTING_FAMILIES, rng)
    return " ".join([text, *setting_words])


def _listed(things: Sequence[str]) -> str:
    """Join things as in "a star, a ring and a heart"."""
    if len(things) == 1:
        return things[0]
    return f"{', '.join(things[:-1])} and {things[-1]}"


def _description_in_words(description: Description, rng: np.random.Generator) -> str:
    words = []
    if description.size:
        words.extend(_word_of((description.size,), SIZES, {}, rng))
    words.extend(_word_of(description.colours, COLOURS, COLOUR_FAMILIES, rng))
    words.extend(_word_of(description.kinds, KINDS, KIND_FAMILIES, rng))

    # Without one kind, all words so far are adjectives.
    if len(description.kinds) != 1:
        if len(words) == 1 and rng.random() < 0.5:
            words.insert(0, "something")
        else:
            words.append(pick(rng, _NOUNS))
    if words[0][0] in "aeiou":
        words.insert(0, "an")
    elif words[0] != "something":
        words.insert(0, "a")

    cell = (description.row, description.col)
    if cell != (None, None):
        words.append(pick(rng, _CELLS[cell]))
    return " ".join(words)


def _word_of(
    values: tuple[str, ...],
    words: Mapping[str, tuple[str, ...]],
    families: Mapping[str, tuple[str, ...]],
    rng: np.random.Generator,
) -> list[str]:
    """Return no word for no value, a synonym for one, the family's name for several."""
    if len(values) > 1:
        return [next(name for name, members in families.items() if members == values)]
    return [pick(rng, words[value]) for value in values]
