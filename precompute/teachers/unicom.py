"""Unicom (An et al., ICLR 2023), the paper's image teacher: a ViT without a class token."""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.request
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from cusa.data.errors import TeacherError
from cusa.data.files import atomic_file, file_digest
from cusa.data.image_transform import ImageTransform
from cusa.precompute.teachers.base import Teacher, default_batch_size

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_DOWNLOAD_TIMEOUT_S = 30


@dataclass(frozen=True)
class UnicomArchitecture:
    """The architecture of a Unicom model.

    Attributes:
        input_size: Side of an input image, in pixels.
        patch_size: Side of a patch, in pixels.
        dim: Width of the transformer.
        embedding_size: Dimension of the embedding.
        depth: Number of blocks.
        num_heads: Number of attention heads.
    """

    input_size: int
    patch_size: int
    dim: int
    embedding_size: int
    depth: int
    num_heads: int


@dataclass(frozen=True)
class UnicomRelease:
    """A published weight file.

    Attributes:
        architecture: The model's architecture.
        model_id: Name of the model to record.
        file: Name of the weight file.
        url: Where to download it.
        sha256: sha256 (hex) of the file.
    """

    architecture: UnicomArchitecture
    model_id: str
    file: str
    url: str
    sha256: str


def _release(
    model_id: str,
    tag: str,
    sha256: str,
    architecture: UnicomArchitecture,
) -> UnicomRelease:
    file = f"FP16-{model_id.replace('/', '-').replace('@', '-')}.pt"
    url = f"https://github.com/deepglint/unicom/releases/download/{tag}/{file}"
    return UnicomRelease(architecture, f"unicom/{model_id}", file, url, sha256)


# Architectures: input size, patch size, dim, embedding size, depth, heads.
RELEASES = {
    "unicom": _release(
        "ViT-B/32",
        "b32",
        "f9d5696a9b58dbbbefee2d31615ca59084f2895a0fdd2ca4c235e0f9b2793f7a",
        UnicomArchitecture(224, 32, 768, 512, 12, 12),
    ),
    "unicom-vit-b-16": _release(
        "ViT-B/16",
        "b16",
        "c04f324f7c3b4435667236ec6c0eca1cd62f9d64fbfc2d06f8e8e60e6497edef",
        UnicomArchitecture(224, 16, 768, 768, 12, 12),
    ),
    "unicom-vit-l-14": _release(
        "ViT-L/14",
        "l14",
        "ff3ab62ff782876460099e6e0ee17b73a7c01109de2fffd595f16f4129404bbd",
        UnicomArchitecture(224, 14, 1024, 768, 24, 16),
    ),
    "unicom-vit-l-14-336px": _release(
        "ViT-L/14@336px",
        "l14_336px",
        "3916ab5aed3b522fc90345be8b4457fe5dad60801ad2af5a6871c0c096e8d7ea",
        UnicomArchitecture(336, 14, 1024, 768, 24, 16),
    ),
}


class Unicom(nn.Module):
    """Unicom's image encoder; parameter names are those of the published weight files.

    Patch and position embedding; pre-norm blocks; LayerNorm; then all patch tokens, flattened,
    through Linear - BatchNorm - Linear - BatchNorm. Use it in eval mode, as BatchNorm would
    otherwise mix the items of a batch.

    Args:
        architecture: The architecture.
    """

    def __init__(self, architecture: UnicomArchitecture) -> None:
        super().__init__()
        dim = architecture.dim
        embedding_size = architecture.embedding_size
        patch_size = architecture.patch_size
        num_patches = (architecture.input_size // patch_size) ** 2
        projection = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, dim))
        blocks = [_Block(dim, architecture.num_heads) for _ in range(architecture.depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear(dim * num_patches, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
            nn.Linear(dim, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed pixels, float ``[n, 3, input_size, input_size]``.

        Returns:
            Float ``[n, embedding_size]``, not normalised.
        """
        patches = self.patch_embed["proj"](pixels)  # [n, dim, height, width]
        tokens = patches.flatten(2).transpose(1, 2)  # [n, patches, dim]
        tokens = self.blocks(tokens + self.pos_embed)
        return self.feature(self.norm(tokens).flatten(1))


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = _Attention(dim, num_heads)
        layers = {"fc1": nn.Linear(dim, 4 * dim), "act": nn.ReLU6(), "fc2": nn.Linear(4 * dim, dim)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        n_images, n_patches, dim = tokens.shape
        head_dim = dim // self.num_heads
        stacked = self.qkv(tokens).view(n_images, n_patches, 3, self.num_heads, head_dim)
        # [n, patches, 3, heads, dim / heads] -> 3 x [n, heads, patches, dim / heads]
        queries, keys, values = stacked.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.proj(attended.transpose(1, 2).reshape(n_images, n_patches, dim))


def load_unicom(
    release: UnicomRelease,
    weights: Path | None,
    device: str,
    batch_size: int | None = None,
) -> Teacher:
    """Load a published Unicom model.

    Args:
        release: The published model.
        weights: Its weight file; ``None``: use the cached file, downloading it first if necessary.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: Items per forward pass; ``None``: the device's default.

    Raises:
        TeacherError: If the file is missing and cannot be downloaded, or is not the published one.
    """
    path = weights if weights is not None else _cached(release)
    _check(path, release)
    model = Unicom(release.architecture)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model = model.float().eval().to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
        batch_size=batch_size or default_batch_size(device, on_cpu=16),
        preprocess=transform,
    )


def _how_to_get(release: UnicomRelease) -> str:
    name = next(name for name, candidate in RELEASES.items() if candidate == release)
    return f"get it from {release.url} (sha256 {release.sha256}) and pass --teacher {name}=PATH"


def _check(path: Path, release: UnicomRelease) -> None:
    """Refuse a file that is not the published one."""
    if not path.is_file():
        message = f"Unicom's weight file {release.file} is not at {path}; {_how_to_get(release)}"
        raise TeacherError(message, path=path)
    sha256 = file_digest(path).hex()
    if sha256 != release.sha256:
        raise TeacherError(
            f"{path} is not Unicom's {release.file}: its sha256 is {sha256}, expected "
            f"{release.sha256}; remove it and {_how_to_get(release)}",
            path=path,
        )


def _cached(release: UnicomRelease) -> Path:
    """Return the path of the weight file in the cache, downloading it if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    path = cache / "cusa" / release.file
    if path.is_file():
        return path
    try:
        with atomic_file(path) as temporary:
            answer = urllib.request.urlopen(release.url, timeout=_DOWNLOAD_TIMEOUT_S)
            with answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file)
            # Checked before it is renamed to the path that is trusted.
            _check(temporary, release)
    except (OSError, http.client.HTTPException) as error:
        raise TeacherError(
            f"Unicom's weight file {release.file} is not in {path.parent} and cannot be downloaded "
            f"({error}); {_how_to_get(release)}",
            path=path,
        ) from None
    return path
