"""Crops and flips of uint8 clips with torchvision.transforms.v2; normalisation of batches on the device.

Decoded frames come as uint8 [T, H, W, 3]; every transform gives uint8 [..., 3, T, H, W]. A crop is cut out of the source
first and only the crop is resized, which is the same picture as resize-then-crop at a fraction of the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def random_crop_flip(
    frames: Tensor, crop_size: int, short_side: tuple[int, int], hflip: float, generator: torch.Generator
) -> Tensor:
    """Scale the short side to a random length, cut a random square crop, maybe flip; the same for all frames.

    Args:
        frames: uint8 [T, H, W, 3].
        crop_size: side of the crop, in pixels after scaling.
        short_side: smallest and largest short side, in pixels.
        hflip: probability of the flip.

    Returns:
        uint8 [3, T, crop_size, crop_size].
    """
    height, width = frames.shape[1:3]
    scale_draw, top_draw, left_draw, flip_draw = torch.rand(4, generator=generator).tolist()
    # uniform in the inverse scale, as in Simonyan & Zisserman's video descendants (Wang et al. 2018)
    target = 1 / (1 / short_side[1] + scale_draw * (1 / short_side[0] - 1 / short_side[1]))
    side = min(crop_size * min(height, width) / target, height, width)
    crop = _crop(frames, top_draw * (height - side), left_draw * (width - side), side, crop_size)
    return F.horizontal_flip(crop) if flip_draw < hflip else crop


def crop_views(frames: Tensor, crop_size: int, short_side: int, num_crops: int) -> Tensor:
    """Square crops for testing: the centre, or three along the longer side (start, middle, end).

    Args:
        frames: uint8 [T, H, W, 3].
        crop_size: side of a crop, in pixels after the short side is scaled to short_side.

    Returns:
        uint8 [num_crops, 3, T, crop_size, crop_size].

    Raises:
        ValueError: num_crops is neither 1 nor 3.
    """
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops must be 1 or 3, got {num_crops}")
    height, width = frames.shape[1:3]
    side = min(height, width) * crop_size / short_side
    along = (0.5,) if num_crops == 1 else (0.0, 0.5, 1.0)
    crops = []
    for place in along:
        top = (height - side) * (place if height > width else 0.5)
        left = (width - side) * (0.5 if height > width else place)
        crops.append(_crop(frames, top, left, side, crop_size))
    return torch.stack(crops)


def normalize(clips: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 clips [B, 3, T, H, W] -> float32 with mean and std (float [3], for values in 0..1) taken out."""
    shape = (1, 3, 1, 1, 1)
    return clips.float().sub_(mean.view(shape) * 255).div_(std.view(shape) * 255)


def _crop(frames: Tensor, top: float, left: float, side: float, size: int) -> Tensor:
    """Square part of frames [T, H, W, 3], resized to size: [3, T, size, size]."""
    side = max(round(side), 1)
    images = frames.permute(0, 3, 1, 2)  # [T, 3, H, W], channels last in memory: torchvision's fast path
    crop = F.resized_crop(images, round(top), round(left), side, side, [size, size], antialias=True)
    return crop.permute(1, 0, 2, 3)  # [3, T, size, size]
