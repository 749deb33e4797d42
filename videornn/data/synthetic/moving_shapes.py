"""Motion and pictures of the synthetic videos: two objects whose motion over time, and nothing else, is the class.

Each video shows two objects, a warm one in a left and a cool one in a right cell. A cell is a torus: an object that fades
out near one edge fades in at the opposite edge. Each object starts uniformly in its cell, independently of the other, and
zigzags: in every period it crosses its cell along one diagonal, then along the other, and rests. On a torus a crossing ends
where it began, so an object visits the same positions, the two diagonals through its start, in every class. The class
decides only in which sense each diagonal is crossed (both to the right: the object heads right) and, in two classes, which
object sets off first. So neither a single frame nor the unordered set of positions that an object visits tells the class
(without an order, only the joint positions of the two objects are left; scripts/frame_order_control.py measures them).
Opacity depends on the position alone, and everything else (size, frame rate, look, background, shake, noise, distractors)
follows one law for all classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from videornn.data.synthetic.sprites import Sprite, draw_stage

# headings of the left and of the right object
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
# the object that sets off second; in the other classes it is either one
FOLLOWERS: dict[str, int] = {"left_follows": 0, "right_follows": 1}

DIAGONALS = np.array([[1, 1], [1, -1]])  # (x, y) in cell sizes: right and down, right and up (y points down)
# the sense in which an object crosses the two diagonals
SENSES: dict[str, tuple[int, int]] = {"right": (1, 1), "left": (-1, -1), "up": (-1, 1), "down": (1, -1)}
SHAPES: tuple[str, ...] = ("disc", "square", "triangle", "ring", "cross")
FRAME_RATES = (12, 15, 20, 24, 25, 30)
SIZES = ((112, 80), (128, 80), (128, 96), (144, 96), (144, 108), (160, 120), (176, 100), (176, 128))

CROSSING = 0.4  # share of a period taken by each of its two crossings; the object rests for the remainder
LAG = 0.3  # how much later the second object sets off, in periods
FADE = 0.08  # width of the fading border, in sizes of the cell


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
    """Draw geometry and motion; the class decides only the headings and which object follows."""
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
    """Return [2, 2] displacements (x, y) along the first and along the other diagonal."""
    return (np.array(SENSES[heading])[:, None] * DIAGONALS)[[first_diagonal, 1 - first_diagonal]]


def _draw_cells(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw two cells of one size (width, height) with a gap between them."""
    cell_size = rng.uniform((0.38, 0.42), (0.40, 0.45)) * (width, height)
    free = width - 2 * cell_size[0]
    gap = rng.uniform(0.55, 0.75) * free
    left = rng.uniform(0.2, 0.8) * (free - gap)
    tops = rng.uniform(0, height - cell_size[1], size=2)
    return np.array([[left, tops[0]], [left + cell_size[0] + gap, tops[1]]]), cell_size


def positions(scene: Scene, times_seconds: np.ndarray) -> np.ndarray:
    """Return [2, T, 2] positions (x, y) of both objects at T times, in [0, 1) sizes of their cell."""
    phases = (times_seconds - scene.offsets_seconds[:, None]) / scene.period_seconds % 1.0
    # the share of each crossing that is done, [2, T, 2]; speed is constant, so positions do not tell the sense of a crossing
    done = np.clip(phases[..., None] / CROSSING - (0, 1), 0.0, 1.0)
    return (scene.starts[:, None] + done @ scene.crossings) % 1.0


def opacity(position: np.ndarray) -> np.ndarray:
    """Return the opacity [...] in [0, 1] of objects at positions [..., 2]: 0 on the cell's edge, 1 inside the border."""
    depth = np.clip(np.minimum(position, 1 - position) / FADE, 0.0, 1.0)
    return np.prod(depth * depth * (3 - 2 * depth), axis=-1)


def render(scene: Scene, rng: np.random.Generator, without: Collection[int] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield per frame the RGB image, uint8 [H, W, 3], and the mask (1 left, 2 right object), uint8 [H, W].

    Objects whose labels are in `without` are left out; nothing else changes.
    """
    times = np.arange(scene.num_frames) / scene.fps
    stage = draw_stage(rng, scene.width, scene.height, times)
    objects = _draw_objects(rng, scene, times, stage.base_colour)
    num_distractors = rng.integers(4)
    distractors = [_draw_distractor(rng, scene, times, stage.base_colour, objects[0].radius) for _ in range(num_distractors)]
    shown = [(label, sprite) for label, sprite in enumerate(objects, start=1) if label not in without]
    return stage.frames([*((0, distractor) for distractor in distractors), *shown])


def _draw_objects(rng: np.random.Generator, scene: Scene, times: np.ndarray, base_colour: np.ndarray) -> list[Sprite]:
    """Draw the left object in a warm and the right one in a cool colour, on the tracks of the scene."""
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
    """Draw a smaller grey thing that drifts steadily anywhere and re-enters at the other side."""
    radius = rng.uniform(0.4, 0.65) * radius
    room = np.array([scene.width, scene.height]) + 2 * (radius + 2)  # it leaves the frame before it wraps
    heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.3) * scene.width
    velocity = speed * np.array([np.cos(heading), np.sin(heading)])
    centres = (rng.uniform(size=2) * room + times[:, None] * velocity) % room - (radius + 2)
    colour = base_colour + rng.uniform(40, 80)
    shape = SHAPES[rng.integers(len(SHAPES))]
    return Sprite(shape, radius, rng.uniform(0, 2 * np.pi), colour, centres, np.ones(len(times)))
