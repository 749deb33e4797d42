"""Read mutated videos with every reader of videornn under a limit of memory, and report the faults.

python scripts/fuzz_videos.py [--count 5000] [--seed 0] [--memory-gb 3] [--timeout 20] [--videos 'FOLDER/*'] [--keep FOLDER]

Small videos are made in many containers and codecs (--videos adds others), and each mutation writes extreme values over
numbers of a file (sizes, counts, rates, times, frame sizes: 0, 1, -1, the largest and smallest of 16, 32 and 64 bits), flips
bits, repeats, moves or cuts out parts. A clip, sliding windows, `verify --full` and `prepare` then read it in processes that
may take --memory-gb more than at their start. A video may be read, or refused in a sentence. Anything else is a fault:
another exception, a process that ends, time or memory over the limit. The exit code is then 1, the file is kept in --keep,
and mutation N of the seed makes it again. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import collections
import glob
import json
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch

from videornn.config import DataConfig, EvalConfig
from videornn.data.dataset import load_views
from videornn.data.loader import view_spec
from videornn.data.prepare.reencode import Encoding, reencode
from videornn.data.prepare.verify import inspect_video
from videornn.data.video.errors import errors_of_video
from videornn.errors import DecodeError, UserError
from videornn.inference.sliding import plan_windows, read_clips
from videornn.system.workers import Lost, num_cores, run_parallel

# file name -> format (None: by the name), codec, options of the codec
KINDS = {
    "h264.mp4": (None, "libx264", {}),
    "fragmented.mp4": (None, "libx264", {}),
    "mpeg4.mp4": (None, "mpeg4", {}),
    "hevc.mov": (None, "libx265", {"x265-params": "log-level=none"}),
    "h264.mkv": (None, "libx264", {}),
    "vp9.webm": (None, "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "mpeg4.avi": (None, "mpeg4", {"bf": "2"}),
    "mjpeg.avi": (None, "mjpeg", {}),
    "h264.ts": (None, "libx264", {}),
    "mpeg2.mpg": (None, "mpeg2video", {}),
    "h264.flv": (None, "libx264", {}),
    "wmv2.wmv": (None, "wmv2", {}),
    "ffv1.mkv": (None, "ffv1", {}),
    "raw.h264": ("h264", "libx264", {}),
    "animated.gif": (None, "gif", {}),
    "theora.nut": ("nut", "mpeg4", {}),
}
EXTREMES = (0, 1, 2, -1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFFFFFFFFFFFFF, 1 << 63)
VIEWS = view_spec(
    DataConfig(num_frames=4, temporal_stride=2), EvalConfig(num_clips=2, num_crops=1, crop_size=32, short_side=32)
)


def make_videos(folder: Path) -> list[Path]:
    """Make a video of 20 frames of 64 x 48 in every container; say which are left out because their encoder is missing."""
    paths = []
    for name, (container_format, codec, options) in KINDS.items():
        path = folder / name
        moving = {"movflags": "frag_keyframe+empty_moov"} if name.startswith("fragmented") else {}
        try:
            with av.open(str(path), "w", format=container_format, options=moving) as container:
                stream = container.add_stream(codec, rate=25, options=options)
                stream.width, stream.height = 64, 48
                stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
                for index in range(20):
                    picture = np.full((48, 64, 3), 10 * index, np.uint8)
                    picture[8:24, 2 * index :][:, :16] = 255
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
                container.mux(stream.encode(None))
        except (av.FFmpegError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            path.unlink(missing_ok=True)
            continue
        paths.append(path)
    return paths


def mutate(content: bytes, generator: random.Random) -> bytes:
    """Corrupt one to eight parts of a file, most of them in its first or last 1,500 bytes, where its numbers are."""
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 3, 8))):
        place = _place(len(changed), generator)
        kind = generator.random()
        if kind < 0.7:
            width = generator.choice((1, 2, 4, 4, 4, 8))
            value = generator.choice((*EXTREMES, generator.getrandbits(64), generator.getrandbits(20)))
            number = (value % (1 << 8 * width)).to_bytes(width, generator.choice(("big", "big", "little")))
            place -= place % generator.choice((1, 2, 4))
            changed[place : place + width] = number
        elif kind < 0.8:
            changed[place] ^= 1 << generator.randrange(8)
        elif kind < 0.85:
            del changed[place : place + generator.choice((1, 4, 16, 188, len(changed)))]
        elif kind < 0.95:
            part = changed[place : place + generator.choice((8, 64, 188, 1024))]
            other = _place(len(changed), generator)
            changed[other:other] = part * generator.choice((1, 1, 2, 50))
        else:
            changed[place : place + 8] = struct.pack(
                ">d", generator.choice((0.0, -1.0, 1e-300, 1e300, float("inf"), float("nan")))
            )
        if not changed:
            break
    return bytes(changed)


def _place(size: int, generator: random.Random) -> int:
    near = generator.randrange(min(size, 1500))
    return generator.choice((near, near, size - 1 - near, generator.randrange(size)))


@dataclass(frozen=True)
class Mutation:
    """A mutation, by its number and seed: the file, and its readers."""

    seed: int
    number: int
    source: Path

    def content(self) -> bytes:
        """Return the bytes of the mutated file."""
        return mutate(self.source.read_bytes(), random.Random(f"{self.seed} {self.number}"))


@dataclass(frozen=True)
class Outcome:
    """The outcome of a mutation: read or refused, the most seconds and MB that a reader took, and faults in words."""

    results: dict[str, str]
    seconds: float
    grown_mb: float
    faults: tuple[str, ...]


def read_clip(path: str) -> None:
    """Read two views of a whole file, as test and infer do, and training at other positions."""
    load_views(path, VIEWS, timeout=10)


def read_windows(path: str) -> None:
    """Read the first 100 windows, as infer --window does."""
    clips = read_clips(path, partial(plan_windows, VIEWS, 0.4, None), 4)
    for _ in zip(range(100), clips, strict=False):
        pass


def verify(path: str) -> None:
    """Read all frames, as verify --full does."""
    report = inspect_video(path, full=True)
    if report.status != "ok":
        raise DecodeError(f"{report.status}: {report.reason}")


def prepare(path: str) -> None:
    """Re-encode the file, as prepare does."""
    with errors_of_video(path):
        reencode(path, Path(f"{path}.prepared.mp4"), Encoding())


READERS = {"clip": read_clip, "windows": read_windows, "verify": verify, "prepare": prepare}


def read_mutation(mutation: Mutation, *, folder: Path, memory_gb: float) -> Outcome:
    """Have all readers read a mutation, in a worker."""
    torch.set_num_threads(1)
    path = folder / f"{mutation.number}_{mutation.source.name}"
    path.write_bytes(mutation.content())
    results, faults, longest, most = {}, [], 0.0, 0.0
    for name, read in READERS.items():
        with limited_memory(memory_gb), open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        before, start = memory_mb("VmRSS"), time.monotonic()
        with limited_memory(memory_gb):
            try:
                read(str(path))
                results[name] = "read"
            except UserError:
                results[name] = "refused"
            except Exception as error:
                results[name] = "fault"
                faults.append(f"{name}: {type(error).__name__}: {error}")
        longest, most = max(longest, time.monotonic() - start), max(most, memory_mb("VmHWM") - before)
    if not faults:
        for made in folder.glob(f"{path.name}*"):
            made.unlink()
    return Outcome(results, longest, most, tuple(faults))


class limited_memory:
    """A context in which this process can take only some GB more than it has."""

    def __init__(self, gigabytes: float) -> None:
        self._bytes = int(gigabytes * 1e9)

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_mb("VmSize") * 1e6) + self._bytes, self._before[1]))

    def __exit__(self, *exception: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._before)


def memory_mb(name: str) -> float:
    """Return a number of /proc/self/status in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(f"{name}:")) / 1024


def fuzz(
    sources: list[Path], *, count: int, seed: int, memory_gb: float, timeout_seconds: float, folder: Path
) -> Iterator[tuple[Mutation, Outcome | Lost]]:
    """Yield mutations and their outcomes as they come."""
    mutations = [Mutation(seed, number, sources[number % len(sources)]) for number in range(count)]
    read = partial(read_mutation, folder=folder, memory_gb=memory_gb)
    done = run_parallel(read, mutations, num_workers=num_cores(), timeout_seconds=len(READERS) * timeout_seconds)
    yield from ((mutations[index], outcome) for index, outcome in done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-gb", type=float, default=3.0)
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds that a reader may take")
    parser.add_argument("--videos", help="glob of videos that are mutated too")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_faults"), help="folder for files that showed a fault")
    arguments = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    seconds, grown, num_faults, start = 0.0, 0.0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as scratch:
        sources = make_videos(Path(made)) + [Path(path) for path in sorted(glob.glob(arguments.videos or ""))]
        options = {"seed": arguments.seed, "memory_gb": arguments.memory_gb, "timeout_seconds": arguments.timeout}
        runs = fuzz(sources, count=arguments.count, folder=Path(scratch), **options)
        for done, (mutation, outcome) in enumerate(runs, start=1):
            if isinstance(outcome, Lost):
                counts[outcome.kind] += 1
                faults: tuple[str, ...] = (outcome.reason,)
            else:
                counts.update(f"{name} {result}" for name, result in outcome.results.items())
                seconds, grown, faults = max(seconds, outcome.seconds), max(grown, outcome.grown_mb), outcome.faults
            if faults:
                num_faults += 1
                arguments.keep.mkdir(exist_ok=True, parents=True)
                kept = arguments.keep / f"seed{mutation.seed}_{mutation.number}_{mutation.source.name}"
                kept.write_bytes(mutation.content())
                print(f"{kept}: {'; '.join(faults)}", flush=True)
            if done % 500 == 0:
                print(f"{done} of {arguments.count} in {time.monotonic() - start:.0f} s, {num_faults} faults", flush=True)
    numbers = {
        "faults": num_faults,
        "longest_seconds": round(seconds, 2),
        "most_grown_mb": round(grown),
        **sorted_counts(counts),
    }
    print(json.dumps({"count": arguments.count, "seed": arguments.seed, **numbers}))
    sys.exit(1 if num_faults else 0)


def sorted_counts(counts: collections.Counter[str]) -> dict[str, int]:
    """Return counts sorted by name."""
    return {name: counts[name] for name in sorted(counts)}


if __name__ == "__main__":
    main()
