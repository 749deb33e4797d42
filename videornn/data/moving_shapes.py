"""Motion and pictures of the synthetic videos: two objects whose class is in the motion over time and in nothing else.

Each video shows two objects, a warm one in a left and a cool one in a right cell. A cell is a torus: an object that fades
out near one edge fades in at the opposite edge. Each object starts uniformly in its cell, independently of the other, and
zigzags: in every period it crosses its cell twice, along the one and the other diagonal, and rests. On a torus a crossing
ends where it began, so an object visits the same places, the two diagonals through its start, whatever the class. The class
chooses only in which sense each diagonal is crossed (both to the right: the object heads right) and, in two classes, which
object sets off first. So neither a single frame nor the unordered set of places that an object visits tells the class (what
is left without an order is how the two objects' places go together; scripts/frame_order_control.py measures it).
Opacity depends on the place alone, and everything else (size, frame rate, look, background, shake, noise, distractors)
follows one law for all classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Heading of the left and of the right object.
HEADINGS: dict[str, tuple[str, str]] = {
    "same_right": ("right", "right"),
    "same_left": ("left", "left"),
    "same_up": ("up", "up"),
    "same_down": ("down", "down"),
    "approach": ("right", "left"),
    "part": ("left", "right"),
    "orbit_cw": ("up", "down"),
    "orbit_ccw": ("down", "up"),
    "right_follows": ("right", "up"),
    "left_follows": ("down", "left"),
}
CLASSES: tuple[str, ...] = tuple(HEADINGS)
# The object that sets off after the other one; either one in the other classes.
FOLLOWERS: dict[str, int] = {"left_follows": 0, "right_follows": 1}

DIAGONALS = np.array([[1, 1], [1, -1]])  # (x, y) in cell sizes: right and down, right and up (y points down)
# In which sense an object crosses the two diagonals.
SENSES: dict[str, tuple[int, int]] = {"right": (1, 1), "left": (-1, -1), "up": (-1, 1), "down": (1, -1)}
SHAPES: tuple[str, ...] = ("disc", "square", "triangle", "ring", "cross")
BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "texture", "checker", "stripes")
FRAME_RATES = (12, 15, 20, 24, 25, 30)
SIZES = ((112, 80), (128, 80), (128, 96), (144, 96), (144, 108), (160, 120), (176, 100), (176, 128))

CROSSING = 0.4  # share of a period that one of its two crossings takes; the rest is rest
LAG = 0.3  # how much later the second object sets off, in periods
FADE = 0.08  # width of the fading border, in sizes of the cell
SHAKE_MARGIN = 3  # pixels of background beyond each edge of the frame


@dataclass(frozen=True)
class Scene:
    """Geometry and motion of one video; index 0 is the left object, 1 the right one."""

    width: int
    height: int
    fps: int
    num_frames: int
    period_seconds: float  # two crossings and a rest
    cells: np.ndarray  # [2, 2] top left corners (x, y), in pixels
    cell_size: np.ndarray  # [2] width and height of both cells, in pixels
    starts: np.ndarray  # [2, 2] positions (x, y) at rest, in cell sizes
    offsets_seconds: np.ndarray  # [2] start of the first period at or after time 0, below one period
    crossings: np.ndarray  # [2, 2, 2] displacements (x, y) of the first and the second crossing, in cell sizes


def draw_scene(rng: np.random.Generator, class_name: str) -> Scene:
    """Draw geometry and motion; the class has a say in the headings and in who follows only."""
    width, height = SIZES[rng.integers(len(SIZES))]
    fps = int(rng.choice(FRAME_RATES))
    duration_seconds = rng.uniform(3.5, 4.5)
    period_seconds = rng.uniform(2.0, 2.2)
    cells, cell_size = _draw_cells(rng, width, height)
    any_follower, *first_diagonals = rng.integers(2, size=3)
    offsets_seconds = np.full(2, rng.uniform() * period_seconds)
    offsets_seconds[FOLLOWERS.get(class_name, any_follower)] += LAG * period_seconds
    return Scene(
        width=width,
        height=height,
        fps=fps,
        num_frames=round(duration_seconds * fps),
        period_seconds=period_seconds,
        cells=cells,
        cell_size=cell_size,
        starts=rng.uniform(size=(2, 2)),
        offsets_seconds=offsets_seconds % period_seconds,
        crossings=np.stack([_crossings(*each) for each in zip(HEADINGS[class_name], first_diagonals, strict=True)]),
    )


def _crossings(heading: str, first_diagonal: int) -> np.ndarray:
    """[2, 2] displacements (x, y) along the first and along the other diagonal."""
    return (np.array(SENSES[heading])[:, None] * DIAGONALS)[[first_diagonal, 1 - first_diagonal]]


def _draw_cells(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Two cells of one size (width, height) with a gap between them."""
    cell_size = rng.uniform((0.38, 0.42), (0.40, 0.45)) * (width, height)
    free = width - 2 * cell_size[0]
    gap = rng.uniform(0.55, 0.75) * free
    left = rng.uniform(0.2, 0.8) * (free - gap)
    tops = rng.uniform(0, height - cell_size[1], size=2)
    return np.array([[left, tops[0]], [left + cell_size[0] + gap, tops[1]]]), cell_size


def positions(scene: Scene, times_seconds: np.ndarray) -> np.ndarray:
    """[2, T, 2] positions (x, y) of both objects at T times, in [0, 1) sizes of their cell."""
    phases = (times_seconds - scene.offsets_seconds[:, None]) / scene.period_seconds % 1.0
    # the share of each crossing that is done, [2, T, 2]; at constant speed places do not tell the sense of a crossing
    done = np.clip(phases[..., None] / CROSSING - (0, 1), 0.0, 1.0)
    return (scene.starts[:, None] + done @ scene.crossings) % 1.0


def opacity(position: np.ndarray) -> np.ndarray:
    """[...] opacity in [0, 1] of objects at positions [..., 2]: 0 on the cell's edge, 1 beyond the border."""
    depth = np.clip(np.minimum(position, 1 - position) / FADE, 0.0, 1.0)
    return np.prod(depth * depth * (3 - 2 * depth), axis=-1)


@dataclass(frozen=True)
class Sprite:
    """One drawn thing and its way through the video."""

    shape: str
    radius: float  # pixels
    angle: float  # radians
    colour: np.ndarray  # [3] RGB, 0-255
    centres: np.ndarray  # [T, 2] (x, y), in pixels
    opacities: np.ndarray  # [T]


def render(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield per frame the RGB image, uint8 [H, W, 3], and the mask (1 left, 2 right object), uint8 [H, W]."""
    times = np.arange(scene.num_frames) / scene.fps
    base_colour = rng.uniform(35, 90) + rng.uniform(-12, 12, size=3)
    background = _draw_background(rng, scene, base_colour)
    shake = _draw_shake(rng, times)
    gains = 1 + 0.05 * np.sin(2 * np.pi * (rng.uniform(0.1, 0.5) * times + rng.uniform()))
    noise_sheet = rng.uniform(0.8, 2.5) * rng.standard_normal((2 * scene.height, 2 * scene.width))
    noise_sheet = noise_sheet.astype(np.float32)
    noise_corners = rng.integers((scene.height, scene.width), size=(scene.num_frames, 2))
    objects = _draw_objects(rng, scene, times, base_colour)
    num_distractors = rng.integers(4)
    distractors = [_draw_distractor(rng, scene, times, base_colour, objects[0].radius) for _ in range(num_distractors)]
    sprites = [*((0, distractor) for distractor in distractors), *enumerate(objects, start=1)]
    for t in range(scene.num_frames):
        frame = _shifted(background, shake[t], scene)
        mask = np.zeros((scene.height, scene.width), np.uint8)
        for label, sprite in sprites:
            _paint(frame, mask, sprite, t, shake[t], label)
        frame *= np.float32(gains[t])
        y, x = noise_corners[t]  # a window of one large sheet: new noise for every frame takes far longer
        frame += noise_sheet[y : y + scene.height, x : x + scene.width, None]
        yield np.clip(frame, 0, 255, out=frame).astype(np.uint8), mask


def _draw_background(rng: np.random.Generator, scene: Scene, base_colour: np.ndarray) -> np.ndarray:
    """A still, muted picture, float32 [H + 2 * SHAKE_MARGIN, W + 2 * SHAKE_MARGIN, 3]."""
    height, width = scene.height + 2 * SHAKE_MARGIN, scene.width + 2 * SHAKE_MARGIN
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    pattern = _pattern(rng, kind, height, width)
    amplitude = rng.uniform(8, 20) * rng.uniform(0.6, 1.0, size=3)
    return (base_colour + amplitude * pattern[..., None]).astype(np.float32)


def _pattern(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """[height, width] values in about -1 to 1."""
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
    """[T, 2] shift (x, y) of the camera, in pixels; sines of random phase look the same backwards."""
    amplitude, hertz = rng.uniform(0, 0.6, size=(2, 2)), rng.uniform(0.5, 4.0, size=(2, 2))
    phases = hertz * times[:, None, None] + rng.uniform(size=(2, 2))
    return (amplitude * np.sin(2 * np.pi * phases)).sum(axis=1)


def _draw_objects(rng: np.random.Generator, scene: Scene, times: np.ndarray, base_colour: np.ndarray) -> list[Sprite]:
    """The left object in a warm and the right one in a cool colour, on the tracks of the scene."""
    tracks = positions(scene, times)
    objects = []
    for index, (corner, track) in enumerate(zip(scene.cells, tracks, strict=True)):
        shape = SHAPES[rng.integers(len(SHAPES))]
        radius, angle = rng.uniform(0.18, 0.22) * scene.cell_size[0], rng.uniform(0, 2 * np.pi)
        # warm or cool, but always brighter than the background
        colour = base_colour + rng.uniform((110, 70, 20), (150, 100, 40))[:: 1 if index == 0 else -1]
        objects.append(Sprite(shape, radius, angle, colour, corner + scene.cell_size * track, opacity(track)))
    return objects


def _draw_distractor(
    rng: np.random.Generator, scene: Scene, times: np.ndarray, base_colour: np.ndarray, radius: float
) -> Sprite:
    """A smaller grey thing that drifts steadily anywhere and re-enters at the other side."""
    radius = rng.uniform(0.4, 0.65) * radius
    room = np.array([scene.width, scene.height]) + 2 * (radius + 2)  # it leaves the frame before it wraps
    heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.3) * scene.width
    velocity = speed * np.array([np.cos(heading), np.sin(heading)])
    centres = (rng.uniform(size=2) * room + times[:, None] * velocity) % room - (radius + 2)
    colour = base_colour + rng.uniform(40, 80)
    shape = SHAPES[rng.integers(len(SHAPES))]
    return Sprite(shape, radius, rng.uniform(0, 2 * np.pi), colour, centres, np.ones(len(times)))


def _shifted(background: np.ndarray, shift: np.ndarray, scene: Scene) -> np.ndarray:
    """The frame-sized part of the background moved by a fraction of pixels (bilinear), float32 [H, W, 3]."""
    corner = SHAKE_MARGIN - shift
    (x, y), (fx, fy) = np.floor(corner).astype(int), np.float32(corner % 1.0)
    part = background[y : y + scene.height + 1, x : x + scene.width + 1]
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
    """Signed distance in pixels to the outline, negative inside; x and y count from the centre."""
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
    return np.maximum(np.maximum(x, y) - 1.1 * radius, np.minimum(x, y) - 0.36 * radius)
