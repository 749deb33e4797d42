"""Show the results of `videornn infer`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from videornn.inference.output import Ranking
from videornn.inference.timeline import Segment, Window, time_text
from videornn.system.console import SafeConsole, printable, say

BAR_WIDTH = 20  # characters
TIMES_WIDTH = 21
PERCENT_WIDTH = 7
GAP_WIDTH = 2  # to the right of every column


class Screen:
    """A screen that prints results as they come: a table with colours on a terminal, aligned text elsewhere."""

    def __init__(self, files: list[str], class_names: Sequence[str], *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = SafeConsole()
        self._folder = _common_folder(files) if self._console.is_terminal else ""
        self._path_width = max((len(self._name(file)) for file in files), default=0)
        if self._console.is_terminal:
            self._path_width = min(self._path_width, max(self._console.width - 60, self._console.width // 5))
        self._class_width = min(max(len(printable(name)) for name in class_names), 40)
        self._has_header = False

    def ranking(self, path: str, ranking: Ranking) -> None:
        """Print the best classes of a video."""
        names, scores = [printable(name) for name, _ in ranking], [score for _, score in ranking]
        if self._console.is_terminal:
            self._row({"video": self._name(path)}, names, scores)
        else:
            pairs = zip(names, scores, strict=True)
            cells = (f"{name:{self._class_width}} {_percent(score)}" for name, score in pairs)
            self._line(path, *cells)

    def segments(self, path: str, segments: Sequence[Segment]) -> None:
        """Print what happens when in a video."""
        for number, segment in enumerate(segments):
            self._moment(path if number == 0 or not self._console.is_terminal else "", "segment", segment)

    def window(self, path: str, window: Window, ranking: Ranking, threshold: float) -> None:
        """Print the best class of a window."""
        name, score = ranking[0]
        self._moment(path, "window", Segment(window.start, window.end, name if score >= threshold else None, score))

    def _moment(self, path: str, kind: str, segment: Segment) -> None:
        times = f"{time_text(segment.start):>9} - {time_text(segment.end):<9}"
        label = printable(segment.label or "none")
        if self._console.is_terminal:
            self._row({"video": self._name(path), kind: times}, [label], [segment.score])
        else:
            self._line(path, times, f"{label:{self._class_width}} {_percent(segment.score)}")

    def _name(self, path: str) -> str:
        return printable(path.removeprefix(self._folder))

    def _line(self, path: str, *cells: str) -> None:
        if not self._quiet:
            say("  ".join([f"{printable(path):{self._path_width}}", *cells]))

    def _row(self, cells: dict[str, str], names: list[str], scores: list[float]) -> None:
        """Print a row of a table at once; on narrow terminals bars are shorter or left out."""
        if self._quiet:
            return
        fixed = self._path_width + (len(cells) - 1) * TIMES_WIDTH + PERCENT_WIDTH + GAP_WIDTH * (len(cells) + 2)
        room = self._console.width - fixed  # for the class and the bar
        class_width = min(self._class_width, max(room, 4))
        bar_width = min(BAR_WIDTH, max(room - class_width - 1, 0))
        table = Table(box=None, show_header=not self._has_header, header_style="bold", padding=(0, GAP_WIDTH, 0, 0))
        widths = {"video": self._path_width, "class": class_width, "score": PERCENT_WIDTH + bool(bar_width) + bar_width}
        name = cells["video"]
        cells = cells | {
            "video": name if len(name) <= self._path_width else f"…{name[len(name) - self._path_width + 1 :]}",
            "class": "\n".join(name if len(name) <= class_width else f"{name[: class_width - 1]}…" for name in names),
            "score": "\n".join(f"{_percent(score)} {'█' * round(bar_width * score)}".rstrip() for score in scores),
        }
        for title in cells:
            style = {"video": "cyan", "score": "green"}.get(title)
            width = widths.get(title, TIMES_WIDTH)
            table.add_column(title, width=width, overflow="fold", style=style)
        table.add_row(*map(Text, cells.values()))
        self._has_header = True
        with self._console.capture() as capture:
            self._console.print(table)
        print(capture.get().rstrip("\n"), flush=True)  # a progress bar on this terminal stays below it


def _common_folder(files: list[str]) -> str:
    """Return the folder that all paths begin with, up to its separator; tables have no room for it."""
    try:
        folder = os.path.commonpath([os.path.dirname(file) for file in files])
    except ValueError:  # there are no paths, or relative and absolute ones
        return ""
    return os.path.join(folder, "") if folder else ""


def _percent(score: float) -> str:
    return f"{100 * score:5.1f} %"
