"""Line charts as SVG that follows the page's colours, and bars that are HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videornn.report.markup import Markup, tag

MAX_POINTS = 400  # of a line; more are averaged
LOG_RATIO = 100  # a chart whose values span more than this has a logarithmic axis


@dataclass(frozen=True)
class Series:
    """A line of a chart: x ascending, y of any value, also NaN; role is its class in the style sheet (main or second)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    role: str = "main"


@dataclass(frozen=True)
class Frame:
    """Where the values of a chart lie in its picture, in pixels from the upper left."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool
    left: int = 50
    right: int = 14
    top: int = 12
    bottom: int = 34

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = (math.log10(end) if self.log else end for end in self.y_range)
        share = ((math.log10(value) if self.log else value) - low) / (high - low)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str,
    unit: str = "",
    log: bool = False,
    top: float | None = None,
    last: bool = True,
    marks: Sequence[float] = (),
    size: tuple[int, int] = (360, 210),
) -> Markup:
    """A figure of lines over one x; its caption is the key.

    A value that is not finite breaks its line and is a cross at the upper edge.

    Args:
        log: whether the axis may be logarithmic: it is for positive values that span more than LOG_RATIO. Others start at 0.
        top: the end of the axis; by default a round number above all values.
        last: whether the key says the last value of each line.
        marks: x of vertical lines, where a run was taken up again.
        size: width and height in pixels at which the text is as large as the page's.
    """
    lines = [line for line in series if len(line.x)]
    values = np.array([value for line in lines for value in line.y if math.isfinite(value)] or [0.0])
    log = log and bool(values.min() > 0 and values.max() > LOG_RATIO * values.min())
    y_ticks = _log_ticks(values.min(), values.max()) if log else _ticks(min(0.0, values.min()), top or values.max())
    x_values = [value for line in lines for value in line.x]
    x_range = (min(0.0, *x_values), max(*x_values, 1e-9)) if x_values else (0.0, 1.0)
    frame = Frame(*size, x_range, (y_ticks[0], y_ticks[-1]), log)
    num_odd = sum(not math.isfinite(value) for line in lines for value in line.y)
    odd = f"{num_odd} not finite (\N{MULTIPLICATION SIGN})" if num_odd else None
    picture = tag(
        "svg",
        _grid(frame, y_ticks, x_name),
        [
            tag("line", x1=_px(frame.x(x)), x2=_px(frame.x(x)), y1=frame.top, y2=size[1] - frame.bottom, class_="mark")
            for x in marks
        ],
        [_line(frame, line) for line in lines],
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="img",
        aria_label=f"{title}, by {x_name}",
    )
    key = [
        tag(
            "span",
            tag("i", class_=f"key {line.role}"),
            f"{line.name} ",
            tag("b", _number(line.y[-1]) + unit) if last else None,
            class_="entry",
        )
        for line in lines
    ]
    note = ", ".join(filter(None, ["logarithmic" if log else "", f"in {unit.strip()}" if unit.strip() else ""]))
    heading = tag("strong", title, tag("small", f" ({note})") if note else None)
    caption = tag("figcaption", heading, key, tag("span", odd, class_="entry bad") if odd else None)
    return tag("figure", caption, picture, class_="chart")


def bar(share: float, text: str, class_: str = "") -> Markup:
    """A horizontal bar of a share 0..1 of its place, and what it says after it."""
    filled = tag("i", style=f"width:{100 * min(max(share, 0.0), 1.0):.1f}%")
    return tag(
        "span", tag("span", filled, class_="track"), tag("span", text, class_="value"), class_=f"bar {class_}".strip()
    )


def _grid(frame: Frame, y_ticks: list[float], x_name: str) -> list[Markup]:
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    parts = []
    for value in y_ticks:
        y = _px(frame.y(value))
        parts.append(tag("line", x1=frame.left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", _number(value), x=frame.left - 7, y=y, dy="0.35em", text_anchor="end"))
    x_ticks = [value for value in _ticks(*frame.x_range) if frame.x_range[0] <= value <= frame.x_range[1]]
    for value in x_ticks:
        parts.append(tag("text", _number(value), x=_px(frame.x(value)), y=bottom + 16, text_anchor="middle"))
    middle = (frame.left + right) / 2
    return [*parts, tag("text", x_name, x=middle, y=frame.height - 3, text_anchor="middle", class_="axis")]


def _line(frame: Frame, line: Series) -> Markup:
    """A series: its line, dots if there are few, crosses for what is not finite, the spread if it is averaged."""
    x, y = np.array(line.x, np.float64), np.array(line.y, np.float64)
    finite = np.isfinite(y)
    crosses = [_cross(frame.x(place), frame.top + 4) for place in _thinned(x[~finite])]
    parts: list[Markup] = []
    if len(x) > MAX_POINTS:
        x, low, y, high = _averaged(x, y)
        there = np.isfinite(y)
        outline = [*zip(x[there], high[there], strict=True), *reversed(list(zip(x[there], low[there], strict=True)))]
        parts.append(tag("polygon", points=" ".join(f"{_px(frame.x(a))},{_px(frame.y(b))}" for a, b in outline)))
    path, pen = [], "M"
    for place, value in zip(x, y, strict=True):
        if math.isfinite(value):
            path.append(f"{pen}{_px(frame.x(place))} {_px(frame.y(value))}")
        pen = "L" if math.isfinite(value) else "M"
    if path:
        parts.append(tag("path", d="".join(path)))
    if len(x) <= 40:
        parts += [_dot(frame, line.name, a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    return tag("g", parts, crosses, class_=f"line {line.role}")


def _dot(frame: Frame, name: str, x: float, y: float) -> Markup:
    said = tag("title", f"{name} {_number(y)} at {_number(x)}")
    return tag("circle", said, cx=_px(frame.x(x)), cy=_px(frame.y(y)), r=2.6)


def _cross(x: float, y: float) -> Markup:
    return tag("path", d=f"M{_px(x - 3)} {_px(y - 3)}l6 6m0 -6l-6 6", class_="cross")


def _thinned(places: np.ndarray) -> np.ndarray:
    return places[:: max(len(places) // 50, 1)]


def _averaged(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean x and least, mean and largest finite y of MAX_POINTS equal parts; NaN for a part without a finite value."""
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    rows = []
    for part in parts:
        values = y[part][np.isfinite(y[part])]
        numbers = (values.min(), values.mean(), values.max()) if len(values) else (math.nan,) * 3
        rows.append((x[part].mean(), *numbers))
    places, low, mean, high = np.array(rows).T
    return places, low, mean, high


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers, the first at or below low, the last at or above high."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if span / step <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(max(high, low + span) / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around all values, not more than about six of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(math.ceil((last - first) / 5), 1)
    return [10.0**exponent for exponent in range(first, last + step, step)]


def _number(value: float) -> str:
    """A number as people write it, three digits or so."""
    if not math.isfinite(value):
        return {"nan": "NaN", "inf": "\N{INFINITY}", "-inf": "\N{MINUS SIGN}\N{INFINITY}"}[str(float(value))]
    if abs(value) >= 1000 and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
