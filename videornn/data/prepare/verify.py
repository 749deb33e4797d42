"""Check which videos of a list are sound and what is wrong with the others, in processes that may crash or hang."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import torch

from videornn.data.annotations.find import VIDEO_SUFFIXES, counted, fault_of_file, scan_videos
from videornn.data.annotations.load import load_videos
from videornn.data.video.base import FrameVideo
from videornn.data.video.clock import told_rate
from videornn.data.video.containers import open_file, shown_stream
from videornn.data.video.errors import errors_of_video
from videornn.data.video.frame_folder import FrameFolder
from videornn.data.video.pictures import MAX_FRAME_PIXELS, TooLarge
from videornn.data.video.pyav import PyAVVideo
from videornn.errors import DecodeError, UserError
from videornn.system.files import write_table
from videornn.system.workers import Lost, num_cores, run_parallel

Status = Literal[
    "ok", "missing", "empty", "no_video", "undecodable", "truncated", "damaged", "too_large", "crashed", "timeout"
]
MEANINGS: dict[Status, str] = {
    "ok": "sound",
    "missing": "missing: no such file",
    "empty": "empty: 0 bytes",
    "no_video": "no_video: has no video stream",
    "undecodable": "undecodable: cannot be opened, or no frame decodes",
    "truncated": "truncated: cut short, so that frames or the list of them are missing",
    "damaged": "damaged: some frames do not decode, or only with errors",
    "too_large": "too_large: frames of more pixels than may be decoded",
    "crashed": "crashed: ended the process that read it",
    "timeout": "timeout: took too long",
}

# DivX in AVI counts up to two frames too many; audio may end a little before or after the video
HEADER_SLACK_FRAMES = 2
HEADER_SLACK_SECONDS = 0.5
MAX_BOXES = 1000  # boxes of an MP4 that are read; a sound file has a handful, or thousands after the list of its frames


class VideoFault(DecodeError):
    """Raised for a faulty video, with a status of the report and the reason in words."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class VideoReport:
    """A row of the report; width and height are as shown (after rotation), unknown values are None.

    For a sound video, the reason says what is odd about it.
    """

    path: str
    status: Status
    reason: str = ""
    num_frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    codec: str | None = None


class Header(NamedTuple):
    """The content of a file's header; frames and seconds are 0 where it does not tell."""

    codec: str
    format: str
    num_frames: int
    seconds: float


def verify_videos(
    paths: Sequence[str],
    *,
    full: bool = False,
    max_pixels: int = MAX_FRAME_PIXELS,
    num_workers: int | None = None,
    timeout_seconds: float | None = 60,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[VideoReport]:
    """Inspect videos and return reports in the order of paths (a path given twice is inspected once).

    Args:
        full: decode every frame, which also finds damage that decoders conceal; else the first, middle and last one.
        max_pixels: width x height that a frame may have.
        num_workers: processes, one per available core unless given.
        timeout_seconds: longest time for one video.
        on_progress: called with the number of videos done and the total.

    Raises:
        UserError: a number is out of range.
    """
    check_workers(num_workers, timeout_seconds)
    unique = list(dict.fromkeys(paths))
    reports: dict[str, VideoReport] = {}
    look = partial(inspect_video, full=full, max_pixels=max_pixels)
    for index, report in run_parallel(look, unique, num_workers=num_workers or num_cores(), timeout_seconds=timeout_seconds):
        path = unique[index]
        reports[path] = VideoReport(path, report.kind, report.reason) if isinstance(report, Lost) else report
        if on_progress:
            on_progress(len(reports), len(unique))
    return [reports[path] for path in unique]


def find_sources(source: str, *, root: str | None = None, labels: str | None = None) -> tuple[list[str], list[str]]:
    """Find the videos of a list or folder, and remarks on it; a folder of videos needs no class folders.

    Raises:
        UserError: see load_videos.
    """
    if os.path.isdir(source) and any(os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES for name in os.listdir(source)):
        others: Counter[str] = Counter()
        paths = sorted(os.path.join(source, name) for name in scan_videos(source, others))
        left_out = counted(others)
        return paths, [f"{source}: {left_out} are left out, as they are called like no video"] if left_out else []
    table = load_videos(source, root=root, labels=labels)
    return [table.path(index) for index in range(len(table))], table.remarks()


def check_workers(num_workers: int | None, timeout_seconds: float | None) -> None:
    """Raise UserError if a number of workers or a timeout makes no sense."""
    if num_workers is not None and num_workers < 1:
        raise UserError(f"--workers must be at least 1, got {num_workers}")
    if timeout_seconds is not None and timeout_seconds <= 0:
        raise UserError(f"--timeout must be a positive number of seconds, got {timeout_seconds:g}")


def count_statuses(reports: Sequence[Any]) -> dict[Status, int]:
    """Count the reports of each status, in the order of MEANINGS, leaving out unused ones."""
    counts = Counter(report.status for report in reports)
    return {status: counts[status] for status in MEANINGS if counts[status]}


def write_reports(path: Path, reports: Sequence[VideoReport]) -> None:
    """Write one CSV row per video; the file is written as a whole or not at all."""
    write_table(path, [field.name for field in fields(VideoReport)], map(astuple, reports))


def inspect_video(path: str, *, full: bool = False, max_pixels: int = MAX_FRAME_PIXELS) -> VideoReport:
    """Inspect one video; never raises because of the video."""
    known: dict = {}
    try:
        with errors_of_video(path):
            _inspect_frames(path, full, max_pixels, known)
    except DecodeError as error:
        return VideoReport(path, status_of(error), **known | {"reason": _without_path(error, path)})
    return VideoReport(path, "ok", **known)


def open_whole(path: str, max_pixels: int = MAX_FRAME_PIXELS) -> PyAVVideo:
    """Open a video file; raises VideoFault if it cannot be read, or is shorter than its header says."""
    header = read_header(path)
    try:
        # verify_videos ends a process that takes too long
        video = PyAVVideo(path, timeout=math.inf, max_pixels=max_pixels)
    except DecodeError as error:
        raise VideoFault(status_of(error), _without_path(error, path)) from error
    try:
        _check_length(path, header, video)
    except VideoFault:
        video.close()
        raise
    return video


def read_header(path: str) -> Header:
    """Read the header of a file; raises VideoFault if it is no video."""
    if fault := fault_of_file(path):
        raise VideoFault(*fault)
    try:
        with open_file(path) as container:
            stream = shown_stream(container)
            if stream is None:
                raise VideoFault("no_video", "has no video stream")
            if stream.codec_context is None:
                raise VideoFault("undecodable", "cannot be opened (no decoder for its codec)")
            codec, seconds = stream.codec_context.codec.canonical_name, (container.duration or 0) / av.time_base
            return Header(codec, container.format.name, stream.frames, seconds)
    except (av.FFmpegError, OSError, UnicodeError) as error:
        if isinstance(error, av.InvalidDataError) and _lacks_index(path):
            raise VideoFault("truncated", "has no list of its frames (moov), which such files often end with") from error
        raise VideoFault("undecodable", f"cannot be opened ({_words(error)})") from error


def _lacks_index(path: str) -> bool:
    """Return whether an MP4 or MOV ends before the box that lists its frames: ISO/IEC 14496-12, 8.2.1."""
    size, place = os.path.getsize(path), 0
    kinds: list[bytes] = []
    with open(path, "rb") as file:
        while place + 8 <= size and len(kinds) < MAX_BOXES:
            file.seek(place)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            length = int.from_bytes(file.read(8), "big") if length == 1 else length
            kinds.append(kind)
            if length < 8:  # 0: up to the end
                break
            place += length
    return kinds[:1] in ([b"ftyp"], [b"wide"], [b"mdat"]) and b"mdat" in kinds and b"moov" not in kinds


def _check_length(path: str, header: Header, video: PyAVVideo) -> None:
    if header.num_frames:
        held = video.num_chunks
        if held < header.num_frames - HEADER_SLACK_FRAMES and not _ends_well(path, header.format):
            raise VideoFault("truncated", f"holds {held} of the {header.num_frames} frames that its header tells of")
    elif "matroska" in header.format and header.seconds:  # its header has a length in time only
        end = _last_seconds(path)
        if end < header.seconds - HEADER_SLACK_SECONDS:
            raise VideoFault("truncated", f"ends after {end:.1f} of the {header.seconds:.1f} s that its header tells of")


def _ends_well(path: str, form: str) -> bool:
    """Return whether a file is complete although it has fewer frames than its header announces."""
    if form == "avi":  # the last frames can be chunks without data
        return riff_is_whole(path)
    if "mp4" in form:  # an edit list can leave out what comes before or after the shown part
        with open_file(path, ignore_editlist="1") as container:
            stream = shown_stream(container)
            assert stream is not None  # its header has been read
            return sum(1 for packet in container.demux(stream) if packet.size) >= stream.frames - HEADER_SLACK_FRAMES
    return False


def riff_is_whole(path: str) -> bool:
    """Return whether an AVI file is as long as its parts say."""
    size, place = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while file.read(4) == b"RIFF":
            place += 8 + int.from_bytes(file.read(4), "little")
            file.seek(place)
    return 0 < place <= size


def _last_seconds(path: str) -> float:
    """Return when the last packet of any stream ends: sound may be longer than the pictures."""
    with open_file(path) as container:
        ends = (
            (packet.pts + (packet.duration or 0)) * packet.time_base
            for packet in container.demux()
            if packet.pts is not None
        )
        return float(max(ends, default=0))


def _inspect_frames(path: str, full: bool, max_pixels: int, known: dict) -> None:
    """Decode with the back end of the loader, adding what is found to known."""
    if os.path.isdir(path):  # may be a video of single images
        known["codec"] = "frames"
        try:
            video: FrameVideo = FrameFolder(path, max_pixels=max_pixels)
        except DecodeError as error:
            raise VideoFault(status_of(error), _without_path(error, path)) from error
    else:
        known["codec"] = read_header(path).codec
        video = open_whole(path, max_pixels)
    with video:
        known |= {"num_frames": video.num_frames, "fps": told_rate(video.fps)}
        known["reason"] = "; ".join(video.remarks) if isinstance(video, PyAVVideo) else ""
        picks: Sequence[int] = sorted({0, video.num_frames // 2, video.num_frames - 1})
        if full and isinstance(video, FrameFolder):
            picks = range(video.num_frames)
        for number, index in enumerate(picks):
            try:
                frames = video.frames_at(torch.tensor([index]))
            except DecodeError as error:
                status = status_of(error, "damaged" if number else "undecodable")
                raise VideoFault(status, _without_path(error, path)) from error
            if number == 0:
                known |= {"height": frames.shape[1], "width": frames.shape[2]}  # prepare scales the others to these
        if full and isinstance(video, PyAVVideo):
            for _ in whole_frames(video):
                pass


def whole_frames(video: PyAVVideo) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield all (index, frame) of a video; raises VideoFault at the first that does not decode without errors."""
    num_decoded = 0
    try:
        for index, frame in video.all_frames():
            if frame.is_corrupt:
                raise VideoFault("damaged", f"frame {index} is damaged")
            yield index, frame
            num_decoded += 1
    except (av.FFmpegError, OSError) as error:
        raise VideoFault("damaged", f"frame {num_decoded} cannot be decoded ({_words(error)})") from error
    if num_decoded < video.num_frames:
        raise VideoFault("damaged", f"only {num_decoded} of {video.num_frames} frames can be decoded")


def status_of(error: DecodeError, otherwise: Status = "undecodable") -> Status:
    """Return the status of a video that could not be read."""
    if isinstance(error, TooLarge):
        return "too_large"
    return error.status if isinstance(error, VideoFault) else otherwise


def _without_path(error: Exception, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")


def _words(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
