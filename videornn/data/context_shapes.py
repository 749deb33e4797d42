"""Videos whose class is a relation: which shape has the object that shares its colour with a cue shown before it?

Task "context": in the first part of a video a disc, the cue, and three diamonds, distractors, are seen, each in another
quarter of the frame and another colour, and go. Then four objects come, one in each quarter: four shapes and the same four
colours, paired at random. The class is the shape of the object in the cue's colour. Neither part by itself says anything:
all but the shapes is drawn once for the four classes, and the same shapes go round the same objects from one class to the
next. Sums over both parts say nothing either: every video has all colours in both and all shapes. A network whose layers see
one moment only needs something that finds, for a thing of one part, the one that goes with it in the other.

Training videos have none to three distractors and one to four objects. With one object its shape is the class, so that there
is something to begin with; where all videos are as those of a test, training stays at chance.

Task "objects" is what a network may learn first: one such thing, seen all the time. Its classes are colours and shapes
together: features that shapes alone ask for lose colours, which a relation of the two needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from videornn.data.sprites import Sprite, draw_stage

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
NUM = len(COLOURS)  # things in either part, when all are there

# labels of the masks; the k-th distractor has the colour of the k-th other object
CUE, ASKED, OTHERS, DISTRACTORS = 1, 2, (3, 4, 5), (6, 7, 8)


@dataclass(frozen=True)
class Thing:
    """One of the things that are seen in a video."""

    label: int
    shape: str
    colour: str
    radius: float  # pixels
    angle: float  # radians
    centre: np.ndarray  # [2] (x, y), in pixels
    is_early: bool  # seen in the first part


@dataclass(frozen=True)
class Scene:
    """What is seen in one video."""

    width: int
    height: int
    fps: int
    num_frames: int
    change_seconds: float  # when the first part goes and the second comes, at once: faded colours are no colours to pair by
    things: tuple[Thing, ...]


def draw_scene(rng: np.random.Generator, shape: str, *, num_objects: int = NUM, num_distractors: int = NUM - 1) -> Scene:
    """Draw a video in which the object asked for has this shape.

    The same random numbers give the same scene for every shape, but for the shapes of the objects.
    """
    empty = _draw_empty(rng)
    colours, shapes = rng.permutation(list(COLOURS)), rng.permutation(SHAPES)
    shapes = np.roll(shapes, -shapes.tolist().index(shape))
    early_shapes = (CUE_SHAPE, *[DISTRACTOR_SHAPE] * (NUM - 1))
    first = _draw_things(rng, empty, (CUE, *DISTRACTORS), early_shapes, colours, is_early=True)
    second = _draw_things(rng, empty, (ASKED, *OTHERS), shapes, colours, is_early=False)
    return replace(empty, things=(*first[: 1 + num_distractors], *second[:num_objects]))


def draw_object(rng: np.random.Generator, shape: str, colour: str) -> Scene:
    """Draw a video of one thing, whose label is 1, from its begin to its end."""
    empty = _draw_empty(rng)
    things = _draw_things(rng, empty, range(1, NUM + 1), [shape] * NUM, [colour] * NUM, is_early=False)
    return replace(empty, change_seconds=0.0, things=(things[0],))


def _draw_empty(rng: np.random.Generator) -> Scene:
    """A video without things."""
    width, height = SIZES[rng.integers(len(SIZES))]
    fps, duration_seconds = int(rng.choice(FRAME_RATES)), rng.uniform(1.5, 2.0)
    change_seconds = rng.uniform(0.47, 0.53) * duration_seconds
    return Scene(width, height, fps, round(duration_seconds * fps), change_seconds, things=())


def _draw_things(
    rng: np.random.Generator,
    scene: Scene,
    labels: Collection[int],
    shapes: Collection[str],
    colours: Collection[str],
    *,
    is_early: bool,
) -> list[Thing]:
    """Things of one part, each in a quarter of the frame."""
    room = np.array([scene.width, scene.height]) / 2
    quarters = rng.permutation(NUM)
    radii = rng.uniform(0.3, 0.36, size=NUM) * room.min()
    reach = 1.15 * radii[:, None]
    corners = np.stack([quarters % 2, quarters // 2], axis=1) * room
    centres = corners + reach + rng.uniform(size=(NUM, 2)) * np.maximum(room - 2 * reach, 0)
    angles = rng.uniform(-0.3, 0.3, size=NUM)
    parts = zip(labels, map(str, shapes), map(str, colours), radii.tolist(), angles.tolist(), centres, strict=True)
    return [Thing(*values, is_early=is_early) for values in parts]


def render(scene: Scene, rng: np.random.Generator, without: Collection[int] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield per frame the RGB image, uint8 [H, W, 3], and the mask, uint8 [H, W], of the labels of things.

    Things whose labels are in `without` are left out; all else stays as it is.
    """
    times = np.arange(scene.num_frames) / scene.fps
    stage = draw_stage(rng, scene.width, scene.height, times, backgrounds=("plain",))
    sprites = [(thing.label, _draw_sprite(rng, scene, thing, times)) for thing in scene.things]
    return stage.frames([(label, sprite) for label, sprite in sprites if label not in without])


def _draw_sprite(rng: np.random.Generator, scene: Scene, thing: Thing, times: np.ndarray) -> Sprite:
    """A thing in its colour more or less, swaying a little about its place."""
    phases = rng.uniform(0.2, 0.6, size=2) * times[:, None] + rng.uniform(size=2)
    return Sprite(
        thing.shape,
        radius=thing.radius,
        angle=thing.angle,
        colour=np.array(COLOURS[thing.colour]) + rng.uniform(-12, 12, size=3),
        centres=thing.centre + 1.5 * np.sin(2 * np.pi * phases),
        opacities=((times < scene.change_seconds) == thing.is_early).astype(float),
    )
