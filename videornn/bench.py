"""Whether this machine can feed the network: the cost of a training clip by stage, the rates of loader and network."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from videornn import distributed
from videornn.config import Config
from videornn.data.annotations import VideoTable, load_videos
from videornn.data.dataset import Sample, TrainClips, sample_seed
from videornn.data.decoding import open_video
from videornn.data.loader import build_loader, plain_plan
from videornn.data.parallel import num_cores
from videornn.data.sampling import sample_random_clip
from videornn.data.shared_batch import collate
from videornn.data.video import Cut
from videornn.engine import to_model_input, train_step
from videornn.errors import DecodeError, UserError
from videornn.models import build_model
from videornn.run import training_optimizer
from videornn.speed import wait_for
from videornn.trained import normalization

CPU_BATCH = 8  # clips of a timed step on a CPU, where a whole batch can take minutes


@dataclass(frozen=True)
class LoadingReport:
    """stages: seconds per clip on one core, by stage; rates in clips per second; bad: videos that could not be decoded."""

    stages: dict[str, float]
    num_workers: int
    loader_rate: float
    model_rate: float
    device: str
    num_bad: int

    @property
    def core_rate(self) -> float:
        """Clips per second that one core can load."""
        return 1 / sum(seconds for stage, seconds in self.stages.items() if stage != "transfer")

    def advice(self) -> str:
        """Whether the workers keep up with the network, and what to do if they do not."""
        if self.loader_rate >= self.model_rate:
            return f"the loader gives {self.loader_rate / self.model_rate:.1f} times what the network takes: nothing to do"
        cores = num_cores()
        needed = math.ceil(self.num_workers * self.model_rate / self.loader_rate) if self.num_workers else 1
        ways = []
        if self.num_workers < cores:
            ways.append(f"data.num_workers={min(max(needed, 1), cores)} ({cores} cores are here)")
        if self.stages["decode"] > 0.5 / self.core_rate:
            ways.append("videos encoded for it: `videornn data prepare`, since most of the time goes into decoding")
        if self.stages["transform"] > 0.5 / self.core_rate:
            ways.append("lighter augmentation, since most of the time goes into it")
        ways.append("more clips of each opened video (data.clips_per_video)")
        idle = 100 * (1 - self.loader_rate / self.model_rate)
        return f"the network would wait for data {idle:.0f} % of the time. Ways out: {'; '.join(ways)}"


def bench_loading(
    config: Config, *, num_clips: int = 64, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> LoadingReport:
    """Time the training data of a config, and a training step on random clips.

    Args:
        num_clips: training clips to time, by stage and again with the workers.
        on_progress: told the number of clips timed by stage, and num_clips.

    Raises:
        UserError: there is no training list, or nothing in it can be decoded.
    """
    if config.data.train is None:
        raise UserError("there is nothing to load: give data.train=LIST_OR_FOLDER")
    section = config.data
    table = load_videos(section.train, split="train", root=section.root, labels=section.labels, fold=section.fold)
    device = distributed.pick_device(config.device)
    stages, num_bad = _time_stages(config, table, device, num_clips, lambda done: on_progress(done, num_clips))
    loader_rate, num_workers = _loader_rate(config, table, num_clips)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model_rate = _model_rate(config, max(int(table.labels.max()) + 1, len(table.class_names)), device)
    return LoadingReport(stages, num_workers, loader_rate, model_rate, str(device), num_bad)


def _time_stages(
    config: Config, table: VideoTable, device: torch.device, num_clips: int, on_clip: Callable[[int], None]
) -> tuple[dict[str, float], int]:
    """Mean seconds per clip of every stage, in this process and on one thread; number of bad videos met."""
    plan = plain_plan(config.data, len(table), 1, config.data.clips_per_video)
    dataset = build_loader(config.data, table, plan=plan, seed=config.seed).dataset
    mean, std = normalization(config, device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        samples, seconds, num_bad = _read_clips(dataset, num_clips, config.seed, on_clip)
    finally:
        torch.set_num_threads(threads)
    if not samples:
        raise UserError(
            f"{table.source}: none of the {num_bad} videos tried can be decoded (`videornn data verify` tells why)"
        )
    clock = time.perf_counter
    start = clock()
    batches = [collate([samples[first : first + 8]]) for first in range(0, len(samples), 8)]
    seconds["collate"] = clock() - start
    to_model_input(batches[0].clips, mean, std)  # the first use of a device sets it up
    wait_for(device)
    start = clock()
    for batch in batches:
        to_model_input(batch.clips, mean, std)
    wait_for(device)
    seconds["transfer"] = clock() - start
    return {stage: spent / len(samples) for stage, spent in seconds.items()}, num_bad


def _read_clips(
    dataset: TrainClips, num_clips: int, seed: int, on_clip: Callable[[int], None]
) -> tuple[list[Sample], dict[str, float], int]:
    reader, clock = dataset.reader, time.perf_counter
    seconds, samples, num_bad = {"open": 0.0, "decode": 0.0, "transform": 0.0}, [], 0
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    for number, index in zip(range(num_clips), itertools.cycle(order)):
        clip_seed, (path, label) = sample_seed(seed, number, index), reader.table[index]
        start = clock()
        try:
            with open_video(path, reader.decoder, timeout=reader.timeout, max_pixels=reader.max_pixels) as video:
                opened = clock()
                clip = sample_random_clip(dataset.spec, video.num_frames, video.fps, clip_seed)
                generator, cutting = torch.Generator().manual_seed(clip_seed), []
                cut = _timed(dataset.transform.cutter(generator), cutting)
                crops = video.cuts_at(video.on_screen(clip)[None], [cut])[0]
                decoded = clock()
        except DecodeError:
            num_bad += 1
            continue
        clip, label = dataset.transform.finish(crops, label, generator)
        transformed = clock() - decoded + sum(cutting)
        samples.append(Sample(clip, label, index))
        for stage, spent in zip(seconds, (opened - start, decoded - opened - sum(cutting), transformed), strict=True):
            seconds[stage] += spent
        on_clip(number + 1)
    return samples, seconds, num_bad


def _timed(cut: Cut, seconds: list[float]) -> Cut:
    """The same, which notes how long it took each time."""

    def timed(frame: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        piece = cut(frame)
        seconds.append(time.perf_counter() - start)
        return piece

    return timed


def _loader_rate(config: Config, table: VideoTable, num_clips: int) -> tuple[float, int]:
    """Clips per second that the loader of this config gives when nobody else wants the cores; number of its workers."""
    per_video = config.data.clips_per_video
    batch_size = min(config.train.batch_size, len(table) * per_video, max(num_clips // 8, 1) * per_video)
    epochs = num_clips + config.data.num_workers + 1  # more than are begun: each has a batch at least
    plan = plain_plan(config.data, len(table), epochs, batch_size // per_video * per_video)
    loader = build_loader(config.data, table, plan=plan, seed=config.seed)
    batches = iter(loader)
    for _ in range(max(loader.num_workers, 1)):  # while workers start
        next(batches)
    start, done = time.perf_counter(), 0
    while done < num_clips:
        done += len(next(batches).labels)
    return done / (time.perf_counter() - start), loader.num_workers


def _model_rate(config: Config, num_classes: int, device: torch.device) -> float:
    """Clips per second of a training step on clips that are already there."""
    section = config.train
    num_classes = config.model.num_classes or num_classes
    model = build_model(config.model.model_copy(update={"num_classes": num_classes}))
    model = model.to(device, memory_format=torch.channels_last_3d).train()
    optimizer = training_optimizer(section, model)
    batch_size = min(section.batch_size, CPU_BATCH) if device.type == "cpu" else section.batch_size
    shape = (batch_size, 3, config.data.num_frames, config.data.crop_size, config.data.crop_size)
    mean, std = normalization(config, device)
    clips, labels = torch.randint(0, 256, shape, dtype=torch.uint8), torch.zeros(batch_size, dtype=torch.int64)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        train_step(model, [(to_model_input(clips, mean, std), labels.to(device))], optimizer, precision=section.precision)
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return batch_size / min(seconds[1:])  # the first one sets things up
