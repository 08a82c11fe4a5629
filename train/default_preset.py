"""The preset of a run that names none."""

from __future__ import annotations

from pathlib import Path

from cusa.train.student_config import ADAPTER, StudentConfig


def preset_of_student(
    dataset: str,
    name: str | None,
    student: StudentConfig,
) -> str:
    """Name the preset of a data set and the student that settings describe.

    Args:
        dataset: Name of the data set.
        name: ``student.name``; ``None`` if it was not given.
        student: The student's settings that were given.
    """
    if student.is_adapter:
        return default_preset(dataset, ADAPTER)
    if student.image is not None or student.text is not None:
        return "towers"
    return default_preset(dataset, name)


def default_preset(dataset: str, student: str | None) -> str:
    """Name the preset of a data set and a student.

    Args:
        dataset: Name of the data set.
        student: ``"adapter"``, or a Hugging Face dual encoder; ``None`` if none was given.
    """
    if dataset == "demo" and student in (ADAPTER, None):
        return "demo"
    if student == ADAPTER:
        return ADAPTER
    model_size = "vit-b32"
    if student is not None and Path(student).name == "clip-vit-large-patch14-336":
        model_size = "vit-l14-336"
    published_dataset = "coco"
    if dataset == "flickr30k":
        published_dataset = "flickr"
    return f"paper-{published_dataset}-{model_size}"
