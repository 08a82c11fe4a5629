"""The scenes of the demo data set as pictures."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from cusa.data.demo_set.world import GRID, Scene, Thing

SIDE = 224  # pixels
# Drawn larger and reduced, for clean edges.
_OVERSAMPLING = 2
Colour = tuple[int, int, int]
_RGB = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 210, 50),
    "green": (40, 150, 70),
    "blue": (45, 110, 225),
    "purple": (130, 60, 180),
    "pink": (245, 130, 180),
    "brown": (130, 80, 45),
}
_BACKDROPS = {  # ground and marks
    "grass": ((120, 180, 80), (80, 140, 50)),
    "sea": ((70, 150, 200), (180, 220, 240)),
    "sand": ((226, 204, 160), (195, 170, 120)),
    "snow": ((205, 215, 228), (252, 252, 255)),
    "night": ((18, 22, 52), (230, 230, 200)),
    "brick": ((165, 85, 65), (205, 190, 175)),
    "chess": ((225, 225, 225), (60, 60, 60)),
    "paper": ((248, 246, 238), (150, 180, 215)),
}
# Scattered marks: how many, and their radius in pixels; 0: blades of grass.
_SCATTERED = {
    "grass": (350, 0),
    "snow": (90, 5),
    "sand": (500, 2),
    "night": (90, 2),
}
# Marks in rows: the least distance of the rows in pixels, and the one after the greatest.
_ROW_STEPS = {
    "sea": (30, 40),
    "brick": (34, 42),
    "chess": (50, 64),
    "paper": (26, 34),
}
# Pixels; half a cell is 37.
_RADIUS = {"small": 15.0, "medium": 23.0, "large": 34.0}
# Tells a green thing from the grass.
_RIM: Colour = (250, 250, 250)
_RIM_WIDTH = 3
_N_POINTS = 60  # of a round outline


def render(scene: Scene, generator: Generator) -> Image.Image:
    """Render a scene as an RGB image of ``SIDE`` x ``SIDE`` pixels, with light and noise."""
    image = _backdrop(scene.setting, generator)
    pen = ImageDraw.Draw(image)
    cell_side = image.width / GRID
    for thing in scene.things:
        _draw_thing(pen, thing, cell_side, generator)

    pixels = np.asarray(image.reduce(_OVERSAMPLING), np.float32)
    # Light falls from one side and from above or below.
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    horizontal_light = generator.uniform(-0.12, 0.12) * ramp[None, :]
    vertical_light = generator.uniform(-0.12, 0.12) * ramp[:, None]
    light = 1 + horizontal_light + vertical_light
    noise = generator.integers(-5, 6, (SIDE, SIDE, 1))
    lit_pixels = np.clip(pixels * light[..., None] + noise, 0, 255)
    return Image.fromarray(lit_pixels.astype(np.uint8))


def _draw_thing(
    pen: ImageDraw.ImageDraw,
    thing: Thing,
    cell_side: float,
    generator: Generator,
) -> None:
    """Draw a thing near the centre of its cell, turned a little."""
    cell = np.array([thing.col, thing.row])
    shift = generator.uniform(-0.03, 0.03, 2)
    centre = (cell + 0.5 + shift) * cell_side
    radius = _RADIUS[thing.size] * generator.uniform(0.94, 1.06) * _OVERSAMPLING
    angle = generator.uniform(-0.15, 0.15)
    colour = _jittered(_RGB[thing.colour], 12, generator)
    if thing.kind == "ring":
        _draw_ring(pen, centre, radius, colour)
        return

    cosine = np.cos(angle)
    sine = np.sin(angle)
    rotation = np.array([[cosine, sine], [-sine, cosine]])
    corners = _outline(thing.kind) @ rotation * radius + centre
    points = [(float(x), float(y)) for x, y in corners]
    pen.polygon(points, fill=colour)
    pen.line([*points, points[0]], fill=_RIM, width=_RIM_WIDTH)


def _draw_ring(
    pen: ImageDraw.ImageDraw,
    centre: np.ndarray,
    radius: float,
    colour: Colour,
) -> None:
    """Draw a ring in the rim's colour, and within it a narrower one in its own."""
    thickness = int(0.45 * radius)
    _draw_circle(pen, centre, radius, _RIM, thickness)
    _draw_circle(pen, centre, radius - _RIM_WIDTH, colour, thickness - 2 * _RIM_WIDTH)


def _draw_circle(
    pen: ImageDraw.ImageDraw,
    centre: np.ndarray,
    radius: float,
    colour: Colour,
    width: int,
) -> None:
    box = [*(centre - radius), *(centre + radius)]
    pen.ellipse(box, outline=colour, width=width)


@cache
def _outline(kind: str) -> np.ndarray:
    """Return the corners of a kind of thing, but of the ring: float64 ``[n, 2]``.

    They lie within a radius of about 1, y downwards.
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
        # The usual heart curve, a sixteenth of its size.
        height = (
            13 * np.cos(angles)
            - 5 * np.cos(2 * angles)
            - 2 * np.cos(3 * angles)
            - np.cos(4 * angles)
        )
        return np.stack([np.sin(angles) ** 3, -height / 16], 1)
    if kind == "moon":
        return _moon_outline()
    if kind == "cross":
        return _cross_outline()
    corners = {
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
        "diamond": [(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)],
    }
    return np.array(corners[kind], float)


def _polar_outline(angles: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return points by angle, clockwise from the top, and distance from the centre."""
    x = radii * np.sin(angles)
    y = -radii * np.cos(angles)
    return np.stack([x, y], 1)


def _cross_outline() -> np.ndarray:
    """Return four arms, each the one before turned by a right angle."""
    arm = np.array([(-0.34, -0.34), (-0.34, -1), (0.34, -1)])
    quarter_turn = np.array([(0, 1), (-1, 0)])
    arms = []
    for n_turns in range(4):
        rotation = np.linalg.matrix_power(quarter_turn, n_turns)
        arms.append(arm @ rotation)
    return np.concatenate(arms)


def _moon_outline() -> np.ndarray:
    """Return two arcs with the same ends."""
    arc = np.linspace(-1, 1, 30)
    back_angles = 0.7 * np.pi * arc
    back = np.stack([-np.cos(back_angles), np.sin(back_angles)], 1)
    front_angles = np.pi / 2 * arc
    front_x = 0.588 - 0.95 * np.cos(front_angles)
    front_y = 0.809 * np.sin(front_angles)
    front = np.stack([front_x, front_y], 1)
    return np.concatenate([back, front[::-1]])


def _backdrop(setting: str, generator: Generator) -> Image.Image:
    """Draw a setting, ``_OVERSAMPLING`` times too large: marks of one colour on another."""
    ground_rgb, mark_rgb = _BACKDROPS[setting]
    ground = _jittered(ground_rgb, 8, generator)
    mark = _jittered(mark_rgb, 8, generator)
    image = Image.new("RGB", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING), ground)
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
    pen = ImageDraw.Draw(image)
    n_marks, radius = _SCATTERED[setting]
    origins = generator.integers(0, image.width, (n_marks, 2))
    for x, y in origins.tolist():
        if radius:
            box = [x - radius, y - radius, x + radius, y + radius]
            pen.ellipse(box, fill=colour)
        else:
            blade = [x, y, x + 5, y - 18]
            pen.line(blade, fill=colour, width=3)


def _draw_rows(
    image: Image.Image,
    setting: str,
    colour: Colour,
    generator: Generator,
) -> None:
    """Draw waves, bricks, squares or lines, row by row."""
    pen = ImageDraw.Draw(image)
    image_side = image.width
    step = int(generator.integers(*_ROW_STEPS[setting]))
    for row, y in enumerate(range(0, image_side, step)):
        # Every other row of bricks and squares is shifted by one step.
        shifted_xs = range(step * (row % 2), image_side, 2 * step)
        if setting == "sea":
            phase = generator.uniform(0, 2 * np.pi)
            wave = _wave(image_side, y, phase)
            pen.line(wave, fill=colour, width=4)
        elif setting == "chess":
            for x in shifted_xs:
                square = [x, y, x + step - 1, y + step - 1]
                pen.rectangle(square, fill=colour)
        else:
            pen.line([0, y, image_side, y], fill=colour, width=4)
        if setting == "brick":
            for x in shifted_xs:
                pen.line([x, y, x, y + step], fill=colour, width=4)


def _wave(width: int, y: int, phase: float) -> list[float]:
    """Return the points of a wave over a width, x and y in turn."""
    xs = np.arange(0, width + 8, 8)
    ys = y + 6 * np.sin(xs / 16 + phase)
    points: list[float] = np.stack([xs, ys], 1).ravel().tolist()
    return points


def _jittered(
    rgb: Colour,
    max_change: int,
    generator: Generator,
) -> Colour:
    """Change each channel of a colour by up to ``max_change``."""
    changes = generator.integers(-max_change, max_change + 1, 3)
    changed = np.array(rgb) + changes
    red, green, blue = changed.clip(0, 255).tolist()
    return red, green, blue
