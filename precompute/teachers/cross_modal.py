"""Cross-modal teachers by name: ``--teacher clip:MODEL`` asks for both halves of a dual encoder."""

from __future__ import annotations

import os
from pathlib import Path

from cusa.data.errors import TeacherError
from cusa.data.hub import is_hub_name
from cusa.data.store.cross_teachers import row_names
from cusa.data.store.schema import check_name, file_name
from cusa.precompute.teachers import HALVES, TeacherRequest, parse_teacher

# What the source of a dual encoder of any kind is written behind.
_PREFIXES = ("clip", "siglip")


def parse_teachers(text: str) -> list[TeacherRequest]:
    """Parse a ``--teacher`` option: one teacher, or both halves of a cross-modal one.

    ``clip:SOURCE``, ``siglip:SOURCE`` or ``NAME=clip:SOURCE``, with the folder or hub name of a
    dual encoder, ask for its image rows and its text rows.

    Raises:
        TeacherError: As :func:`parse_teacher` raises it.
        SettingError: If NAME is not legal.
    """
    name, equals, spec = text.partition("=")
    if not equals:
        name, spec = "", text
    prefix, colon, source = spec.partition(":")
    if not colon or prefix not in _PREFIXES:
        return [parse_teacher(text)]
    if not os.path.isdir(source) and not is_hub_name(source):
        raise TeacherError(
            f"--teacher {text}: {prefix}: is followed by the name of a dual encoder (owner/model) "
            f"or its folder, and {source!r} is neither",
            name=text,
        )
    cross_teacher = name or file_name(Path(source).name)
    check_name(cross_teacher)
    halves = []
    for half_name, kind in zip(row_names(cross_teacher), HALVES.values(), strict=True):
        halves.append(TeacherRequest(half_name, kind, source, cross_teacher))
    return halves
