"""Make the embedded data sets: folders of H.264 videos of drawn shapes, with lists, class names and masks.

moving_shapes.py and context_shapes.py say what the videos show, and why nothing else gives a class away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from videornn.data.annotations.labels import format_labels
from videornn.data.annotations.plain import format_list
from videornn.data.synthetic import TaskName, context_shapes, moving_shapes
from videornn.data.video.write import write_movie
from videornn.errors import UserError
from videornn.system.files import differing_parameters, make_folder, replacing, write_text
from videornn.system.workers import Lost, num_cores, run_parallel

SPLITS: tuple[str, ...] = ("train", "val", "test")

Frames = Iterator[tuple[np.ndarray, np.ndarray]]  # pictures and their masks


@dataclass(frozen=True)
class Task:
    """The content of the videos of a set.

    draw: makes (frames per second, frames) of (seed, split, class, index), without the things of the given labels.
    format: increased whenever the same parameters no longer give the same videos.
    """

    classes: tuple[str, ...]
    draw: Callable[[int, str, str, int, Collection[int]], tuple[int, Frames]]
    about: str
    labels: str  # of the masks
    palette: tuple[int, ...]  # R, G, B of label 0, 1, ...
    format: int = 2


def _draw_motion(seed: int, split: str, class_name: str, index: int, without: Collection[int]) -> tuple[int, Frames]:
    rng = np.random.default_rng([seed, SPLITS.index(split), moving_shapes.CLASSES.index(class_name), index])
    scene = moving_shapes.draw_scene(rng, class_name)
    return scene.fps, moving_shapes.render(scene, rng, without)


def _draw_context(seed: int, split: str, class_name: str, index: int, without: Collection[int]) -> tuple[int, Frames]:
    # videos of the same index differ between classes only in the shapes of the objects
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = context_shapes.draw_scene(rng, class_name)
    return scene.fps, context_shapes.render(scene, rng, without)


def _draw_object(seed: int, split: str, class_name: str, index: int, without: Collection[int]) -> tuple[int, Frames]:
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    colour, shape = class_name.split("_")
    scene = context_shapes.draw_object(rng, shape, colour)
    return scene.fps, context_shapes.render(scene, rng, without)


TASKS: dict[str, Task] = {
    "motion": Task(
        moving_shapes.CLASSES,
        _draw_motion,
        about="""videos that differ in motion over time only.

Two objects move, a warm one in a left and a cool one in a right field. Each fades out at an edge of its field
and comes back at the opposite edge. They zigzag along the diagonals of their field and rest in between. Classes
differ in where the two head (both right, towards each other, ...), two of them also in which object sets off
later. Places visited, and how long, are the same whatever the class, so no single frame gives the class away.""",
        labels="1 left object,\n2 right object, where an object is more than half visible",
        palette=(0, 0, 0, 255, 150, 0, 0, 150, 255),  # black, orange, blue
    ),
    "context": Task(
        context_shapes.CLASSES,
        _draw_context,
        about="""videos that differ in how two things far apart go together.

A disc, the cue, and a diamond are seen first, in two colours, and go. Then two objects of two shapes come, in the same
two colours. The class is the shape of the object that has the colour of the cue. Neither part by itself tells which one
it is: the videos of one number (NAME_0007) are the same in all classes but for the shapes of the objects.""",
        labels="1 cue,\n2 the object in its colour, 3 the other one, 4 the diamond",
        palette=(0, 0, 0, 255, 255, 255, 255, 150, 0, 0, 150, 255, 150, 150, 150),
        format=3,
    ),
    "objects": Task(
        context_shapes.OBJECTS,
        _draw_object,
        about="""videos of one object, from which a network can learn what `--task context` is about.

The class is its colour and shape.""",
        labels="1 object",
        palette=(0, 0, 0, 255, 150, 0),
        format=3,
    ),
}


def make_synthetic(
    out: Path,
    *,
    num_train: int = 40,
    num_val: int = 4,
    num_test: int = 8,
    seed: int = 0,
    task: TaskName = "motion",
    without: Collection[int] = (),
    num_workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to `out` and return `out`; counts are videos per class.

    The videos depend on the task and the seed only, not on the number of workers (one per available core unless given).
    Things whose mask labels are in `without` are left out; nothing else changes. A complete folder is left as it is; an
    interrupted run is continued. `on_progress` is called in this process with the number of videos done and the total.
    Several workers are spawned processes, so a script that calls this needs the usual `if __name__ == "__main__":`.

    Raises:
        UserError: a count or the seed is out of range, or `out` holds a set made with other parameters.
    """
    counts = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
    num_workers = num_cores() if num_workers is None else num_workers
    _check_arguments({**counts, "num_workers": num_workers}, seed)
    out = Path(out)
    about = {"format": TASKS[task].format, "seed": seed, **counts, "classes": list(TASKS[task].classes)}
    parameters = about | _named(task, without)
    if _matches(out / "synthetic.json", parameters):
        return out
    started = out / "synthetic.partial.json"  # so that a continued run cannot mix two sets of parameters in one folder
    _matches(started, parameters)
    make_folder(out, "OUT")
    write_text(started, json.dumps(parameters, indent=2) + "\n")
    _make_videos(out, partial(_make_video, out, task, seed, without), _jobs(task, counts), num_workers, on_progress)
    _write_lists(out, task, seed, counts)
    os.replace(started, out / "synthetic.json")
    return out


def load_masks(path: Path, num_frames: int) -> np.ndarray:
    """Load the masks of a video, uint8 [num_frames, H, W]: 0 is background, the set's README.txt lists the other labels."""
    with Image.open(path) as image:
        stack = np.array(image, dtype=np.uint8)
    if num_frames <= 0 or len(stack) % num_frames:
        raise ValueError(f"{path} has {len(stack)} rows, which are not {num_frames} masks of one height")
    return stack.reshape(num_frames, -1, stack.shape[1])


def mask_path(video_path: str | Path) -> Path:
    """Return the path of the masks of `[...]/videos/<split>/<class>/<name>.mp4`."""
    video_path = Path(video_path)
    split, class_name = video_path.parts[-3:-1]
    return video_path.parents[3] / "masks" / split / class_name / f"{video_path.stem}.png"


def _check_arguments(counts: dict[str, int], seed: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} must be at least 1, got {count}")
    if seed < 0:
        raise UserError(f"seed must not be negative, got {seed}")


def _named(task: str, without: Collection[int]) -> dict[str, object]:
    """Return what a record says of the task and of things left out; defaults are not recorded, as in older records."""
    return ({"task": task} if task != "motion" else {}) | ({"without": sorted(without)} if without else {})


def _matches(record: Path, parameters: dict) -> bool:
    """Return whether the record exists; other parameters in it are an error."""
    if not record.exists():
        return False
    if described := differing_parameters(record, parameters):
        raise UserError(
            f"{record.parent} holds a synthetic data set made with {described}: choose another folder or remove this one"
        )
    return True


def _jobs(task: str, counts: dict[str, int]) -> list[tuple[str, str, int]]:
    """List (split, class, index) of every video, in the order of the lists."""
    return [
        (split, class_name, index)
        for split in SPLITS
        for class_name in TASKS[task].classes
        for index in range(counts[f"num_{split}"])
    ]


def _video_name(split: str, class_name: str, index: int) -> str:
    return f"videos/{split}/{class_name}/{class_name}_{index:04d}.mp4"


def _make_videos(
    out: Path,
    make: Callable[[tuple[str, str, int]], None],
    jobs: list[tuple[str, str, int]],
    num_workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Make the missing videos, in this process or in several."""
    missing = [job for job in jobs if not _is_made(out / _video_name(*job))]
    num_there = len(jobs) - len(missing)
    report = on_progress or (lambda num_done, num_total: None)
    report(num_there, len(jobs))
    # a single worker is this process, because another one would take time to start
    results = run_parallel(make, missing, num_workers=num_workers if min(num_workers, len(missing)) > 1 else 0)
    for num_made, (index, result) in enumerate(results, start=1):
        if isinstance(result, Lost):
            raise RuntimeError(f"{_video_name(*missing[index])} was not made: {result.reason}")
        report(num_there + num_made, len(jobs))


def _is_made(video: Path) -> bool:
    return video.exists() and mask_path(video).exists()


def _make_video(out: Path, task: str, seed: int, without: Collection[int], job: tuple[str, str, int]) -> None:
    """Write the masks and then the video, so that an existing video is complete."""
    fps, drawn = TASKS[task].draw(seed, *job, without)
    frames, masks = zip(*drawn, strict=True)
    video = out / _video_name(*job)
    for path in (video, mask_path(video)):
        path.parent.mkdir(parents=True, exist_ok=True)
    _write_masks(mask_path(video), np.stack(masks), TASKS[task].palette)
    write_movie(video, frames, fps)


def _write_masks(path: Path, masks: np.ndarray, palette: tuple[int, ...]) -> None:
    image = Image.fromarray(masks.reshape(-1, masks.shape[-1]))
    image.putpalette(palette)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def _write_lists(out: Path, task: str, seed: int, counts: dict[str, int]) -> None:
    jobs, classes = _jobs(task, counts), TASKS[task].classes
    for split in SPLITS:
        rows = ((_video_name(*job), classes.index(job[1])) for job in jobs if job[0] == split)
        write_text(out / f"{split}.txt", "".join(format_list(rows, classes)))
    write_text(out / "labels.txt", format_labels(classes))
    write_text(out / "README.txt", _readme(task, seed, counts))


def _readme(task: str, seed: int, counts: dict[str, int]) -> str:
    described = ", ".join(f"{split} {counts[f'num_{split}']}" for split in SPLITS)
    first, rest = TASKS[task].about.split("\n", 1)
    option = "" if task == "motion" else f" --task {task}"
    return f"""{len(TASKS[task].classes)} classes of synthetic {first}
Made by `videornn data synthetic{option}` with seed {seed}; videos per class: {described}.
All pictures are drawn by the program; none is recorded.
{rest}

train.txt, val.txt, test.txt: one video a line, its path relative to this folder and the number of its class.
labels.txt: the names of the classes; the first is number 0.
masks: for each video a PNG with the masks of all frames below one another (0 background, {TASKS[task].labels}).
synthetic.json: the parameters; it is written last, so a folder that has it is complete.
"""
