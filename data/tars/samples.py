"""Samples of a WebDataset tar: consecutive files with equal keys, grouped as webdataset does."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cusa.data.errors import DataError, first_line

# The key of a file is its path up to the first dot of its name; the rest is the extension.
_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
# Files and folders that describe the tar, such as "__index__.json".
_ABOUT_THE_TAR = re.compile(r"__[^/]*__($|/)")
_BLOCK = tarfile.BLOCKSIZE
_GZIP = b"\x1f\x8b"


class TarError(DataError):
    """A tar is missing, damaged or no tar; ``name`` is the key at fault, if there is one."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file within a tar.

    Attributes:
        name: Its path within the tar.
        offset: Byte of the tar at which its content begins.
        size: Length of its content in bytes.
    """

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TarSample:
    """The files of a tar that share a key.

    Attributes:
        key: What their paths have in common, up to the first dot of the name.
        members: The files by extension, in lower case and without the first dot.
    """

    key: str
    members: dict[str, TarMember] = field(default_factory=dict)


@dataclass(frozen=True)
class TarContents:
    """The samples of a tar.

    Attributes:
        samples: The samples in the tar's order, without those that are cut off or repeated.
        unusable: Why samples cannot be used, by their key: several have it, or a sample has two
            files of an extension.
        damage: What is wrong with the tar, or ``None``.
    """

    samples: tuple[TarSample, ...]
    unusable: Mapping[str, TarError]
    damage: TarError | None


def read_samples(tar_path: Path) -> TarContents:
    """Read the headers of a tar and group its files into samples.

    Args:
        tar_path: An uncompressed tar.

    Raises:
        TarError: If there is no such file, or it is no tar from its first byte on. Damage further
            on is returned beside the samples before it.
    """
    reader = _HeaderReader(tar_path)
    samples: dict[str, TarSample] = {}
    unusable: dict[str, TarError] = {}
    last_key = None
    for member in reader.members():
        match = _KEY_AND_EXTENSION.fullmatch(member.name)
        if match is None:
            continue
        sample_key = match[1]
        extension = match[2].lower()
        if sample_key != last_key and sample_key in samples:
            unusable.setdefault(sample_key, _repeated(tar_path, sample_key, "samples"))
        last_key = sample_key
        sample = samples.setdefault(sample_key, TarSample(sample_key))
        if extension in sample.members:
            unusable.setdefault(sample_key, _repeated(tar_path, sample_key, f"files .{extension}"))
        sample.members[extension] = member

    # It is unknown which files of a repeated key belong together.
    usable = tuple(sample for sample_key, sample in samples.items() if sample_key not in unusable)
    damage = next(iter(unusable.values()), reader.damage)
    return TarContents(usable, unusable, damage)


class _HeaderReader:
    """Reads the headers of a tar.

    Args:
        tar_path: The tar.

    Attributes:
        damage: What is wrong with the tar, as far as it has been read.
    """

    def __init__(
        self,
        tar_path: Path,
    ) -> None:
        self._tar_path = tar_path
        self.damage: TarError | None = None

    def members(self) -> Iterator[TarMember]:
        """Yield the regular files of the tar whose content is whole."""
        try:
            n_bytes = self._tar_path.stat().st_size
            with self._tar_path.open("rb") as file:
                self._refuse_compressed(file.read(len(_GZIP)))
                file.seek(0)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    yield from self._members(tar, n_bytes)
                    end = tar.offset
                if self.damage is None:
                    file.seek(end)
                    self._check_end(file.read(_BLOCK), end, n_bytes)
        except FileNotFoundError:
            message = f"tar {self._tar_path} does not exist; check the path"
            raise TarError(message, path=self._tar_path) from None
        except tarfile.TarError as error:
            message = f"{self._tar_path} is not a tar ({first_line(error)}); download it again"
            raise TarError(message, path=self._tar_path) from None
        except OSError as error:
            message = f"tar {self._tar_path} cannot be read ({error.strerror}); check the disk"
            raise TarError(message, path=self._tar_path) from None

    def _members(
        self,
        tar: tarfile.TarFile,
        n_bytes: int,
    ) -> Iterator[TarMember]:
        while True:
            try:
                header = tar.next()
            except tarfile.TarError as error:
                if tar.offset == 0:
                    raise
                self._set_damage(f"is damaged after byte {tar.offset:,} ({first_line(error)})")
                return
            if header is None:
                return
            # Otherwise tarfile would keep every header in memory.
            tar.members = []  # type: ignore[attr-defined]
            if not header.isreg() or _ABOUT_THE_TAR.match(header.name):
                continue
            if header.issparse() or not _is_unicode(header.name):
                # No writer of samples makes such files.
                self._set_damage(f"has a file that cannot be read, {header.name!a}")
                continue
            if header.offset_data + header.size > n_bytes:
                self._set_damage(f"is cut off within {header.name}")
                return
            yield TarMember(header.name, header.offset_data, header.size)

    def _check_end(
        self,
        block: bytes,
        end: int,
        n_bytes: int,
    ) -> None:
        """Check that the headers end with a block of zeros, which is how a tar ends."""
        if end >= n_bytes:
            self._set_damage("has no end mark, so it may be cut off")
        elif block.strip(b"\0"):
            self._set_damage(f"is damaged after byte {end:,} (no header)")

    def _refuse_compressed(
        self,
        first_bytes: bytes,
    ) -> None:
        if first_bytes == _GZIP:
            raise TarError(
                f"tar {self._tar_path} is compressed, so its files cannot be read one by one; "
                "unpack it with gunzip",
                path=self._tar_path,
            )

    def _set_damage(
        self,
        problem: str,
    ) -> None:
        message = f"tar {self._tar_path} {problem}; download it again"
        self.damage = TarError(message, path=self._tar_path)


def _is_unicode(name: str) -> bool:
    """Return whether a name is UTF-8; tarfile decodes other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _repeated(
    tar_path: Path,
    sample_key: str,
    things: str,
) -> TarError:
    return TarError(
        f"tar {tar_path} has two {things} with the key {sample_key!r}; give each sample a key of "
        "its own",
        path=tar_path,
        name=sample_key,
    )
