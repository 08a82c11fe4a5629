"""The scenes of the demo data set as pictures."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from cusa.data.demo_set.world import Scene, Thing

SIDE = 224  # pixels
_OVERSAMPLING = 2  # drawn larger and reduced, for clean edges
_RGB = {
    **{
        "red": (214, 40, 40),
        "orange": (245, 130, 32),
        "yellow": (250, 210, 50),
        "green": (40, 150, 70),
    },
    **{
        "blue": (45, 110, 225),
        "purple": (130, 60, 180),
        "pink": (245, 130, 180),
        "brown": (130, 80, 45),
    },
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
_RADIUS = {"small": 15.0, "medium": 23.0, "large": 34.0}  # pixels; half a cell is 37


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The scene as an RGB image of ``SIDE`` x ``SIDE`` pixels, with light and noise of its own."""
    image = _backdrop(scene.setting, rng)
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(pen, thing, image.width / 3, rng)
    pixels = np.asarray(image.reduce(_OVERSAMPLING), np.float32)
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    light = 1 + rng.uniform(-0.12, 0.12) * ramp[None, :] + rng.uniform(-0.12, 0.12) * ramp[:, None]
    noise = rng.integers(-5, 6, (SIDE, SIDE, 1))
    return Image.fromarray(np.clip(pixels * light[..., None] + noise, 0, 255).astype(np.uint8))


def _draw_thing(
    pen: ImageDraw.ImageDraw, thing: Thing, cell: float, rng: np.random.Generator
) -> None:
    x, y = (np.array([thing.col, thing.row]) + 0.5 + rng.uniform(-0.03, 0.03, 2)) * cell
    radius = _RADIUS[thing.size] * rng.uniform(0.94, 1.06) * _OVERSAMPLING
    turn = rng.uniform(-0.15, 0.15)
    colour = _jittered(_RGB[thing.colour], 12, rng)
    rim, rim_width = (250, 250, 250), 3  # tells a green thing from the grass
    if thing.kind == "ring":
        thickness = int(0.45 * radius)
        for r, fill, width in (
            (radius, rim, thickness),
            (radius - rim_width, colour, thickness - 2 * rim_width),
        ):
            pen.ellipse([x - r, y - r, x + r, y + r], outline=fill, width=width)
        return
    turned = _outline(thing.kind) @ np.array(
        [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    )
    points = [(float(px), float(py)) for px, py in turned * radius + (x, y)]
    pen.polygon(points, fill=colour)
    pen.line([*points, points[0]], fill=rim, width=rim_width)


@cache
def _outline(kind: str) -> np.ndarray:
    """float64 ``[n, 2]``: the corners of a kind of thing (all but the ring) within a radius of about 1, y downwards."""
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    if kind in ("circle", "flower", "star"):
        radius = {
            "circle": np.ones(60),
            "flower": 0.5 + 0.55 * abs(np.cos(2.5 * turn)),
            "star": np.ones(60),
        }[kind]
        if kind == "star":
            turn, radius = np.arange(10) * np.pi / 5, np.tile([1.1, 0.45], 5)
        return np.stack([radius * np.sin(turn), -radius * np.cos(turn)], 1)
    if kind == "heart":
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([np.sin(turn) ** 3, -y / 16], 1)
    if kind == "moon":  # two arcs with the same ends
        arc = np.linspace(-1, 1, 30)
        back = np.stack([-np.cos(0.7 * np.pi * arc), np.sin(0.7 * np.pi * arc)], 1)
        front = np.stack(
            [0.588 - 0.95 * np.cos(np.pi / 2 * arc), 0.809 * np.sin(np.pi / 2 * arc)], 1
        )
        return np.concatenate([back, front[::-1]])
    if kind == "cross":
        arm = np.array([(-0.34, -0.34), (-0.34, -1), (0.34, -1)])
        quarter = np.array([(0, 1), (-1, 0)])  # the same arm, turned
        return np.concatenate([arm @ np.linalg.matrix_power(quarter, k) for k in range(4)])
    corners = {
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
        "diamond": [(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)],
    }
    return np.array(corners[kind], float)


def _backdrop(setting: str, rng: np.random.Generator) -> Image.Image:
    """The setting, ``_OVERSAMPLING`` times too large: marks of one colour on another."""
    side = SIDE * _OVERSAMPLING
    base, mark = (_jittered(rgb, 8, rng) for rgb in _BACKDROPS[setting])
    image = Image.new("RGB", (side, side), base)
    pen = ImageDraw.Draw(image)
    if setting in ("grass", "snow", "sand", "night"):  # scattered blades or grains
        n, radius = {"grass": (350, 0), "snow": (90, 5), "sand": (500, 2), "night": (90, 2)}[
            setting
        ]
        for x, y in rng.integers(0, side, (n, 2)).tolist():
            if radius:
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=mark)
            else:
                pen.line([x, y, x + 5, y - 18], fill=mark, width=3)
        return image
    step = int(
        rng.integers(
            *{"sea": (30, 40), "brick": (34, 42), "chess": (50, 64), "paper": (26, 34)}[setting]
        )
    )
    for row, y in enumerate(range(0, side, step)):
        if setting == "sea":
            xs = np.arange(0, side + 8, 8)
            ys = y + 6 * np.sin(xs / 16 + rng.uniform(0, 2 * np.pi))
            pen.line(np.stack([xs, ys], 1).ravel().tolist(), fill=mark, width=4)
        elif setting == "chess":
            for x in range(step * (row % 2), side, 2 * step):
                pen.rectangle([x, y, x + step - 1, y + step - 1], fill=mark)
        else:
            pen.line([0, y, side, y], fill=mark, width=4)
            for x in range(step * (row % 2), side, 2 * step) if setting == "brick" else ():
                pen.line([x, y, x, y + step], fill=mark, width=4)
    return image


def _jittered(rgb: tuple[int, int, int], by: int, rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (np.array(rgb) + rng.integers(-by, by + 1, 3)).clip(0, 255).tolist()
    return red, green, blue
