"""WebDataset tars, and the files of a set of them. webdataset says what a tar holds; whatever
carries a checksum is read as it was written, or refused.
"""

from __future__ import annotations

import hashlib
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from cusa.data.tars.manifest import MANIFEST
from cusa.data.tars.manifest_building import build_manifest
from cusa.data.tars.pair_files import pairs_path, read_pairs
from cusa.data.tars.pairs import IMAGE_EXTENSIONS, read_pairs_of_tar
from cusa.data.tars.tar_set import TarSet
from cusa.data.tars.verify import verify_set
from tests.data.tars.tar_files import pair, write_set, write_tar
from tests.fuzz.harness import Target
from tests.fuzz.mutations import BYTE_MUTATORS, Mutator, mutate_hdf5
from tests.fuzz.targets.stores import sealed_anew

Pairs = list[tuple[str, str, str]]  # key, sha256 of the picture, caption

# --- tars

_LONG_NAME = "long/" + "é" * 90
_BLOCK = tarfile.BLOCKSIZE
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)
_SIZES = (-512, -1, 0, 1, 511, 2**33, 2**62, 2**63, 2**80)


def _make_tar(folder: Path) -> Path:
    """Small pairs, one of them with a long name, as img2dataset would write them."""
    members = [*pair(1)[:2], (f"{_LONG_NAME}.PNG", b"picture"), (f"{_LONG_NAME}.txt", b"caption")]
    return write_tar(folder / "00000.tar", [*members, *pair(2)[:2]])


def _read_tar(path: Path) -> tuple[bool, Pairs]:
    """The pairs, and whether nothing is missing."""
    content = path.read_bytes()
    tar_pairs = read_pairs_of_tar(path, "txt", may_be_damaged=True)
    places = zip(tar_pairs.image_offsets.tolist(), tar_pairs.image_sizes.tolist(), strict=True)
    pairs = []
    for record, (start, size) in zip(tar_pairs.records, places, strict=True):
        digest = hashlib.sha256(content[start : start + size]).hexdigest()
        [caption] = record.captions
        pairs.append((record.image_id.removeprefix("00000/"), digest, caption))
    return tar_pairs.is_complete, pairs


def _tar_agrees(_: Any, value: tuple[bool, Pairs], path: Path) -> bool:
    """Of a damaged tar, less may be read than webdataset reads, and nothing else."""
    is_complete, pairs = value
    expected = _pairs_of_webdataset(path)
    if is_complete:
        return pairs == expected
    return set(pairs) <= set(expected)


def _pairs_of_webdataset(path: Path) -> Pairs:
    # Damage of the tar ends it; a file twice ends nothing but its sample.
    stop, go_on = webdataset.ignore_and_stop, webdataset.ignore_and_continue
    with path.open("rb") as file:
        source = [{"url": str(path), "stream": file}]
        files = tar_file_expander(source, handler=stop)
        samples = list(group_by_keys(files, handler=go_on))
    pairs: Pairs = []
    for sample in samples:
        extension = next(filter(sample.__contains__, IMAGE_EXTENSIONS), None)
        if extension is None or not _is_caption(sample.get("txt")):
            continue
        digest = hashlib.sha256(sample[extension]).hexdigest()
        caption = sample["txt"].decode("utf-8-sig").strip()
        pairs.append((sample["__key__"], digest, caption))
    return pairs


def _is_caption(text: bytes | None) -> bool:
    if text is None:
        return False
    try:
        caption = text.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return False
    return caption != "" and "\0" not in caption


def _mutate_header(content: bytes, rng: random.Random) -> bytes:
    """Change a header, and leave its checksum true."""
    starts = [start for start in range(0, len(content), _BLOCK) if _is_header(content, start)]
    start = rng.choice(starts)
    header = bytearray(content[start : start + _BLOCK])
    change = rng.randrange(4)
    if change == 0:
        header[_SIZE] = _number(rng.choice(_SIZES))
    elif change == 1:
        header[156] = rng.choice(b"0123456789LKSxgXVZ\0")
    elif change == 2:
        name = rng.choice((b"/abs.jpg", b"../up.txt", b"\xff.jpg", b".jpg", b"a", b"000001.txt"))
        header[:100] = name.ljust(100, b"\0")
    else:
        header[rng.randrange(_BLOCK)] = rng.randrange(256)
    header[_CHECKSUM] = b" " * 8
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    times = rng.choice((1, 1, 1, 1, 500))
    return content[:start] + bytes(header) * times + content[start + _BLOCK :]


def _is_header(content: bytes, start: int) -> bool:
    return content[start + 257 : start + 262] == b"ustar"


def _number(number: int) -> bytes:
    """A number of a header, as GNU tar writes those that octal digits have no room for."""
    marker = b"\x80" if number >= 0 else b"\xff"
    return marker + (number % 256**11).to_bytes(11, "big")


# --- the files of a set


def _make_set(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tars = []
        for number in range(2):
            members = [*pair(number), ("left.txt", b"no picture"), *pair(number + 2)]
            tars.append(write_tar(folder / "tars" / f"{number:05d}.tar", members))
        write_set(folder / "set", tars)
        return folder / "set" / name

    return make


def _set_of(path: Path) -> Path:
    return path if path.name == "set" else _set_of(path.parent)


def _read_set(path: Path) -> dict[str, Any]:
    """All that a set says."""
    tar_set = TarSet(_set_of(path))
    content: dict[str, Any] = {"teachers": tar_set.teachers}
    for tar in tar_set.manifest.names:
        pairs = vars(tar_set.pairs(tar))
        content[tar] = {
            name: getattr(value, "tolist", lambda v=value: v)() for name, value in pairs.items()
        }
        for teacher in tar_set.teachers:
            content[f"{tar} {teacher}"] = tar_set.rows(teacher, tar).tobytes()
    return content


def _rebuild(path: Path) -> Any:
    """The pairs of a tar, and the manifest that is made anew from all files."""
    pairs = read_pairs(pairs_path(_set_of(path), "00001"))
    return pairs.keys, build_manifest(_set_of(path)).names


def _damages(path: Path) -> tuple[bytes, int]:
    """A digest of all files, and how many of them ``cusa-store verify`` calls damaged."""
    folder = _set_of(path)
    content = b"".join(file.read_bytes() for file in sorted(folder.rglob("*.h5")))
    return hashlib.sha256(content).digest(), len(verify_set(folder)[1])


def _equal(valid: Any, value: Any, _: Path) -> bool:
    return bool(valid == value)


def _is_well_formed(_: Any, value: Any, __: Path) -> bool:
    """Of a file that was sealed anew, whatever it says is what it says."""
    return value is not None


def _damage_is_told(valid: tuple[bytes, int], value: tuple[bytes, int], _: Path) -> bool:
    return (valid[0] == value[0]) == (value[1] == 0)


_PAIRS = str(pairs_path(Path(), "00001"))
_ROWS = "eyes/00001.h5"
_STRUCTURE = (sealed_anew(mutate_hdf5),)


def _set_target(
    name: str,
    file: str,
    read: Callable[[Path], Any] = _read_set,
    agrees: Callable[[Any, Any, Path], bool] = _equal,
    mutators: tuple[Mutator, ...] = (mutate_hdf5, *BYTE_MUTATORS),
) -> Target:
    return Target(f"tars/{name}", _make_set(file), mutators, read, agrees, weight=2)


TARGETS = (
    Target("tars/tar", _make_tar, (_mutate_header,) * 8 + BYTE_MUTATORS, _read_tar, _tar_agrees, 4),
    _set_target("manifest", MANIFEST),
    _set_target("pairs", _PAIRS),
    _set_target("rows", _ROWS),
    _set_target("manifest-sealed-anew", MANIFEST, _read_set, _is_well_formed, _STRUCTURE),
    _set_target("pairs-sealed-anew", _PAIRS, _rebuild, _is_well_formed, _STRUCTURE),
    _set_target("rows-sealed-anew", _ROWS, _rebuild, _is_well_formed, _STRUCTURE),
    _set_target("verify-manifest", MANIFEST, _damages, _damage_is_told),
    _set_target("verify-pairs", _PAIRS, _damages, _damage_is_told),
    _set_target("verify-rows", _ROWS, _damages, _damage_is_told),
)
