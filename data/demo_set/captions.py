"""Captions of the demo data set's scenes: claims that are true of a scene, and words for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from cusa.data.demo_set.world import Claim, Description, Scene, Thing, pick

# Of a setting that is named: by a hypernym.
_P_SETTING_FAMILY = 0.2


def draw_captions(scene: Scene, generator: Generator) -> dict[str, Claim]:
    """Draw five differently worded captions, from specific to vague, each with its claim."""
    captions: dict[str, Claim] = {}
    draws = (_full_claim, _cast_claim, _layout_claim, _one_claim, _vague_claim)
    for n_captions, draw in enumerate(draws, 1):
        # A text that is there already is drawn again.
        while len(captions) < n_captions:
            claim = draw(scene, generator)
            captions.setdefault(_in_words(claim, generator), claim)
    return captions


# --- claims


def _full_claim(scene: Scene, generator: Generator) -> Claim:
    """Name nearly all: "a large red star in the top left corner and a blue ring at the beach"."""
    descriptions = []
    for thing in _shuffled(scene.things, generator):
        descriptions.append(_describe(thing, generator, size=0.9, cell=0.5))
    settings = _settings(scene, generator, 0.9)
    return Claim(tuple(descriptions), settings=settings)


def _cast_claim(scene: Scene, generator: Generator) -> Claim:
    """Name every thing by kind and colour: "a red star and a blue ring"."""
    descriptions = []
    for thing in _shuffled(scene.things, generator):
        descriptions.append(_describe(thing, generator, size=0.2))
    settings = _settings(scene, generator, 0.3)
    return Claim(tuple(descriptions), settings=settings)


def _layout_claim(scene: Scene, generator: Generator) -> Claim:
    """Relate two things: "a star above something blue"; of one alone, say where it is."""
    things = _shuffled(scene.things, generator)
    if len(things) == 1:
        description = _describe(
            things[0],
            generator,
            kind=0.8,
            colour=0.8,
            cell=1,
        )
        return Claim((description,))

    pair = things[:2]
    relation = _draw_relation(pair[0], pair[1], generator)
    if relation == "above":
        pair.sort(key=lambda thing: thing.row)
    else:
        pair.sort(key=lambda thing: thing.col)
    descriptions = []
    for thing in pair:
        description = _describe(
            thing,
            generator,
            kind=0.7,
            colour=0.8,
            family=0.1,
        )
        descriptions.append(description)
    return Claim(tuple(descriptions), relation)


def _draw_relation(first: Thing, second: Thing, generator: Generator) -> str:
    """Draw a relation that holds for two things in one order or the other."""
    if first.col == second.col:
        return "above"
    if first.row == second.row:
        return "left of"
    if generator.random() < 0.5:
        return "above"
    return "left of"


def _one_claim(scene: Scene, generator: Generator) -> Claim:
    """Name one thing, whatever else there is: "a big star"."""
    thing = pick(generator, scene.things)
    description = _describe(
        thing,
        generator,
        kind=0.9,
        colour=0.6,
        size=0.3,
        family=0.1,
    )
    settings = _settings(scene, generator, 0.4)
    return Claim((description,), settings=settings)


def _vague_claim(scene: Scene, generator: Generator) -> Claim:
    """Name hardly anything: "three shapes, one of them green", "something round outdoors"."""
    thing = pick(generator, scene.things)
    description = _describe(
        thing,
        generator,
        kind=0.4,
        colour=0.5,
        size=0.1,
        family=0.5,
    )
    if generator.random() < 0.4:
        return Claim((description,), count=len(scene.things))
    settings = _settings(scene, generator, 0.7)
    return Claim((description,), settings=settings)


def _shuffled(things: Sequence[Thing], generator: Generator) -> list[Thing]:
    return [things[number] for number in generator.permutation(len(things))]


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
    """Describe a thing, truly.

    Args:
        thing: The thing.
        generator: Random numbers.
        kind: Probability that its kind is named.
        colour: Probability that its colour is named.
        size: Probability that its size is named, unless that is medium.
        cell: Probability that its place is named.
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

    # "at the top" says no more than the row; nobody says "at the top, in the middle".
    row: int | None = thing.row
    col: int | None = thing.col
    if thing.row == 1 and thing.col != 1:
        row = None
    if thing.col == 1 and thing.row != 1:
        col = None
    return Description(
        kinds,
        colours,
        named_size,
        row,
        col,
    )


def _settings(
    scene: Scene,
    generator: Generator,
    probability: float,
) -> tuple[str, ...]:
    """Return the setting, or those of its family, with a probability that it is named."""
    if generator.random() >= probability:
        return ()
    return _widened(scene.setting, SETTING_FAMILIES, generator, _P_SETTING_FAMILY)


def _widened(
    value: str,
    families: Mapping[str, tuple[str, ...]],
    generator: Generator,
    probability: float,
) -> tuple[str, ...]:
    """Return the value alone or, with a probability, a family that holds it."""
    candidates = [members for members in families.values() if value in members]
    if candidates and generator.random() < probability:
        return pick(generator, candidates)
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


def _in_words(claim: Claim, generator: Generator) -> str:
    things = [_description_in_words(description, generator) for description in claim.descriptions]
    if claim.count is not None:
        template = pick(generator, _COUNTS[claim.count])
        noun = pick(generator, _NOUNS)
        text = template.format(noun=noun, thing=things[0])
    elif claim.relation:
        text = pick(generator, _RELATIONS[claim.relation]).format(*things)
    else:
        text = pick(generator, _LISTS).format(_listed(things))
    setting_words = _word_of(claim.settings, SETTINGS, SETTING_FAMILIES, generator)
    return " ".join([text, *setting_words])


def _listed(things: Sequence[str]) -> str:
    """Join things as in "a star, a ring and a heart"."""
    if len(things) == 1:
        return things[0]
    return f"{', '.join(things[:-1])} and {things[-1]}"


def _description_in_words(description: Description, generator: Generator) -> str:
    words = []
    if description.size:
        words.extend(_word_of((description.size,), SIZES, {}, generator))
    words.extend(_word_of(description.colours, COLOURS, COLOUR_FAMILIES, generator))
    words.extend(_word_of(description.kinds, KINDS, KIND_FAMILIES, generator))

    # Without one kind, all words so far are adjectives.
    if len(description.kinds) != 1:
        if len(words) == 1 and generator.random() < 0.5:
            words.insert(0, "something")
        else:
            words.append(pick(generator, _NOUNS))
    if words[0][0] in "aeiou":
        words.insert(0, "an")
    elif words[0] != "something":
        words.insert(0, "a")

    cell = (description.row, description.col)
    if cell != (None, None):
        words.append(pick(generator, _CELLS[cell]))
    return " ".join(words)


def _word_of(
    values: tuple[str, ...],
    words: Mapping[str, tuple[str, ...]],
    families: Mapping[str, tuple[str, ...]],
    generator: Generator,
) -> list[str]:
    """Return no word for no value, a synonym for one, the family's name for several."""
    if len(values) > 1:
        return [next(name for name, members in families.items() if members == values)]
    return [pick(generator, words[value]) for value in values]
