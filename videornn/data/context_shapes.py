"""Videos whose class is a relation: which shape has the object that shares its colour with a cue shown before it?

Task "context": a disc, the cue, is seen in the first part of a video and goes. Then four objects come, one in each quarter
of the frame: four shapes and four colours, paired at random. The class is the shape of the object in the cue's colour. The
cue alone and the objects alone say nothing: all but the shapes is drawn once for the four classes, and the same shapes go
round the same objects from one class to the next. A network whose layers see one moment only adds up what it sees in both
parts, and to pair them it needs something that brings them together.

Task "objects" is what a network may learn first: the same, with no other objects than that in the cue's colour. Its classes
are colours and shapes together: features that shapes alone ask for lose colours, which a relation between them needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

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
OBJECTS = tuple(f"{colour}_{shape}" for colour in COLOURS for shape in SHAPES)  # the classes of task "objects"
FADE_SECONDS = 0.1

CUE, ASKED, OTHERS = 1, 2, (3, 4, 5)  # labels of the masks


@dataclass(frozen=True)
class Scene:
    """What is seen where and when in one video; index 0 is the cue, 1 the object asked for, then the other objects."""

    width: int
    height: int
    fps: int
    num_frames: int
    change_seconds: tuple[float, float]  # the cue has gone, the objects begin to come
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    radii: np.ndarray  # [N] pixels
    angles: np.ndarray  # [N] radians
    centres: np.ndarray  # [N, 2] (x, y), in pixels


def draw_scene(rng: np.random.Generator, shape: str, *, colour: str | None = None, num_objects: int = len(SHAPES)) -> Scene:
    """Draw a video in which the object asked for has this shape, and this colour if one is given.

    The same random numbers give the same scene for every shape and colour, but for the shapes and colours of the objects.
    """
    width, height = SIZES[rng.integers(len(SIZES))]
    fps = int(rng.choice(FRAME_RATES))
    duration_seconds = rng.uniform(2.0, 2.5)
    colours, shapes = rng.permutation(list(COLOURS)), rng.permutation(SHAPES)
    shapes = np.roll(shapes, -shapes.tolist().index(shape))
    if colour is not None:
        colours = np.roll(colours, -colours.tolist().index(colour))
    radii = rng.uniform(0.15, 0.18, size=5) * min(width, height)
    radii[0] *= 1.4  # a cue that is easy to see: what it goes with is hard enough
    quarters = rng.permutation(4)
    room = np.array([width, height]) / ((1, 1), (2, 2), (2, 2), (2, 2), (2, 2))  # [5, 2] the cue may be anywhere
    corners = np.stack([quarters % 2, quarters // 2], axis=1) * room[1:]
    reach = 1.15 * radii[:, None]
    centres = reach + rng.uniform(size=(5, 2)) * np.maximum(room - 2 * reach, 0)
    centres[1:] += corners
    middle = rng.uniform(0.47, 0.53) * duration_seconds
    there = 1 + num_objects
    return Scene(
        width=width,
        height=height,
        fps=fps,
        num_frames=round(duration_seconds * fps),
        change_seconds=(middle - 0.05, middle + 0.05),
        colours=(str(colours[0]), *map(str, colours))[:there],
        shapes=("disc", *map(str, shapes))[:there],
        radii=radii[:there],
        angles=rng.uniform(-0.3, 0.3, size=5)[:there],
        centres=centres[:there],
    )


def render(scene: Scene, rng: np.random.Generator, without: Collection[int] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield per frame the RGB image, uint8 [H, W, 3], and the mask, uint8 [H, W]: 1 cue, 2 object asked for, 3 to 5 others.

    Things whose labels are in `without` are left out; all else stays as it is.
    """
    times = np.arange(scene.num_frames) / scene.fps
    stage = draw_stage(rng, scene.width, scene.height, times, backgrounds=("plain",))
    sprites = _draw_sprites(rng, scene, times)
    return stage.frames([(label, sprite) for label, sprite in enumerate(sprites, start=CUE) if label not in without])


def _draw_sprites(rng: np.random.Generator, scene: Scene, times: np.ndarray) -> list[Sprite]:
    """The cue and the objects, in their colours more or less, each swaying a little about its place."""
    gone, coming = scene.change_seconds
    cue = np.clip((gone - times) / FADE_SECONDS, 0.0, 1.0)
    objects = np.clip((times - coming) / FADE_SECONDS, 0.0, 1.0)
    sprites = []
    for index, (shape, colour) in enumerate(zip(scene.shapes, scene.colours, strict=True)):
        phases = rng.uniform(0.2, 0.6, size=2) * times[:, None] + rng.uniform(size=2)
        sprites.append(
            Sprite(
                shape,
                radius=scene.radii[index],
                angle=scene.angles[index],
                colour=np.array(COLOURS[colour]) + rng.uniform(-12, 12, size=3),
                centres=scene.centres[index] + 1.5 * np.sin(2 * np.pi * phases),
                opacities=cue if index == 0 else objects,
            )
        )
    return sprites
