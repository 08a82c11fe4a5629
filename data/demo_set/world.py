"""The embedded data set `demo`: rendered scenes whose captions are known to be true of other images, too.

The world. A scene shows one to three things in a setting (on grass, before a brick wall, ...). A thing has a kind
(circle, star, ...), a colour, a size and a cell of a 3 x 3 grid. What is shown recurs, as it does in photographs: most
scenes stage one of `N_CASTS` casts (a cast is a multiset of kinds and colours), each time with other sizes, places and
setting; the others are free. Images with the same cast share their image label.

The captions. Every image gets five, from one that names nearly everything to "two shapes, one of them green". Each puts
a `Claim` into words, with synonyms and hypernyms, and the claim is evaluated on every scene of the split, so that which
images a caption is true of is known and not guessed. A claim says what is there, not what is absent: "a red star" is
true of every scene with a red star; only a number ("two shapes") is meant exactly. A vague caption is true of dozens of
images, and a contrastive loss calls nearly all of them negatives: the false negatives that soft labels are meant for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np

from cusa.data.records import SPLITS, Truth, csr

T = TypeVar("T")

N_CASTS = 80
P_FREE = 0.1  # share of scenes outside the casts

# Every value of an attribute with the words for it.
KINDS = {
    "circle": ("circle", "disc", "dot", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star", "five-pointed star"),
    "ring": ("ring", "hoop", "donut"),
    "cross": ("cross", "plus sign"),
    "heart": ("heart", "love heart"),
    "diamond": ("diamond", "rhombus"),
    "moon": ("moon", "crescent", "half moon"),
    "flower": ("flower", "blossom", "daisy"),
}
COLOURS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "amber"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose-coloured"),
    "brown": ("brown", "chestnut"),
}
SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": (),
    "large": ("large", "big", "huge"),
}
SETTINGS = {
    "grass": ("on the grass", "on a lawn", "on a green meadow"),
    "sea": ("on the sea", "in the water", "floating on the waves"),
    "sand": ("on the sand", "at the beach", "in the desert"),
    "snow": ("in the snow", "on a snowy day", "in winter"),
    "night": ("at night", "in the night sky", "in the dark"),
    "brick": ("on a brick wall", "painted on bricks", "in front of a brick wall"),
    "chess": ("on a chessboard", "on a checkered floor", "on checked tiles"),
    "paper": ("on lined paper", "drawn in a notebook", "on a sheet of paper"),
}
# Hypernyms: words that stand for several values.
KIND_FAMILIES = {
    "round": ("circle", "ring"),
    "pointed": ("triangle", "star", "diamond"),
    "four-sided": ("square", "diamond"),
    "romantic": ("heart", "flower"),
    "celestial": ("star", "moon"),
}
COLOUR_FAMILIES = {
    "warm-coloured": ("red", "orange", "yellow"),
    "cool-coloured": ("green", "blue", "purple"),
}
SETTING_FAMILIES = {
    "outdoors": ("grass", "sea", "sand", "snow", "night"),
    "on something man-made": ("brick", "chess", "paper"),
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape of a scene; ``row`` and ``col`` count the grid's cells from the top left."""

    kind: str
    colour: str
    size: str
    row: int
    col: int


@dataclass(frozen=True, slots=True)
class Scene:
    """What one image shows: one to three things, each in a cell of its own, in a setting."""

    things: tuple[Thing, ...]
    setting: str

    @property
    def cast(self) -> tuple[tuple[str, str], ...]:
        """The kinds and colours shown, sorted: what two images share that are relevant to each other."""
        return tuple(sorted((t.kind, t.colour) for t in self.things))


@dataclass(frozen=True, slots=True)
class Part:
    """What a claim says of one thing; an empty tuple or None leaves the attribute open."""

    kinds: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    size: str | None = None
    row: int | None = None
    col: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a caption says of a scene: all of its fields hold.

    Attributes:
        parts: One to three parts; different things fit them.
        relation: ``"above"`` or ``"left of"``, of the first part's thing to the second's; ``""`` for none.
        count: The exact number of things, or None.
        settings: The setting is one of these; empty for any.
    """

    parts: tuple[Part, ...]
    relation: str = ""
    count: int | None = None
    settings: tuple[str, ...] = ()


def draw_scenes(split: str, n: int, seed: int) -> list[Scene]:
    """The first ``n`` scenes of a split, each from a random stream of its own, so that a longer split only adds."""
    casts_rng = np.random.default_rng([seed, 0])
    casts = [_draw_cast(casts_rng) for _ in range(N_CASTS)]
    return [_draw_scene(casts, stream(seed, split, i, "scene")) for i in range(n)]


def draw_captions(scene: Scene, rng: np.random.Generator) -> dict[str, Claim]:
    """Five differently worded captions, from specific to vague, each with the claim that it makes."""
    captions: dict[str, Claim] = {}
    for n, draw in enumerate(
        (_full_claim, _cast_claim, _layout_claim, _one_claim, _vague_claim), 1
    ):
        while len(captions) < n:  # a text that is there already is drawn again
            claim = draw(scene, rng)
            captions.setdefault(_in_words(claim, rng), claim)
    return captions


def truth_of(scenes: Sequence[Scene], claims: Sequence[Claim]) -> Truth:
    """Evaluate every claim on every scene; scenes with the same cast get the same image label."""
    labels = {cast: label for label, cast in enumerate(sorted({s.cast for s in scenes}))}
    table = _Table(scenes)
    indptr, indices = csr([np.flatnonzero(table.holds(c)) for c in claims])
    return Truth(np.array([labels[s.cast] for s in scenes], np.int64), indptr, indices)


def stream(seed: int, split: str, i: int, use: str) -> np.random.Generator:
    """The random numbers of one image for one use: ``"scene"``, ``"captions"`` or ``"pixels"``."""
    return np.random.default_rng(
        [seed, 1 + SPLITS.index(split), i, ("scene", "captions", "pixels").index(use)]
    )


def _pick(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


def _draw_cast(rng: np.random.Generator) -> tuple[tuple[str, str], ...]:
    n = int(rng.choice((1, 2, 3), p=(0.3, 0.4, 0.3)))
    return tuple((_pick(rng, tuple(KINDS)), _pick(rng, tuple(COLOURS))) for _ in range(n))


def _draw_scene(casts: Sequence[tuple[tuple[str, str], ...]], rng: np.random.Generator) -> Scene:
    cast = _draw_cast(rng) if rng.random() < P_FREE else _pick(rng, casts)
    cells = rng.choice(9, len(cast), replace=False).tolist()
    things = [
        Thing(*pair, _pick(rng, tuple(SIZES)), *divmod(cell, 3))
        for pair, cell in zip(cast, cells, strict=True)
    ]
    return Scene(tuple(things), _pick(rng, tuple(SETTINGS)))


def _full_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """Nearly all: "a large red star in the top left corner and a blue ring at the beach"."""
    parts = [_part(t, rng, size=0.9, place=0.5) for t in _shuffled(scene.things, rng)]
    return Claim(tuple(parts), settings=_settings(scene, rng, 0.9))


def _cast_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """Every thing by kind and colour: "a red star and a blue ring"."""
    parts = [_part(t, rng, size=0.2) for t in _shuffled(scene.things, rng)]
    return Claim(tuple(parts), settings=_settings(scene, rng, 0.3))


def _layout_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """How two things lie: "a star above something blue"; where one lies, if it is alone."""
    things = _shuffled(scene.things, rng)
    if len(things) == 1:
        return Claim((_part(things[0], rng, kind=0.8, colour=0.8, place=1),))
    a, b = things[:2]
    relation = "above" if a.col == b.col or (a.row != b.row and rng.random() < 0.5) else "left of"
    if (a.row > b.row) if relation == "above" else (a.col > b.col):
        a, b = b, a
    parts = tuple(_part(t, rng, kind=0.7, colour=0.8, family=0.1) for t in (a, b))
    return Claim(parts, relation)


def _one_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """One thing, whatever else there is: "a big star"."""
    part = _part(_pick(rng, scene.things), rng, kind=0.9, colour=0.6, size=0.3, family=0.1)
    return Claim((part,), settings=_settings(scene, rng, 0.4))


def _vague_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """Hardly anything: "three shapes, one of them green", "something round outdoors"."""
    part = _part(_pick(rng, scene.things), rng, kind=0.4, colour=0.5, size=0.1, family=0.5)
    if rng.random() < 0.4:
        return Claim((part,), count=len(scene.things))
    return Claim((part,), settings=_settings(scene, rng, 0.7))


def _shuffled(things: Sequence[Thing], rng: np.random.Generator) -> list[Thing]:
    return [things[i] for i in rng.permutation(len(things))]


def _part(
    thing: Thing,
    rng: np.random.Generator,
    *,
    kind: float = 1,
    colour: float = 1,
    size: float = 0,
    place: float = 0,
    family: float = 0,
) -> Part:
    """A part that is true of ``thing``; the numbers are the probabilities to say each attribute, or its hypernym."""
    kinds = _widened(thing.kind, KIND_FAMILIES, rng, family) if rng.random() < kind else ()
    colours = _widened(thing.colour, COLOUR_FAMILIES, rng, family) if rng.random() < colour else ()
    said_size = thing.size if SIZES[thing.size] and rng.random() < size else None
    if rng.random() >= place:
        return Part(kinds, colours, said_size)
    # "at the top" says no more than the row; nobody says "at the top, in the middle"
    row = thing.row if thing.row != 1 or thing.col == 1 else None
    col = thing.col if thing.col != 1 or thing.row == 1 else None
    return Part(kinds, colours, said_size, row, col)


def _settings(scene: Scene, rng: np.random.Generator, said: float) -> tuple[str, ...]:
    return _widened(scene.setting, SETTING_FAMILIES, rng, 0.2) if rng.random() < said else ()


def _widened(
    value: str, families: Mapping[str, tuple[str, ...]], rng: np.random.Generator, p: float
) -> tuple[str, ...]:
    """The value alone or, with probability ``p``, a family that holds it."""
    holding = [members for members in families.values() if value in members]
    return _pick(rng, holding) if holding and rng.random() < p else (value,)


_LISTS = ("{}", "{}", "a picture of {}", "an image with {}", "there is {}", "you can see {}")
_PLACES: dict[tuple[int | None, int | None], tuple[str, str]] = {
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
    1: ("only one {thing}: {part}", "a single {thing}: {part}", "nothing but {part}"),
    2: ("two {thing}s, one of them {part}", "a pair of {thing}s, one is {part}"),
    3: ("three {thing}s, one of them {part}", "a trio of {thing}s, one is {part}"),
}
_THINGS = ("shape", "object", "thing", "figure")


def _in_words(claim: Claim, rng: np.random.Generator) -> str:
    parts = [_part_in_words(p, rng) for p in claim.parts]
    if claim.count is not None:
        text = _pick(rng, _COUNTS[claim.count]).format(thing=_pick(rng, _THINGS), part=parts[0])
    elif claim.relation:
        text = _pick(rng, _RELATIONS[claim.relation]).format(*parts)
    else:
        text = _pick(rng, _LISTS).format(
            " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
        )
    return " ".join([text, *_word_of(claim.settings, SETTINGS, SETTING_FAMILIES, rng)])


def _part_in_words(part: Part, rng: np.random.Generator) -> str:
    words = [*_word_of((part.size,) if part.size else (), SIZES, {}, rng)]
    words += _word_of(part.colours, COLOURS, COLOUR_FAMILIES, rng)
    words += _word_of(part.kinds, KINDS, KIND_FAMILIES, rng)
    if len(part.kinds) != 1:  # all words so far are adjectives
        words = (
            ["something", *words]
            if len(words) == 1 and rng.random() < 0.5
            else [*words, _pick(rng, _THINGS)]
        )
    if words[0] != "something":
        words = ["an" if words[0][0] in "aeiou" else "a", *words]
    if (part.row, part.col) != (None, None):
        words.append(_pick(rng, _PLACES[part.row, part.col]))
    return " ".join(words)


def _word_of(
    values: tuple[str, ...],
    words: Mapping[str, tuple[str, ...]],
    families: Mapping[str, tuple[str, ...]],
    rng: np.random.Generator,
) -> list[str]:
    """No word for no value, a synonym for one, the family's name for several."""
    if len(values) > 1:
        return [next(name for name, members in families.items() if members == values)]
    return [_pick(rng, words[v]) for v in values]


class _Table:
    """The scenes of a split as columns, so that a claim is evaluated on all of them at once."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        slots = [
            [*s.things, *[Thing("", "", "", -1, -1)] * (3 - len(s.things))] for s in scenes
        ]  # "" fits no part
        names = ("kind", "colour", "size", "row", "col")
        self.things = {
            name: np.array([[getattr(t, name) for t in of] for of in slots]) for name in names
        }  # [n, 3] each
        self.counts = np.array([len(s.things) for s in scenes])  # [n]
        self.settings = np.array([s.setting for s in scenes])  # [n]
        self._fits: dict[Part, np.ndarray] = {}

    def holds(self, claim: Claim) -> np.ndarray:
        """The scenes that the claim is true of, bool ``[n]``."""
        fits = [self.fits(p) for p in claim.parts]
        found = np.zeros(len(self.counts), bool)
        for slots in permutations(range(3), len(fits)):  # which thing fits which part
            found_so = np.logical_and.reduce([f[:, s] for f, s in zip(fits, slots, strict=True)])
            if claim.relation:
                axis = self.things["row" if claim.relation == "above" else "col"]
                found_so &= axis[:, slots[0]] < axis[:, slots[1]]
            found |= found_so
        if claim.count is not None:
            found &= self.counts == claim.count
        if claim.settings:
            found &= np.isin(self.settings, claim.settings)
        return found

    def fits(self, part: Part) -> np.ndarray:
        """The things that fit the part, bool ``[n, 3]``."""
        if part not in self._fits:
            fits = self.things["kind"] != ""
            for name, wanted in (("kind", part.kinds), ("colour", part.colours)):
                fits &= np.isin(self.things[name], wanted) if wanted else True
            for name, value in (("size", part.size), ("row", part.row), ("col", part.col)):
                fits &= self.things[name] == value if value is not None else True
            self._fits[part] = fits
        return self._fits[part]
