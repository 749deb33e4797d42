"""Analyse uploaded videos for the demo, result by result, in a worker process.

The worker holds the network and FFmpeg and takes one video at a time: a file that crashes or hangs it costs a new process.
The server's side needs no torch.
"""

from __future__ import annotations

import base64
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videornn.errors import UserError
from videornn.system.workers import Lost, Worker

if TYPE_CHECKING:
    from videornn.inference.windows import Window

TIMELINE_SECONDS = 600.0  # for a whole timeline, because others wait
PART_SECONDS = 1.0  # of work between two states of a growing timeline
MEDIA_TYPES = {".png": "image/png", ".mp4": "video/mp4"}


class Network:
    """The worker's side: a step is the name of a method and its arguments; the network stays loaded between steps.

    All methods raise UserError. Imports are inside, because torch takes seconds and the other side does not need it.
    """

    windows: Iterator[Window] | None  # of the timeline in progress
    step_seconds = 300.0  # for loading, for the classes of a video, for its attention, for a part of its timeline

    def __init__(self, checkpoint: str, window: float | None = None) -> None:
        self.checkpoint = checkpoint
        self.window = window  # of the timeline, in seconds; by default a clip, with segments the whole video

    def __call__(self, step: tuple) -> Any:
        method, *arguments = step
        return getattr(self, method)(*arguments)

    def load(self) -> dict[str, Any]:
        """Load the network; return its number of classes, and the suffixes of videos."""
        from videornn.data.annotations.find import VIDEO_SUFFIXES
        from videornn.inference.predictor import load_predictor

        with suppress(OSError):  # if memory runs out, Linux should end this process rather than another one of the user
            Path("/proc/self/oom_score_adj").write_text("1000")
        self.predictor = load_predictor(self.checkpoint)
        return {"num_classes": len(self.predictor.class_names), "suffixes": sorted(VIDEO_SUFFIXES)}

    def classes(self, video: str) -> dict[str, Any]:
        """Return the best classes, and the seconds of the video and of a window of its timeline."""
        from videornn.data.loader import clip_spec
        from videornn.data.video.decoders import open_video

        data = self.predictor.trained.config.data
        with open_video(video, data.decoder, timeout=data.timeout, max_pixels=data.max_frame_pixels) as opened:
            seconds, clip_seconds = opened.duration, float(clip_spec(data).duration_seconds(opened.fps))
        window = self.window or (seconds if data.sampling == "segments" else clip_seconds)
        top = [{"class": name, "score": score} for name, score in self.predictor(video)]
        return {"top": top, "seconds": seconds, "window": window}

    def timeline(self, video: str, part: int) -> dict[str, Any]:
        """Continue the timeline for PART_SECONDS, from the beginning if part is 0; return the results so far."""
        from videornn.inference.timeline import THRESHOLD, find_segments, half_window

        if part == 0:
            self.windows, self.seen = iter(self.predictor.windows(video, window=self.window)), []
        end = time.monotonic() + PART_SECONDS
        assert self.windows is not None  # nobody asks for more than all
        for window in self.windows:
            self.seen.append(window)
            if time.monotonic() > end:
                break
        else:
            self.windows = None
        found = find_segments(self.seen, self.predictor.class_names, smooth=half_window(self.seen), threshold=THRESHOLD)
        segments = [{"start": s.start, "end": s.end, "label": s.label, "score": float(s.score)} for s in found]
        until = self.seen[-1].end if self.seen else 0.0
        return {"segments": segments, "until": until, "complete": self.windows is None}

    def attention(self, video: str, name: str, class_name: str) -> list[dict[str, str]]:
        """Make sheets and movies of one clip, in base64.

        Args:
            name: the sender's name of the video.
            class_name: the class that Grad-CAM explains.
        """
        from videornn.explain import explain

        # not made again if the server was killed and the folder removed
        out = tempfile.mkdtemp(dir=Path(video).parent)
        files = explain(self.predictor.trained, video, Path(out), [], name=name, class_name=class_name)
        return [
            {
                "name": file.stem.removeprefix(f"{Path(video).stem}_"),
                "type": MEDIA_TYPES[file.suffix],
                "data": base64.b64encode(file.read_bytes()).decode(),
            }
            for file in files
            if file.suffix in MEDIA_TYPES
        ]


class Analyst:
    """The server's side: the worker, the requests that wait for it, and its results as lines for the page.

    num_classes and suffixes are known after start.
    """

    def __init__(self, network: Network) -> None:
        self.num_classes = 0
        self.suffixes: list[str] = []
        self.checkpoint = network.checkpoint
        self._network = network
        self._worker: Worker | None = None
        self._line: list[object] = []

    def start(self) -> None:
        """Load the network; raises UserError if the checkpoint is none."""
        self._worker = Worker(self._network, self._network.step_seconds)
        try:
            about = self._ask("load")
        except UserError:
            self.stop()
            raise
        self._worker.take_as_usual()
        self.num_classes, self.suffixes = about["num_classes"], about["suffixes"]

    def stop(self) -> None:
        """End the worker, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    @contextmanager
    def turn(self, tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """Wait for one's turn with the worker, telling how many are ahead, and hold it inside the context."""
        ticket = object()
        self._line.append(ticket)
        try:
            while ahead := self._line.index(ticket):
                tell({"ahead": ahead})  # raises if the waiting client is gone
                time.sleep(0.3)
            yield
        finally:
            self._line.remove(ticket)

    def analyse(self, video: Path, name: str) -> Iterator[dict[str, Any]]:
        """Yield lines of results as they come: classes, timeline of a long video, attention; to be called in one's turn.

        name is the sender's name of the video.

        An "error" replaces a result that failed; without classes there are no other results.
        """
        seconds, window, answer = 0.0, 0.0, ""
        for line in self._piece("classes", video, self._classes(video)):
            if "top" in line:
                seconds, window, answer = line["seconds"], line["window"], line["top"][0]["class"]
            yield line
        if seconds > window:
            yield from self._piece("timeline", video, self._timeline(video))
        if seconds:
            yield from self._piece("attention", video, self._attention(video, name, answer))
        if self._worker is not None and self._worker.has_grown():
            self.stop()  # the next video gets a new worker
        yield {"step": "done"}

    def _piece(self, step: str, video: Path, lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        yield {"step": step}
        try:
            if self._worker is None:  # lost to an earlier video or result
                self.start()
            yield from lines
        except UserError as error:
            yield {"error": str(error).replace(f"{video.parent}{os.sep}", ""), "of": step}

    def _classes(self, video: Path) -> Iterator[dict[str, Any]]:
        yield self._ask("classes", str(video))

    def _timeline(self, video: Path) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + TIMELINE_SECONDS
        part, complete = 0, False
        while not complete:
            if time.monotonic() > end:
                raise UserError(
                    f"the timeline was cut off after {TIMELINE_SECONDS:.0f} s of work: `videornn infer` makes it whole"
                )
            found = self._ask("timeline", str(video), part)
            part, complete = part + 1, found["complete"]
            yield {"timeline": found}

    def _attention(self, video: Path, name: str, class_name: str) -> Iterator[dict[str, Any]]:
        yield {"pictures": self._ask("attention", str(video), name, class_name)}

    def _ask(self, *step: object) -> Any:
        """Have the worker do a step; raises UserError, also if the worker crashes or hangs, which ends it."""
        try:
            assert self._worker is not None
            answer = self._worker.ask(step)
        except MemoryError as error:
            raise UserError("the frames of this video do not fit into memory: make them smaller") from error
        if isinstance(answer, Lost):
            self.stop()
            raise UserError(f"{step[1] if step[1:] else self.checkpoint}: {answer.reason}")
        return answer
