"""Rendering of the demo data set's scenes as images."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageColor, ImageDraw

from cusa.data.demo_set.world import GRID, Scene, Thing

SIDE = 224  # pixels
# Scenes are drawn this many times larger and then reduced, for smooth edges.
_OVERSAMPLING = 2
Colour = tuple[int, int, int]
_RGB = {
    "red": "#d62828",
    "orange": "#f58220",
    "yellow": "#fad232",
    "green": "#289646",
    "blue": "#2d6ee1",
    "purple": "#823cb4",
    "pink": "#f582b4",
    "brown": "#82502d",
}
_BACKDROPS = {  # ground and marks
    "grass": "#78b450 #508c32",
    "sea": "#4696c8 #b4dcf0",
    "sand": "#e2cca0 #c3aa78",
    "snow": "#cdd7e4 #fcfcff",
    "night": "#121634 #e6e6c8",
    "brick": "#a55541 #cdbeaf",
    "chess": "#e1e1e1 #3c3c3c",
    "paper": "#f8f6ee #96b4d7",
}
# Scattered marks: their number, and their radius in pixels (0 draws blades of grass).
_SCATTERED = {
    "grass": (350, 0),
    "snow": (90, 5),
    "sand": (500, 2),
    "night": (90, 2),
}
# Rows of marks: the range of their distance in pixels, without its upper end.
_ROW_STEPS = {
    "sea": (30, 40),
    "brick": (34, 42),
    "chess": (50, 64),
    "paper": (26, 34),
}
# Radius in pixels; half a cell is 37 pixels.
_RADIUS = {"small": 15.0, "medium": 23.0, "large": 34.0}
# Of things with straight edges: x and y of each corner.
_CORNERS = {
    "square": "-0.85 -0.85 | 0.85 -0.85 | 0.85 0.85 | -0.85 0.85",
    "triangle": "0 -1 | 1 0.8 | -1 0.8",
    "diamond": "0 -1.1 | 0.8 0 | 0 1.1 | -0.8 0",
}
_ARM_OF_CROSS = "-0.34 -0.34 | -0.34 -1 | 0.34 -1"
# A light rim sets a green thing off from the grass.
_RIM = "#fafafa"
_RIM_WIDTH = 3
_N_POINTS = 60  # points of a round outline


def render(
    scene: Scene,
    generator: Generator,
) -> Image.Image:
    """Render a scene as an RGB image of ``SIDE`` x ``SIDE`` pixels, with light and noise."""
    image = _backdrop(scene.setting, generator)
    drawing = ImageDraw.Draw(image)
    cell_side = image.width / GRID
    for thing in scene.things:
        _draw_thing(drawing, thing, cell_side, generator)

    pixels = np.asarray(image.reduce(_OVERSAMPLING), np.float32)
    # Light comes from one side, and from above or below.
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    horizontal_slope = generator.uniform(-0.12, 0.12)
    vertical_slope = generator.uniform(-0.12, 0.12)
    light = 1 + horizontal_slope * ramp[None, :] + vertical_slope * ramp[:, None]
    noise = generator.integers(-5, 6, (SIDE, SIDE, 1))
    lit_pixels = np.clip(pixels * light[..., None] + noise, 0, 255)
    return Image.fromarray(lit_pixels.astype(np.uint8))


def _draw_thing(
    drawing: ImageDraw.ImageDraw,
    thing: Thing,
    cell_side: float,
    generator: Generator,
) -> None:
    """Draw a thing near the centre of its cell, slightly rotated."""
    cell = np.array([thing.column, thing.row])
    shift = generator.uniform(-0.03, 0.03, 2)
    centre = (cell + 0.5 + shift) * cell_side
    growth = generator.uniform(0.94, 1.06)
    radius = _RADIUS[thing.size] * growth * _OVERSAMPLING
    angle = generator.uniform(-0.15, 0.15)
    colour = _jittered(_RGB[thing.colour], 12, generator)
    if thing.kind == "ring":
        _draw_ring(drawing, centre, radius, colour)
        return

    cosine = np.cos(angle)
    sine = np.sin(angle)
    rotation = np.array([[cosine, sine], [-sine, cosine]])
    corners = _outline(thing.kind) @ rotation * radius + centre
    outline = corners.ravel().tolist()
    drawing.polygon(outline, fill=colour)
    drawing.line([*outline, *outline[:2]], fill=_RIM, width=_RIM_WIDTH)


def _draw_ring(
    drawing: ImageDraw.ImageDraw,
    centre: np.ndarray,
    radius: float,
    colour: Colour,
) -> None:
    """Draw a ring in the rim's colour, and inside it a narrower one in the thing's colour."""
    thickness = int(0.45 * radius)
    drawing.ellipse(_box(centre, radius), outline=_RIM, width=thickness)
    inner_box = _box(centre, radius - _RIM_WIDTH)
    drawing.ellipse(inner_box, outline=colour, width=thickness - 2 * _RIM_WIDTH)


def _box(
    centre: Iterable[float],
    radius: float,
) -> list[float]:
    """Return the bounding box of a circle."""
    x, y = centre
    return [x - radius, y - radius, x + radius, y + radius]


@cache
def _outline(kind: str) -> np.ndarray:
    """Return the corners of any kind of thing except the ring: float64 ``[n, 2]``.

    They lie within a radius of about 1, with y pointing down.
    """
    angles = np.linspace(0, 2 * np.pi, _N_POINTS, endpoint=False)
    if kind == "circle":
        return _polar_outline(angles, np.ones(_N_POINTS))
    if kind == "flower":
        petals = abs(np.cos(2.5 * angles))
        return _polar_outline(angles, 0.5 + 0.55 * petals)
    if kind == "star":
        star_angles = np.arange(10) * np.pi / 5
        return _polar_outline(star_angles, np.tile([1.1, 0.45], 5))
    if kind == "heart":
        # The well-known heart curve, scaled by 1/16.
        height = 13 * np.cos(angles)
        height -= 5 * np.cos(2 * angles)
        height -= 2 * np.cos(3 * angles)
        height -= np.cos(4 * angles)
        x = np.sin(angles) ** 3
        return np.stack([x, -height / 16], 1)
    if kind == "moon":
        return _moon_outline()
    if kind == "cross":
        return _cross_outline()
    return _points(_CORNERS[kind])


def _points(text: str) -> np.ndarray:
    """Read points that are written as ``"x y | x y"``: float64 ``[n, 2]``."""
    points = [point.split() for point in text.split(" | ")]
    return np.array(points, float)


def _polar_outline(
    angles: np.ndarray,
    radii: np.ndarray,
) -> np.ndarray:
    """Convert angles, clockwise from the top, and distances from the centre to points."""
    x = radii * np.sin(angles)
    y = -radii * np.cos(angles)
    return np.stack([x, y], 1)


def _cross_outline() -> np.ndarray:
    """Return the corners of four arms, each turned by a right angle from the one before."""
    arm = _points(_ARM_OF_CROSS)
    quarter_turn = np.array([(0, 1), (-1, 0)])
    arms = []
    for n_turns in range(4):
        rotation = np.linalg.matrix_power(quarter_turn, n_turns)
        arms.append(arm @ rotation)
    return np.concatenate(arms)


def _moon_outline() -> np.ndarray:
    """Return the points of two arcs with the same ends."""
    arc = np.linspace(-1, 1, 30)
    back_angles = 0.7 * np.pi * arc
    back_x = -np.cos(back_angles)
    back_y = np.sin(back_angles)
    back = np.stack([back_x, back_y], 1)
    front_angles = np.pi / 2 * arc
    front_x = 0.588 - 0.95 * np.cos(front_angles)
    front_y = 0.809 * np.sin(front_angles)
    front = np.stack([front_x, front_y], 1)
    return np.concatenate([back, front[::-1]])


def _backdrop(
    setting: str,
    generator: Generator,
) -> Image.Image:
    """Draw a setting, ``_OVERSAMPLING`` times larger: marks of one colour on another."""
    ground_name, mark_name = _BACKDROPS[setting].split()
    ground = _jittered(ground_name, 8, generator)
    mark = _jittered(mark_name, 8, generator)
    image_side = SIDE * _OVERSAMPLING
    image = Image.new("RGB", (image_side, image_side), ground)
    if setting in _SCATTERED:
        _scatter_marks(image, setting, mark, generator)
    else:
        _draw_rows(image, setting, mark, generator)
    return image


def _scatter_marks(
    image: Image.Image,
    setting: str,
    colour: Colour,
    generator: Generator,
) -> None:
    """Scatter blades or grains over an image."""
    drawing = ImageDraw.Draw(image)
    n_marks, radius = _SCATTERED[setting]
    origins = generator.integers(0, image.width, (n_marks, 2))
    for x, y in origins.tolist():
        if radius:
            drawing.ellipse(_box((x, y), radius), fill=colour)
        else:
            blade = [x, y, x + 5, y - 18]
            drawing.line(blade, fill=colour, width=3)


def _draw_rows(
    image: Image.Image,
    setting: str,
    colour: Colour,
    generator: Generator,
) -> None:
    """Draw waves, bricks, squares or lines, row by row."""
    drawing = ImageDraw.Draw(image)
    image_side = image.width
    step = int(generator.integers(*_ROW_STEPS[setting]))
    for row, y in enumerate(range(0, image_side, step)):
        # Every other row of bricks and squares is shifted by one step.
        shifted_xs = range(step * (row % 2), image_side, 2 * step)
        if setting == "sea":
            phase = generator.uniform(0, 2 * np.pi)
            wave = _wave(image_side, y, phase)
            drawing.line(wave, fill=colour, width=4)
        elif setting == "chess":
            for x in shifted_xs:
                square = [x, y, x + step - 1, y + step - 1]
                drawing.rectangle(square, fill=colour)
        else:
            drawing.line([0, y, image_side, y], fill=colour, width=4)
        if setting == "brick":
            for x in shifted_xs:
                drawing.line([x, y, x, y + step], fill=colour, width=4)


def _wave(
    width: int,
    y: int,
    phase: float,
) -> list[float]:
    """Return the points of a wave across the image, as x and y in turn."""
    xs = np.arange(0, width + 8, 8)
    ys = y + 6 * np.sin(xs / 16 + phase)
    points: list[float] = np.stack([xs, ys], 1).ravel().tolist()
    return points


def _jittered(
    colour: str,
    max_change: int,
    generator: Generator,
) -> Colour:
    """Change each channel of a colour by up to ``max_change``."""
    changes = generator.integers(-max_change, max_change + 1, 3)
    jittered = ImageColor.getrgb(colour) + changes
    red, green, blue = jittered.clip(0, 255).tolist()
    return red, green, blue
