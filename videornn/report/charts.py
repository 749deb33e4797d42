"""Line charts as numbers: where their lines and ticks lie; macros.html.j2 draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videornn.report.render import px

MAX_POINTS = 400  # of a line; more are averaged
LOG_RATIO = 100  # a chart whose values span more than this has a logarithmic axis
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 34  # pixels around the lines, where ticks and names are

Place = Callable[[float], float]  # of a value, in pixels


@dataclass(frozen=True)
class Series:
    """A line of a chart: x ascending, y of any value, also NaN; role is its class in the style sheet (main or second)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    role: str = "main"


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
) -> dict[str, Any]:
    """Lay out lines over one x for a figure, whose caption is their key: places in pixels, ticks with their values.

    A value that is not finite breaks its line and is a cross at the upper edge.

    Args:
        log: whether the axis may be logarithmic: it is for positive values that span more than LOG_RATIO. Others start at 0.
        top: the end of the axis; by default a round number above all values.
        last: whether the key says the last value of each line.
        marks: x of vertical lines, where a run was taken up again.
        size: width and height in pixels at which the text is as large as the page's.
    """
    series = [line for line in series if len(line.x)]
    values = np.array([value for line in series for value in line.y if math.isfinite(value)] or [0.0])
    log = log and bool(values.min() > 0 and values.max() > LOG_RATIO * values.min())
    y_ticks = _log_ticks(values.min(), values.max()) if log else _ticks(min(0.0, values.min()), top or values.max())
    x_values = [value for line in series for value in line.x]
    low, high = (min(0.0, *x_values), max(*x_values, 1e-9)) if x_values else (0.0, 1.0)
    right, bottom = size[0] - RIGHT, size[1] - BOTTOM
    x, y = _axis(low, high, LEFT, right), _axis(y_ticks[0], y_ticks[-1], bottom, TOP, log)
    return {
        "title": title,
        "x_name": x_name,
        "unit": unit,
        "note": ", ".join(filter(None, ["logarithmic" if log else "", f"in {unit.strip()}" if unit.strip() else ""])),
        "last": last,
        "lines": [_line(line, x, y) for line in series],
        "num_odd": sum(not math.isfinite(value) for line in series for value in line.y),
        "marks": [x(value) for value in marks],
        "x_ticks": [(value, x(value)) for value in _ticks(low, high) if low <= value <= high],
        "y_ticks": [(value, y(value)) for value in y_ticks],
        "size": size,
        "edges": (LEFT, right, TOP, bottom),
    }


def _axis(low: float, high: float, start: float, end: float, log: bool = False) -> Place:
    """The place of each value, of which low is at start and high at end."""
    scale = math.log10 if log else float
    return lambda value: start + (scale(value) - scale(low)) / (scale(high) - scale(low)) * (end - start)


def _line(series: Series, to_x: Place, to_y: Place) -> dict[str, Any]:
    """A series: its line, dots if there are few, crosses for what is not finite, the spread if it is averaged."""
    x, y = np.array(series.x, np.float64), np.array(series.y, np.float64)
    odd, spread = x[~np.isfinite(y)], ""
    if len(x) > MAX_POINTS:
        x, low, y, high = _averaged(x, y)
        outline = [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
        spread = " ".join(f"{px(to_x(a))},{px(to_y(b))}" for a, b in outline if math.isfinite(b))
    path, pen = "", "M"
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            path += f"{pen}{px(to_x(a))} {px(to_y(b))}"
        pen = "L" if math.isfinite(b) else "M"
    return {
        "series": series,
        "path": path,
        "spread": spread,
        "dots": [(to_x(a), to_y(b), a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b) and len(x) <= 40],
        "crosses": [(to_x(a), TOP + 4) for a in odd[:: max(len(odd) // 50, 1)]],
    }


def _averaged(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean x and least, mean and largest finite y of MAX_POINTS equal parts; NaN for a part without a finite value."""
    rows = []
    for part in np.array_split(np.arange(len(x)), MAX_POINTS):
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
