"""Videos of the test that are worth a look, as short animations."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videornn.config import DataConfig
from videornn.data.video.decoders import open_video
from videornn.errors import DecodeError
from videornn.report.markup import Markup, data_uri, path_text, percent, section, tag
from videornn.report.pictures import to_webp
from videornn.report.run_results import Prediction, RunResults

NUM_SHOWN = 6  # videos of a group
NUM_FRAMES = 12  # of an animation; style.py counts on it
FRAME_BOX = (176, 132)  # what its frames fit into: width, height in pixels
MAX_STRIP_BYTES = 25_000


@dataclass(frozen=True)
class Group:
    """Videos that are shown together, and why."""

    title: str
    hint: str
    videos: list[Prediction]


def choose_examples(predictions: list[Prediction]) -> list[Group]:
    """Up to NUM_SHOWN predictions of each kind; none is there twice.

    The surest right ones are of different classes, for in an easy class they would all look alike.
    """
    by_score = sorted(predictions, key=lambda video: (-video.score, video.path))
    wrong = [video for video in by_score if not video.right][:NUM_SHOWN]
    right_by_class: dict[str, Prediction] = {}
    for video in by_score:
        if video.right:
            right_by_class.setdefault(video.label, video)
    right = list(right_by_class.values())[:NUM_SHOWN]
    taken = {video.path for video in (*wrong, *right)}
    unsure = [video for video in reversed(by_score) if video.path not in taken][:NUM_SHOWN]
    return [
        Group("Wrong, and sure of it", "Wrong labels, and what the network has not learned, show up here first.", wrong),
        Group("Least sure", "The lowest scores, right or wrong.", unsure),
        Group("Right, and sure of it", "The highest scores, one video of a class.", right),
    ]


def examples_section(run: RunResults, groups: list[Group], say: Callable[[str], None]) -> Markup:
    """The chosen videos as animations with label, prediction, score and path."""
    videos = [video for group in groups for video in group.videos]
    folder = _common_folder([video.path for video in videos])
    say(f"thumbnails of {len(videos)} videos")
    parts = []
    for group in groups:
        cards = [_card(video, folder, run.config.data) for video in group.videos]
        shown = tag("ul", cards, class_="cards") if cards else None
        hint = tag("p", group.hint if cards else "There is none.", class_="hint")
        parts.append(tag("div", tag("h3", group.title), hint, shown, class_="group"))
    pause = tag("label", tag("input", type="checkbox", id="still"), " hold the animations")
    below = tag("p", "Paths are below ", tag("code", path_text(folder)), ".", class_="hint") if folder else None
    return section("examples", "Videos worth a look", tag("p", pause, class_="pause"), parts, below)


def prediction_line(video: Prediction) -> Markup:
    """The predicted class and its score, and the label where it is another."""
    score = f" {percent(100 * video.score, 0)}"
    if video.right:
        return tag("span", tag("b", video.label), score, class_="said right")
    truth = f"is {video.label}"
    if video.label_score is not None:
        truth += f" {percent(100 * video.label_score, 0)}"
    return tag("span", tag("b", video.prediction), score, tag("span", truth, class_="truth"), class_="said wrong")


def _card(video: Prediction, folder: str, data: DataConfig) -> Markup:
    shown = os.path.relpath(video.path, folder) if folder else video.path
    path = tag("span", path_text(shown), class_="path", title=video.path)
    return tag("li", _animation(video, data), prediction_line(video), path, class_="card")


def _animation(video: Prediction, data: DataConfig) -> Markup:
    """The video's frames side by side in one picture, of which the style sheet shows one after the other."""
    try:
        frames, seconds = _read_evenly(video.path, data)
    except DecodeError as error:
        reason = str(error).removeprefix(f"{video.path}: ")
        return tag("span", tag("span", "no picture: ", reason), class_="screen gone")
    strip, (width, height) = _strip(frames)
    fit = "wide" if width * FRAME_BOX[1] >= height * FRAME_BOX[0] else "tall"
    picture = tag(
        "img",
        src=data_uri(strip, "webp"),
        alt=f"{NUM_FRAMES} frames of a video of {video.label}",
        style=f"animation-duration:{min(max(seconds, 1.5), 4.0):.1f}s",
        width=NUM_FRAMES * width,
        height=height,
    )
    return tag("span", tag("span", picture, class_=f"clip {fit}", style=f"aspect-ratio:{width}/{height}"), class_="screen")


def _read_evenly(path: str, data: DataConfig) -> tuple[Tensor, float]:
    """NUM_FRAMES frames uint8 [T, H, W, 3] over the whole of a video, made small, and its seconds; raises DecodeError."""
    with open_video(path, timeout=data.timeout, max_pixels=data.max_frame_pixels) as video:
        indices = ((torch.arange(NUM_FRAMES) + 0.5) * video.num_frames / NUM_FRAMES).long()
        return video.cuts_at(video.on_screen(indices)[None], [_small])[0], video.duration


def _strip(frames: Tensor) -> tuple[bytes, tuple[int, int]]:
    """Frames side by side as WebP of MAX_STRIP_BYTES or little more, and width and height of one."""
    strip = Image.fromarray(np.concatenate(frames.numpy(), axis=1))
    for quality in (75, 50, 25):
        content = to_webp(strip, quality=quality)
        if len(content) <= MAX_STRIP_BYTES:
            break
    return content, (frames.shape[2], frames.shape[1])


def _small(frame: Tensor) -> Tensor:
    """A frame uint8 [H, W, 3] that fits into FRAME_BOX."""
    height, width = frame.shape[:2]
    scale = min(FRAME_BOX[0] / width, FRAME_BOX[1] / height, 1.0)
    size = (max(round(scale * width), 1), max(round(scale * height), 1))
    return torch.from_numpy(np.array(Image.fromarray(frame.numpy()).resize(size, Image.Resampling.LANCZOS)))


def _common_folder(paths: list[str]) -> str:
    """The folder that all paths are in; empty if there is none but the root."""
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # none, or some relative and some not
        return ""
    return "" if folder == os.path.sep else folder
