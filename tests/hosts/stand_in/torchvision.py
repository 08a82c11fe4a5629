"""What open_clip imports from torchvision, which has no build for the CPU's torch here.

This module is all of its submodules, too.
"""

import sys
from enum import Enum

import numpy as np
import torch
from PIL import Image
from torch import nn

datasets = functional = misc = ops = transforms = sys.modules[__name__]
__path__: list[str] = []
for _name in ("datasets", "ops", "ops.misc", "transforms", "transforms.functional"):
    sys.modules[f"torchvision.{_name}"] = transforms


class InterpolationMode(Enum):
    """Names of the filters that matter to open_clip."""

    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC


class Compose:
    """Transforms, one after the other."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class RandomResizedCrop:
    """A crop of random area and place, resized to a square."""

    def __init__(self, size, scale, interpolation):
        self.size, self.scale, self.interpolation = size, scale, interpolation

    def __call__(self, image):
        # The numbers are torch's, as in torchvision: a resumed run must draw the same.
        area, x, y = torch.rand(3).tolist()
        share = (self.scale[0] + area * (self.scale[1] - self.scale[0])) ** 0.5
        width, height = share * image.width, share * image.height
        left, top = x * (image.width - width), y * (image.height - height)
        box = (left, top, left + width, top + height)
        return image.resize(_pair(self.size), self.interpolation.value, box=box)


class Resize:
    """The shorter edge resized to a length."""

    def __init__(self, size, interpolation):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image):
        scale = self.size / min(image.size)
        size = (round(scale * image.width), round(scale * image.height))
        return image.resize(size, self.interpolation.value)


class CenterCrop:
    """The middle of an image."""

    def __init__(self, size):
        self.width, self.height = _pair(size)

    def __call__(self, image):
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))


class ToTensor: ...


def to_tensor(image):
    """float32 [3, h, w] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class Normalize:
    """Subtracts a mean and divides by a standard deviation."""

    def __init__(self, mean, std):
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __call__(self, image):
        return (image - self.mean) / self.std


class ColorJitter: ...


class Grayscale: ...


class FrozenBatchNorm2d(nn.Module): ...


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)
