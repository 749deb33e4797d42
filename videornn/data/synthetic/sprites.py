"""Draw the synthetic videos: flat shapes on a still background, a shaking camera, changing light, noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "texture", "checker", "stripes")
SHAKE_MARGIN = 3  # pixels of background beyond each edge of the frame


@dataclass(frozen=True)
class Sprite:
    """One drawn thing and its way through the video."""

    shape: str
    radius: float  # pixels
    angle: float  # radians
    colour: np.ndarray  # [3] RGB, 0-255
    centres: np.ndarray  # [T, 2] (x, y), in pixels
    opacities: np.ndarray  # [T]


@dataclass(frozen=True)
class Stage:
    """Everything in a video except its sprites."""

    base_colour: np.ndarray  # [3] mean RGB of the background, 0-255
    background: np.ndarray  # [H + 2 * SHAKE_MARGIN, W + 2 * SHAKE_MARGIN, 3]
    shake: np.ndarray  # [T, 2] shift (x, y) of the camera, in pixels
    gains: np.ndarray  # [T] light
    noise_sheet: np.ndarray  # [2 * H, 2 * W]; each frame shows a window of it
    noise_corners: np.ndarray  # [T, 2] (y, x)

    def frames(self, sprites: Sequence[tuple[int, Sprite]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield per frame the RGB image, uint8 [H, W, 3], and the mask, uint8 [H, W], of sprites with their labels.

        Later sprites cover earlier ones; those with label 0 have no mask.
        """
        height, width = (size // 2 for size in self.noise_sheet.shape)
        for t, shift in enumerate(self.shake):
            frame = _shifted(self.background, shift, width, height)
            mask = np.zeros((height, width), np.uint8)
            for label, sprite in sprites:
                _paint(frame, mask, sprite, t, shift, label)
            frame *= np.float32(self.gains[t])
            y, x = self.noise_corners[t]  # a window of one large sheet: new noise for every frame would take far longer
            frame += self.noise_sheet[y : y + height, x : x + width, None]
            yield np.clip(frame, 0, 255, out=frame).astype(np.uint8), mask


def draw_stage(
    rng: np.random.Generator, width: int, height: int, times: np.ndarray, backgrounds: Sequence[str] = BACKGROUNDS
) -> Stage:
    """Draw what a video of this size shows behind its sprites at these times."""
    base_colour = rng.uniform(35, 90) + rng.uniform(-12, 12, size=3)
    background = _draw_background(rng, width, height, base_colour, backgrounds)
    shake = _draw_shake(rng, times)
    gains = 1 + 0.05 * np.sin(2 * np.pi * (rng.uniform(0.1, 0.5) * times + rng.uniform()))
    noise_sheet = rng.uniform(0.8, 2.5) * rng.standard_normal((2 * height, 2 * width))
    noise_corners = rng.integers((height, width), size=(len(times), 2))
    return Stage(base_colour, background, shake, gains, noise_sheet.astype(np.float32), noise_corners)


def _draw_background(
    rng: np.random.Generator, width: int, height: int, base_colour: np.ndarray, backgrounds: Sequence[str]
) -> np.ndarray:
    """Draw a still, muted picture, float32 [H + 2 * SHAKE_MARGIN, W + 2 * SHAKE_MARGIN, 3]."""
    kind = backgrounds[int(rng.integers(len(backgrounds)))]
    pattern = _pattern(rng, kind, height + 2 * SHAKE_MARGIN, width + 2 * SHAKE_MARGIN)
    amplitude = rng.uniform(8, 20) * rng.uniform(0.6, 1.0, size=3)
    return (base_colour + amplitude * pattern[..., None]).astype(np.float32)


def _pattern(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """Return [height, width] values in about -1 to 1."""
    if kind == "plain":
        return np.zeros((height, width))
    if kind == "texture":
        grid = rng.uniform(-1, 1, size=(6, 8)).astype(np.float32)
        return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if kind == "gradient":
        return 2 * (along - along.min()) / np.ptp(along) - 1
    waves = np.sin(2 * np.pi * np.stack([along, across]) / rng.uniform(16, 40))
    return waves[0] if kind == "stripes" else np.tanh(6 * waves[0] * waves[1])


def _draw_shake(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Draw the shift [T, 2] (x, y) of the camera, in pixels; sines of random phase look the same backwards."""
    amplitude, hertz = rng.uniform(0, 0.6, size=(2, 2)), rng.uniform(0.5, 4.0, size=(2, 2))
    phases = hertz * times[:, None, None] + rng.uniform(size=(2, 2))
    return (amplitude * np.sin(2 * np.pi * phases)).sum(axis=1)


def _shifted(background: np.ndarray, shift: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the frame-sized part of the background, shifted by subpixels (bilinear), float32 [H, W, 3]."""
    corner = SHAKE_MARGIN - shift
    (x, y), (fx, fy) = np.floor(corner).astype(int), (corner % 1.0).astype(np.float32)
    part = background[y : y + height + 1, x : x + width + 1]
    rows = part[:-1] + fy * (part[1:] - part[:-1])
    return rows[:, :-1] + fx * (rows[:, 1:] - rows[:, :-1])


def _paint(frame: np.ndarray, mask: np.ndarray, sprite: Sprite, t: int, shift: np.ndarray, label: int) -> None:
    """Blend the sprite into the frame and, where it is more than half visible, its label into the mask."""
    (height, width), reach = mask.shape, 1.5 * sprite.radius + 1
    centre = sprite.centres[t] + shift
    left, top = np.maximum(np.floor(centre - reach), 0).astype(int)
    right, bottom = np.minimum(np.ceil(centre + reach) + 1, (width, height)).astype(int)
    if sprite.opacities[t] <= 0 or left >= right or top >= bottom:
        return
    x, y = np.arange(left, right) - centre[0], np.arange(top, bottom)[:, None] - centre[1]
    coverage = np.clip(0.5 - _distance(sprite, x, y), 0.0, 1.0)
    window = np.s_[top:bottom, left:right]
    frame[window] += (sprite.opacities[t] * coverage)[..., None] * (sprite.colour - frame[window])
    if label and sprite.opacities[t] > 0.5:
        mask[window][coverage > 0.5] = label


def _distance(sprite: Sprite, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance in pixels to the outline, negative inside; x and y count from the centre."""
    radius, cos, sin = sprite.radius, np.cos(sprite.angle), np.sin(sprite.angle)
    if sprite.shape in ("disc", "ring"):
        distance = np.hypot(x, y)
        return distance - radius if sprite.shape == "disc" else abs(distance - 0.75 * radius) - 0.25 * radius
    x, y = x * cos + y * sin, y * cos - x * sin
    if sprite.shape == "triangle":
        return np.maximum(abs(x) * math.sqrt(0.75) + y / 2, -y) - 0.6 * radius
    x, y = abs(x), abs(y)
    if sprite.shape == "square":
        return np.maximum(x, y) - 0.85 * radius
    if sprite.shape == "diamond":
        return (x + y) * math.sqrt(0.5) - 0.85 * radius
    return np.maximum(np.maximum(x, y) - 1.1 * radius, np.minimum(x, y) - 0.36 * radius)
