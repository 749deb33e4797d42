"""Measure loading speed on one core, against PyTorchVideo, decord and torchcodec, on the same videos in the same run.

python scripts/benchmark_data.py [--num-made 6] [--videos 'FOLDER/*.mp4'] [--rounds 6]

It reads random training clips (8 frames, 8 apart, crop 224) of the videos as they are and after `videornn data prepare`, and
the 30 views of a test video (10 clips x 3 crops of 256). The videos that it makes have ten seconds of 340x256 H.264 with a
key frame every 250 frames, like those of Kinetics. Readers take turns at every video; PyTorchVideo uses its own dataset and
transforms, decord and torchcodec use videornn's sampling and transforms. The last line is one JSON document.
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

# removed from torchvision in 0.17, but PyTorchVideo's transforms still import it
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

from videornn.config import DataConfig, EvalConfig  # noqa: E402
from videornn.data.annotations.load import load_videos  # noqa: E402
from videornn.data.dataset import ClipKey, TrainClips, load_views, sample_seed  # noqa: E402
from videornn.data.loader import build_loader, plain_plan, view_spec  # noqa: E402
from videornn.data.prepare.prepare import prepare_videos  # noqa: E402
from videornn.data.prepare.reencode import Encoding  # noqa: E402
from videornn.data.sampling import sample_random_clip  # noqa: E402
from videornn.data.video.decoders import why_not  # noqa: E402

FRAMES, STRIDE, FPS = 8, 8, 30


def make_videos(folder: Path, count: int, seconds: int = 10) -> list[str]:
    """Make ten-second 340x256 videos of a panned scene with moving things; x264's defaults: a key frame every 250.

    At crf 21 `prepare` changes their size about as much as that of Kinetics files.
    """
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        scene, things = _texture(rng), [_texture(rng) for _ in range(5)]
        sizes, speeds, phases = rng.integers(24, 96, (5, 2)), rng.uniform(0.2, 1.5, (6, 2)), rng.uniform(0, 6.3, (6, 2))
        paths.append(str(folder / f"video_{number}.mp4"))
        with av.open(paths[-1], "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"crf": "21", "preset": "medium"})
            stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
            for index in range(seconds * FPS):
                swing = 0.5 + 0.5 * np.sin(speeds * index / FPS + phases)  # positions in 0..1 of camera and things
                top, left = (swing[0] * 150).astype(int)
                picture = scene[top : top + 256, left : left + 340].copy()
                for thing, size, place in zip(things, sizes, swing[1:], strict=True):
                    y, x = (place * (np.array([256, 340]) - size)).astype(int)
                    picture[y : y + size[0], x : x + size[1]] = thing[: size[0], : size[1]]
                picture = np.clip(picture + rng.normal(0, 2, (256, 340, 1)), 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))
    return paths


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Make smooth coloured noise with features of 4 to 64 pixels, float [512, 512, 3] around 128."""
    layers = [torch.from_numpy(rng.normal(0, 1.5 * 2**k, (1, 3, 512 >> k, 512 >> k))) for k in range(2, 7)]
    whole = sum(torch.nn.functional.interpolate(layer, size=(512, 512), mode="bicubic") / 2 for layer in layers)
    return 128 + whole[0].permute(1, 2, 0).numpy()


def pytorchvideo_clips(paths: list[str]) -> Callable[[int], Tensor]:
    """Return a reader of one random clip of a video by PyTorchVideo's dataset and transforms as in its tutorials."""
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
    """Return a reader of the 30 views by PyTorchVideo's dataset, which decodes every clip separately; three crops each."""
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


def videornn_clips(paths: list[str], folder: Path) -> Callable[[int], Tensor]:
    """Return a reader of videornn's training clips."""
    dataset = _dataset(paths, folder)
    crop_size = dataset.transform.crop_size
    return lambda index: dataset[ClipKey(random.randrange(10**6), index, 0, FRAMES, crop_size)][0].clips


def plain_clips(paths: list[str], folder: Path, read_frames: Callable[[str, Callable], Tensor]) -> Callable[[int], Tensor]:
    """Return a reader with the same sampling and transform around a plain use of another decoder."""
    dataset = _dataset(paths, folder)

    def read(index: int) -> Tensor:
        seed = sample_seed(dataset.seed, random.randrange(10**6), index)  # the same clip that videornn_clips reads

        def choose(num_frames: int, fps: float) -> list[int]:
            return sample_random_clip(dataset.spec, num_frames, Fraction(fps).limit_denominator(1001), seed).tolist()

        return dataset.transform(read_frames(paths[index], choose), 0, torch.Generator().manual_seed(seed + 1))[0]

    return read


def _dataset(paths: list[str], folder: Path) -> TrainClips:
    (folder / "list.txt").write_text("".join(f"{os.path.abspath(path)} 0\n" for path in paths))
    section = DataConfig(num_frames=FRAMES, temporal_stride=STRIDE, num_workers=0)
    plan = plain_plan(section, len(paths), epochs=1, batch_size=1)
    return build_loader(section, load_videos(str(folder / "list.txt")), plan=plan, seed=0).dataset


def decord_frames(path: str, choose: Callable) -> Tensor:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return torch.from_numpy(reader.get_batch(choose(len(reader), reader.get_avg_fps())).asnumpy())


def torchcodec_frames(path: str, choose: Callable) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    reader = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return reader.get_frames_at(indices=choose(len(reader), reader.metadata.average_fps)).data


def seconds_of_rounds(
    readers: dict[str, Callable[[int], Tensor]], num_videos: int, num_rounds: int
) -> dict[str, np.ndarray]:
    """Measure processor seconds of every reader's rounds, [num_rounds]; in a round all take turns at every video."""
    seconds = {name: np.zeros(num_rounds + 1) for name in readers}
    for round_number in range(num_rounds + 1):
        for index in range(num_videos):
            for name, read in readers.items():
                random.seed(1000 * round_number + index)  # the same clip for all, and in every run of this program
                start = time.process_time()  # of the one core that all share; time taken by other programs does not count
                read(index)
                seconds[name][round_number] += time.process_time() - start
    return {name: spent[1:] for name, spent in seconds.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", help="a glob of videos of your own to take besides")
    parser.add_argument("--num-made", type=int, default=6, help="videos to make")
    parser.add_argument("--rounds", type=int, default=6, help="random clips of every video")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = sorted(glob.glob(arguments.videos)) if arguments.videos else []
        if arguments.videos and not own:
            sys.exit(f"--videos {arguments.videos} matches nothing")
        paths = make_videos(folder, arguments.num_made) + own
        print(f"{len(paths)} videos, {sum(map(os.path.getsize, paths)) / len(paths) / 1e3:.0f} kB each", flush=True)
        readers = {"pytorchvideo": pytorchvideo_clips(paths), "videornn": videornn_clips(paths, folder)}
        for decoder, read in (("decord", decord_frames), ("torchcodec", torchcodec_frames)):
            if why_not(decoder):
                print(f"{decoder} is left out: {why_not(decoder)}")
            else:
                readers[decoder] = plain_clips(paths, folder, read)
        sizes = {}
        for variant in ("disposable", "fastdecode"):
            out = folder / variant
            (folder / "all.txt").write_text("".join(f"{os.path.abspath(path)} 0\n" for path in paths))
            root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
            prepared = prepare_videos(str(folder / "all.txt"), out, Encoding(variant=variant), root=root)
            files = [str(out / row.output) for row in prepared.rows]
            sizes[variant] = sum(map(os.path.getsize, files)) / sum(map(os.path.getsize, paths))
            psnr = [row.mean_psnr for row in prepared.rows if row.mean_psnr]
            print(f"prepared, {variant}: {sizes[variant]:.3f} of the bytes, PSNR {sum(psnr) / len(psnr):.1f} dB", flush=True)
            readers[f"prepared, {variant}"] = videornn_clips(files, out)
        clips = report("random clips", len(paths), seconds_of_rounds(readers, len(paths), arguments.rounds))

        test_spec = view_spec(DataConfig(num_frames=FRAMES, temporal_stride=STRIDE), EvalConfig())
        views = {"pytorchvideo": pytorchvideo_views(paths), "videornn": lambda index: load_views(paths[index], test_spec)}
        tests = report("videos of 30 views", len(paths), seconds_of_rounds(views, len(paths), 1))
        print(json.dumps({"random_clips": clips, "bytes": sizes, "videos_of_30_views": tests}))


def report(what: str, num_videos: int, seconds: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Print a line per reader: the median round, and the least and most that a round was faster than PyTorchVideo's."""
    found = {}
    for name, spent in seconds.items():
        faster = seconds["pytorchvideo"] / spent
        rate = num_videos / float(np.median(spent))
        found[name] = {"per_second": rate, "faster": float(np.median(faster)), "least": faster.min(), "most": faster.max()}
        print(
            f"{what}: {name:20s} {rate:6.2f} per second, {found[name]['faster']:5.2f}x PyTorchVideo "
            f"({faster.min():.2f} to {faster.max():.2f} in a round)",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
