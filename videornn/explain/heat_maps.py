"""Draw heat maps over the frames of a clip, as a contact sheet and as a movie, with captions in plain words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from torch import Tensor

from videornn.data.video.write import write_movie
from videornn.explain.clip_places import Places, Query
from videornn.system.files import replacing
from videornn.system.lettering import encodable, fonts_for

MAX_COLUMNS = 8
HEAVY = 3.0  # multiple of an even spread of the weight from which a frame counts as heavy
MIN_TOP = 2.0
MAX_MOVIE_FPS = 4  # mostly slower than life, so that one can see where it glows
DPI = 110
# sizes of a sheet, in inches
MARGIN, LABELS, CELL, GAP, SCALE = 0.18, 2.5, 1.5, 0.05, 0.85
LINE = 0.175  # height of a line of text of 9 points
PANEL, PANEL_GAP = 2.9, 0.78  # of a movie
BLUE = np.array([0.25, 0.65, 1.0])
OUTLINE = [withStroke(linewidth=2.5, foreground="black")]


@dataclass(frozen=True)
class HeatMap:
    """A map over the clip with its caption.

    heat: float [t, h, w], in multiples of an even spread; values below zero glow blue. places: where it lies in the clip.
    query: the point it belongs to, and its number on the frames.
    """

    name: str
    text: str
    heat: Tensor
    places: Places
    query: Query | None = None
    number: int = 0


@dataclass(frozen=True)
class Scene:
    """A clip with its maps: frames uint8 [T, H, W, 3], seconds [T] in the video, and captions in plain words."""

    title: str
    captions: Sequence[str]
    frames: np.ndarray
    seconds: Sequence[float]
    maps: Sequence[HeatMap]


def draw_sheet(path: Path, scene: Scene) -> None:
    """Draw a picture with a column for each frame shown, a row of the frames themselves and a row for each map."""
    with _fonts(scene):
        _draw_sheet(path, scene)


def _draw_sheet(path: Path, scene: Scene) -> None:
    columns = shown_frames(scene)
    width = MARGIN + LABELS + len(columns) * (CELL + GAP) + SCALE + MARGIN
    header = _header(scene, width)
    height_of_row = CELL * scene.frames.shape[1] / scene.frames.shape[2]
    top = header.height + 0.48
    height = top + (1 + len(scene.maps)) * (height_of_row + GAP) + MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI)
    header.write(figure)
    for row, heat_map in enumerate([None, *scene.maps]):
        y = top + row * (height_of_row + GAP)
        name, text = ("frames of the clip", _points(scene.maps)) if heat_map is None else (heat_map.name, heat_map.text)
        _write(figure, MARGIN, y + 0.06, name, 9, weight="bold")
        _write(figure, MARGIN, y + 0.28, "\n".join(_wrap([text], LABELS - 0.1, 8)), 8)
        for column, frame in enumerate(columns):
            x = MARGIN + LABELS + column * (CELL + GAP)
            axes = _picture_axes(figure, x, y, CELL, height_of_row)
            axes.imshow(_picture(scene, heat_map, frame))
            for query, number in _queries(scene.maps if heat_map is None else [heat_map]):
                if query.frame == frame:
                    _mark(axes, query, number, scene.frames.shape[1:3])
            if heat_map is None:
                axes.set_title(f"{scene.seconds[frame]:.2f} s\nframe {frame}", fontsize=8, pad=3)
            else:
                _corner(axes).set_text(_share_of(heat_map, frame))
        if heat_map is not None:
            _scale_bar(figure, x + CELL + 0.1, y + 0.08, height_of_row - 0.16, heat_map.heat)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def draw_movie(path: Path, scene: Scene) -> None:
    """Write a movie of the frames over time, with all maps side by side."""
    with _fonts(scene):
        write_movie(path, _movie_frames(scene), movie_fps(scene.seconds))


def _fonts(scene: Scene) -> AbstractContextManager[None]:
    """Return a context with fonts for all letters that are written on a scene."""
    return fonts_for([scene.title, *scene.captions, *(heat_map.text for heat_map in scene.maps)])


def movie_fps(seconds: Sequence[float]) -> Fraction:
    """Return the frames per second of a movie: those of the clip, but at most MAX_MOVIE_FPS and at least one."""
    steps = np.abs(np.diff(seconds))
    step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
    return Fraction(min(max(1 / step, 1.0), float(MAX_MOVIE_FPS))).limit_denominator(100)


def shown_frames(scene: Scene) -> list[int]:
    """Choose the first and last frame, those with a query point or much of a map's weight, and others in between.

    There are MAX_COLUMNS, or more if there are more query points and brightest points, so that no map looks empty.
    """
    num_frames = len(scene.frames)
    shown = {0, num_frames - 1} | {query.frame for query, _ in _queries(scene.maps)}
    shown |= {_brightest_frame(heat_map) for heat_map in scene.maps}
    shares = [_shares(heat_map) for heat_map in scene.maps]
    while len(shown) < min(MAX_COLUMNS, num_frames):
        hidden = set(range(num_frames)) - shown
        heaviest = max(hidden, key=lambda frame: max((float(share[frame]) for share in shares), default=0.0))
        if any(float(share[heaviest]) > HEAVY / num_frames for share in shares):
            shown.add(heaviest)
        else:  # the frame furthest from those shown
            shown.add(max(hidden, key=lambda frame: min(abs(frame - other) for other in shown)))
    return sorted(shown)


def _movie_frames(scene: Scene) -> Iterator[np.ndarray]:
    """Yield pictures uint8 [H, W, 3] of even size; parts that do not change are drawn once."""
    panels = [None, *scene.maps]
    num_columns = len(panels) if len(panels) <= 4 else -(-len(panels) // 2)
    num_rows = -(-len(panels) // num_columns)
    panel_height = PANEL * scene.frames.shape[1] / scene.frames.shape[2]
    width = MARGIN + num_columns * (PANEL + PANEL_GAP) + MARGIN / 2
    header = _header(scene, width)
    texts = [_wrap([_points(scene.maps) if heat_map is None else heat_map.text], PANEL + 0.4, 8) for heat_map in panels]
    text_height = 0.3 + 0.155 * max(map(len, texts))
    top, row_height = header.height + 0.12, panel_height + text_height + 0.2
    height = top + num_rows * row_height + 0.3
    figure = Figure(figsize=(2 * round(50 * width) / 100, 2 * round(50 * height) / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    header.write(figure)
    images, marks, corners = [], [], []
    for index, heat_map in enumerate(panels):
        row, column = divmod(index, num_columns)
        x, y = MARGIN + column * (PANEL + PANEL_GAP), top + row * row_height
        _write(figure, x, y, "the clip" if heat_map is None else heat_map.name, 10, weight="bold")
        _write(figure, x, y + 0.22, "\n".join(texts[index]), 8)
        axes = _picture_axes(figure, x, y + text_height, PANEL, panel_height)
        corners.append(_corner(axes, animated=True))
        images.append(axes.imshow(_picture(scene, heat_map, 0), animated=True))
        if heat_map is not None:
            _scale_bar(figure, x + PANEL + 0.07, y + text_height + 0.05, panel_height - 0.1, heat_map.heat)
        for query, number in _queries(scene.maps if heat_map is None else [heat_map]):
            marks.append((query, _mark(axes, query, number, scene.frames.shape[1:3])))
    clock = _write(figure, MARGIN, height - 0.3, "", 10, weight="bold", animated=True)
    for artist in (artist for _, mark in marks for artist in mark):
        artist.set_animated(True)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    for frame, second in enumerate(scene.seconds):
        canvas.restore_region(background)
        clock.set_text(f"{second:.2f} s    frame {frame} (of 0 to {len(scene.frames) - 1})")
        for image, corner, heat_map in zip(images, corners, panels, strict=True):
            image.set_data(_picture(scene, heat_map, frame))
            corner.set_text("" if heat_map is None else _share_of(heat_map, frame))
            image.axes.draw_artist(image)
            image.axes.draw_artist(corner)
        for query, mark in marks:
            for artist in mark:  # faint if the point is in an earlier or later frame
                artist.set_alpha(1.0 if query.frame == frame else 0.25)
                figure.draw_artist(artist)
        figure.draw_artist(clock)
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _picture(scene: Scene, heat_map: HeatMap | None, frame: int) -> np.ndarray:
    """Return a frame as it is, or with the part of a map that belongs to it."""
    picture = scene.frames[frame]
    if heat_map is None:
        return picture
    heat, places = heat_map.heat, heat_map.places
    rows, columns = (_interpolation(*axis) for axis in zip((places.rows, places.columns), picture.shape[:2], strict=True))
    share = rows @ heat[places.step(frame)].numpy() @ columns.T
    return _overlay(picture.mean(axis=2) / 255, share / _top(heat))


def _interpolation(centres: Tensor, length: int) -> np.ndarray:
    """Return the matrix [length, n] of linear interpolation from centres [n], in pixels, to all pixels; constant beyond."""
    numbers = np.arange(len(centres))
    between = np.interp(np.arange(length), centres.numpy(), numbers)
    return np.maximum(1 - np.abs(between[:, None] - numbers), 0)


def _overlay(grey: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Lay heat in -1..1 over a grey picture [H, W] in 0..1: black through purple to yellow, or to blue below zero."""
    strength = np.clip(np.abs(share), 0, 1)[..., None]
    warm = colormaps["inferno"](strength[..., 0])[..., :3]
    glow = np.where(share[..., None] < 0, strength * BLUE, warm)
    weight = 0.2 + 0.6 * strength**0.7
    return (0.8 * grey[..., None]) * (1 - weight) + glow * weight


def _scale_bar(figure: Figure, x: float, y: float, height: float, heat: Tensor) -> None:
    """Draw the meaning of the colours: 0, even, and the brightest place."""
    top = _top(heat)
    low, high = (-top, top) if heat.min() < 0 else (0.0, top)
    axes = _picture_axes(figure, x, y, 0.12, height)
    ramp = np.linspace(high, low, 128)[:, None].repeat(8, axis=1) / top
    axes.imshow(_overlay(np.full(ramp.shape, 0.5), ramp), aspect="auto", extent=(0, 1, low, high))
    ticks = {0.0: "0", low: "0" if low == 0 else f"-{_times(-low)}", high: _times(high)}
    if 0.12 < 1 / top < 0.85:
        ticks[1.0] = "1x: even"
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=7.5)
    axes.yaxis.tick_right()
    axes.tick_params(length=2, pad=2)


def _share_of(heat_map: HeatMap, frame: int) -> str:
    """Say which share of the map's weight lies at the moment of a frame."""
    return f"{100 * float(_shares(heat_map)[frame]):.0f} %"


def _shares(heat_map: HeatMap) -> Tensor:
    """Return for each frame [T] the share of the map's weight that lies at its time step."""
    strength = heat_map.heat.abs().flatten(1).sum(dim=1)
    steps = [heat_map.places.step(frame) for frame in range(heat_map.places.size[0])]
    return strength[steps] / strength.sum().clamp_min(1e-30)


def _top(heat: Tensor) -> float:
    """Return the upper end of the colours: the brightest place, but at least MIN_TOP, for maps that are nearly even."""
    return max(float(heat.abs().max()), MIN_TOP)


def _times(multiple: float) -> str:
    """Format a multiple of an even spread."""
    return f"{multiple:.0f}x" if multiple >= 10 else f"{multiple:.1f}x"


def _mark(axes: Axes, query: Query, number: int, size: tuple[int, int]) -> list[Text]:
    """Draw a query point on a picture of this height and width."""
    # moved in a little at an edge, where it would seem to belong to the next picture
    x, y = (min(max(at, 0.05), 0.95) * length - 0.5 for at, length in ((query.x, size[1]), (query.y, size[0])))
    options: dict[str, Any] = {"color": "white", "weight": "bold", "path_effects": OUTLINE, "clip_on": False}
    plus = axes.text(x, y, "+", fontsize=17, ha="center", va="center_baseline", **options)
    away = (-9 if query.x > 0.8 else 9, -9 if query.y < 0.2 else 8)
    digit = axes.annotate(
        str(number), (x, y), away, textcoords="offset points", fontsize=8, ha="center", va="center", **options
    )
    return [plus, digit]


def _corner(axes: Axes, **options: Any) -> Text:
    """Create an empty text in the lower left corner of a picture."""
    return axes.text(
        0.03, 0.03, "", fontsize=7.5, color="white", va="bottom", path_effects=OUTLINE, transform=axes.transAxes, **options
    )


def _queries(maps: Sequence[HeatMap]) -> list[tuple[Query, int]]:
    """Return the query points of maps and their numbers, each once."""
    return list(dict.fromkeys((heat_map.query, heat_map.number) for heat_map in maps if heat_map.query is not None))


def _points(maps: Sequence[HeatMap]) -> str:
    queries = _queries(maps)
    if not queries:
        return ""
    return "+ marks the point that is asked" if len(queries) == 1 else "+ marks the points that are asked"


def _brightest_frame(heat_map: HeatMap) -> int:
    """Return the frame of the time step of a map that holds its largest value."""
    return heat_map.places.frame(int(heat_map.heat.flatten(1).amax(dim=1).argmax()))


def _picture_axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Add axes without ticks, placed in inches from the left and from the top."""
    total = figure.get_size_inches()
    axes = figure.add_axes((x / total[0], 1 - (y + height) / total[1], width / total[0], height / total[1]))
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _write(figure: Figure, x: float, y: float, text: str, size: float, **options: Any) -> Text:
    """Write text whose upper left corner is at x, y, in inches from the left and from the top."""
    width, height = figure.get_size_inches()
    options = {"fontsize": size, "va": "top", "linespacing": 1.25, "parse_math": False, **options}
    return figure.text(x / width, 1 - y / height, encodable(text), **options)


@dataclass(frozen=True)
class _Header:
    """Title and captions of a picture, in lines; height in inches."""

    title: list[str]
    captions: list[str]

    @property
    def height(self) -> float:
        return MARGIN + 0.24 * len(self.title) + 0.1 + LINE * len(self.captions)

    def write(self, figure: Figure) -> None:
        _write(figure, MARGIN, MARGIN, "\n".join(self.title), 12, weight="bold")
        _write(figure, MARGIN, MARGIN + 0.24 * len(self.title) + 0.1, "\n".join(self.captions), 9)


def _header(scene: Scene, width: float) -> _Header:
    room = width - 2 * MARGIN
    return _Header(_wrap([scene.title], room, 13.5), _wrap(scene.captions, room, 9))


def _wrap(paragraphs: Sequence[str], width: float, size: float) -> list[str]:
    """Break paragraphs into lines that fit into a width in inches."""
    num_letters = max(int(width * 72 / (0.53 * size)), 12)  # a letter is a little more than half as wide as high
    return [line for text in paragraphs for line in textwrap.wrap(text, num_letters)]
