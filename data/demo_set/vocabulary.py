"""The kinds, colours, sizes and settings of the demo data set, with the words for them."""

from __future__ import annotations

# For every value of an attribute, the words for it; a caption uses one of them.
KINDS = {
    "circle": "circle | disc | dot | ball",
    "square": "square | box | block",
    "triangle": "triangle | pyramid",
    "star": "star | five-pointed star",
    "ring": "ring | hoop | donut",
    "cross": "cross | plus sign",
    "heart": "heart | love heart",
    "diamond": "diamond | rhombus",
    "moon": "moon | crescent | half moon",
    "flower": "flower | blossom | daisy",
}
COLOURS = {
    "red": "red | crimson | scarlet",
    "orange": "orange | amber",
    "yellow": "yellow | golden",
    "green": "green | emerald",
    "blue": "blue | azure",
    "purple": "purple | violet",
    "pink": "pink | rose-coloured",
    "brown": "brown | chestnut",
}
SIZES = {
    "small": "small | little | tiny",
    "medium": "",
    "large": "large | big | huge",
}
SETTINGS = {
    "grass": "on the grass | on a lawn | on a green meadow",
    "sea": "on the sea | in the water | floating on the waves",
    "sand": "on the sand | at the beach | in the desert",
    "snow": "in the snow | on a snowy day | in winter",
    "night": "at night | in the night sky | in the dark",
    "brick": "on a brick wall | painted on bricks | in front of a brick wall",
    "chess": "on a chessboard | on a checkered floor | on checked tiles",
    "paper": "on lined paper | drawn in a notebook | on a sheet of paper",
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
