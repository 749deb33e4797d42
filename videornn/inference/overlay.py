"""Draw labels into a video: what happens at the moment, the best scores, and the position in the whole."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont

from videornn.data.video.decoders import open_video
from videornn.data.video.pictures import MAX_FRAME_PIXELS
from videornn.data.video.write import redraw_movie
from videornn.inference.timeline import NONE_COLOR, Segment, Window, class_colors, time_text, window_edges

SMALLEST_SIDE = 288  # pixels; smaller videos are scaled up until text is legible, or a side reaches LONGEST_SIDE
LONGEST_SIDE = 4096
MAX_SIDE = 16384  # of H.264
BACK = (16, 16, 16, 190)  # behind text, RGBA


def redraw_whole(
    source: str, path: Path, class_names: Sequence[str], scores: np.ndarray, max_pixels: int = MAX_FRAME_PIXELS
) -> Iterator[float]:
    """Run redraw_movie with the best class of a whole video: scores float32 [K] in 0..1."""
    with open_video(source, max_pixels=max_pixels) as video:
        end = video.duration
    best = int(scores.argmax())
    segments = [Segment(0.0, end, class_names[best], float(scores[best]))]
    windows = [Window(0.0, end, torch.from_numpy(scores))]
    yield from redraw_movie(source, path, Overlay(windows, segments, class_names, scores=scores[None]), max_pixels)


class Overlay:
    """An overlay on the pictures of one video; parts that do not change from frame to frame are drawn once.

    Args:
        windows: the times of the rows of scores.
        segments: what happens when.
        scores: float32 [num_windows, K] in 0..1, as shown.
        topk: classes to show.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        segments: Sequence[Segment],
        class_names: Sequence[str],
        *,
        scores: np.ndarray,
        topk: int = 3,
    ) -> None:
        self._class_names = class_names
        self._scores = scores
        self._topk = min(topk, len(class_names))
        self._segments = segments
        self._starts = [segment.start for segment in segments]
        self._edges = window_edges(windows)
        self._duration = windows[-1].end
        self._colors = class_colors(segments, class_names)
        self._size = (0, 0)  # (width, height) of what is written, from the first picture on
        self._panel: tuple[tuple[int, int], Image.Image] | None = None

    def __call__(self, picture: np.ndarray, seconds: float) -> np.ndarray:
        if self._size == (0, 0):
            self._size = shown_size(picture.shape[1], picture.shape[0])
            self._unit = max(13, round(min(self._size) / 21))  # height of text
            self._bar = self._time_bar()
        image = Image.fromarray(picture)
        if image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BICUBIC)
        window = min(max(bisect.bisect_right(self._edges, seconds) - 1, 0), len(self._scores) - 1)
        segment = max(bisect.bisect_right(self._starts, seconds) - 1, 0)
        if self._panel is None or self._panel[0] != (window, segment):
            self._panel = (window, segment), self._scores_panel(window, self._segments[segment])
        for layer, corner in ((self._panel[1], (0, 0)), (self._bar, (0, self._size[1] - self._bar.height))):
            image.paste(layer, corner, layer)
        self._draw_moment(ImageDraw.Draw(image), seconds)
        return np.asarray(image)

    def _scores_panel(self, window: int, segment: Segment) -> Image.Image:
        """Draw the label of the moment, and below it the best classes with bars."""
        unit, (width, _) = self._unit, self._size
        pad, row = unit // 2, round(1.35 * unit)
        panel = Image.new("RGBA", (min(width, 17 * unit), round(1.9 * unit) + self._topk * row + pad), (0, 0, 0, 0))
        draw = ImageDraw.Draw(panel)
        draw.rectangle((0, 0, panel.width, panel.height), fill=BACK)
        color = NONE_COLOR if segment.label is None else self._colors[segment.label]
        draw.rectangle((0, 0, unit // 3, panel.height), fill=color)
        left = unit // 3 + pad
        big = font(round(1.25 * unit), bold=True)
        draw.text((left, pad // 2), fitted(segment.label or "none", big, panel.width - left - pad), font=big, fill="white")
        small = font(unit)
        best = np.argsort(-self._scores[window], kind="stable")[: self._topk]
        for place, (score, k) in enumerate(zip(self._scores[window, best].tolist(), best.tolist(), strict=True)):
            top = round(1.9 * unit) + place * row
            room = max(panel.width - left - pad, 0)
            fill = (*ImageColor.getrgb(self._colors[self._class_names[k]]), 150)
            draw.rectangle((left, top, left + round(room * score), top + row - 3), fill=fill)
            percent = f"{100 * score:.0f} %"
            right = small.getlength(percent)
            name = fitted(self._class_names[k], small, room - right - 2 * pad)
            draw.text((left + 3, top + (row - 3) / 2), name, font=small, fill="white", anchor="lm")
            draw.text((left + room - 3, top + (row - 3) / 2), percent, font=small, fill="white", anchor="rm")
        return panel

    def _time_bar(self) -> Image.Image:
        """Draw all segments along the lower edge."""
        width, height = self._size[0], self._unit
        bar = Image.new("RGBA", (width, height), BACK)
        draw = ImageDraw.Draw(bar)
        for segment in self._segments:
            left, right = (round(width * time / self._duration) for time in (segment.start, segment.end))
            color = NONE_COLOR if segment.label is None else self._colors[segment.label]
            draw.rectangle((left, height // 3, max(right - 2, left), height), fill=color)
        return bar

    def _draw_moment(self, draw: ImageDraw.ImageDraw, seconds: float) -> None:
        """Draw the position of the frame on the time bar, and the time."""
        (width, height), unit = self._size, self._unit
        place = round((width - 1) * min(seconds / self._duration, 1))
        draw.rectangle((place - 2, height - unit, place + 2, height), fill="black")
        draw.rectangle((place - 1, height - unit, place + 1, height), fill="white")
        text, small = f"{time_text(seconds)} / {time_text(self._duration)}", font(round(0.8 * unit))
        box = draw.textbbox((width - unit // 2, height - round(1.3 * unit)), text, font=small, anchor="rs")
        draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=BACK[:3])
        draw.text((width - unit // 2, height - round(1.3 * unit)), text, font=small, fill="white", anchor="rs")


def shown_size(width: int, height: int) -> tuple[int, int]:
    """Return the output's (width, height), both even: a whole multiple for small videos, so that text is legible."""
    longest = max(width, height)
    factor = max(min(math.ceil(SMALLEST_SIDE / min(width, height)), LONGEST_SIDE // longest), 1)
    scale = min(factor, MAX_SIDE / longest)
    return 2 * max(math.ceil(width * scale / 2), 1), 2 * max(math.ceil(height * scale / 2), 1)


@lru_cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load the font that comes with matplotlib: the same on every machine, with the letters of most languages."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the text, or as much of it as fits into a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
