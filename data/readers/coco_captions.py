"""COCO's own caption files, such as ``captions_val2017.json``: images, and their annotations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cusa.data.errors import FileFormatError
from cusa.data.parsing import described
from cusa.data.readers.columns import refuse_columns
from cusa.data.readers.forms import AnnotationRow, Annotations, Entry, Form, Source

LOCATION_FORMAT = "annotations[{}]"


def _is_of_form(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    return isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list)


def _read(content: dict[str, Any], source: Source) -> Annotations:
    refuse_columns(source.columns, FORM.description, source.path)
    rows = _rows(content, source, source.required_split())
    return Annotations(source.path.stem, LOCATION_FORMAT, rows)


def _rows(
    content: dict[str, Any],
    source: Source,
    split: str,
) -> Iterator[AnnotationRow]:
    image_paths = _image_paths(content["images"], source)
    captioned: set[str] = set()
    for number, fields in enumerate(content["annotations"]):
        annotation = Entry(fields, source.path, LOCATION_FORMAT.format(number))
        image_id = annotation.identifier("image_id")
        if image_id not in image_paths:
            problem = f"'images' has no image with the id {described(image_id)}"
            annotation.refuse(f"{problem}; is this COCO's own file?", "image_id")
        if "caption" not in annotation:
            annotation.refuse("has no caption; pass COCO's captions_SPLIT.json", "caption")
        captioned.add(image_id)
        caption_id = annotation.identifier("id")
        yield AnnotationRow(
            split=split,
            image_path=image_paths[image_id],
            image_id=image_id,
            captions=(annotation.caption("caption"),),
            caption_ids=() if caption_id is None else (caption_id,),
            number=number,
        )

    # Without this check, an image without a caption would be dropped silently.
    for image_id, image_path in image_paths.items():
        if image_id not in captioned:
            raise FileFormatError(
                f"{source.path}: image {described(image_id)} ({described(image_path)}) has no "
                "caption; remove it or caption it",
                path=source.path,
                name=image_id,
            )


def _image_paths(images: Sequence[Any], source: Source) -> dict[str, str]:
    """Return the path of each image by its id, relative to the image root."""
    paths: dict[str, str] = {}
    prefix = ""
    for number, fields in enumerate(images):
        image = Entry(fields, source.path, f"images[{number}]")
        file_name = image.text("file_name")
        image_id = image.identifier("id")
        # All images of a file are in one folder, so the first one settles it.
        if number == 0:
            url = image.optional_text("coco_url")
            prefix = _folder_prefix(file_name, url, source.image_folders)
        if image_id is None:
            image.refuse("has no id; give each image its own", "id")
        if image_id in paths:
            problem = f"has the same id {described(image_id)} as another image"
            image.refuse(f"{problem}; give each image its own", "id")
        paths[image_id] = prefix + file_name
    return paths


def _folder_prefix(
    file_name: str,
    url: str | None,
    image_folders: Sequence[Path],
) -> str:
    """Return ``"val2017/"`` if the images are in the folder that their URL names, else ``""``.

    The file names have no folder, but COCO's archives unpack to one folder per split.
    """
    if url is None or _is_in(file_name, image_folders):
        return ""
    prefix = f"{PurePosixPath(url).parent.name}/"
    if _is_in(prefix + file_name, image_folders):
        return prefix
    return ""


def _is_in(name: str, folders: Sequence[Path]) -> bool:
    return any(os.path.isfile(folder / name) for folder in folders)


FORM = Form(
    'COCO\'s own {"images": [{id, file_name}], "annotations": [{image_id, caption}]}',
    _is_of_form,
    _read,
)
