"""The command `videornn infer`: videos, long videos and streams; results as they come, and to files."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from videornn.console import ProgressBar, complain, fail, say
from videornn.data.files import check_file, make_folder
from videornn.errors import DecodeError, UserError

if TYPE_CHECKING:
    from videornn.predict import Prediction, Predictor, Ranking
    from videornn.timeline import Segment, Window

MANY_VIDEOS = 10  # fewer need no progress bar
LONG_SECONDS = 60.0  # in a log, only longer videos have lines of progress
BAR_WIDTH = 20  # characters


def infer(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; nothing else is needed.")],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Videos, folders, lists, globs; a URL or /dev/video0 is read live."),
    ],
    topk: Annotated[int, typer.Option(min=1, help="Classes to print per video.")] = 5,
    json_file: Annotated[
        Optional[Path], typer.Option("--json", help="Write the results as JSON ('-': to the screen, and nothing else).")
    ] = None,
    csv_file: Annotated[Optional[Path], typer.Option("--csv", help="Write the results as CSV.")] = None,
    window: Annotated[
        Optional[float],
        typer.Option(metavar="S", help="Slide a window of S seconds over long videos; of a stream, by default one clip."),
    ] = None,
    stride: Annotated[
        Optional[float], typer.Option(metavar="S", help="Seconds from window to window; by default half a window.")
    ] = None,
    smooth: Annotated[
        Optional[float],
        typer.Option(metavar="S", help="Average scores over S seconds, drop flickers; by default half a window, 0 is off."),
    ] = None,
    threshold: Annotated[
        Optional[float], typer.Option(metavar="P", help="Below this score, 0..1, the label is none; by default 0.3.")
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="Write NAME_timeline.csv and .png of every video (--window).")
    ] = None,
    overlay: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="Write NAME_overlay.mp4: labels drawn in, sound kept.")
    ] = None,
) -> None:
    """Say what happens in videos. Exit code 0: all are done; 2: some failed, their rows say why; 130: interrupted."""
    _check_ranges({"--window": window, "--stride": stride, "--smooth": smooth}, threshold)
    check_file(None if str(json_file) == "-" else json_file, "--json")
    check_file(csv_file, "--csv")
    from videornn.data.stream import is_live
    from videornn.predict import find_videos, load_predictor
    from videornn.predictions import write_csv, write_json
    from videornn.timeline import THRESHOLD

    slides = window is not None or any(is_live(path) for path in paths)
    given = {"--stride": stride, "--smooth": smooth, "--threshold": threshold, "--out": out}
    for option, value in given.items():
        if value is not None and not slides:
            raise UserError(f"{option} {value} is for sliding windows: give --window S too, the seconds of a window")
    make_folder(out)
    make_folder(overlay, "--overlay")
    predictor = load_predictor(checkpoint, topk=topk)
    files = find_videos(paths)
    if overlay is not None and any(map(is_live, files)):
        raise UserError(f"--overlay draws into files; {next(filter(is_live, files))} is a stream")
    screen = _Screen(files, predictor.class_names, quiet=str(json_file) == "-")
    results: list[dict[str, Any]] = []  # a row is in it before anything of it is printed: Ctrl-C can come at any moment
    interrupted = False
    try:
        if slides:
            plan = _Sliding(window, stride, smooth, THRESHOLD if threshold is None else threshold, out, overlay)
            _slide(predictor, files, plan, screen, results)
        else:
            _score_whole(predictor, files, overlay, screen, results)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if json_file is not None:
            write_json(json_file, results)
        if csv_file is not None:
            write_csv(csv_file, results, segments=slides)
    failed = sum("error" in result for result in results)
    if interrupted:
        fail(f"interrupted; {len(results)} of {len(files)} videos are done", 130)
    if failed:
        fail(f"{failed} of {len(results)} videos failed")


@dataclass(frozen=True)
class _Sliding:
    """The options of sliding windows."""

    window: float | None
    stride: float | None
    smooth: float | None
    threshold: float
    out: Path | None
    overlay: Path | None


def _check_ranges(seconds: dict[str, float | None], threshold: float | None) -> None:
    for option, value in seconds.items():
        if value is not None and not (0 <= value < math.inf and (value > 0 or option == "--smooth")):
            raise UserError(f"{option} {value:g}: give seconds{'' if option == '--smooth' else ' above 0'}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold:g}: a score lies in 0..1")


def _score_whole(
    predictor: Predictor, files: list[str], overlay: Path | None, screen: _Screen, results: list[dict[str, Any]]
) -> None:
    """Score every file as a whole; its row goes to results."""
    from videornn.predictions import output_names, prediction_rows

    names = output_names(files)
    with _progress("videos", len(files) >= MANY_VIDEOS) as update:
        for number, prediction in enumerate(predictor.predict_many(files)):
            row: dict[str, Any] = {"path": prediction.path}
            try:
                if prediction.scores is None:
                    raise DecodeError(prediction.error)
                ranking = predictor.rank(prediction.scores)
                row["predictions"] = prediction_rows(ranking)
                results.append(row)
                screen.ranking(prediction.path, ranking)
                if overlay is not None:
                    _overlay_whole(predictor, prediction, overlay / f"{names[number]}_overlay.mp4")
            except DecodeError as error:
                _fail_row(row, error, results)
            update(number + 1, len(files))


def _fail_row(row: dict[str, Any], error: DecodeError, results: list[dict[str, Any]]) -> None:
    row["error"] = str(error)
    if not results or results[-1] is not row:
        results.append(row)
    complain(str(error))


def _overlay_whole(predictor: Predictor, prediction: Prediction, path: Path) -> None:
    from videornn.data.decoding import open_video
    from videornn.overlay import write_overlay
    from videornn.predictions import writing
    from videornn.timeline import Segment, Window

    with open_video(prediction.path) as video:
        end = video.duration
    label, score = predictor.rank(prediction.scores)[0]
    with writing("--overlay", path):
        write_overlay(
            prediction.path,
            path,
            [Window(0.0, end, prediction.scores)],
            [Segment(0.0, end, label, score)],
            predictor.class_names,
            scores=prediction.scores[None],
        )


def _slide(predictor: Predictor, files: list[str], plan: _Sliding, screen: _Screen, results: list[dict[str, Any]]) -> None:
    """Score every file or stream window by window; its row goes to results."""
    from videornn.data.stream import is_live
    from videornn.predictions import output_names

    names = output_names(files)
    with _progress("percent", not all(map(is_live, files))) as update:
        for number, (path, name) in enumerate(zip(files, names, strict=True)):
            share = partial(_update_share, update, number, len(files))
            stopped = _slide_over(predictor, path, name, plan, screen, results, share)
            if len(files) >= MANY_VIDEOS or sys.stderr.isatty():
                share(1.0)
            if stopped and number + 1 < len(files):
                raise KeyboardInterrupt


def _update_share(update: Callable[[int, int], None], number: int, num_files: int, share: float) -> None:
    update(int(100 * (number + min(share, 1.0)) / num_files), 100)


def _slide_over(
    predictor: Predictor,
    path: str,
    name: str,
    plan: _Sliding,
    screen: _Screen,
    results: list[dict[str, Any]],
    on_share: Callable[[float], None],
) -> bool:
    """Score one file or stream; tells whether Ctrl-C ended the stream: there is no other way to end a camera."""
    from videornn.data.stream import VideoStream

    row: dict[str, Any] = {"path": path}
    windows: list[Window] = []
    stopped = live = False
    try:
        stream = VideoStream(path)
        live = stream.live
        for window in predictor.windows(stream, window=plan.window, stride=plan.stride):
            windows.append(window)
            if live:
                screen.window(path, window, predictor.rank(window.scores), plan.threshold)
            elif stream.duration and (stream.duration > LONG_SECONDS or sys.stderr.isatty()):
                on_share(window.end / stream.duration)
        if stream.num_damaged:
            row["damaged_packets"] = stream.num_damaged
            complain(f"{path}: {stream.num_damaged} damaged packets were left out")
    except DecodeError as error:
        _fail_row(row, error, results)
    except KeyboardInterrupt:
        if not live:
            raise
        stopped = True
    if windows:
        try:
            _tell(predictor, row, name, windows, plan, screen, results)
        except DecodeError as error:
            _fail_row(row, error, results)
    return stopped


def _tell(
    predictor: Predictor,
    row: dict[str, Any],
    name: str,
    windows: list[Window],
    plan: _Sliding,
    screen: _Screen,
    results: list[dict[str, Any]],
) -> None:
    """Put segments and windows of one video into its row, print them, and write what was asked for."""
    from videornn.overlay import write_overlay
    from videornn.predictions import prediction_rows, segment_rows, write_timeline, writing
    from videornn.timeline import find_segments, half_window, smooth_scores

    class_names = predictor.class_names
    smooth = half_window(windows) if plan.smooth is None else plan.smooth
    segments = find_segments(windows, class_names, smooth=smooth, threshold=plan.threshold)
    row["seconds"] = round(windows[-1].end, 3)
    row["segments"] = segment_rows(segments)
    row["windows"] = [
        {"start": round(w.start, 3), "end": round(w.end, 3), "predictions": prediction_rows(predictor.rank(w.scores))}
        for w in windows
    ]
    if not results or results[-1] is not row:
        results.append(row)
    path = row["path"]
    screen.segments(path, segments)
    if plan.out is not None:
        write_timeline(plan.out, name, windows, segments, class_names, path)
    if plan.overlay is not None:
        file = plan.overlay / f"{name}_overlay.mp4"
        with writing("--overlay", file):
            write_overlay(path, file, windows, segments, class_names, scores=smooth_scores(windows, smooth))


@contextmanager
def _progress(name: str, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; elsewhere lines for many videos only."""
    if not shown:
        yield lambda done, total: None
        return
    with ProgressBar(name) as bar:
        yield bar.update


class _Screen:
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
        from videornn.timeline import Segment

        name, score = ranking[0]
        self._moment(path, "window", Segment(window.start, window.end, name if score >= threshold else None, score))

    def _moment(self, path: str, kind: str, segment: Segment) -> None:
        from videornn.timeline import time_text

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
