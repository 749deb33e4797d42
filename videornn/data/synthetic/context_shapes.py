"""Videos whose class is a relation: which shape has the object that shares its colour with a cue shown before it?

Task "context": the first part of a video shows a disc, the cue, and a diamond, the distractor, in two colours. They
disappear, and two objects of two shapes appear in the same two colours. The class is the shape of the object in the cue's
colour. Neither part alone tells the two objects apart, nor does a sum over both: each colour is seen twice, each shape once,
and all but the shapes is drawn once for the four classes. A network whose layers see one moment only can do no better than
to guess one of the two shapes; to do better it must match a thing of one part with its counterpart in the other.

Task "objects" is a task to learn first: one such thing, seen all the time. Its classes combine colour and shape, because
features learnt for shapes alone lose the colours, which the relation needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from videornn.data.synthetic.sprites import Sprite, draw_stage

CLASSES = SHAPES = ("square", "triangle", "ring", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (240, 60, 50),
    "green": (130, 230, 40),
    "cyan": (50, 220, 240),
    "violet": (140, 70, 250),
}
SIZES = ((64, 64), (72, 64), (80, 64), (80, 72), (64, 72))
FRAME_RATES = (8, 10, 12)
CUE_SHAPE, DISTRACTOR_SHAPE = "disc", "diamond"
# the classes of task "objects"
OBJECTS = tuple(f"{colour}_{shape}" for colour in COLOURS for shape in (*SHAPES, CUE_SHAPE, DISTRACTOR_SHAPE))
CUE, ASKED, OTHER, DISTRACTOR = 1, 2, 3, 4  # labels of the masks; the distractor and the other object share a colour


@dataclass(frozen=True)
class Thing:
    """A thing seen in a video."""

    label: int
    shape: str
    colour: str
    radius: float  # pixels
    angle: float  # radians
    centre: np.ndarray  # [2] (x, y), in pixels
    is_early: bool  # seen in the first part


@dataclass(frozen=True)
class Scene:
    """The content of one video."""

    width: int
    height: int
    fps: int
    num_frames: int
    change_seconds: float  # when the second part replaces the first, at once: faded colours could not be matched
    things: tuple[Thing, ...]


def draw_scene(rng: np.random.Generator, shape: str) -> Scene:
    """Draw a video in which the object asked for has this shape.

    The same random numbers give the same scene for every shape, except for the shapes of the objects.
    """
    empty = _draw_empty(rng)
    colours, shapes = rng.permutation(list(COLOURS)).tolist(), rng.permutation(SHAPES).tolist()
    shapes = np.roll(shapes, -shapes.index(shape)).tolist()
    first = _draw_things(rng, empty, (CUE, DISTRACTOR), (CUE_SHAPE, DISTRACTOR_SHAPE), colours, is_early=True)
    second = _draw_things(rng, empty, (ASKED, OTHER), shapes, colours, is_early=False)
    return replace(empty, things=(*first, *second))


def draw_object(rng: np.random.Generator, shape: str, colour: str) -> Scene:
    """Draw a video that shows one thing, with label 1, all the time."""
    empty = _draw_empty(rng)
    return replace(empty, change_seconds=0.0, things=_draw_things(rng, empty, (1,), (shape,), (colour,), is_early=False))


def _draw_empty(rng: np.random.Generator) -> Scene:
    """Draw a video without things."""
    width, height = SIZES[rng.integers(len(SIZES))]
    fps, duration_seconds = int(rng.choice(FRAME_RATES)), rng.uniform(1.5, 2.0)
    change_seconds = rng.uniform(0.47, 0.53) * duration_seconds
    return Scene(width, height, fps, round(duration_seconds * fps), change_seconds, things=())


def _draw_things(
    rng: np.random.Generator,
    scene: Scene,
    labels: Sequence[int],
    shapes: Sequence[str],
    colours: Sequence[str],
    *,
    is_early: bool,
) -> tuple[Thing, ...]:
    """Draw the things of one part, each in a quarter of the frame, with the first ones of shapes and colours."""
    room = np.array([scene.width, scene.height]) / 2
    things = []
    for label, shape, colour, quarter in zip(labels, shapes, colours, rng.permutation(4), strict=False):
        radius = rng.uniform(0.3, 0.36) * room.min()
        reach = 1.15 * radius
        centre = np.array([quarter % 2, quarter // 2]) * room + reach + rng.uniform(size=2) * (room - 2 * reach)
        things.append(Thing(label, str(shape), str(colour), radius, rng.uniform(-0.3, 0.3), centre, is_early))
    return tuple(things)


def render(scene: Scene, rng: np.random.Generator, without: Collection[int] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield per frame the RGB image, uint8 [H, W, 3], and the mask, uint8 [H, W], of the labels of things.

    Things whose labels are in `without` are left out; nothing else changes.
    """
    times = np.arange(scene.num_frames) / scene.fps
    stage = draw_stage(rng, scene.width, scene.height, times, backgrounds=("plain",))
    sprites = [(thing.label, _draw_sprite(rng, scene, thing, times)) for thing in scene.things]
    return stage.frames([(label, sprite) for label, sprite in sprites if label not in without])


def _draw_sprite(rng: np.random.Generator, scene: Scene, thing: Thing, times: np.ndarray) -> Sprite:
    """Draw a thing in about its colour, swaying a little about its position."""
    phases = rng.uniform(0.2, 0.6, size=2) * times[:, None] + rng.uniform(size=2)
    return Sprite(
        thing.shape,
        radius=thing.radius,
        angle=thing.angle,
        colour=np.array(COLOURS[thing.colour]) + rng.uniform(-12, 12, size=3),
        centres=thing.centre + 1.5 * np.sin(2 * np.pi * phases),
        opacities=((times < scene.change_seconds) == thing.is_early).astype(float),
    )
