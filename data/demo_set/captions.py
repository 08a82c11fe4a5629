"""Captions of the demo data set's scenes: claims that are true of a scene, put into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

from numpy.random import Generator

from cusa.data.demo_set.vocabulary import (
    COLOUR_FAMILIES,
    COLOURS,
    KIND_FAMILIES,
    KINDS,
    SETTING_FAMILIES,
    SETTINGS,
    SIZES,
)
from cusa.data.demo_set.world import AXES, Claim, Description, Scene, Thing, pick

# Probability that a setting is named by a hypernym, given that it is named.
_P_SETTING_FAMILY = 0.2


def draw_captions(
    scene: Scene,
    generator: Generator,
) -> dict[str, Claim]:
    """Draw five differently worded captions, from specific to vague, each with its claim."""
    captions: dict[str, Claim] = {}
    draws = (_full_claim, _cast_claim, _layout_claim, _one_claim, _vague_claim)
    for n_captions, draw in enumerate(draws, 1):
        # Draw again if the caption repeats an earlier one.
        while len(captions) < n_captions:
            claim = draw(scene, generator)
            captions.setdefault(_in_words(claim, generator), claim)
    return captions


# --- claims


def _full_claim(
    scene: Scene,
    generator: Generator,
) -> Claim:
    """Name nearly all: "a large red star in the top left corner and a blue ring at the beach"."""
    things = _shuffled(scene.things, generator)
    descriptions = _describe_all(things, generator, size=0.9, cell=0.5)
    return Claim(descriptions, settings=_settings(scene, generator, 0.9))


def _cast_claim(
    scene: Scene,
    generator: Generator,
) -> Claim:
    """Name every thing by kind and colour: "a red star and a blue ring"."""
    things = _shuffled(scene.things, generator)
    descriptions = _describe_all(things, generator, size=0.2)
    return Claim(descriptions, settings=_settings(scene, generator, 0.3))


def _layout_claim(
    scene: Scene,
    generator: Generator,
) -> Claim:
    """Relate two things: "a star above something blue"; if there is one, say where it is."""
    things = _shuffled(scene.things, generator)
    if len(things) == 1:
        return Claim(_describe_all(things, generator, kind=0.8, colour=0.8, cell=1))

    pair = things[:2]
    relation = _draw_relation(pair[0], pair[1], generator)
    pair.sort(key=attrgetter(AXES[relation]))
    descriptions = _describe_all(pair, generator, kind=0.7, colour=0.8, family=0.1)
    return Claim(descriptions, relation)


def _draw_relation(
    first: Thing,
    second: Thing,
    generator: Generator,
) -> str:
    """Draw a relation that holds for two things in one order or the other."""
    if first.column == second.column:
        return "above"
    if first.row == second.row or generator.random() >= 0.5:
        return "left of"
    return "above"


def _one_claim(
    scene: Scene,
    generator: Generator,
) -> Claim:
    """Name one thing and ignore the others: "a big star"."""
    thing = pick(generator, scene.things)
    probabilities = {"kind": 0.9, "colour": 0.6, "size": 0.3, "family": 0.1}
    descriptions = _describe_all([thing], generator, **probabilities)
    return Claim(descriptions, settings=_settings(scene, generator, 0.4))


def _vague_claim(
    scene: Scene,
    generator: Generator,
) -> Claim:
    """Name hardly anything: "three shapes, one of them green", "something round outdoors"."""
    thing = pick(generator, scene.things)
    probabilities = {"kind": 0.4, "colour": 0.5, "size": 0.1, "family": 0.5}
    descriptions = _describe_all([thing], generator, **probabilities)
    if generator.random() < 0.4:
        return Claim(descriptions, count=len(scene.things))
    return Claim(descriptions, settings=_settings(scene, generator, 0.7))


def _shuffled(
    things: Sequence[Thing],
    generator: Generator,
) -> list[Thing]:
    return [things[number] for number in generator.permutation(len(things))]


def _describe_all(
    things: Sequence[Thing],
    generator: Generator,
    **probabilities: float,
) -> tuple[Description, ...]:
    return tuple(_describe(thing, generator, **probabilities) for thing in things)


def _describe(
    thing: Thing,
    generator: Generator,
    *,
    kind: float = 1,
    colour: float = 1,
    size: float = 0,
    cell: float = 0,
    family: float = 0,
) -> Description:
    """Describe a thing by some of its attributes, drawn at random.

    Args:
        thing: The thing.
        generator: Random numbers.
        kind: Probability that its kind is named.
        colour: Probability that its colour is named.
        size: Probability that its size is named, unless that is medium.
        cell: Probability that its cell of the grid is named.
        family: Probability of a hypernym for a kind or colour that has one.
    """
    kinds: tuple[str, ...] = ()
    if generator.random() < kind:
        kinds = _widened(thing.kind, KIND_FAMILIES, generator, family)
    colours: tuple[str, ...] = ()
    if generator.random() < colour:
        colours = _widened(thing.colour, COLOUR_FAMILIES, generator, family)
    named_size = None
    if SIZES[thing.size] and generator.random() < size:
        named_size = thing.size
    if generator.random() >= cell:
        return Description(kinds, colours, named_size)

    # In the middle row or column, name the other coordinate only: "at the top", not "at the top, in
    # the middle".
    row: int | None = thing.row
    column: int | None = thing.column
    if row == 1 and column != 1:
        row = None
    elif column == 1 and row != 1:
        column = None
    return Description(
        kinds,
        colours,
        named_size,
        row,
        column,
    )


def _settings(
    scene: Scene,
    generator: Generator,
    probability: float,
) -> tuple[str, ...]:
    """Return the setting, or its family's settings, with a probability; otherwise nothing."""
    if generator.random() >= probability:
        return ()
    return _widened(scene.setting, SETTING_FAMILIES, generator, _P_SETTING_FAMILY)


def _widened(
    value: str,
    families: Mapping[str, tuple[str, ...]],
    generator: Generator,
    probability: float,
) -> tuple[str, ...]:
    """Return the value alone or, with a probability, all values of a family that it is in."""
    candidates = [members for members in families.values() if value in members]
    if candidates and generator.random() < probability:
        return pick(generator, candidates)
    return (value,)


# --- words

# Alternatives, as in the vocabulary; a caption takes one of them.
_LISTS = "{} | {} | a picture of {} | an image with {} | there is {} | you can see {}"
_CELLS: dict[tuple[int | None, int | None], str] = {
    (0, None): "at the top | at the upper edge",
    (2, None): "at the bottom | at the lower edge",
    (None, 0): "on the left | on the left side",
    (None, 2): "on the right | on the right side",
    (0, 0): "in the top left | in the upper left corner",
    (0, 2): "in the top right | in the upper right corner",
    (2, 0): "in the bottom left | in the lower left corner",
    (2, 2): "in the bottom right | in the lower right corner",
    (1, 1): "in the middle | in the centre",
}
_RELATIONS = {
    "above": "{0} above {1} | {0} over {1} | {1} below {0} | {1} underneath {0} | "
    "{0} higher up than {1}",
    "left of": "{0} to the left of {1} | {0} left of {1} | {1} to the right of {0} | "
    "{1} right of {0}",
}
_COUNTS = {
    1: "only one {noun}: {thing} | a single {noun}: {thing} | nothing but {thing}",
    2: "two {noun}s, one of them {thing} | a pair of {noun}s, one is {thing}",
    3: "three {noun}s, one of them {thing} | a trio of {noun}s, one is {thing}",
}
_NOUNS = "shape | object | thing | figure"


def _pick_words(
    generator: Generator,
    alternatives: str,
) -> str:
    return pick(generator, alternatives.split(" | "))


def _in_words(
    claim: Claim,
    generator: Generator,
) -> str:
    things = [_description_in_words(description, generator) for description in claim.descriptions]
    if claim.count is not None:
        template = _pick_words(generator, _COUNTS[claim.count])
        noun = _pick_words(generator, _NOUNS)
        caption = template.format(noun=noun, thing=things[0])
    elif claim.relation:
        caption = _pick_words(generator, _RELATIONS[claim.relation]).format(*things)
    else:
        caption = _pick_words(generator, _LISTS).format(_listed(things))
    setting_words = _words_for(claim.settings, SETTINGS, SETTING_FAMILIES, generator)
    return " ".join([caption, *setting_words])


def _listed(things: Sequence[str]) -> str:
    """Join things as in "a star, a ring and a heart"."""
    if len(things) == 1:
        return things[0]
    return f"{', '.join(things[:-1])} and {things[-1]}"


def _description_in_words(
    description: Description,
    generator: Generator,
) -> str:
    sizes = tuple(filter(None, [description.size]))
    words = _words_for(sizes, SIZES, {}, generator)
    words.extend(_words_for(description.colours, COLOURS, COLOUR_FAMILIES, generator))
    words.extend(_words_for(description.kinds, KINDS, KIND_FAMILIES, generator))

    # Without one kind, all words so far are adjectives.
    if len(description.kinds) != 1:
        if len(words) == 1 and generator.random() < 0.5:
            words.insert(0, "something")
        else:
            words.append(_pick_words(generator, _NOUNS))
    if words[0][0] in "aeiou":
        words.insert(0, "an")
    elif words[0] != "something":
        words.insert(0, "a")

    cell = (description.row, description.column)
    if cell != (None, None):
        words.append(_pick_words(generator, _CELLS[cell]))
    return " ".join(words)


def _words_for(
    values: tuple[str, ...],
    words: Mapping[str, str],
    families: Mapping[str, tuple[str, ...]],
    generator: Generator,
) -> list[str]:
    """Return no word for no value, a synonym for one value, a family's name for several."""
    if len(values) > 1:
        return [next(name for name, members in families.items() if members == values)]
    return [_pick_words(generator, words[value]) for value in values]
