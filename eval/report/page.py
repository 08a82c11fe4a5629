"""HTML pages that open anywhere: they hold their pictures and ask for nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from cusa.data.errors import CusaError
from cusa.data.files import atomic_file
from cusa.data.images import load_image

THUMBNAIL = 176  # longer side, in pixels


def write_page(path: Path, template: str, images: Iterable[Path], **values: Any) -> int:
    """Render a template of this room that extends ``page.html.jinja``.

    Args:
        path: The HTML file; replaced as a whole.
        template: The template's file name.
        images: Image files that the page may show; one that cannot be read is shown as its name, and counted.
        **values: What the template asks for.

    Returns:
        How many of the images could not be read.
    """
    numbers = {image: i for i, image in enumerate(dict.fromkeys(images))}
    thumbnails = {i: uri for image, i in numbers.items() if (uri := thumbnail(image))}
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(
        pictures={image: i for image, i in numbers.items() if i in thumbnails},
        thumbnails=thumbnails,
        unreadable=len(numbers) - len(thumbnails),
        **values,
    )
    with atomic_file(path) as temporary:
        temporary.write_bytes(
            html.encode("utf-8", "replace")
        )  # an odd file name may hold lone surrogates
    return len(numbers) - len(thumbnails)


def thumbnail(path: Path) -> str | None:
    """The image as a JPEG data URI, at most ``THUMBNAIL`` pixels wide and high; ``None`` if it cannot be read."""
    try:
        image = load_image(path).convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
    except (CusaError, OSError, ValueError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _source(template: str) -> str:
    return resources.files("cusa.eval.report").joinpath(template).read_text("utf-8")
