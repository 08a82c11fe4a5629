"""Samples of a WebDataset tar: consecutive files with equal keys, grouped as webdataset does."""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from cusa.data.errors import DataError, first_line

# The key of a file is its path up to the first dot of its name; the rest is the extension.
_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
# Files and folders that describe the tar, such as "__meta__/index.json".
_ABOUT_THE_TAR = re.compile(r"__[^/]*__($|/)")
_BLOCK = tarfile.BLOCKSIZE
# Bytes; the longest header that a writer of samples makes is a path in a block of its own.
_LONGEST_HEADER = 1 << 20
# Length in bytes, and time of modification in ns.
FileState = tuple[int, int]
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
        state: The state of the file, for whoever opens it again.
    """

    samples: tuple[TarSample, ...]
    unusable: Mapping[str, str]
    damage: TarError | None
    state: FileState


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
    unusable: dict[str, str] = {}
    last_key = None
    for member in reader.members():
        match = _KEY_AND_EXTENSION.fullmatch(member.name)
        if match is None:
            continue
        sample_key = match[1]
        extension = match[2].lower()
        if sample_key != last_key and sample_key in samples:
            unusable.setdefault(sample_key, "there are two samples with its key")
        last_key = sample_key
        sample = samples.setdefault(sample_key, TarSample(sample_key))
        if extension in sample.members:
            unusable.setdefault(sample_key, f"it has two files .{extension}")
        sample.members[extension] = member

    # It is unknown which files of a repeated key belong together.
    usable = tuple(sample for sample_key, sample in samples.items() if sample_key not in unusable)
    damage = reader.damage
    if unusable:
        sample_key, reason = next(iter(unusable.items()))
        damage = TarError(
            f"tar {tar_path}, sample {sample_key!r}: {reason}; give each sample a key of its own",
            path=tar_path,
            name=sample_key,
        )
    return TarContents(usable, unusable, damage, reader.state)


def state_of_file(file: int | Path) -> FileState:
    """Return the state of an open file, given its descriptor, or of the file at a path."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


class _HeaderReader:
    """Reads the headers of a tar.

    Args:
        tar_path: The tar.

    Attributes:
        damage: What is wrong with the tar, as far as it has been read.
        state: The state of the file when it was opened.
    """

    def __init__(
        self,
        tar_path: Path,
    ) -> None:
        self._tar_path = tar_path
        self.damage: TarError | None = None
        self.state: FileState = (0, 0)

    def members(self) -> Iterator[TarMember]:
        """Yield the regular files of the tar whose content is whole."""
        try:
            # Opening a pipe would wait for somebody to write into it.
            if not stat.S_ISREG(self._tar_path.stat().st_mode):
                message = f"tar {self._tar_path} is not a file; check the path"
                raise TarError(message, path=self._tar_path)
            with self._tar_path.open("rb") as file:
                self.state = state_of_file(file.fileno())
                yield from self._members_of_file(file, self.state[0])
        except TarError:
            raise
        except FileNotFoundError:
            message = f"tar {self._tar_path} does not exist; check the path"
            raise TarError(message, path=self._tar_path) from None
        except OSError as error:
            message = f"tar {self._tar_path} cannot be read ({error.strerror}); check the disk"
            raise TarError(message, path=self._tar_path) from None
        except Exception as error:
            # tarfile raises nearly anything on a header that is none.
            message = f"{self._tar_path} is not a tar ({first_line(error)}); download it again"
            raise TarError(message, path=self._tar_path) from None

    def _members_of_file(
        self,
        file: BufferedReader,
        n_bytes: int,
    ) -> Iterator[TarMember]:
        self._refuse_compressed(file.read(len(_GZIP)))
        file.seek(0)
        # Keys must not depend on the locale, so the encoding of names is given.
        headers: Any = _HeaderFile(file)
        with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8") as tar:
            yield from self._members_of_tar(tar, n_bytes)
            end = tar.offset
        if self.damage is None:
            file.seek(end)
            self._check_end(file.read(_BLOCK), end, n_bytes)

    def _members_of_tar(
        self,
        tar: tarfile.TarFile,
        n_bytes: int,
    ) -> Iterator[TarMember]:
        while True:
            try:
                header = tar.next()
            except OSError:
                raise
            except Exception as error:
                if tar.offset == 0:
                    raise
                self._set_damage(f"is damaged after byte {tar.offset:,} ({first_line(error)})")
                return
            if header is None:
                return
            # Otherwise tarfile would keep every header in memory.
            tar.members = []  # type: ignore[attr-defined]
            # A damaged size may be negative, and would lead tarfile round in a circle.
            if not header.offset_data <= tar.offset < n_bytes + _BLOCK:
                self._set_damage(f"is damaged or cut off within {header.name!r}")
                return
            if not header.isreg() or _ABOUT_THE_TAR.match(header.name):
                continue
            if header.issparse() or not _is_unicode(header.name):
                # No writer of samples makes such files.
                self._set_damage(f"has a file that cannot be read, {header.name!a}")
                continue
            if header.offset_data + header.size > n_bytes:
                self._set_damage(f"is cut off within {header.name!r}")
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


class _HeaderFile:
    """A tar as tarfile reads its headers: no more at a time than a header's length.

    tarfile would allocate as many bytes as a damaged header says that it has.

    Args:
        file: The tar.
    """

    def __init__(
        self,
        file: BufferedReader,
    ) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(
        self,
        n_bytes: int,
    ) -> bytes:
        """Read some bytes, at most those of the longest header."""
        return self._file.read(max(0, min(n_bytes, _LONGEST_HEADER)))


def _is_unicode(name: str) -> bool:
    """Return whether a name is UTF-8; tarfile decodes other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name
