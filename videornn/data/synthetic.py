"""The embedded data set: a folder of H.264 videos of moving shapes, with lists, class names and masks.

What the videos show, and why no single frame gives a class away, is in moving_shapes.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from videornn.data.files import differing_parameters, make_folder, replacing, write_text
from videornn.data.label_maps import format_labels
from videornn.data.movie import write_movie
from videornn.data.moving_shapes import CLASSES, draw_scene, render
from videornn.data.parallel import Lost, num_cores, run_parallel
from videornn.data.plain_lists import format_list
from videornn.errors import UserError

SPLITS: tuple[str, ...] = ("train", "val", "test")
FORMAT = 2  # raise it whenever the same parameters no longer give the same videos
MASK_PALETTE = (0, 0, 0, 255, 150, 0, 0, 150, 255)  # background black, left orange, right blue


def make_synthetic(
    out: Path,
    *,
    num_train: int = 40,
    num_val: int = 4,
    num_test: int = 8,
    seed: int = 0,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to `out` and return `out`; counts are videos per class.

    The videos depend on the seed and the counts only, not on the number of workers (one per available core
    unless given). A folder that is complete is left as it is; a run that was interrupted is continued.
    `progress` is called in this process with the number of videos done and the total. Several workers are
    spawned processes, so a script that calls this needs the usual `if __name__ == "__main__":`.

    Raises:
        UserError: a count or the seed is out of range, or `out` holds a set made with other parameters.
    """
    counts = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
    num_workers = num_cores() if num_workers is None else num_workers
    _check_arguments({**counts, "num_workers": num_workers}, seed)
    out = Path(out)
    parameters = {"format": FORMAT, "seed": seed, **counts, "classes": list(CLASSES)}
    if _matches(out / "synthetic.json", parameters):
        return out
    started = out / "synthetic.partial.json"  # so that a continued run cannot mix two sets of parameters
    _matches(started, parameters)
    make_folder(out, "OUT")
    write_text(started, json.dumps(parameters, indent=2) + "\n")
    _make_videos(out, seed, _jobs(counts), num_workers, progress)
    _write_lists(out, seed, counts)
    os.replace(started, out / "synthetic.json")
    return out


def load_masks(path: Path, num_frames: int) -> np.ndarray:
    """The masks of a video, uint8 [num_frames, H, W]: 0 background, 1 left object, 2 right object."""
    with Image.open(path) as image:
        stack = np.array(image, dtype=np.uint8)
    if num_frames <= 0 or len(stack) % num_frames:
        raise ValueError(f"{path} has {len(stack)} rows, which are not {num_frames} masks of one height")
    return stack.reshape(num_frames, -1, stack.shape[1])


def mask_path(video_path: str | Path) -> Path:
    """Where the masks of `[...]/videos/<split>/<class>/<name>.mp4` are."""
    video_path = Path(video_path)
    split, class_name = video_path.parts[-3:-1]
    return video_path.parents[3] / "masks" / split / class_name / f"{video_path.stem}.png"


def _check_arguments(counts: dict[str, int], seed: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} must be at least 1, got {count}")
    if seed < 0:
        raise UserError(f"seed must not be negative, got {seed}")


def _matches(record: Path, parameters: dict) -> bool:
    """Whether the record exists; an error if it tells of other parameters."""
    if not record.exists():
        return False
    if described := differing_parameters(record, parameters):
        raise UserError(
            f"{record.parent} holds a synthetic data set made with {described}: choose another folder or remove this one"
        )
    return True


def _jobs(counts: dict[str, int]) -> list[tuple[str, str, int]]:
    """(split, class, index) of every video, in the order of the lists."""
    return [
        (split, class_name, index) for split in SPLITS for class_name in CLASSES for index in range(counts[f"num_{split}"])
    ]


def _video_name(split: str, class_name: str, index: int) -> str:
    return f"videos/{split}/{class_name}/{class_name}_{index:04d}.mp4"


def _make_videos(
    out: Path,
    seed: int,
    jobs: list[tuple[str, str, int]],
    num_workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make the videos that are not there yet, in this process or in several."""
    missing = [job for job in jobs if not _is_made(out / _video_name(*job))]
    num_there = len(jobs) - len(missing)
    report = progress or (lambda num_done, num_total: None)
    report(num_there, len(jobs))
    make = partial(_make_video, out, seed)
    # a single worker is this process: another one would only take time to start
    results = run_parallel(make, missing, num_workers=num_workers if min(num_workers, len(missing)) > 1 else 0)
    for num_made, (index, result) in enumerate(results, start=1):
        if isinstance(result, Lost):
            raise RuntimeError(f"{_video_name(*missing[index])} was not made: {result.reason}")
        report(num_there + num_made, len(jobs))


def _is_made(video: Path) -> bool:
    return video.exists() and mask_path(video).exists()


def _make_video(out: Path, seed: int, job: tuple[str, str, int]) -> None:
    """Write the masks and then the video, so that a video that is there is complete."""
    split, class_name, index = job
    rng = np.random.default_rng([seed, SPLITS.index(split), CLASSES.index(class_name), index])
    scene = draw_scene(rng, class_name)
    frames, masks = zip(*render(scene, rng), strict=True)
    video = out / _video_name(split, class_name, index)
    for path in (video, mask_path(video)):
        path.parent.mkdir(parents=True, exist_ok=True)
    _write_masks(mask_path(video), np.stack(masks))
    write_movie(video, frames, scene.fps)


def _write_masks(path: Path, masks: np.ndarray) -> None:
    image = Image.fromarray(masks.reshape(-1, masks.shape[-1]))
    image.putpalette(MASK_PALETTE)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def _write_lists(out: Path, seed: int, counts: dict[str, int]) -> None:
    jobs = _jobs(counts)
    for split in SPLITS:
        rows = ((_video_name(*job), CLASSES.index(job[1])) for job in jobs if job[0] == split)
        write_text(out / f"{split}.txt", "".join(format_list(rows, CLASSES)))
    write_text(out / "labels.txt", format_labels(CLASSES))
    write_text(out / "README.txt", _readme(seed, counts))


def _readme(seed: int, counts: dict[str, int]) -> str:
    described = ", ".join(f"{split} {counts[f'num_{split}']}" for split in SPLITS)
    return f"""{len(CLASSES)} classes of synthetic videos that differ in motion over time only.
Made by `videornn data synthetic` with seed {seed}; videos per class: {described}.
All pictures are drawn by the program; none is recorded.

Two objects move, a warm one in a left and a cool one in a right field. Each fades out at an edge of its field
and comes back at the opposite edge. They zigzag along the diagonals of their field and rest in between. Classes
differ in where the two head (both right, towards each other, ...), two of them also in which object sets off
later. Places visited, and how long, are the same whatever the class, so no single frame gives the class away.

train.txt, val.txt, test.txt: one video a line, its path relative to this folder and the number of its class.
labels.txt: the names of the classes; the first is number 0.
masks: for each video a PNG with the masks of all frames below one another (0 background, 1 left object,
2 right object, where an object is more than half visible).
synthetic.json: the parameters; it is written last, so a folder that has it is complete.
"""
