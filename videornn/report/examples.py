"""Videos of the test that are worth a look, as short animations."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videornn.config import DataConfig
from videornn.data.video.decoders import open_video
from videornn.errors import DecodeError
from videornn.report.render import to_webp
from videornn.report.run_results import Prediction

NUM_SHOWN = 6  # videos of a group
NUM_FRAMES = 12  # of an animation; style.css counts on it
FRAME_BOX = (176, 132)  # what its frames fit into: width, height in pixels
MAX_STRIP_BYTES = 25_000


@dataclass(frozen=True)
class Group:
    """Videos that are shown together, and why."""

    title: str
    hint: str
    videos: list[Prediction]


def choose_examples(predictions: list[Prediction]) -> list[Group]:
    """Choose up to NUM_SHOWN predictions of each kind; none is there twice.

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


def animate(path: str, data: DataConfig) -> dict[str, Any]:
    """Draw a video as frames side by side, with the size of one and how long they are shown, or say why there are none."""
    try:
        frames, seconds = _read_evenly(path, data)
    except DecodeError as error:
        return {"why_not": str(error).removeprefix(f"{path}: ")}
    height, width = frames.shape[1:3]
    fit = "wide" if width * FRAME_BOX[1] >= height * FRAME_BOX[0] else "tall"
    shown = {"num_frames": NUM_FRAMES, "seconds": min(max(seconds, 1.5), 4.0), "fit": fit}
    return shown | {"webp": _strip(frames), "width": width, "height": height}


def common_folder(groups: list[Group]) -> str:
    """Find the folder that all videos are in; empty if there is none but the root."""
    try:
        folder = os.path.commonpath([os.path.dirname(video.path) for group in groups for video in group.videos])
    except ValueError:  # none, or some relative and some not
        return ""
    return "" if folder == os.path.sep else folder


def _read_evenly(path: str, data: DataConfig) -> tuple[Tensor, float]:
    """NUM_FRAMES frames uint8 [T, H, W, 3] over the whole of a video, made small, and its seconds; raises DecodeError."""
    with open_video(path, timeout=data.timeout, max_pixels=data.max_frame_pixels) as video:
        indices = ((torch.arange(NUM_FRAMES) + 0.5) * video.num_frames / NUM_FRAMES).long()
        return video.cuts_at(video.on_screen(indices)[None], [_small])[0], video.duration


def _small(frame: Tensor) -> Tensor:
    """A frame uint8 [H, W, 3] that fits into FRAME_BOX."""
    height, width = frame.shape[:2]
    scale = min(FRAME_BOX[0] / width, FRAME_BOX[1] / height, 1.0)
    size = (max(round(scale * width), 1), max(round(scale * height), 1))
    return torch.from_numpy(np.array(Image.fromarray(frame.numpy()).resize(size, Image.Resampling.LANCZOS)))


def _strip(frames: Tensor) -> bytes:
    """Frames side by side as WebP of MAX_STRIP_BYTES or little more."""
    strip = Image.fromarray(np.concatenate(frames.numpy(), axis=1))
    for quality in (75, 50, 25):
        content = to_webp(strip, quality=quality)
        if len(content) <= MAX_STRIP_BYTES:
            break
    return content
