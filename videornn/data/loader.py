"""Loaders: batches of clips from workers that survive any video, ahead of time on the device."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from videornn.data.annotations import VideoTable
from videornn.data.batches import TestBatches, TrainBatches
from videornn.data.dataset import BadVideo, Sample, TrainClips, VideoReader, VideoViews, ViewSpec
from videornn.data.decoding import choose_decoder
from videornn.data.parallel import exit_reason
from videornn.data.plan import BatchPlan, BatchShape, Phase
from videornn.data.sampling import ClipSpec
from videornn.data.transforms import train_transform
from videornn.errors import UserError

if TYPE_CHECKING:
    from videornn.config import DataConfig, TestConfig

MAX_RESTARTS = 20  # of workers that died or hung, in one pass
MAX_PREFETCH = 4  # batches ahead of every worker
MAX_SHARED_BYTES = 2**30  # of batches of one rank in shared memory
POLL_SECONDS = 5.0  # between two looks at whether the workers are alive
HANG_TIMEOUTS = 5.0  # a worker hangs if it is at a video for so many data.timeout
CANNOT_START = (
    "loader workers end before they read anything; what they said stands above. A script needs "
    "`if __name__ == '__main__':` around what it does: every worker imports it, from Python 3.14 on on Linux too"
)


@dataclass(frozen=True)
class Batch:
    """clips uint8 [B, ...], labels int64 [B], indices int64 [B] into the table, valid bool [B], and the bad videos met."""

    clips: Tensor
    labels: Tensor
    indices: Tensor
    valid: Tensor
    bad: list[BadVideo]

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by DataLoader."""
        return Batch(self.clips.pin_memory(), self.labels.pin_memory(), self.indices, self.valid, self.bad)

    def to(self, device: torch.device) -> Batch:
        """The same batch with clips and labels on a device."""
        clips, labels = (tensor.to(device, non_blocking=True) for tensor in (self.clips, self.labels))
        return Batch(clips, labels, self.indices, self.valid, self.bad)


class ClipLoader:
    """A DataLoader that names the video that killed or hung one of its workers, and goes on without it.

    Samples depend on their key only, so other workers can start from the batch that did not come. Every pass over the loader
    gives the same batches, from workers that stay.

    Args:
        batches: the keys of every batch, and what is left of them after any number.
        num_workers: 0 loads in this process, where nothing survives a video that kills or hangs the decoder.
        batch_bytes: size of the largest batch; prefetch and, if need be, workers are cut down to what shared memory holds.
        hang_seconds: how long a worker may be at one video.
    """

    def __init__(
        self,
        dataset: TrainClips | VideoViews,
        batches: TrainBatches | TestBatches,
        *,
        num_workers: int,
        batch_bytes: int,
        pin_memory: bool = False,
        hang_seconds: float = 300.0,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.pin_memory = pin_memory
        self.hang_seconds = hang_seconds
        self.num_workers, self.prefetch_factor = _fit_shared_memory(num_workers, batch_bytes)
        self._processes: dict[int, multiprocessing.process.BaseProcess] = {}
        self._loader: DataLoader | None = None  # the one whose workers stay from pass to pass

    def __len__(self) -> int:
        """Batches of a pass; only for TestBatches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        self._loader = self._loader or self._new_loader(self.batches)
        iterator = self._start(self._loader)
        done = num_restarts = 0
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except UserError as error:  # torch puts a traceback of the worker before the sentence
                raise UserError(str(error).rstrip().rpartition("UserError: ")[2]) from None
            except (RuntimeError, OSError, EOFError) as error:  # what comes of a dead worker depends on when it died
                if "DataLoader timed out" in str(error) and not self._hanging():
                    _check_pinning(iterator)
                    continue
                self._blame(error)
                num_restarts += 1
                if num_restarts > MAX_RESTARTS:
                    raise UserError(f"{num_restarts} loader workers died or hung; the last: {error}") from error
                self._loader = iterator = None  # ends the old workers before new ones start
                iterator = self._start(self._new_loader(self.batches.after(done)))
                continue
            yield batch
            done += 1

    def _new_loader(self, batches: Iterable) -> DataLoader:
        self.dataset.reader.watch_workers(self.num_workers)
        return DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            worker_init_fn=_init_worker,
            prefetch_factor=self.prefetch_factor,
            persistent_workers=self.num_workers > 0,
            timeout=POLL_SECONDS if self.num_workers else 0,
            generator=torch.Generator(),  # of the workers' seeds, which no sample depends on: torch's own is the caller's
        )

    def _start(self, loader: DataLoader) -> Iterator[Batch]:
        # a forked worker that collected this process's garbage would wait for ever for the threads of a decoder in it
        gc.freeze()
        try:
            with _imported_once():
                iterator = _iterator(loader)
        finally:
            gc.unfreeze()
        self._processes = {child.pid: child for child in multiprocessing.active_children()}
        return iterator

    def _hanging(self) -> list[int]:
        """Videos at which workers have been for too long."""
        workers = self.dataset.reader.workers()
        return [index for _, index, seconds in workers if index >= 0 and seconds > self.hang_seconds]

    def _died_at(self) -> dict[int, int]:
        """Where dead workers were, by process: videos, or -1. A death can show before the system tells of it."""
        end = time.monotonic() + POLL_SECONDS
        while True:
            alive = {child.pid for child in multiprocessing.active_children()}
            died_at = {pid: index for pid, index, _ in self.dataset.reader.workers() if pid not in alive}
            if died_at or time.monotonic() > end:
                return died_at
            time.sleep(0.05)

    def _end(self, pid: int) -> str:
        """How a worker died, in words, as far as it is known."""
        code = self._processes[pid].exitcode if pid in self._processes else None
        return "died" if code is None else f"died ({exit_reason(code)})"

    def _blame(self, error: Exception) -> None:
        """Mark the videos at which workers hung or died as bad; raises the error if none did."""
        if self.num_workers == 0 or str(error).startswith("Caught "):  # raised by the dataset itself
            raise error
        culprits = dict.fromkeys(self._hanging(), f"hung for {self.hang_seconds:g} s")
        if not culprits:
            died_at = self._died_at()
            culprits = {index: self._end(pid) for pid, index in died_at.items()}
            if died_at and all(self._end(pid) == "died (SIGTERM)" for pid in died_at):
                return  # asked to end, by a scheduler, say, which signals every process of a job: no video is to blame
        if not culprits and not self.dataset.reader.workers():
            raise UserError(CANNOT_START) from error
        if not culprits:
            raise error
        if max(culprits) < 0:
            words = str(error).splitlines()[0]
            raise UserError(f"a loader worker {culprits[max(culprits)]}, not while reading a video: {words}") from error
        table = self.dataset.reader.table
        bad = {index: f"{table.path(index)}: a loader worker {how} at it" for index, how in culprits.items() if index >= 0}
        self.dataset.reader.culprits.update(bad)


def build_loader(
    section: DataConfig,
    table: VideoTable,
    *,
    plan: BatchPlan,
    seed: int,
    first_step: int = 0,
    accumulate: int = 1,
    rank: int = 0,
    num_ranks: int = 1,
    pin_memory: bool = False,
) -> ClipLoader:
    """Training loader of one rank, from step first_step to the end of the plan; accumulate batches are a step.

    Raises:
        UserError: the videos of a step do not divide by ranks and batches.
    """
    dataset = TrainClips(
        _reader(section, table),
        clip_spec(section),
        transform=train_transform(section, table.class_names),
        seed=seed,
        clips_per_video=section.clips_per_video,
    )
    batches = TrainBatches(
        torch.from_numpy(table.labels),
        plan,
        seed=seed,
        class_sampling=section.class_sampling,
        first_step=first_step,
        accumulate=accumulate,
        rank=rank,
        num_ranks=num_ranks,
    )
    num_pixels = max(shape.num_pixels for shape in plan.shapes) * section.clips_per_video
    return ClipLoader(
        dataset,
        batches,
        num_workers=section.num_workers,
        batch_bytes=3 * num_pixels // (num_ranks * accumulate),
        pin_memory=pin_memory,
        hang_seconds=HANG_TIMEOUTS * section.timeout,
    )


def build_test_loader(
    section: DataConfig,
    table: VideoTable,
    spec: ViewSpec,
    *,
    batch_size: int,
    indices: Sequence[int] | None = None,
    pin_memory: bool = False,
    rank: int = 0,
    num_ranks: int = 1,
) -> ClipLoader:
    """Loader of the views of every num_ranks-th of some videos from rank on.

    Args:
        batch_size: counts videos.
        indices: the videos, by index in the table; None: all.
    """
    view_bytes = 3 * spec.clip.num_frames * spec.crop_size**2
    return ClipLoader(
        VideoViews(_reader(section, table), spec),
        TestBatches(range(len(table)) if indices is None else indices, batch_size, rank=rank, num_ranks=num_ranks),
        num_workers=section.num_workers,
        batch_bytes=batch_size * spec.num_clips * spec.num_crops * view_bytes,
        pin_memory=pin_memory,
        hang_seconds=HANG_TIMEOUTS * section.timeout,
    )


def videos_per_batch(section: DataConfig, batch_size: int) -> int:
    """Videos that a batch of batch_size clips is cut from; raises UserError if they do not divide."""
    if batch_size % section.clips_per_video:
        raise UserError(
            f"train.batch_size={batch_size} clips cannot be cut from whole videos with data.clips_per_video="
            f"{section.clips_per_video}; make one a multiple of the other"
        )
    return batch_size // section.clips_per_video


def base_shape(section: DataConfig, batch_size: int) -> BatchShape:
    """The shape of a step of batch_size clips as the data section of a config has them; raises UserError."""
    return BatchShape(videos_per_batch(section, batch_size), section.num_frames, section.crop_size)


def plain_plan(section: DataConfig, num_videos: int, epochs: int, batch_size: int) -> BatchPlan:
    """Epochs of num_videos videos in steps of batch_size clips, all of one shape; raises UserError."""
    return BatchPlan(num_videos, [Phase(epochs, (base_shape(section, batch_size),))])


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches with clips and labels on the device.

    On CUDA a batch is copied on a stream of its own while the step before it computes: its tensors must come pinned.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in itertools.chain(batches, [None]):
        following = None
        if batch is not None:
            with torch.cuda.stream(stream):
                following = batch.to(device), stream.record_event()
        if ahead is not None:
            copied, arrived = ahead
            current = torch.cuda.current_stream(device)
            current.wait_event(arrived)
            for tensor in (copied.clips, copied.labels):
                tensor.record_stream(current)  # its memory must not go to another batch before the step is done with it
            yield copied
        ahead = following


def clip_spec(section: DataConfig) -> ClipSpec:
    """How the data section of a config takes a clip from a video."""
    return ClipSpec(
        section.num_frames,
        section.temporal_stride,
        section.sampling_fps,
        section.sampling,
        section.frame_order,
        section.short_videos,
    )


def view_spec(section: DataConfig, test: TestConfig) -> ViewSpec:
    """The test views that a config asks for."""
    return ViewSpec(
        clip_spec(section),
        num_clips=test.num_clips,
        num_crops=test.num_crops,
        crop_size=test.crop_size,
        short_side=test.short_side,
        squeeze=section.aspect == "squeeze",
    )


def collate(groups: list[list[Sample]]) -> Batch:
    """Stack the samples of several videos into a Batch."""
    samples = [sample for group in groups for sample in group]
    return Batch(
        # clips come with their channels last in memory, from the decoder on: stacked so, nothing is transposed
        clips=torch.stack([sample.clips.movedim(-4, -1) for sample in samples]).movedim(-1, -4),
        labels=torch.tensor([sample.label for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples]),
        valid=torch.tensor([sample.valid for sample in samples]),
        bad=[bad for sample in samples for bad in sample.bad],
    )


def _reader(section: DataConfig, table: VideoTable) -> VideoReader:
    return VideoReader(table, choose_decoder(section.decoder)[0], section.timeout, section.max_frame_pixels)


def _iterator(loader: DataLoader) -> Iterator[Batch]:
    """Start the workers; torch's handler would raise the death of one in the middle of whatever the process is at."""
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    iterator = iter(loader)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return iterator


@contextmanager
def _imported_once() -> Iterator[None]:
    """From Python 3.14 on workers are forks of a server, which imports this once for all of them if it starts meanwhile."""
    if (multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) != "forkserver":
        yield
        return
    before = forkserver._forkserver._preload_modules  # there is no other way to put it back
    multiprocessing.set_forkserver_preload([*(name for name in before if name != "__main__"), __name__])
    try:
        yield
    finally:
        multiprocessing.set_forkserver_preload(before)


def _check_pinning(iterator: Iterator[Batch]) -> None:
    """Raises RuntimeError if the thread that pins batches (with a GPU) has ended: torch would wait for it for ever."""
    thread = getattr(iterator, "_pin_memory_thread", None)
    if thread is not None and not thread.is_alive():
        raise RuntimeError("the thread that copies batches into pinned memory has ended; its error stands above")


def _init_worker(worker_id: int) -> None:
    # Ctrl-C reaches the whole process group; the training process decides when its workers end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # one process per core: threads of a worker would compete with the other workers and the training process
    torch.set_num_threads(1)


def _fit_shared_memory(num_workers: int, batch_bytes: int) -> tuple[int, int | None]:
    """Workers and batches prefetched by each that fit into shared memory; a container may have as little as 64 MB."""
    if num_workers == 0:
        return 0, None
    budget = MAX_SHARED_BYTES
    if os.path.isdir("/dev/shm"):
        budget = min(budget, shutil.disk_usage("/dev/shm").free // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    num_batches = max(budget // batch_bytes, 1)
    if num_batches < num_workers:
        warnings.warn(
            f"shared memory (/dev/shm) has room for {num_batches} batches of {batch_bytes / 1e6:.0f} MB: "
            f"{num_batches} loader workers instead of {num_workers}; give a container more with --shm-size",
            stacklevel=3,
        )
    num_workers = min(num_workers, num_batches)
    return num_workers, min(max(num_batches // num_workers, 1), MAX_PREFETCH)
