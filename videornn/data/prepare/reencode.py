"""Re-encode one video so that random clips of it cost little to decode.

x264 writes temporal_stride - 1 B frames between P frames, to which no other frame refers, and a key frame every 8 strides:
a decoder that may skip unneeded frames decodes only the P frames and the wanted B frames.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path

import av
import numpy as np
import torch
from av.filter import Graph

from videornn.data.prepare import Variant
from videornn.data.prepare.verify import VideoFault, open_whole, whole_frames
from videornn.data.video.clock import told_rate
from videornn.data.video.containers import create_file, open_file
from videornn.data.video.pictures import MAX_FRAME_PIXELS, Turn, turn_of
from videornn.data.video.pyav import PyAVVideo
from videornn.errors import DecodeError, UserError
from videornn.system.files import replacing

MAX_B_FRAMES = 16  # x264's limit
STRIDES_PER_GOP = 8
DENSE_GOP = 32
MAX_PSNR = 100.0  # of equal pictures, where the formula gives infinity
LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG


@dataclass(frozen=True)
class Encoding:
    """Settings of the encoder; at crf 22 Kinetics-style files keep about their size (docs/data.md)."""

    short_side: int = 256
    """Longest short side, in pixels; a smaller video keeps its size."""
    temporal_stride: int = 8
    """Source frames from one sampled frame to the next that the files will be read with."""
    variant: Variant = "disposable"
    """disposable, the same without what is slow to decode (fastdecode), or a key frame every 32 and no B frames (dense)."""
    crf: int = 22
    preset: str = "medium"

    def options(self) -> dict[str, str]:
        """Return the options for libx264."""
        # cpu-independent: the same bytes on every machine; scenecut, b-adapt: the same pattern for any content;
        # psy, tuning for human eyes, costs 6 % of the bytes at the same PSNR and SSIM
        parameters = {"cpu-independent": 1, "psy": 0, "scenecut": 0, "b-adapt": 0, "b-pyramid": "none"}
        if self.variant == "dense":
            parameters |= {"keyint": DENSE_GOP, "bframes": 0}
        else:
            num_b_frames = min(self.temporal_stride - 1, MAX_B_FRAMES)
            parameters |= {"keyint": STRIDES_PER_GOP * (num_b_frames + 1), "bframes": num_b_frames}
        if self.variant == "fastdecode":
            # measured on whole files: no CABAC -34 % time, +11 % bytes; no deblocking -19 %, +1 %; no weights -15 %, +1 %
            parameters |= {"cabac": 0, "no-deblock": 1, "weightp": 0, "weightb": 0}
        text = ":".join(f"{key}={value}" for key, value in parameters.items())
        return {"crf": str(self.crf), "preset": self.preset, "threads": "1", "x264-params": text}


@dataclass(frozen=True)
class Encoded:
    """The properties of a prepared file."""

    num_frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True)
class Quality:
    """Quality of the luma of decoded frames against the scaled source, over the frames of a video (PSNR in dB)."""

    mean_psnr: float
    worst_psnr: float
    mean_ssim: float
    worst_ssim: float


def reencode(source: str, out: Path, encoding: Encoding, max_pixels: int = MAX_FRAME_PIXELS) -> Encoded:
    """Encode the shown frames of a video, upright, without sound, with their times from the first frame on.

    The file replaces `out` only after it was read back and found to hold the same number of frames at the same times.

    Raises:
        VideoFault: the source is not sound, or cannot be encoded.
        UserError: out cannot be written.
    """
    _remove_leftovers(out)
    with open_whole(source, max_pixels) as video, replacing(out) as temporary, _kept_by_others(temporary, out):
        time_base = 1 / video.fps if video.ticks is None else video.tick
        ticks = range(video.num_frames) if video.ticks is None else video.ticks.tolist()
        try:
            frames = zip(ticks, _scaled_frames(video, encoding.short_side), strict=True)
            _encode(frames, temporary, encoding, video.fps, time_base)
            _check(temporary, [tick * time_base for tick in ticks])
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror or error})") from error
        except av.FFmpegError as error:
            raise VideoFault("undecodable", f"cannot be encoded ({str(error).lower()})") from error
        return read_encoded(temporary)


def read_encoded(path: Path) -> Encoded:
    """Read the header of a prepared file; raises VideoFault if it is none."""
    try:
        with open_file(str(path)) as container:
            stream = container.streams.video[0]
            fps = told_rate(float(stream.average_rate or 0))
            return Encoded(stream.frames, fps, stream.codec_context.width, stream.codec_context.height)
    except (DecodeError, av.FFmpegError, IndexError) as error:
        raise VideoFault("undecodable", f"{path} is not a prepared video") from error


def measure_quality(source: str, prepared: Path, encoding: Encoding, max_pixels: int = MAX_FRAME_PIXELS) -> Quality:
    """Measure PSNR and SSIM (torchmetrics' defaults) of every frame's luma; raises VideoFault if a frame does not decode.

    In float32 the SSIM of flat pictures is up to 0.002 too low; float64 takes 14 times as long.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # slow to import

    psnr, ssim = [], []
    with open_whole(source, max_pixels) as video, open_whole(str(prepared)) as output:
        sources = (_luma(frame) for frame, _ in _scaled_frames(video, encoding.short_side))
        outputs = (_luma(frame) for _, frame in whole_frames(output))
        for wanted, got in zip_longest(sources, outputs):
            if wanted is None or got is None or wanted.shape != got.shape:
                raise VideoFault("undecodable", f"{prepared} was made of another video; remove it")
            error = float((wanted - got).square().mean())
            psnr.append(min(10 * math.log10(255**2 / error), MAX_PSNR) if error else MAX_PSNR)
            similarity = structural_similarity_index_measure(got[None, None], wanted[None, None], data_range=255.0)
            ssim.append(float(similarity))  # type: ignore[arg-type]  # a tuple only where it is asked for images, too
    return Quality(sum(psnr) / len(psnr), min(psnr), sum(ssim) / len(ssim), min(ssim))


def output_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the even (width, height) of the output: the short side at most short_side, odd sides cropped by one line.

    A side of a single pixel becomes two.
    """
    scale = min(1.0, short_side / min(width, height))
    if scale == 1.0:
        return max(width - width % 2, 2), max(height - height % 2, 2)
    return 2 * round(width * scale / 2), 2 * round(height * scale / 2)


def _scaled_frames(video: PyAVVideo, short_side: int) -> Iterator[tuple[av.VideoFrame, Fraction]]:
    """Yield all shown frames, upright in yuv420p and the output's size, and the width / height of their pixels.

    Raises:
        VideoFault: at the first damaged frame.
    """
    size, graph, fed = None, None, None
    for _, frame in whole_frames(video):
        turn = turn_of(frame)
        size = size or output_size(frame.width, frame.height, short_side)  # later changes of size are scaled to this one
        form = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range))
        if graph is None or form != fed:
            graph, fed = _graph(*form, size, turn), form
        graph.push(frame)
        yield graph.vpull(), turn.of_pixel(video.pixel_aspect)


def _graph(
    width: int, height: int, pix_fmt: str, colorspace: int, color_range: int, size: tuple[int, int], turn: Turn
) -> Graph:
    """Build filters that crop odd lines, scale, turn, and convert to 8-bit yuv420p of limited range."""
    graph = Graph()
    if hasattr(graph, "threads"):
        graph.threads = 1  # PyAV 19 frees a graph only at garbage collection: every video would leave two threads a core
    form = f"video_size={width}x{height}:pix_fmt={pix_fmt}:colorspace={colorspace}:range={color_range}"
    nodes = [graph.add("buffer", f"{form}:time_base=1/1:pixel_aspect=1/1")]
    if size == (width - width % 2, height - height % 2):
        nodes.append(graph.add("crop", f"{size[0]}:{size[1]}:0:0"))
    # bitexact: the same pixels on every machine
    nodes.append(graph.add("scale", f"{size[0]}:{size[1]}:flags=bicubic+accurate_rnd+bitexact:out_range=limited"))
    nodes.append(graph.add("format", "yuv420p"))
    if turn.swapped:
        nodes.append(graph.add("transpose", "cclock_flip"))  # only swaps rows and columns
    nodes += [graph.add(name) for name, needed in (("hflip", turn.mirrored), ("vflip", turn.upturned)) if needed]
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()
    return graph


def _encode(
    frames: Iterator[tuple[int, tuple[av.VideoFrame, Fraction]]],
    path: Path,
    encoding: Encoding,
    fps: Fraction,
    time_base: Fraction,
) -> None:
    """Write an mp4 from pairs of a tick and what _scaled_frames yields."""
    is_first = True
    duration = round(1 / fps / time_base)  # of the last frame; the others last until the next one
    with create_file(path, options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=encoding.options())
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = time_base
        for tick, (frame, aspect) in frames:
            if is_first:
                _describe(stream.codec_context, frame, aspect)
                is_first = False
            # its type in the source would be forced on the encoder
            frame.pict_type = 0
            frame.pts, frame.time_base = tick, time_base
            for packet in stream.encode(frame):
                packet.duration = duration
                container.mux(packet)
        for packet in stream.encode(None):
            packet.duration = duration
            container.mux(packet)


def _describe(context: av.VideoCodecContext, frame: av.VideoFrame, aspect: Fraction) -> None:
    """Set size, pixel aspect and colours, so that the output decodes to the same RGB as the source."""
    context.width, context.height = frame.width, frame.height
    context.colorspace, context.color_range = frame.colorspace, LIMITED_RANGE
    if aspect != 1:
        context.sample_aspect_ratio = aspect


def _check(path: Path, times: list[Fraction]) -> None:
    with open_whole(str(path)) as video:
        found = [] if video.ticks is None else [tick * video.tick for tick in video.ticks.tolist()]
        if found != times:
            raise VideoFault("undecodable", f"its {len(times)} frames became {video.num_frames}, or have other times")
        for _ in whole_frames(video):
            pass


@contextmanager
def _kept_by_others(temporary: Path, out: Path) -> Iterator[None]:
    """Explain why the temporary file is gone: another process of the same shard takes it for one that a killed run left."""
    try:
        yield
    except (UserError, OSError) as error:
        cause = error if error.__cause__ is None else error.__cause__
        is_gone = isinstance(cause, FileNotFoundError) or (isinstance(cause, VideoFault) and cause.status == "missing")
        if not is_gone or temporary.exists():
            raise
        raise UserError(
            f"{out} was taken away while it was written: another prepare is at work on the same videos; wait for its end, "
            f"or divide them (--shard)"
        ) from error


def _remove_leftovers(out: Path) -> None:
    """Remove what a killed process has left of this file."""
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _luma(frame: av.VideoFrame) -> torch.Tensor:
    """Return the luma float32 [H, W] of a yuv420p frame."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return torch.from_numpy(rows[: frame.height, : frame.width].astype(np.float32))
