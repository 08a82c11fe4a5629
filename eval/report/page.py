"""Self-contained HTML pages: they embed their pictures, and load nothing else."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2

from cusa.data.errors import CusaError
from cusa.data.files import atomic_file
from cusa.data.images import load_image

# Longer side of a thumbnail, in pixels.
THUMBNAIL_SIZE = 176
_JPEG_QUALITY = 80


def write_page(path: Path, template: str, image_paths: Iterable[Path], **values: Any) -> int:
    """Render a template of this room that extends ``page.html.jinja``.

    Args:
        path: The HTML file, which is written atomically.
        template: File name of the template.
        image_paths: Image files that the page shows; a name replaces one that cannot be read.
        **values: The template's variables.

    Returns:
        The number of images that could not be read.
    """
    # The style sheet holds each picture once, under a number that the page refers to.
    pictures: dict[Path, int] = {}
    thumbnails: dict[int, str] = {}
    different_paths = list(dict.fromkeys(image_paths))
    for number, image_path in enumerate(different_paths):
        data_uri = thumbnail(image_path)
        if data_uri is not None:
            pictures[image_path] = number
            thumbnails[number] = data_uri
    n_unreadable = len(different_paths) - len(pictures)

    page = _environment().get_template(template)
    html = page.render(pictures=pictures, thumbnails=thumbnails, unreadable=n_unreadable, **values)
    # File names may hold lone surrogates, which UTF-8 cannot encode.
    with atomic_file(path) as temporary:
        temporary.write_text(html, "utf-8", "replace")
    return n_unreadable


@functools.cache
def _environment() -> jinja2.Environment:
    """Return the environment of this room's templates, which keeps those that it has compiled."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("cusa.eval.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def thumbnail(path: Path) -> str | None:
    """Make a thumbnail of an image.

    Returns:
        A JPEG data URI, at most ``THUMBNAIL_SIZE`` pixels wide and high; ``None`` if the image
        cannot be read.
    """
    try:
        image = load_image(path).convert("RGB")
        image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    except (CusaError, OSError, ValueError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
