"""Crops and flips of uint8 clips with torchvision.transforms.v2; normalisation of batches on the device.

Decoded frames come as uint8 [T, H, W, 3]; every transform gives uint8 [..., 3, T, H, W]. A crop is cut out of the source
first and only the crop is resized, which is the same picture as resize-then-crop at a fraction of the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def random_crop_flip(
    frames: Tensor,
    crop_size: int,
    short_side: tuple[int, int],
    hflip: float,
    generator: torch.Generator,
    *,
    squeeze: bool = False,
) -> Tensor:
    """Scale the short side to a random length, cut a random square crop, maybe flip; the same for all frames.

    Args:
        frames: uint8 [T, H, W, 3].
        crop_size: side of the crop, in pixels after scaling.
        short_side: smallest and largest short side, in pixels.
        hflip: probability of the flip.
        squeeze: make the whole frame square first, so that a crop spans the same share of height and width.

    Returns:
        uint8 [3, T, crop_size, crop_size].
    """
    height, width = frames.shape[1:3]
    scale_draw, top_draw, left_draw, flip_draw = torch.rand(4, generator=generator).tolist()
    # uniform in the inverse of the scale, as is usual for 256-320 jitter (Wang et al. 2018)
    target = 1 / (1 / short_side[1] + scale_draw * (1 / short_side[0] - 1 / short_side[1]))
    crop_height, crop_width = _crop_extent(height, width, crop_size / target, squeeze)
    top, left = top_draw * (height - crop_height), left_draw * (width - crop_width)
    crop = _crop(frames, top, left, crop_height, crop_width, crop_size)
    return F.horizontal_flip(crop) if flip_draw < hflip else crop


def jitter_color(clip: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Multiply brightness, contrast and saturation by random factors in 1 +- strength, the same for all frames.

    Args:
        clip: uint8 [3, T, H, W].
        strength: 0 leaves the clip as it is.
    """
    if strength == 0:
        return clip
    brightness, contrast, saturation = (1 + strength * (2 * torch.rand(3, generator=generator) - 1)).tolist()
    images = F.adjust_brightness(clip.permute(1, 0, 2, 3), brightness)  # [T, 3, H, W]
    return F.adjust_saturation(F.adjust_contrast(images, contrast), saturation).permute(1, 0, 2, 3)


def crop_views(frames: Tensor, crop_size: int, short_side: int, num_crops: int, *, squeeze: bool = False) -> Tensor:
    """Square crops for testing: the centre, or three along the longer side (start, middle, end).

    Args:
        frames: uint8 [T, H, W, 3].
        crop_size: side of a crop, in pixels after the short side is scaled to short_side.
        squeeze: make the whole frame square first, so that a crop spans the same share of height and width.

    Returns:
        uint8 [num_crops, 3, T, crop_size, crop_size].

    Raises:
        ValueError: num_crops is neither 1 nor 3.
    """
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops must be 1 or 3, got {num_crops}")
    height, width = frames.shape[1:3]
    crop_height, crop_width = _crop_extent(height, width, crop_size / short_side, squeeze)
    crops = []
    for place in (0.5,) if num_crops == 1 else (0.0, 0.5, 1.0):
        top = (height - crop_height) * (place if height > width else 0.5)
        left = (width - crop_width) * (0.5 if height > width else place)
        crops.append(_crop(frames, top, left, crop_height, crop_width, crop_size))
    return torch.stack(crops)


def normalize(clips: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 clips [B, 3, T, H, W] -> float32 with mean and std (float [3], for values in 0..1) taken out."""
    shape = (1, 3, 1, 1, 1)
    return clips.float().sub_(mean.view(shape) * 255).div_(std.view(shape) * 255)


def _crop_extent(height: int, width: int, share: float, squeeze: bool) -> tuple[float, float]:
    """Height and width, in source pixels, of a crop that spans this share of the short side (squeeze: of each side)."""
    if squeeze:
        return share * height, share * width
    return share * min(height, width), share * min(height, width)


def _crop(frames: Tensor, top: float, left: float, height: float, width: float, size: int) -> Tensor:
    """Part of frames [T, H, W, 3], resized to a square: [3, T, size, size]."""
    images = frames.permute(0, 3, 1, 2)  # [T, 3, H, W], channels last in memory: torchvision's fast path
    extent = (max(round(height), 1), max(round(width), 1))
    crop = F.resized_crop(images, round(top), round(left), *extent, [size, size], antialias=True)
    return crop.permute(1, 0, 2, 3)  # [3, T, size, size]
