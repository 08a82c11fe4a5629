"""The image-caption pairs of a tar."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from cusa.data.errors import CusaError, SettingError
from cusa.data.parsing import parse_json
from cusa.data.record import Record
from cusa.data.record_columns import Records
from cusa.data.tars.samples import (
    FileState,
    TarError,
    TarMember,
    TarSample,
    read_samples,
    state_of_file,
)
from cusa.data.tars.units import UNIT_SUFFIXES

# In the order of preference, as a sample may have several.
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tiff", "tif", "ppm", "jxl", "avif")
TEXT_CAPTIONS = "txt"
# A longer file is not a caption, and would fill the memory.
_MAX_CAPTION_BYTES = 1 << 24
_JSON_PREFIX = "json:"


@dataclass(frozen=True)
class TarPairs:
    """The image-caption pairs of a tar.

    Attributes:
        name: The tar's name without ``.tar``.
        path: The tar.
        state: Its length in bytes and time of modification, as :func:`state_of_file` returns them.
        sha256: sha256 (hex) of all of its bytes.
        caption_rule: Where captions are, as in :class:`cusa.data.tars.pair_files.PairFile`.
        is_complete: Whether the tar is whole, so that no sample is missing.
        records: A record for each image, in the tar's order.
        image_offsets: int64 ``[n_images]``, the byte of the tar at which each image begins.
        image_sizes: int64 ``[n_images]``, the length of each image in bytes.
        left_out: (key, reason) of each sample that is not a pair.
    """

    name: str
    path: Path
    state: FileState
    sha256: str
    caption_rule: str
    is_complete: bool
    records: Records
    image_offsets: np.ndarray
    image_sizes: np.ndarray
    left_out: tuple[tuple[str, str], ...]

    @property
    def n_bytes(self) -> int:
        """Return the tar's length."""
        return self.state[0]

    def require_unchanged(
        self,
        state: FileState,
    ) -> None:
        """Refuse the tar if it is in another state than when its pairs were read.

        Raises:
            TarError: If it is.
        """
        if state != self.state:
            raise TarError(
                f"tar {self.path} was changed while it was read; run the same command again when "
                "it is complete",
                path=self.path,
                name=self.name,
            )


def read_pairs_of_tar(
    tar_path: Path,
    caption_rule: str,
    may_be_damaged: bool,
) -> TarPairs:
    """Read the captions of a tar, and where its images are.

    Args:
        tar_path: An uncompressed tar.
        caption_rule: Where captions are, as in :func:`caption_reader`.
        may_be_damaged: Whether the whole samples of a damaged tar are returned.

    Raises:
        TarError: If the tar cannot be read, or is damaged and may not be.
        SettingError: If the caption rule is not legal.
    """
    read_captions = caption_reader(caption_rule)
    contents = read_samples(tar_path)
    if contents.damage is not None and not may_be_damaged:
        raise contents.damage

    collected = _Pairs(name_of_tar(tar_path), left_out=list(contents.unusable.items()))
    with tar_path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        read_member = _member_reader(file)
        for sample in contents.samples:
            collected.add_or_leave_out(sample, partial(read_captions, sample, read_member))
        state = state_of_file(file.fileno())
    pairs = TarPairs(
        name=collected.tar,
        path=tar_path,
        state=state,
        sha256=sha256,
        caption_rule=caption_rule,
        is_complete=contents.damage is None,
        records=Records.from_records(collected.records),
        image_offsets=collected.image_column("offset"),
        image_sizes=collected.image_column("size"),
        left_out=tuple(collected.left_out),
    )
    pairs.require_unchanged(contents.state)
    return pairs


@dataclass(frozen=True)
class _Pairs:
    """The pairs of a tar, as they are read."""

    tar: str
    records: list[Record] = field(default_factory=list)
    images: list[TarMember] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def add_or_leave_out(
        self,
        sample: TarSample,
        read_captions: Callable[[], Sequence[str]],
    ) -> None:
        """Add the image of a sample with its captions, or note why it is no pair."""
        try:
            self._add(sample, _image_of(sample), read_captions())
        except CusaError as error:
            self.left_out.append((sample.key, str(error)))

    def image_column(self, attribute: str) -> np.ndarray:
        """Return an attribute of all images: int64 ``[n_images]``."""
        return np.fromiter(map(attrgetter(attribute), self.images), np.int64)

    def _add(
        self,
        sample: TarSample,
        image: TarMember,
        captions: Sequence[str],
    ) -> None:
        image_id = f"{self.tar}/{sample.key}"
        self.images.append(image)
        self.records.append(
            Record(
                image_id=image_id,
                image_path=f"{self.tar}.tar/{image.name}",
                captions=tuple(captions),
                caption_ids=tuple(f"{image_id}#{number}" for number in range(len(captions))),
            )
        )


def name_of_tar(tar_path: Path) -> str:
    """Return a tar's name without ``.tar``, or that of a Parquet file without ``.parquet``."""
    if tar_path.suffix in UNIT_SUFFIXES:
        return tar_path.stem
    return tar_path.name


def _image_of(sample: TarSample) -> TarMember:
    for extension in IMAGE_EXTENSIONS:
        if extension in sample.members:
            return sample.members[extension]
    raise TarError(f"sample {sample.key!r} has no image", name=sample.key)


# --- captions

ReadMember = Callable[[TarMember], bytes]
ReadCaptions = Callable[[TarSample, ReadMember], list[str]]


def caption_reader(rule: str) -> ReadCaptions:
    """Return the function that reads the captions of a sample.

    Args:
        rule: ``"txt"``: the sample's file ``.txt`` is the caption. ``"json:FIELD"``: a field of its
            file ``.json``, a text or a list of texts.

    Raises:
        SettingError: If the rule is another one.
    """
    json_field = rule.removeprefix(_JSON_PREFIX)
    if rule.startswith(_JSON_PREFIX) and json_field:
        return partial(_captions_of_json, json_field)
    if rule == TEXT_CAPTIONS:
        return _caption_of_text
    raise SettingError(
        f"--caption {rule!r}: of tars, legal are txt and json:FIELD, such as json:caption",
        name="caption",
    )


def _caption_of_text(
    sample: TarSample,
    read_member: ReadMember,
) -> list[str]:
    if "txt" not in sample.members:
        raise TarError(f"sample {sample.key!r} has no file .txt", name=sample.key)
    text = _decoded(read_member(sample.members["txt"]), sample.key)
    return captions_with_words([text], sample.key)


def _captions_of_json(
    json_field: str,
    sample: TarSample,
    read_member: ReadMember,
) -> list[str]:
    if "json" not in sample.members:
        raise TarError(f"sample {sample.key!r} has no file .json", name=sample.key)
    member = sample.members["json"]
    content = parse_json(_decoded(read_member(member), sample.key), Path(member.name))
    value: Any = None
    if isinstance(content, dict):
        value = content.get(json_field)
    captions = value
    if not isinstance(value, list):
        captions = [value]
    if not captions or not all(isinstance(caption, str) for caption in captions):
        message = f"field {json_field!r} of the .json of sample {sample.key!r} is no caption"
        raise TarError(message, name=sample.key)
    return captions_with_words(captions, sample.key)


def captions_with_words(captions: Sequence[str], sample_key: str) -> list[str]:
    """Return the captions without the space around them, and without blank ones.

    Raises:
        TarError: If none has words, or one holds a NUL.
    """
    with_words = list(filter(None, map(str.strip, captions)))
    if not with_words:
        raise TarError(f"the caption of sample {sample_key!r} is blank", name=sample_key)
    if any("\0" in caption for caption in with_words):
        raise TarError(f"the caption of sample {sample_key!r} holds a NUL", name=sample_key)
    return with_words


def _decoded(
    content: bytes,
    sample_key: str,
) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        message = f"the caption of sample {sample_key!r} is not UTF-8"
        raise TarError(message, name=sample_key) from None


def _member_reader(file: BufferedReader) -> ReadMember:
    """Return a function that reads a member of an open tar."""

    def read(member: TarMember) -> bytes:
        if member.size > _MAX_CAPTION_BYTES:
            message = f"{member.name!r} has {member.size:,} bytes, which is too long for a caption"
            raise TarError(message, name=member.name)
        file.seek(member.offset)
        # A tar that has become shorter meanwhile is refused afterwards.
        return file.read(member.size)

    return read
