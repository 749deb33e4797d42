"""Loading speed on one core, against PyTorchVideo, decord and torchcodec, on the same videos in the same run.

python scripts/benchmark_data.py [--videos 'FOLDER/*.mp4'] [--rounds 4] [--prepared]

Random training clips (8 frames, 8 apart, crop 224) and the 30 views of a test video (10 clips x 3 crops of 256). Without
--videos it makes ten-second 340x256 H.264 videos with a key frame every 250 frames, as Kinetics has them. Every round goes
through all videos with one reader after the other; the last line is one JSON document with clips per second (means over the
rounds) and ratios to PyTorchVideo's own dataset and transforms.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torchvision.transforms.functional
from torch import Tensor

# gone from torchvision since 0.17; PyTorchVideo's transforms still import it
sys.modules["torchvision.transforms.functional_tensor"] = torchvision.transforms.functional
warnings.filterwarnings("ignore")

from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler  # noqa: E402
from pytorchvideo.transforms import (  # noqa: E402
    ApplyTransformToKey,
    Normalize,
    RandomShortSideScale,
    ShortSideScale,
    UniformTemporalSubsample,
)
from pytorchvideo.transforms.functional import uniform_crop  # noqa: E402
from torchvision.transforms import Compose, Lambda, RandomCrop, RandomHorizontalFlip  # noqa: E402

from videornn.config import DataConfig, TestConfig  # noqa: E402
from videornn.data.annotations import load_videos  # noqa: E402
from videornn.data.dataset import load_views  # noqa: E402
from videornn.data.decoding import why_not  # noqa: E402
from videornn.data.loader import build_loader, clip_spec, view_spec  # noqa: E402
from videornn.data.sampling import sample_random_clip  # noqa: E402

FRAMES, STRIDE, FPS = 8, 8, 30


def make_videos(folder: Path, count: int, seconds: int = 10) -> list[str]:
    """Ten-second 340x256 videos of drifting textures, with x264's defaults: key frame every 250, B pyramid."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        layers = [(_texture(rng, 2**k), rng.normal(0, 2.5, 2), 40 / 2 ** (5 - k)) for k in range(2, 6)]
        paths.append(str(folder / f"video_{number}.mp4"))
        with av.open(paths[-1], "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "medium"})
            stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
            for index in range(seconds * FPS):
                image = 128 + sum(
                    weight * np.roll(layer, (index * speed).astype(int), (0, 1)) for layer, speed, weight in layers
                )
                image = image[:256, :340, None] + rng.normal(0, 2, (256, 340, 1))
                picture = np.clip(image + np.array([10, 0, -10]), 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))
    return paths


def _texture(rng: np.random.Generator, cell: int) -> np.ndarray:
    """Smooth noise [512, 512] with features of about `cell` pixels, mean 0, deviation 1."""
    noise = torch.from_numpy(rng.normal(size=(1, 1, 512 // cell, 512 // cell)))
    noise = torch.nn.functional.interpolate(noise, size=(512, 512), mode="bicubic")[0, 0].numpy()
    return (noise - noise.mean()) / noise.std()


def pytorchvideo_clips(paths: list[str]) -> Callable[[int], Tensor]:
    """PyTorchVideo's dataset and transforms as its tutorials have them, one random clip of each video."""
    transform = ApplyTransformToKey(
        "video",
        Compose(
            [
                UniformTemporalSubsample(FRAMES),
                Lambda(lambda clip: clip / 255.0),
                Normalize((0.45,) * 3, (0.225,) * 3),
                RandomShortSideScale(256, 320),
                RandomCrop(224),
                RandomHorizontalFlip(0.5),
            ]
        ),
    )
    sampler = make_clip_sampler("random", FRAMES * STRIDE / FPS)

    def read(index: int) -> Tensor:
        dataset = LabeledVideoDataset(
            [(paths[index], {"label": 0})], sampler, torch.utils.data.SequentialSampler, transform, decode_audio=False
        )
        return next(dataset)["video"]

    return read


def pytorchvideo_views(paths: list[str]) -> Callable[[int], Tensor]:
    """The 30 views from PyTorchVideo's dataset: it decodes every clip by itself; three crops of each."""
    prepare = Compose(
        [
            UniformTemporalSubsample(FRAMES),
            Lambda(lambda clip: clip / 255.0),
            Normalize((0.45,) * 3, (0.225,) * 3),
            ShortSideScale(256),
        ]
    )
    three = Lambda(lambda clip: torch.stack([uniform_crop(clip, 256, place) for place in range(3)]))
    transform = ApplyTransformToKey("video", Compose([prepare, three]))

    def read(index: int) -> Tensor:
        sampler = make_clip_sampler("constant_clips_per_video", FRAMES * STRIDE / FPS, 10)
        dataset = LabeledVideoDataset(
            [(paths[index], {"label": 0})], sampler, torch.utils.data.SequentialSampler, transform, decode_audio=False
        )
        return torch.cat([sample["video"] for sample in dataset])

    return read


def videornn_clips(paths: list[str], folder: Path, decoder: str = "auto") -> Callable[[int], Tensor]:
    """videornn's training clips."""
    section = DataConfig(num_frames=FRAMES, temporal_stride=STRIDE, num_workers=0, decoder=decoder)
    (folder / "list.txt").write_text("".join(f"{path} 0\n" for path in paths))
    dataset = build_loader(section, load_videos(str(folder / "list.txt")), batch_size=1, seed=0).dataset
    return lambda index: dataset[(random.randrange(10**6), index, 0)][0].clips


def plain_clips(paths: list[str], folder: Path, read_frames: Callable[[str, Tensor], Tensor]) -> Callable[[int], Tensor]:
    """The same sampling and transform around a plain use of another decoder."""
    section = DataConfig(num_frames=FRAMES, temporal_stride=STRIDE, num_workers=0)
    spec = clip_spec(section)
    (folder / "list.txt").write_text("".join(f"{path} 0\n" for path in paths))
    dataset = build_loader(section, load_videos(str(folder / "list.txt")), batch_size=1, seed=0).dataset

    def read(index: int) -> Tensor:
        seed = random.randrange(10**6)
        frames = read_frames(
            paths[index],
            lambda num_frames, fps: sample_random_clip(spec, num_frames, Fraction(fps).limit_denominator(1001), seed),
        )
        return dataset.transform(frames, 0, torch.Generator().manual_seed(seed))[0]

    return read


def decord_frames(path: str, choose: Callable) -> Tensor:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return torch.from_numpy(reader.get_batch(choose(len(reader), reader.get_avg_fps()).tolist()).asnumpy())


def torchcodec_frames(path: str, choose: Callable) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    reader = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return reader.get_frames_at(indices=choose(len(reader), reader.metadata.average_fps).tolist()).data


def clips_per_second(readers: dict[str, Callable[[int], Tensor]], num_videos: int, num_rounds: int) -> dict[str, float]:
    """Items per second of every reader; a round has every video once for each, the readers taking turns."""
    seconds = dict.fromkeys(readers, 0.0)
    for round_number in range(num_rounds + 1):
        for index in range(num_videos):
            for name, read in readers.items():
                start = time.perf_counter()
                read(index)
                if round_number > 0:  # the first round warms up
                    seconds[name] += time.perf_counter() - start
    return {name: num_rounds * num_videos / spent for name, spent in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", help="a glob of videos to use instead of made ones")
    parser.add_argument("--num-videos", type=int, default=6, help="how many to make")
    parser.add_argument("--rounds", type=int, default=4, help="random clips of every video")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = sorted(glob.glob(arguments.videos)) if arguments.videos else make_videos(folder, arguments.num_videos)
        if not paths:
            sys.exit(f"--videos {arguments.videos} matches nothing")
        print(f"{len(paths)} videos, {sum(map(os.path.getsize, paths)) / len(paths) / 1e3:.0f} kB each", flush=True)
        readers = {"pytorchvideo": pytorchvideo_clips(paths), "videornn": videornn_clips(paths, folder)}
        for decoder, read in (("decord", decord_frames), ("torchcodec", torchcodec_frames)):
            if why_not(decoder):
                print(f"{decoder} is left out: {why_not(decoder)}")
            else:
                readers[decoder] = plain_clips(paths, folder, read)
        report("random clips", clips := clips_per_second(readers, len(paths), arguments.rounds))

        test_spec = view_spec(DataConfig(num_frames=FRAMES, temporal_stride=STRIDE), TestConfig())
        views = {"pytorchvideo": pytorchvideo_views(paths), "videornn": lambda index: load_views(paths[index], test_spec)}
        report("videos of 30 views", tests := clips_per_second(views, len(paths), 1))
        print(json.dumps({"clips_per_second": clips, "videos_of_30_views_per_second": tests}))


def report(what: str, rates: dict[str, float]) -> None:
    """One line per reader."""
    for name, rate in rates.items():
        print(f"{what}: {name:14s} {rate:6.2f} per second, {rate / rates['pytorchvideo']:5.2f}x PyTorchVideo", flush=True)


if __name__ == "__main__":
    main()
