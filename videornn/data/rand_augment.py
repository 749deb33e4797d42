"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) of a clip: the same few random operations on all of its frames.

The fourteen operations and their ranges are torchvision's: identity; shear and shift (x and y), rotation; brightness,
colour, contrast and sharpness, more or less; posterize, solarize, autocontrast, equalize. Contrast and the last two adapt
to the values of each frame. None of them mirrors a clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

MAX_MAGNITUDE = 30
BILINEAR = InterpolationMode.BILINEAR
Operation = Callable[[Tensor, float, list[int]], Tensor]


def rand_augment(
    images: Tensor, num_operations: int, magnitude: int, fill: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """Apply num_operations random ones of OPERATIONS, one after the other, the same to all frames.

    Args:
        images: uint8 [T, 3, H, W].
        magnitude: strength, 0..30; an operation with two directions takes a random one.
        fill: RGB, 0..255, of the gap that a moved frame leaves.
    """
    operations = list(OPERATIONS.values())
    for _ in range(num_operations):
        which = int(torch.randint(len(operations), (), generator=generator))
        sign = 1 if torch.rand((), generator=generator) < 0.5 else -1
        images = operations[which](images, sign * magnitude / MAX_MAGNITUDE, list(fill))
    return images


def _warp(
    images: Tensor,
    fill: list[int],
    *,
    shift: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
    center: list[float] | None = None,
) -> Tensor:
    """Shift (x, y) in pixels and shear (x, y) in degrees about center (x, y), by default the middle."""
    return F.affine(images, 0.0, list(shift), 1.0, list(shear), interpolation=BILINEAR, fill=fill, center=center)


def _degrees(slope: float) -> float:
    return math.degrees(math.atan(slope))


# Every operation takes images [T, 3, H, W], a level in -1..1 whose sign is the direction, and the fill.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, level, fill: images,
    "shear_x": lambda images, level, fill: _warp(images, fill, shear=(_degrees(0.3 * level), 0.0), center=[0.0, 0.0]),
    "shear_y": lambda images, level, fill: _warp(images, fill, shear=(0.0, _degrees(0.3 * level)), center=[0.0, 0.0]),
    "shift_x": lambda images, level, fill: _warp(images, fill, shift=(int(150 / 331 * level * images.shape[-1]), 0)),
    "shift_y": lambda images, level, fill: _warp(images, fill, shift=(0, int(150 / 331 * level * images.shape[-2]))),
    "rotate": lambda images, level, fill: F.rotate(images, 30 * level, BILINEAR, fill=fill),
    "brightness": lambda images, level, fill: F.adjust_brightness(images, 1 + 0.9 * level),
    "color": lambda images, level, fill: F.adjust_saturation(images, 1 + 0.9 * level),
    "contrast": lambda images, level, fill: F.adjust_contrast(images, 1 + 0.9 * level),
    "sharpness": lambda images, level, fill: F.adjust_sharpness(images, 1 + 0.9 * level),
    "posterize": lambda images, level, fill: F.posterize(images, 8 - round(4 * abs(level))),
    "solarize": lambda images, level, fill: F.solarize(images, 255 * (1 - abs(level))),
    "autocontrast": lambda images, level, fill: F.autocontrast(images),
    "equalize": lambda images, level, fill: F.equalize(images),
}
