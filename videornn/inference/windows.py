"""Score windows over a video of any length as they come, in constant memory."""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from videornn.checkpoints.trained import Trained
from videornn.data.dataset import ViewSpec
from videornn.data.video.stream import is_live, is_pipe, listing_seconds
from videornn.errors import DecodeError
from videornn.inference.sliding import Reading, StreamInfo, WindowPlan, plan_windows, read_clips
from videornn.inference.timeline import Window
from videornn.models.forward import average_views
from videornn.system.urls import without_secrets
from videornn.system.workers import GeneratorWorker, WorkerLost

SLOWEST = 10  # times the duration of the video after which work counts as a hang


class Windows:
    """The windows of one source, from its beginning to its end, to be iterated once.

    A window's scores are the mean over its clips (centre crops), which are like those that the network was trained on.
    Nothing is decoded or computed twice. The last window ends with the video.

    Args:
        source: a file, a folder of frames, a URL, a camera, a pipe or '-', standard input.
        window: seconds; by default those of one clip.
        stride: seconds from one window to the next; by default half a window.
        worker: decodes one batch ahead; without it, and for pipes, this process decodes, and ends if FFmpeg crashes.

    Attributes:
        live: whether the source is read as it comes.
        duration: seconds that the source announces, from the first window on; None for live ones, or if it does not tell.
        num_damaged: packets that could not be decoded so far.

    Raises:
        DecodeError: nothing can be decoded, or a connection is lost; windows may have come before.
        UserError: window or stride make no sense.
    """

    def __init__(
        self,
        trained: Trained,
        view: ViewSpec,
        source: str,
        window: float | None = None,
        stride: float | None = None,
        worker: GeneratorWorker | None = None,
    ) -> None:
        self.source = source
        self.live = is_live(source)
        self.duration: float | None = None
        self.num_damaged = 0
        self._trained = trained
        self._plan_windows = partial(plan_windows, replace(view, num_clips=1, num_crops=1), window, stride)
        self._worker = worker
        self._batch_size = 1 if self.live else trained.config.test.batch_size
        self._end = 0.0  # seconds read so far

    def __iter__(self) -> Iterator[Window]:
        scored: dict[int, Tensor] = {}
        number = 0
        with closing(self._read()) as readings:
            info = next(readings)
            assert isinstance(info, StreamInfo)
            plan = self._begin(info)
            for reading in readings:
                assert isinstance(reading, Reading)
                self._end, self.num_damaged = reading.end, reading.num_damaged
                if reading.clips is None:
                    continue
                logits = self._trained.logits(torch.from_numpy(reading.clips))
                scored.update(zip(reading.numbers, logits, strict=True))
                last = reading.numbers[-1]
                while plan.clips_of(number)[-1] in scored and not plan.is_last(number, self._end):
                    yield self._window(plan, number, scored)
                    number += 1
                    scored = {clip: row for clip, row in scored.items() if clip >= plan.clips_of(number)[0]}
        for left in range(number, plan.last_window(self._end) + 1):
            # the last clip replaces those that reach past the end
            scored.update((clip, logits[-1]) for clip in plan.clips_of(left) if clip > last)
            yield self._window(plan, left, scored)

    def _read(self) -> Generator[StreamInfo | Reading, None, None]:
        how = self.source, self._plan_windows, self._batch_size, self._trained.config.data.max_frame_pixels
        if self._worker is None or is_pipe(self.source):  # another process cannot open every pipe of this one
            yield from read_clips(*how)
            return
        self._worker.timeout_seconds = self._trained.config.data.timeout + listing_seconds(self.source)
        try:
            yield from self._worker.iterate(read_clips, *how)
        except WorkerLost as error:
            raise DecodeError(f"{without_secrets(self.source)}: {error}") from error

    def _begin(self, info: StreamInfo) -> WindowPlan:
        self.duration = info.duration
        plan = self._plan_windows(info.fps, info.duration)
        if self._worker is not None:
            longest = self._batch_size * float(plan.clip_seconds + plan.stride)  # from one batch to the next
            self._worker.timeout_seconds = max(self._worker.timeout_seconds, SLOWEST * longest)
        return plan

    def _window(self, plan: WindowPlan, number: int, scored: dict[int, Tensor]) -> Window:
        logits = torch.stack([scored[clip] for clip in plan.clips_of(number)])
        last = self._end if plan.is_last(number, self._end) else plan.end(number)
        first = max(min(plan.start(number), last - float(plan.window)), 0.0)
        return Window(first, last, average_views(logits, self._trained.config.test.average))


class KeptWindows(Sequence[Window]):
    """A list of windows in few bytes each, for cameras that run for days: kept tensors would hold whole pages of memory."""

    ROWS = 1024  # of a block of scores

    def __init__(self) -> None:
        self._times = array("d")  # start and end of each
        self._blocks: list[np.ndarray] = []  # scores float32 [ROWS, K]

    def append(self, window: Window) -> None:
        """Add a window."""
        block, row = divmod(len(self), self.ROWS)
        if row == 0:
            self._blocks.append(np.empty((self.ROWS, len(window.scores)), np.float32))
        self._blocks[block][row] = window.scores
        self._times.extend((window.start, window.end))

    def __len__(self) -> int:
        return len(self._times) // 2

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]  # nobody needs slices
        index = range(len(self))[index]
        block, row = divmod(index, self.ROWS)
        start, end = self._times[2 * index : 2 * index + 2]
        return Window(start, end, torch.from_numpy(self._blocks[block][row]))
