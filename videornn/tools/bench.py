"""Measure whether this machine can feed the network: cost of a training clip by stage, rates of loader and network."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from videornn.config import Config
from videornn.data.annotations.load import VideoTable, load_videos
from videornn.data.annotations.plain import format_list
from videornn.data.dataset import Sample, TrainClips, sample_seed
from videornn.data.loader import build_loader, plain_plan
from videornn.data.prepare.prepare import RECORD, prepare_videos
from videornn.data.prepare.reencode import Encoding
from videornn.data.shared_batch import Batch, collate
from videornn.data.video.base import Cut
from videornn.data.video.decoders import open_video
from videornn.errors import DecodeError, UserError
from videornn.models import build_model
from videornn.models.forward import Normalize
from videornn.system.device import pick_device, wait_for
from videornn.system.workers import num_cores
from videornn.training.optim import build_optimizer
from videornn.training.step import train_step

CPU_BATCH = 8  # clips of a timed step on a CPU, on which a whole batch can take minutes
NUM_PREPARED = 4  # videos that are prepared to measure the gain
PREPARE_SECONDS = 60.0  # for each of them; one that takes longer is left out


@dataclass(frozen=True)
class Feeding:
    """The number of cores that feed a GPU, and the number that are here.

    Args:
        gpu_rate: clips per second that the GPU takes.
        core_rates: clips per second that a core loads, of the videos "as they are" and, if timed, "prepared".
        num_cores, num_gpus: of this machine.
        ways: further ways to load more.
    """

    gpu_rate: float
    core_rates: dict[str, float]
    num_cores: int
    num_gpus: int
    ways: tuple[str, ...] = ()

    @property
    def cores_needed(self) -> dict[str, int]:
        """Cores needed for each GPU, including one for training itself."""
        return {kind: math.ceil(self.gpu_rate / rate) + 1 for kind, rate in self.core_rates.items()}

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the GPU's rate that the cores of this machine reach, at most 1."""
        cores = self.num_cores / self.num_gpus
        return {kind: min(cores / (self.gpu_rate / rate + 1), 1.0) for kind, rate in self.core_rates.items()}

    def advice(self) -> str:
        """Say whether this machine feeds the GPU, and what to do if it does not."""
        needs = ", ".join(f"{cores} cores with videos {kind}" for kind, cores in self.cores_needed.items())
        gpus = f"{self.num_gpus} GPUs" if self.num_gpus > 1 else "it"
        here = (
            f"a GPU that takes {self.gpu_rate:g} clips/s needs {needs} (one of them for training itself); "
            f"{self.num_cores} are here for {gpus}"
        )
        enough = [kind for kind, cores in self.cores_needed.items() if cores * self.num_gpus <= self.num_cores]
        if "as they are" in enough:
            return f"{here}: enough, with data.num_workers={self.cores_needed['as they are'] - 1}"
        reached = ", ".join(f"{100 * share:.0f} % ({kind})" for kind, share in self.shares.items())
        ways = self.ways
        if enough:
            ways = (f"`videornn data prepare` and data.num_workers={self.cores_needed['prepared'] - 1}",)
        elif self.core_rates.get("prepared", 0) > self.core_rates["as they are"]:
            ways = ("`videornn data prepare`, also with --variant fastdecode or a smaller --short-side", *ways)
        return f"{here}, which reach {reached} of its rate. Ways out: {'; '.join((*ways, 'more cores'))}"

    def numbers(self) -> dict[str, object]:
        """Return all numbers, for a program."""
        kinds = {"as they are": "as_they_are", "prepared": "prepared"}
        return {
            "gpu_clips_per_second": self.gpu_rate,
            "core_clips_per_second": {kinds[kind]: round(rate, 2) for kind, rate in self.core_rates.items()},
            "cores_needed": {kinds[kind]: cores for kind, cores in self.cores_needed.items()},
            "share_reached": {kinds[kind]: round(share, 4) for kind, share in self.shares.items()},
            "cores": self.num_cores,
            "gpus": self.num_gpus,
        }


@dataclass(frozen=True)
class LoadingReport:
    """Rates in clips per second.

    Args:
        stages: seconds per clip on one core, by stage.
        model_rate: rate of training steps, timed or given.
        num_bad: videos that could not be decoded.
        prepared: stages of prepared videos, if a few were prepared.
    """

    stages: dict[str, float]
    num_workers: int
    loader_rate: float
    model_rate: float
    device: str
    num_bad: int
    prepared: dict[str, float] = field(default_factory=dict)

    @property
    def core_rate(self) -> float:
        """Clips per second that one core can load."""
        return _core_rate(self.stages)

    def feeding(self) -> Feeding:
        """Return how many cores this machine needs for GPUs of model_rate each."""
        rates = {"as they are": self.core_rate, **({"prepared": _core_rate(self.prepared)} if self.prepared else {})}
        num_gpus = max(torch.cuda.device_count(), 1)
        return Feeding(self.model_rate, rates, num_cores(), num_gpus, tuple(self._ways()))

    def advice(self) -> str:
        """Say whether the workers keep up with the network, and what to do if they do not."""
        if self.loader_rate >= self.model_rate:
            return f"the loader gives {self.loader_rate / self.model_rate:.1f} times what the network takes: nothing to do"
        cores = num_cores()
        needed = math.ceil(self.num_workers * self.model_rate / self.loader_rate) if self.num_workers else 1
        ways = []
        if self.num_workers < cores:
            ways.append(f"data.num_workers={min(max(needed, 1), cores)} ({cores} cores are here)")
        if self.stages["decode"] > 0.5 / self.core_rate:
            ways.append("videos encoded for it: `videornn data prepare`, since most of the time goes into decoding")
        ways += self._ways()
        idle = 100 * (1 - self.loader_rate / self.model_rate)
        return f"the network would wait for data {idle:.0f} % of the time. Ways out: {'; '.join(ways)}"

    def _ways(self) -> list[str]:
        """List what makes a clip cheaper, for any videos."""
        light = ["lighter augmentation, since most of the time goes into it"]
        return [
            *(light if self.stages["transform"] > 0.5 / self.core_rate else []),
            "more clips of each opened video (data.clips_per_video)",
        ]


def _core_rate(stages: dict[str, float]) -> float:
    return 1 / sum(seconds for stage, seconds in stages.items() if stage != "transfer")


def bench_loading(
    config: Config,
    *,
    num_clips: int = 64,
    gpu_rate: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LoadingReport:
    """Time the training data of a config, and a training step on random clips.

    Args:
        num_clips: training clips to time, by stage and again with the workers.
        gpu_rate: clips per second of a GPU that need not be here: then no step is timed, but a few videos are prepared.
        on_progress: called with the number of clips timed by stage, and num_clips.

    Raises:
        UserError: there is no training list, nothing in it can be decoded, or gpu_rate is no rate.
    """
    if gpu_rate is not None and not 0 < gpu_rate < math.inf:
        raise UserError(f"--gpu-clips-per-second must be a number of clips above 0, such as 400, got {gpu_rate:g}")
    section = config.data
    if section.train is None:
        raise UserError("there is nothing to load: give data.train=LIST_OR_FOLDER")
    table = load_videos(section.train, split="train", root=section.root, labels=section.labels, fold=section.fold)
    device = pick_device(config.device)
    stages, num_bad = _time_stages(config, table, device, num_clips, lambda done: on_progress(done, num_clips))
    loader_rate, num_workers = _loader_rate(config, table, num_clips)
    if gpu_rate is not None:
        prepared = _prepared_stages(config, section.train, table, num_clips)
        return LoadingReport(stages, num_workers, loader_rate, gpu_rate, "a GPU", num_bad, prepared)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model_rate = _model_rate(config, max(int(table.labels.max()) + 1, len(table.class_names)), device)
    return LoadingReport(stages, num_workers, loader_rate, model_rate, str(device), num_bad)


def _time_stages(
    config: Config, table: VideoTable, device: torch.device, num_clips: int, on_clip: Callable[[int], None]
) -> tuple[dict[str, float], int]:
    """Measure mean seconds per clip of every stage, in this process on one thread, and count the bad videos."""
    plan = plain_plan(config.data, len(table), 1, config.data.clips_per_video)
    dataset = build_loader(config.data, table, plan=plan, seed=config.seed).dataset
    assert isinstance(dataset, TrainClips)  # as there is a plan
    normalize = Normalize(config.data.mean, config.data.std, device)
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
    batches: list[Batch] = []
    for first in range(0, len(samples), 8):
        batch = collate([samples[first : first + 8]])
        assert isinstance(batch, Batch)  # ready to be sent by workers only
        batches.append(batch)
    seconds["collate"] = clock() - start
    normalize(batches[0].clips)  # the first use of a device includes its set-up
    wait_for(device)
    start = clock()
    for batch in batches:
        normalize(batch.clips)
    wait_for(device)
    seconds["transfer"] = clock() - start
    return {stage: spent / len(samples) for stage, spent in seconds.items()}, num_bad


def _prepared_stages(config: Config, listed: str, table: VideoTable, num_clips: int) -> dict[str, float]:
    """Time the stages on a few videos prepared as by `videornn data prepare`; none if they already are, or none can be."""
    section = config.data
    source = Path(listed).expanduser()
    if ((source if source.is_dir() else source.parent) / RECORD).exists():
        return {}
    paths = sorted({os.path.abspath(table.path(index)) for index in _order(len(table), config.seed)[:NUM_PREPARED]})
    with tempfile.TemporaryDirectory(prefix="videornn-bench-") as place:
        few = Path(place, "few.txt")
        few.write_text("".join(format_list([(path, 0) for path in paths], ())), encoding="utf-8")
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        made = prepare_videos(
            str(few),
            Path(place, "prepared"),
            Encoding(temporal_stride=section.temporal_stride),
            root=root,
            max_pixels=section.max_frame_pixels,
            timeout_seconds=PREPARE_SECONDS,
            num_measured=0,
        )
        if made.list_file is None:
            return {}
        copies = load_videos(str(made.list_file))
        return _time_stages(config, copies, torch.device("cpu"), num_clips, lambda done: None)[0]


def _order(num_videos: int, seed: int) -> list[int]:
    """Return the order in which videos are timed."""
    return torch.randperm(num_videos, generator=torch.Generator().manual_seed(seed)).tolist()


def _read_clips(
    dataset: TrainClips, num_clips: int, seed: int, on_clip: Callable[[int], None]
) -> tuple[list[Sample], dict[str, float], int]:
    reader, clock, crop_size = dataset.reader, time.perf_counter, dataset.transform.crop_size
    seconds, samples, num_bad = {"open": 0.0, "decode": 0.0, "transform": 0.0}, [], 0
    num_videos = math.ceil(num_clips / dataset.clips_per_video)
    for number, index in zip(range(num_videos), itertools.cycle(_order(len(dataset), seed))):
        path, label = reader.table[index]
        draw = dataset.draw(sample_seed(seed, number, index), dataset.spec.num_frames, crop_size)
        cutting: list[float] = []
        start = clock()
        try:
            with open_video(path, reader.decoder, timeout=reader.timeout, max_pixels=reader.max_pixels) as video:
                opened = clock()
                crops = video.cuts_at(draw.choose(video), [_timed(cut, cutting) for cut in draw.cuts])
                decoded = clock()
        except DecodeError:
            num_bad += 1
            continue
        clips = draw.finish(crops, label)
        transformed = clock() - decoded + sum(cutting)
        samples += [Sample(clip, label, index) for clip, label in clips]
        for stage, spent in zip(seconds, (opened - start, decoded - opened - sum(cutting), transformed), strict=True):
            seconds[stage] += spent
        on_clip(min((number + 1) * dataset.clips_per_video, num_clips))
    return samples, seconds, num_bad


def _timed(cut: Cut, seconds: list[float]) -> Cut:
    """Wrap a cut so that it records how long it took each time."""

    def timed(frame: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        piece = cut(frame)
        seconds.append(time.perf_counter() - start)
        return piece

    return timed


def _loader_rate(config: Config, table: VideoTable, num_clips: int) -> tuple[float, int]:
    """Measure the clips per second of this config's loader with the cores to itself, and return its number of workers."""
    per_video = config.data.clips_per_video
    batch_size = min(config.train.batch_size, len(table) * per_video, max(num_clips // 8, 1) * per_video)
    epochs = num_clips + config.data.num_workers + 1  # more than will be used: each has at least one batch
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
    """Measure the clips per second of a training step on clips in memory."""
    section = config.train
    num_classes = config.model.num_classes or num_classes
    model = build_model(config.model.model_copy(update={"num_classes": num_classes}))
    model = model.to(device).to(memory_format=torch.channels_last_3d).train()
    optimizer = build_optimizer(model, section)
    batch_size = min(section.batch_size, CPU_BATCH) if device.type == "cpu" else section.batch_size
    shape = (batch_size, 3, config.data.num_frames, config.data.crop_size, config.data.crop_size)
    normalize = Normalize(config.data.mean, config.data.std, device)
    clips, labels = torch.randint(0, 256, shape, dtype=torch.uint8), torch.zeros(batch_size, dtype=torch.int64)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        train_step(model, [(normalize(clips), labels.to(device))], optimizer, precision=section.precision)
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return batch_size / min(seconds[1:])  # the first one includes set-up
