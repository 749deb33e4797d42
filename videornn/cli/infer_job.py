"""The work of `videornn infer`: score videos whole or window by window, print and write the results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from videornn.cli.infer_screen import Screen
from videornn.data.video.errors import errors_of_video
from videornn.data.video.stream import is_live, is_pipe, listing_seconds
from videornn.data.video.write import redraw_movie
from videornn.errors import DecodeError
from videornn.inference.output import (
    ResultFiles,
    WindowRows,
    output_names,
    prediction_rows,
    segment_rows,
    write_timeline,
    writing,
)
from videornn.inference.overlay import Overlay, redraw_whole
from videornn.inference.predictor import Predictor
from videornn.inference.timeline import Window, find_segments, half_window, smooth_scores
from videornn.inference.windows import KeptWindows
from videornn.system.console import ProgressBar, complain
from videornn.system.files import replacing
from videornn.system.urls import without_secrets
from videornn.system.workers import GeneratorWorker, WorkerLost

MANY_VIDEOS = 10  # fewer need no progress bar
PATIENCE_SECONDS = 10.0  # shorter work writes no lines of progress to a log
LATE_SECONDS = 10.0  # by which a stream may be ahead of its results
SCORING_SHARE = 0.3  # share of scoring in the time for a video with an overlay


@dataclass(frozen=True)
class InferOptions:
    """Options of infer for every video: seconds, a score, folders."""

    window: float | None
    stride: float | None
    smooth: float | None
    threshold: float
    out: Path | None
    overlay: Path | None


class Job:
    """The work on every file or stream.

    Args:
        worker: decodes long videos and writes overlays, so that a file that crashes FFmpeg costs only its own row; whole
            videos are decoded by the workers of a loader.

    Attributes:
        rows: of videos; a row exists before any of it is printed, because Ctrl-C can come at any moment.
        num_done: files that are done with everything asked for.
    """

    def __init__(
        self,
        predictor: Predictor,
        files: list[str],
        options: InferOptions,
        screen: Screen,
        worker: GeneratorWorker,
        written: ResultFiles,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.num_done = 0
        self._predictor = predictor
        self._files = files
        self._names = output_names(files)
        self._options = options
        self._screen = screen
        self._worker = worker
        self._written = written

    def score_whole(self) -> None:
        """Score every file as a whole."""
        many, draws = len(self._files) >= MANY_VIDEOS, self._options.overlay is not None
        with _progress(len(self._files), shown=many or draws) as update:
            for number, prediction in enumerate(self._predictor.predict_many(self._files)):
                row: dict[str, Any] = {"path": prediction.path}
                with self._errors_of(row):
                    if prediction.scores is None:
                        raise DecodeError(prediction.error)
                    ranking = self._predictor.rank(prediction.scores)
                    row["predictions"] = prediction_rows(ranking)
                    self.rows.append(row)
                    self._screen.ranking(prediction.path, ranking)
                    if draws:
                        how = self._predictor.class_names, prediction.scores.numpy()
                        self._draw(number, partial(update, number), redraw_whole, *how)
                self._end(number, update)

    def slide(self) -> None:
        """Score every file or stream window by window."""
        with _progress(len(self._files), shown=not all(map(is_live, self._files))) as update:
            for number in range(len(self._files)):
                stopped = self._slide_over(number, partial(update, number))
                self._end(number, update)
                if stopped and number + 1 < len(self._files):
                    raise KeyboardInterrupt

    def _slide_over(self, number: int, on_progress: Callable[[float], None]) -> bool:
        """Score one file or stream; return whether Ctrl-C ended the stream, which is the only way to end a camera."""
        source, options = self._files[number], self._options
        path, clocked = without_secrets(source), not is_pipe(source)
        row: dict[str, Any] = {"path": path}
        windows = self._predictor.windows(source, window=options.window, stride=options.stride, worker=self._worker)
        seen = KeptWindows()
        delay = _Delay()
        stopped = False
        try:
            with self._errors_of(row):
                for window in windows:
                    seen.append(window)
                    if windows.live:  # may go on for days
                        row["windows"] = WindowRows(seen, self._predictor.rank)
                        self._keep(row)
                        self._written.write_if_due(self.rows)
                        if clocked and delay.is_news(window.end):
                            complain(
                                f"{path}: results are {LATE_SECONDS:g} s behind the clock of the stream; if the network is "
                                f"what is slow, a larger --stride, up to --window, asks less of it"
                            )
                        self._screen.window(path, window, self._predictor.rank(window.scores), options.threshold)
                    elif windows.duration:
                        on_progress(window.end / windows.duration * (1.0 if options.overlay is None else SCORING_SHARE))
                if windows.num_damaged:
                    row["damaged_packets"] = windows.num_damaged
                    complain(f"{path}: {windows.num_damaged} damaged packets were left out")
        except KeyboardInterrupt:
            if not windows.live:
                raise
            stopped = True
        if seen:
            with self._errors_of(row):
                self._tell(number, row, seen, on_progress)
        return stopped

    def _tell(
        self, number: int, row: dict[str, Any], windows: Sequence[Window], on_progress: Callable[[float], None]
    ) -> None:
        """Put segments and windows of one video into its row, print them, and write the files asked for."""
        path, options, class_names = row["path"], self._options, self._predictor.class_names
        smooth = half_window(windows) if options.smooth is None else options.smooth
        segments = find_segments(windows, class_names, smooth=smooth, threshold=options.threshold)
        row["seconds"] = round(windows[-1].end, 3)
        row["segments"] = segment_rows(segments)
        row["windows"] = WindowRows(windows, self._predictor.rank)
        self._keep(row)
        self._screen.segments(path, segments)
        if options.out is not None:
            write_timeline(options.out, self._names[number], windows, segments, class_names, path)
        if options.overlay is not None:
            overlay = Overlay(windows, segments, class_names, scores=smooth_scores(windows, smooth).numpy())
            self._draw(number, on_progress, redraw_movie, overlay)

    def _draw(
        self, number: int, on_progress: Callable[[float], None], redraw: Callable[..., Iterator[float]], *how: Any
    ) -> None:
        """Write the overlay of a file; redraw(file, path of the movie, *how) yields the share that is done."""
        source = self._files[number]
        assert self._options.overlay is not None
        path = self._options.overlay / f"{self._names[number]}_overlay.mp4"
        data = self._predictor.trained.config.data
        self._worker.timeout_seconds = data.timeout + listing_seconds(source)
        with errors_of_video(source), writing("--overlay", path), replacing(path) as temporary:
            try:
                for share in self._worker.iterate(redraw, source, temporary, *how, data.max_frame_pixels):
                    on_progress(SCORING_SHARE + (1 - SCORING_SHARE) * share)
            except WorkerLost as error:
                raise DecodeError(f"{source}: its overlay cannot be written, {error}") from error

    def _end(self, number: int, update: Callable[[int, float], None]) -> None:
        self.num_done = number + 1
        self._written.write_if_due(self.rows)
        update(number, 1.0)

    @contextmanager
    def _errors_of(self, row: dict[str, Any]) -> Iterator[None]:
        """Record in the row that a video cannot be decoded, so that the others go on."""
        try:
            yield
        except DecodeError as error:
            row["error"] = str(error)
            self._keep(row)
            complain(str(error))

    def _keep(self, row: dict[str, Any]) -> None:
        if not self.rows or self.rows[-1] is not row:
            self.rows.append(row)


class _Delay:
    """The delay of a stream's results behind the clock, counted from its first window."""

    def __init__(self) -> None:
        self._zero: float | None = None
        self._told = False

    def is_news(self, seconds: float) -> bool:
        """Return whether the stream is LATE_SECONDS behind for the first time."""
        now = time.monotonic() - seconds
        self._zero = now if self._zero is None else min(self._zero, now)
        late = now - self._zero > LATE_SECONDS
        news, self._told = late and not self._told, self._told or late
        return news


@contextmanager
def _progress(num_files: int, *, shown: bool) -> Iterator[Callable[[int, float], None]]:
    """Yield a function to call with a file's number and the share of it, in 0..1, that is done.

    It draws a bar on a terminal; elsewhere it writes lines if work takes longer than PATIENCE_SECONDS.
    """
    start = time.monotonic()

    def update(number: int, share: float) -> None:
        if bar is not None and (sys.stderr.isatty() or time.monotonic() - start > PATIENCE_SECONDS):
            bar.update(int(100 * (number + min(share, 1.0)) / num_files), 100)

    with ProgressBar("percent") if shown else nullcontext() as bar:
        yield update
