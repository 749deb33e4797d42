"""Random crops, flips, colours and erasing of uint8 clips, test crops, normalisation of batches on the device.

Decoded frames come as uint8 [T, H, W, 3]; every transform gives uint8 [..., 3, T, H, W]. A training crop is cut out of the
source first and only the crop is resized, which is the same picture as resize-then-crop at a fraction of the cost.
Random choices are drawn once per clip: all its frames get the same crop, flip, colours and box.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from videornn.data.rand_augment import rand_augment
from videornn.schema import Crop

if TYPE_CHECKING:
    from videornn.config import DataConfig

# area and aspect ratio (width / height) of an erased box: Zhong et al. 2017, arXiv:1708.04896, as torchvision has them
ERASED_AREA = (0.02, 0.33)
ERASED_ASPECT = (0.3, 3.3)
MAX_ASPECT = 16  # of frames that are scaled as a whole for three crops; of longer ones each crop is cut out first
MAX_DRAWS = 10  # attempts at a box that fits, before one that always fits is taken

Box = tuple[int, int, int, int]  # top, left, height, width, in pixels
# "left" or "right" as a separate word in upper or lower case, or as a word of a camelCase name
SIDE = re.compile(
    r"(?i:(?<![a-z])(?:left|right)(?![a-z]))|(?<=[a-z])(?:Left|Right)(?![a-z])|(?<![A-Za-z])(?:[Ll]eft|[Rr]ight)(?=[A-Z])"
)


@dataclass(frozen=True)
class TrainTransform:
    """The transform of a training clip: crop, flip, colour jitter, RandAugment, random erasing, in this order.

    crop_size: side of the square crop, in pixels.
    crop: scale_jitter scales the short side to a random length in short_side (pixels) and cuts a square; resized cuts a box
        with a random share of the frame's area, in area, and a random width / height, in aspect_ratio, and resizes it.
    squeeze: make the whole frame square first, so that a crop spans the same share of height and width.
    hflip: probability of the flip.
    mirrored: label of a flipped clip by label, -1 where clips are not flipped (see mirrored_labels); () keeps labels.
    color_jitter: largest relative change of brightness, contrast and saturation.
    rand_augment: number of RandAugment's operations; rand_augment_magnitude: their strength, 0..30.
    erasing: probability that a random box is painted with fill (RGB, 0..255), which RandAugment also shows beyond edges.
    """

    crop_size: int
    crop: Crop = "scale_jitter"
    short_side: tuple[int, int] = (256, 320)
    area: tuple[float, float] = (0.08, 1.0)
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    squeeze: bool = False
    hflip: float = 0.0
    mirrored: tuple[int, ...] = ()
    color_jitter: float = 0.0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    erasing: float = 0.0
    fill: tuple[int, int, int] = (0, 0, 0)

    def __call__(self, frames: Tensor, label: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Make the clip that the model sees, and its label; a pure function of the arguments and the generator's state.

        Args:
            frames: uint8 [T, H, W, 3].

        Returns:
            As finish.
        """
        cut = self.cutter(generator)
        return self.finish(torch.stack([cut(frame) for frame in frames]), label, generator)

    def cutter(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Return a function that cuts a clip's frames uint8 [H, W, 3] to [S, S, 3]; it draws the crop at the first frame."""
        draw_box = self._draw_scaled_square if self.crop == "scale_jitter" else self._draw_resized_box
        box: Box | None = None

        def cut(frame: Tensor) -> Tensor:
            nonlocal box
            if box is None:
                height, width, _ = frame.shape
                box = draw_box(height, width, generator)
            return _crop(frame[None], box, self.crop_size)[0].permute(1, 2, 0)

        return cut

    def finish(self, crops: Tensor, label: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Make the clip that the model sees, and its label, from the crops uint8 [T, S, S, 3] of its frames.

        Args:
            generator: the one that cutter has used.

        Returns:
            uint8 [3, T, crop_size, crop_size], and the label, which a flip may have changed.
        """
        images = crops.permute(0, 3, 1, 2)
        mirrored = self.mirrored[label] if self.mirrored else label
        if _draw(generator) < self.hflip and mirrored >= 0:
            images, label = F.horizontal_flip(images), mirrored
        if self.color_jitter > 0 or self.rand_augment > 0:
            images = images.contiguous()  # most kernels for colours and warps are faster on planes
        images = _jitter_color(images, self.color_jitter, generator)
        images = rand_augment(images, self.rand_augment, self.rand_augment_magnitude, self.fill, generator)
        images = self._erase(images, generator)
        return images.permute(1, 0, 2, 3), label

    def at_crop_size(self, crop_size: int) -> TrainTransform:
        """Return the transform with another crop size; a smaller crop may show as much of the frame as before, or less.

        The lower end of short_side shrinks with the crop and the upper end stays, as in SlowFast's multigrid training: a
        crop shows anything from a part at full resolution to the whole frame, coarser.
        """
        if crop_size == self.crop_size:
            return self
        low, high = self.short_side
        return replace(self, crop_size=crop_size, short_side=(round(low * crop_size / self.crop_size), high))

    def _draw_scaled_square(self, height: int, width: int, generator: torch.Generator) -> Box:
        scale_draw, top_draw, left_draw = torch.rand(3, generator=generator).tolist()
        low, high = self.short_side
        # uniform in the inverse of the scale, as usual for 256-320 jitter (Wang et al. 2018)
        target = 1 / (1 / high + scale_draw * (1 / low - 1 / high))
        box_height, box_width = _crop_extent(height, width, self.crop_size / target, self.squeeze)
        return _rounded(top_draw * (height - box_height), left_draw * (width - box_width), box_height, box_width)

    def _draw_resized_box(self, height: int, width: int, generator: torch.Generator) -> Box:
        # a square of the whole area, in pixels; if the frame is squeezed first, the frame itself
        unit = (height, width) if self.squeeze else (math.sqrt(height * width),) * 2
        box = _draw_box(height, width, unit, self.area, self.aspect_ratio, generator)
        return box or _largest_box(height, width, unit, self.aspect_ratio)

    def _erase(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.erasing == 0 or _draw(generator) >= self.erasing:
            return images
        size = self.crop_size
        box = _draw_box(size, size, (size, size), ERASED_AREA, ERASED_ASPECT, generator)
        if box is None:
            return images
        return F.erase(images, *box, torch.tensor(self.fill, dtype=torch.uint8)[:, None, None])


def train_transform(section: DataConfig, class_names: tuple[str, ...]) -> TrainTransform:
    """Build the transform of a config's data section; class_names is empty if they are unknown."""
    red, green, blue = section.mean
    return TrainTransform(
        crop_size=section.crop_size,
        crop=section.crop,
        short_side=section.short_side,
        area=section.crop_area,
        aspect_ratio=section.crop_aspect,
        squeeze=section.aspect == "squeeze",
        hflip=section.hflip,
        mirrored=mirrored_labels(class_names),
        color_jitter=section.color_jitter,
        rand_augment=section.rand_augment,
        rand_augment_magnitude=section.rand_augment_magnitude,
        erasing=section.erasing,
        fill=(round(255 * red), round(255 * green), round(255 * blue)),
    )


def mirrored_labels(class_names: tuple[str, ...]) -> tuple[int, ...]:
    """Return, by label, the label of the mirrored class: the one whose name has left and right swapped.

    A name without these words is its own mirror image; -1 if the swapped name is no class. Directions in other words
    (clockwise, a "d" against a "b") are not found: such sets need a flip probability of 0.
    """
    labels = {name.casefold(): label for label, name in enumerate(class_names)}
    swapped = [SIDE.sub(lambda side: "right" if side[0].lower() == "left" else "left", name) for name in class_names]
    return tuple(
        label if names[0] == names[1] else labels.get(names[1].casefold(), -1)
        for label, names in enumerate(zip(class_names, swapped, strict=True))
    )


def crop_views(frames: Tensor, crop_size: int, short_side: int, num_crops: int, *, squeeze: bool = False) -> Tensor:
    """Cut square crops for testing: the centre, or three along the longer side (start, middle, end).

    Args:
        frames: uint8 [T, H, W, 3].
        crop_size: side of a crop, in pixels after the short side is scaled to short_side.
        squeeze: make the whole frame square first, so that a crop spans the same share of height and width.

    Returns:
        uint8 [num_crops, 3, T, crop_size, crop_size], channels last in memory.

    Raises:
        ValueError: num_crops is neither 1 nor 3.
    """
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops must be 1 or 3, got {num_crops}")
    height, width = frames.shape[1:3]
    extent = _crop_extent(height, width, crop_size / short_side, squeeze)
    top, left = (height - extent[0]) * 0.5, (width - extent[1]) * 0.5
    if num_crops == 1:
        return _crop(frames, _rounded(top, left, *extent), crop_size).transpose(0, 1)[None]
    if not squeeze and max(height, width) > MAX_ASPECT * min(height, width):  # scaled, such a frame could be of any size
        places = [(2 * top * place, left) if height > width else (top, 2 * left * place) for place in (0.0, 0.5, 1.0)]
        return torch.stack([_crop(frames, _rounded(*place, *extent), crop_size).transpose(0, 1) for place in places])
    # the three crops overlap, so the whole frame is scaled once
    images = F.resize(frames.permute(0, 3, 1, 2), [short_side] * (2 if squeeze else 1), antialias=True)
    top, left = ((length - crop_size) * 0.5 for length in images.shape[2:])
    places = [(2 * top * place, left) if height > width else (top, 2 * left * place) for place in (0.0, 0.5, 1.0)]
    crops = [F.crop(images, round(top), round(left), crop_size, crop_size).permute(0, 2, 3, 1) for top, left in places]
    return torch.stack(crops).permute(0, 4, 1, 2, 3)  # [V, T, S, S, 3] in memory


def _jitter_color(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    if strength == 0:
        return images
    brightness, contrast, saturation = (1 + strength * (2 * torch.rand(3, generator=generator) - 1)).tolist()
    images = F.adjust_brightness(images, brightness)
    return F.adjust_saturation(F.adjust_contrast(images, contrast), saturation)


def _draw(generator: torch.Generator) -> float:
    """Draw a number uniformly from [0, 1)."""
    return torch.rand(1, generator=generator).item()


def _draw_box(
    height: int,
    width: int,
    unit: tuple[float, float],
    area: tuple[float, float],
    aspect_ratio: tuple[float, float],
    generator: torch.Generator,
) -> Box | None:
    """Draw a box of uniform area and log-uniform aspect ratio, anywhere in the frame; None if no draw fits.

    Args:
        unit: height and width, in pixels, of a box of area 1 and aspect ratio 1.
    """
    log_low, log_high = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    for _ in range(MAX_DRAWS):
        area_draw, aspect_draw, top_draw, left_draw = torch.rand(4, generator=generator).tolist()
        share = area[0] + area_draw * (area[1] - area[0])
        ratio = math.exp(log_low + aspect_draw * (log_high - log_low))
        box_height, box_width = round(unit[0] * math.sqrt(share / ratio)), round(unit[1] * math.sqrt(share * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(top_draw * (height - box_height + 1)), int(left_draw * (width - box_width + 1))
            return top, left, box_height, box_width
    return None


def _largest_box(height: int, width: int, unit: tuple[float, float], aspect_ratio: tuple[float, float]) -> Box:
    """Return the largest box in the middle of the frame whose aspect ratio, with unit as in _draw_box, is allowed."""
    box_height = min(height, round(width / unit[1] * unit[0] / aspect_ratio[0]))
    box_width = min(width, round(height / unit[0] * unit[1] * aspect_ratio[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _crop_extent(height: int, width: int, share: float, squeeze: bool) -> tuple[float, float]:
    """Return height and width, in source pixels, of a crop of this share of the short side (squeeze: of each side)."""
    if squeeze:
        return share * height, share * width
    return share * min(height, width), share * min(height, width)


def _rounded(top: float, left: float, height: float, width: float) -> Box:
    """Round a box to whole pixels, at least one."""
    return round(top), round(left), max(round(height), 1), max(round(width), 1)


def _crop(frames: Tensor, box: Box, size: int) -> Tensor:
    """Cut a box from frames [T, H, W, 3], resized to [T, 3, size, size], channels last: torchvision's fast path."""
    return F.resized_crop(frames.permute(0, 3, 1, 2), *box, [size, size], antialias=True)
