"""Which videos of a list are sound, and what is wrong with the others; looked at in processes that may crash or hang."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import av
import torch

from videornn.data.containers import open_container, shown_stream, time_base
from videornn.data.decoding import open_video
from videornn.data.files import write_table
from videornn.data.parallel import Lost, num_cores, run_parallel
from videornn.data.video_errors import errors_of_video
from videornn.data.video_files import fault_of_file
from videornn.errors import DecodeError, UserError

Status = Literal["ok", "missing", "empty", "no_video", "undecodable", "truncated", "damaged", "crashed", "timeout"]
MEANINGS: dict[Status, str] = {
    "ok": "sound",
    "missing": "missing: no such file",
    "empty": "empty: 0 bytes",
    "no_video": "no_video: has no video stream",
    "undecodable": "undecodable: cannot be opened, or no frame decodes",
    "truncated": "truncated: fewer frames than its header says",
    "damaged": "damaged: some frames do not decode, or only with errors",
    "crashed": "crashed: ended the process that read it",
    "timeout": "timeout: took too long",
}

# DivX in AVI counts up to two frames more than there are; audio may end a little before or after the video
HEADER_SLACK_FRAMES = 2
HEADER_SLACK_SECONDS = 0.5


class VideoFault(DecodeError):
    """What is wrong with a video: a status of the report, and the reason in words."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class VideoReport:
    """A row of the report; width and height as shown (after rotation), what is not known is None."""

    path: str
    status: Status
    reason: str = ""
    num_frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    codec: str | None = None


@dataclass(frozen=True)
class Packets:
    """What a file's packets say without decoding.

    timestamps are those of the shown frames in order, in units of time_base seconds; None where the file stores none that
    hold (AVI, repeats), so that frames have to be counted.
    """

    codec: str
    timestamps: list[int] | None
    time_base: Fraction


def verify_videos(
    paths: Sequence[str],
    *,
    full: bool = False,
    num_workers: int | None = None,
    timeout_seconds: float | None = 60,
    progress: Callable[[int, int], None] | None = None,
) -> list[VideoReport]:
    """Reports of videos, in the order of paths (a path given twice is looked at once).

    Args:
        full: decode every frame, which also finds damage that a decoder conceals; else the first, middle and last one.
        num_workers: processes, one per available core unless given.
        timeout_seconds: longest time for one video.
        progress: called with the number of videos done and the total.

    Raises:
        UserError: a number is out of range.
    """
    check_workers(num_workers, timeout_seconds)
    unique = list(dict.fromkeys(paths))
    reports: dict[str, VideoReport] = {}
    look = partial(inspect_video, full=full)
    for index, report in run_parallel(look, unique, num_workers=num_workers or num_cores(), timeout_seconds=timeout_seconds):
        path = unique[index]
        reports[path] = VideoReport(path, report.kind, report.reason) if isinstance(report, Lost) else report
        if progress:
            progress(len(reports), len(unique))
    return [reports[path] for path in unique]


def check_workers(num_workers: int | None, timeout_seconds: float | None) -> None:
    """Raises UserError if a number of workers or a timeout makes no sense."""
    if num_workers is not None and num_workers < 1:
        raise UserError(f"--workers must be at least 1, got {num_workers}")
    if timeout_seconds is not None and timeout_seconds <= 0:
        raise UserError(f"--timeout must be a positive number of seconds, got {timeout_seconds:g}")


def count_statuses(reports: Sequence[Any]) -> dict[Status, int]:
    """How many reports have each status, in the order of MEANINGS, without those that none has."""
    counts = Counter(report.status for report in reports)
    return {status: counts[status] for status in MEANINGS if counts[status]}


def write_reports(path: Path, reports: Sequence[VideoReport]) -> None:
    """One CSV row per video; the file is whole or not there."""
    write_table(path, [field.name for field in fields(VideoReport)], map(astuple, reports))


def inspect_video(path: str, *, full: bool = False) -> VideoReport:
    """Look at one video; raises nothing that the video can cause."""
    known: dict = {}
    try:
        with errors_of_video(path):
            # a folder may hold a video as single frames; only the decoder knows
            known["codec"] = "frames" if os.path.isdir(path) else read_packets(path).codec
            _inspect_frames(path, full, known)
    except DecodeError as error:
        return VideoReport(path, status_of(error), _without_path(error, path), **known)
    return VideoReport(path, "ok", **known)


def read_packets(path: str) -> Packets:
    """List the packets of a video file; raises VideoFault, also if the file is shorter than its header says."""
    with _opened(path) as (container, stream):
        packets = [(packet.pts, packet.is_discard) for packet in container.demux(stream) if packet.size]
        _check_length(path, container, stream, len(packets))
        # an edit list can hide packets that must be decoded all the same
        shown = [pts for pts, is_discard in packets if not is_discard]
        counted = container.format.name == "avi" or None in shown or len(set(shown)) < len(shown)
        return Packets(stream.codec_context.codec.canonical_name, None if counted else sorted(shown), time_base(stream))


def decode_frames(path: str) -> Iterator[av.VideoFrame]:
    """All shown frames of a video file; raises VideoFault at the first that does not decode without errors."""
    with _opened(path) as (container, stream):
        stream.thread_type = "NONE"  # there is a process per core
        index = 0
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise VideoFault("damaged", f"frame {index} is damaged")
                yield frame
                index += 1
        except av.FFmpegError as error:
            raise VideoFault("damaged", f"frame {index} cannot be decoded ({_words(error)})") from error


@contextmanager
def _opened(path: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    if fault := fault_of_file(path):
        raise VideoFault(*fault)
    try:
        container = open_container(path)
    except (av.FFmpegError, OSError, UnicodeError) as error:
        raise VideoFault("undecodable", f"cannot be opened ({_words(error)})") from error
    with container:
        stream = shown_stream(container)
        if stream is None:
            raise VideoFault("no_video", "has no video stream")
        if stream.codec_context is None:
            raise VideoFault("undecodable", "cannot be opened (no decoder for its codec)")
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise VideoFault("undecodable", f"cannot be read ({_words(error)})") from error
        except IndexError as error:  # from PyAV, as in pyav_video.py
            raise VideoFault("undecodable", "a stream begins in the middle of the file") from error


def _check_length(path: str, container: av.container.InputContainer, stream: av.VideoStream, num_packets: int) -> None:
    if stream.frames:
        if num_packets < stream.frames - HEADER_SLACK_FRAMES:
            raise VideoFault("truncated", f"holds {num_packets} of the {stream.frames} frames that its header tells of")
    elif "matroska" in container.format.name and container.duration:  # its header has a length in time only
        duration = container.duration / av.time_base
        end = _last_seconds(path)
        if end < duration - HEADER_SLACK_SECONDS:
            raise VideoFault("truncated", f"ends after {end:.1f} of the {duration:.1f} s that its header tells of")


def _last_seconds(path: str) -> float:
    """When the last packet of any stream ends: sound may be longer than the pictures."""
    with open_container(path) as container:
        packets = (packet for packet in container.demux() if packet.pts is not None)
        ends = [(packet.pts + (packet.duration or 0)) * packet.time_base for packet in packets]
    return float(max(ends, default=0))


def _inspect_frames(path: str, full: bool, known: dict) -> None:
    """Decode through the loader's own back end, and fill in what is known."""
    try:
        video = open_video(path)
    except DecodeError as error:
        raise VideoFault("undecodable", _without_path(error, path)) from error
    try:
        known |= {"num_frames": video.num_frames, "fps": round(float(video.fps), 3)}
        picks = sorted({0, video.num_frames // 2, video.num_frames - 1})
        for number, index in enumerate(picks):
            try:
                frames = video.frames_at(torch.tensor([index]))
            except DecodeError as error:
                raise VideoFault("damaged" if number else "undecodable", _without_path(error, path)) from error
            known |= {"height": frames.shape[1], "width": frames.shape[2]}
    finally:
        video.close()
    if full and not os.path.isdir(path):
        num_decoded = sum(1 for _ in decode_frames(path))
        if num_decoded < video.num_frames:
            raise VideoFault("damaged", f"only {num_decoded} of {video.num_frames} frames can be decoded")


def status_of(error: DecodeError) -> Status:
    """The status of a video that could not be read."""
    return error.status if isinstance(error, VideoFault) else "undecodable"


def _without_path(error: Exception, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")


def _words(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
