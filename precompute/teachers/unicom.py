"""Unicom (An et al., ICLR 2023), the paper's image teacher: a vision transformer without class token."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from cusa.data.errors import TeacherError
from cusa.data.files import atomic_file
from cusa.data.image_transform import ImageTransform
from cusa.precompute.teachers.base import Teacher

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class UnicomArchitecture:
    """Sizes of one Unicom model (images in pixels)."""

    input_size: int
    patch_size: int
    dim: int
    embedding_size: int
    depth: int
    num_heads: int

    @property
    def num_patches(self) -> int:
        """Patches per image."""
        return (self.input_size // self.patch_size) ** 2


@dataclass(frozen=True)
class UnicomRelease:
    """A published weight file."""

    architecture: UnicomArchitecture
    model_id: str
    file: str
    url: str
    sha256: str


def _release(model_id: str, tag: str, file: str, sha256: str, *sizes: int) -> UnicomRelease:
    url = f"https://github.com/deepglint/unicom/releases/download/{tag}/{file}"
    return UnicomRelease(UnicomArchitecture(*sizes), f"unicom/{model_id}", file, url, sha256)


RELEASES = {
    "unicom": _release(
        "ViT-B/32",
        "b32",
        "FP16-ViT-B-32.pt",
        "f9d5696a9b58dbbbefee2d31615ca59084f2895a0fdd2ca4c235e0f9b2793f7a",
        *(224, 32, 768, 512, 12, 12),
    ),
    "unicom-vit-b-16": _release(
        "ViT-B/16",
        "b16",
        "FP16-ViT-B-16.pt",
        "c04f324f7c3b4435667236ec6c0eca1cd62f9d64fbfc2d06f8e8e60e6497edef",
        *(224, 16, 768, 768, 12, 12),
    ),
    "unicom-vit-l-14": _release(
        "ViT-L/14",
        "l14",
        "FP16-ViT-L-14.pt",
        "ff3ab62ff782876460099e6e0ee17b73a7c01109de2fffd595f16f4129404bbd",
        *(224, 14, 1024, 768, 24, 16),
    ),
    "unicom-vit-l-14-336px": _release(
        "ViT-L/14@336px",
        "l14_336px",
        "FP16-ViT-L-14-336px.pt",
        "3916ab5aed3b522fc90345be8b4457fe5dad60801ad2af5a6871c0c096e8d7ea",
        *(336, 14, 1024, 768, 24, 16),
    ),
}


class Unicom(nn.Module):
    """Unicom's image encoder; parameter names are those of the published weight files.

    Patch and position embedding; pre-norm blocks; LayerNorm; all patch tokens flattened into
    Linear - BatchNorm - Linear - BatchNorm. Use it in eval mode: BatchNorm otherwise mixes the batch.

    Args:
        architecture: Sizes.
    """

    def __init__(self, architecture: UnicomArchitecture) -> None:
        super().__init__()
        a = architecture
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, a.dim, a.patch_size, a.patch_size)})
        self.pos_embed = nn.Parameter(torch.zeros(1, a.num_patches, a.dim))
        self.blocks = nn.Sequential(*(_Block(a.dim, a.num_heads) for _ in range(a.depth)))
        self.norm = nn.LayerNorm(a.dim)
        self.feature = nn.Sequential(
            nn.Linear(a.dim * a.num_patches, a.dim, bias=False),
            nn.BatchNorm1d(a.dim, eps=2e-5),
            nn.Linear(a.dim, a.embedding_size, bias=False),
            nn.BatchNorm1d(a.embedding_size, eps=2e-5),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Float ``[n, 3, input_size, input_size]`` -> ``[n, embedding_size]``, not normalised."""
        tokens = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)  # [n, patches, dim]
        tokens = self.norm(self.blocks(tokens + self.pos_embed))
        return self.feature(tokens.flatten(1))


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = _Attention(dim, num_heads)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(dim, 4 * dim))
        self.mlp.add_module("act", nn.ReLU6())
        self.mlp.add_module("fc2", nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, patches, dim = x.shape
        # [n, patches, 3 * dim] -> 3 x [n, heads, patches, dim / heads]
        q, k, v = (
            self.qkv(x)
            .view(n, patches, 3, self.num_heads, dim // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        return self.proj(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, patches, dim)
        )


def load_unicom(
    release: UnicomRelease, weights: Path | None, device: str, batch_size: int | None = None
) -> Teacher:
    """Load a published Unicom model.

    Args:
        release: Which of the four.
        weights: Its weight file, or ``None`` to take it from the cache or download it there.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Items per forward pass; ``None``: what suits the device.

    Raises:
        TeacherError: If the file is missing and cannot be downloaded, or is not the published one.
    """
    path = weights if weights is not None else _cached(release)
    _check(path, release)
    model = Unicom(release.architecture)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model = model.float().eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = release.architecture.input_size
    transform = ImageTransform(size, size, _MEAN, _STD)
    return Teacher(
        modality="image",
        model_id=release.model_id,
        weights_sha256=release.sha256,
        dim=release.architecture.embedding_size,
        transform=asdict(transform),
        source=str(path),
        encode=model,
        batch_size=batch_size or (256 if torch.device(device).type == "cuda" else 16),
        preprocess=transform,
        input_size=size,
    )


def _how_to_get(release: UnicomRelease) -> str:
    return (
        f"get it from {release.url} (sha256 {release.sha256}) and pass --teacher "
        f"{next(k for k, v in RELEASES.items() if v == release)}=PATH"
    )


def _check(path: Path, release: UnicomRelease) -> None:
    if not path.is_file():
        message = f"Unicom's weight file {release.file} is not at {path}; {_how_to_get(release)}"
        raise TeacherError(message, path=path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != release.sha256:
        raise TeacherError(
            f"{path} is not Unicom's {release.file}: its sha256 is {found}, expected {release.sha256}; "
            f"remove it and {_how_to_get(release)}",
            path=path,
        )


def _cached(release: UnicomRelease) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cusa"
    path = folder / release.file
    if path.is_file():
        return path
    try:
        with (
            atomic_file(path) as temporary,
            urllib.request.urlopen(release.url, timeout=30) as response,
        ):
            with temporary.open("wb") as file:
                while block := response.read(1 << 20):
                    file.write(block)
            _check(temporary, release)  # before it takes the name under which it is trusted
    except (OSError, http.client.HTTPException) as error:
        raise TeacherError(
            f"Unicom's weight file {release.file} is not in {folder} and cannot be downloaded ({error}); "
            f"{_how_to_get(release)}",
            path=path,
        ) from None
    return path
