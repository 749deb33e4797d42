"""What `videornn infer` shows of its results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from videornn.console import say
from videornn.predictions import Ranking
from videornn.timeline import Segment, Window, time_text

BAR_WIDTH = 20  # characters


class Screen:
    """Results on standard output as they come: a table with colours on a terminal, aligned text elsewhere."""

    def __init__(self, files: list[str], class_names: Sequence[str], *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console()
        self._path_width = max(map(len, files), default=0)
        if self._console.is_terminal:
            self._path_width = min(self._path_width, max(self._console.width - 60, 20))
        self._class_width = min(max(map(len, class_names)), 40)
        self._has_header = False

    def ranking(self, path: str, ranking: Ranking) -> None:
        """The best classes of a video."""
        if self._console.is_terminal:
            bars = [f"{100 * score:5.1f} % " + "█" * round(BAR_WIDTH * score) for _, score in ranking]
            self._row(["video", "class", "score"], [path, "\n".join(name for name, _ in ranking), "\n".join(bars)])
        else:
            self._line(path, *(f"{name:{self._class_width}} {100 * score:5.1f} %" for name, score in ranking))

    def segments(self, path: str, segments: Sequence[Segment]) -> None:
        """What happens when in a video."""
        for number, segment in enumerate(segments):
            self._moment(path if number == 0 or not self._console.is_terminal else "", "segment", segment)

    def window(self, path: str, window: Window, ranking: Ranking, threshold: float) -> None:
        """The best class of a window."""
        name, score = ranking[0]
        self._moment(path, "window", Segment(window.start, window.end, name if score >= threshold else None, score))

    def _moment(self, path: str, kind: str, segment: Segment) -> None:
        times = f"{time_text(segment.start):>9} - {time_text(segment.end):<9}"
        score = f"{100 * segment.score:5.1f} %"
        if self._console.is_terminal:
            bar = "█" * round(BAR_WIDTH * segment.score)
            self._row(["video", kind, "class", "score"], [path, times, segment.label or "none", f"{score} {bar}"])
        else:
            self._line(path, times, f"{segment.label or 'none':{self._class_width}} {score}")

    def _line(self, path: str, *cells: str) -> None:
        if not self._quiet:
            say("  ".join([f"{path:{self._path_width}}", *cells]))

    def _row(self, header: list[str], cells: list[str]) -> None:
        if self._quiet:
            return
        widths = {"video": self._path_width, "class": self._class_width, "score": BAR_WIDTH + 8}
        table = Table(box=None, show_header=not self._has_header, header_style="bold", pad_edge=False)
        for title in header:
            style = {"video": "cyan", "score": "green"}.get(title)
            table.add_column(title, min_width=widths.get(title), max_width=widths.get(title), overflow="fold", style=style)
        table.add_row(*map(Text, cells))
        self._has_header = True
        with self._console.capture() as capture:
            self._console.print(table)
        say(capture.get().rstrip("\n"))  # a progress bar on this terminal stays below it
