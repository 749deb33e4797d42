"""Loaders of batches of clips, whose workers survive any video and load ahead."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from videornn.data.annotations.load import VideoTable
from videornn.data.batches import EvalBatches, TrainBatches
from videornn.data.dataset import TooManyBad, TrainClips, VideoReader, VideoViews, ViewSpec
from videornn.data.plan import BatchPlan, BatchShape, Phase
from videornn.data.sampling import ClipSpec
from videornn.data.shared_batch import Batch, LostBatch, SentBatch, collate
from videornn.data.transforms import train_transform
from videornn.data.video.decoders import choose_decoder
from videornn.errors import Remark, UserError
from videornn.system.workers import exit_reason, imported_once

if TYPE_CHECKING:
    from videornn.config import DataConfig, EvalConfig

MAX_RESTARTS = 20  # of workers that died or hung, for one batch
MAX_PREFETCH = 4  # batches that a worker loads ahead
MAX_WAITING_BYTES = 2**30  # of loaded batches of one rank; every worker loads one ahead in any case
MANY_READ = 100  # videos after which the log says how many of them the chosen back end does not read
POLL_SECONDS = 5.0  # between two checks that the workers are alive
DEATH_SECONDS = 5.0  # until the system reports a death that has already shown
HANG_TIMEOUTS = 5.0  # a worker hangs if it reads a video for this many times data.timeout
CANNOT_START = (
    "loader workers end before they read anything; what they said stands above. A script needs "
    "`if __name__ == '__main__':` around what it does: every worker imports it, from Python 3.14 on on Linux too"
)


class ClipLoader:
    """A DataLoader that goes on when workers die or hang, and names the video that is the cause.

    Samples depend on their key only, so other workers can start from the batch that did not come. A video at which a worker
    died is tried once more, because the system may have ended the worker to free memory; one that kills again, or makes a
    worker hang, is bad. Every pass over the loader gives the same batches, from workers that stay.

    Args:
        batches: the keys of every batch, and of those left after any number of them.
        num_workers: 0 loads in this process, which does not survive a video that kills or hangs the decoder.
        batch_bytes: size of the largest batch; the larger it is, the fewer are loaded ahead.
        hang_seconds: the longest that a worker may take for one video.
    """

    def __init__(
        self,
        dataset: TrainClips | VideoViews,
        batches: TrainBatches | EvalBatches,
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
        self.num_workers = num_workers
        self.prefetch_factor = _prefetch(num_workers, batch_bytes)
        self._told = False
        self._suspects: set[int] = set()  # videos at which a worker died, until they are read successfully
        self._workers: set[multiprocessing.process.BaseProcess] = set()
        self._loader: DataLoader | None = None  # its workers stay from pass to pass

    def __len__(self) -> int:
        """Return the number of batches of a pass; only for EvalBatches."""
        if not isinstance(self.batches, Sized):
            raise TypeError("batches of a training have no end")
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        num_read, num_refused, first = 0, 0, None
        try:
            for batch in self._batches():
                num_read += len(batch.indices.unique())
                num_refused += len(batch.refusals)
                first = first or next(iter(batch.refusals), None)
                yield batch
                if first and num_read >= MANY_READ:
                    self._tell(f"{num_refused} of the first {num_read} videos: {first}")
        finally:  # a caller that knows the number of batches does not iterate to the end
            if first:
                self._tell(f"{num_refused} of {num_read} videos: {first}")

    def _tell(self, refusals: str) -> None:
        """Say once that PyAV reads what the chosen back end does not."""
        if not self._told:
            self._told = True
            warnings.warn(Remark(refusals), stacklevel=3)

    def _batches(self) -> Iterator[Batch]:
        done = num_restarts = 0
        iterator = None
        while True:
            try:
                if iterator is None:
                    iterator = self._start(done)
                batch = next(iterator)
                batch = batch.open() if isinstance(batch, SentBatch) else batch
            except StopIteration:
                return
            except UserError as error:  # torch puts a traceback of the worker before the sentence
                raise UserError(str(error).rstrip().rpartition("UserError: ")[2]) from None
            except (RuntimeError, OSError, EOFError) as error:  # the error of a dead worker depends on when it died
                if not (hung := self._hanging()) and "DataLoader timed out" in str(error):
                    _check_pinning(iterator)
                    if not self._idle():
                        continue
                    error = LostBatch(str(error))
                what = self._blame(error, hung)
                num_restarts += 1
                if num_restarts > MAX_RESTARTS:
                    raise UserError(f"{num_restarts} times in a row, {what}: {str(error).partition(chr(10))[0]}") from error
                self._loader = iterator = None  # new workers start from the missing batch
                continue
            if isinstance(self.dataset, TrainClips) and not batch.valid.all():
                raise TooManyBad({v.path: v for v in batch.bad}.values(), len(self.dataset), self.dataset.max_bad_share)
            self._suspects.difference_update(batch.indices.tolist())
            yield batch
            done += 1
            num_restarts = 0

    def _start(self, done: int) -> Iterator[Batch]:
        """Start a pass after the batches already done."""
        if done == 0 and self._loader is not None:
            # new workers if one died while it was not needed, or does not answer
            with suppress(RuntimeError):
                if all(worker.is_alive() for worker in self._workers):
                    return self._begin(self._loader)
            self._loader = None
        num_workers = self.num_workers
        if refused := _refused_locks(num_workers):
            num_workers = 0
            sentence = (
                f"/dev/shm does not take the locks of loader workers ({refused}). For this pass, videos are loaded in the "
                f"process that uses them, which is slow, and which a video that crashes its decoder ends"
            )
            warnings.warn(Remark(sentence), stacklevel=3)
        loader = self._new_loader(self.batches.after(done) if done else self.batches, num_workers)
        self._loader = loader if done == 0 and num_workers else None
        return self._begin(loader)

    def _new_loader(self, batches: Iterable, num_workers: int) -> DataLoader:
        self.dataset.reader.watch_workers(num_workers)
        return DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            worker_init_fn=_init_worker,
            prefetch_factor=self.prefetch_factor if num_workers else None,
            persistent_workers=num_workers > 0,
            timeout=POLL_SECONDS if num_workers else 0,
            generator=torch.Generator(),  # for workers' seeds, which no sample depends on; the global one is the caller's
        )

    def _begin(self, loader: DataLoader) -> Iterator[Batch]:
        # a forked worker that collected this process's garbage would wait for ever for the threads of a decoder among it
        gc.freeze()
        before = set(multiprocessing.active_children())
        try:
            with imported_once(__name__, _start_method()):
                iterator = _iterator(loader)
        finally:
            gc.unfreeze()
        self._workers = set(multiprocessing.active_children()) - before or self._workers  # in a later pass none are new
        return iterator

    def _hanging(self) -> list[int]:
        """Return the videos that workers have been reading for too long."""
        workers = self.dataset.reader.workers()
        return [index for _, index, seconds in workers if index >= 0 and seconds > self.hang_seconds]

    def _idle(self) -> bool:
        """Return whether all workers have been idle for as long, which means that the awaited batch was lost on its way."""
        workers = self.dataset.reader.workers()
        idle = [index < 0 and seconds > self.hang_seconds for _, index, seconds in workers]
        return len(idle) == self.dataset.reader.num_workers > 0 and all(idle)

    def _died(self) -> dict[int, str]:
        """Return how workers died, by process. A death can show before the system reports it."""
        end = time.monotonic() + DEATH_SECONDS
        while True:
            codes = {worker.pid: worker.exitcode for worker in self._workers if worker.pid and not worker.is_alive()}
            if codes or time.monotonic() > end:
                return {pid: "died" if code is None else f"died ({exit_reason(code)})" for pid, code in codes.items()}
            time.sleep(0.05)

    def _blame(self, error: Exception, hung: list[int]) -> str:
        """Say what became of workers, and mark the videos to blame as bad; raises the error if workers are not its cause."""
        reader, lost = self.dataset.reader, isinstance(error, LostBatch)
        if not reader.num_workers or (str(error).startswith("Caught ") and not lost):  # raised by the dataset itself
            raise error
        at = {pid: index for pid, index, _ in reader.workers()}
        ends = [(index, f"hung for {self.hang_seconds:g} s") for index in hung]
        ends = ends or [(at.get(pid, -1), how) for pid, how in self._died().items()]
        if not at and any(how.startswith("died (exit code") for _, how in ends):
            raise UserError(CANNOT_START) from error
        if not ends and not lost:
            raise error
        for index, how in ends:
            # ended by a scheduler, say, which signals every process of a job: no video is to blame
            if index < 0 or how == "died (SIGTERM)":
                continue
            if index in hung or index in self._suspects:
                reader.known_bad[index] = f"{reader.table.path(index)}: a loader worker {how} at it"
            self._suspects.add(index)
        what = f"a loader worker {max(ends, default=(-1, 'lost a batch'))[1]}"
        warnings.warn(Remark(f"{what}; new workers load again what was lost"), stacklevel=3)
        return what


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
    """Build the training loader of one rank, from step first_step to the end of the plan; accumulate batches are a step.

    Raises:
        UserError: the videos of a step do not divide by ranks and batches.
    """
    dataset = TrainClips(
        _reader(section, table),
        clip_spec(section),
        transform=train_transform(section, table.class_names),
        seed=seed,
        clips_per_video=section.clips_per_video,
        max_bad_share=section.max_bad_share,
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
    """Build the loader of the views of every num_ranks-th of some videos, starting with rank.

    Args:
        batch_size: counts videos.
        indices: the videos, by index in the table; None: all.
    """
    view_bytes = 3 * spec.clip.num_frames * spec.crop_size**2
    return ClipLoader(
        VideoViews(_reader(section, table), spec),
        EvalBatches(range(len(table)) if indices is None else indices, batch_size, rank=rank, num_ranks=num_ranks),
        num_workers=section.num_workers,
        batch_bytes=batch_size * spec.num_clips * spec.num_crops * view_bytes,
        pin_memory=pin_memory,
        hang_seconds=HANG_TIMEOUTS * section.timeout,
    )


def videos_per_batch(section: DataConfig, batch_size: int) -> int:
    """Return the number of videos that a batch of batch_size clips is cut from; raises UserError if it is not whole."""
    if batch_size % section.clips_per_video:
        raise UserError(
            f"train.batch_size={batch_size} clips cannot be cut from whole videos with data.clips_per_video="
            f"{section.clips_per_video}; make one a multiple of the other"
        )
    return batch_size // section.clips_per_video


def base_shape(section: DataConfig, batch_size: int) -> BatchShape:
    """Return the shape of a step of batch_size clips of a config's data section; raises UserError."""
    return BatchShape(videos_per_batch(section, batch_size), section.num_frames, section.crop_size)


def plain_plan(section: DataConfig, num_videos: int, epochs: int, batch_size: int) -> BatchPlan:
    """Plan epochs of num_videos videos in steps of batch_size clips, all of one shape; raises UserError."""
    return BatchPlan(num_videos, [Phase(epochs, (base_shape(section, batch_size),))])


def clip_spec(section: DataConfig) -> ClipSpec:
    """Return how a config's data section takes a clip from a video."""
    return ClipSpec(
        section.num_frames,
        section.temporal_stride,
        section.sampling_fps,
        section.sampling,
        section.frame_order,
        section.short_videos,
    )


def view_spec(section: DataConfig, test: EvalConfig) -> ViewSpec:
    """Return the test views that a config asks for."""
    return ViewSpec(
        clip_spec(section),
        num_clips=test.num_clips,
        num_crops=test.num_crops,
        crop_size=test.crop_size,
        short_side=test.short_side,
        squeeze=section.aspect == "squeeze",
    )


def _reader(section: DataConfig, table: VideoTable) -> VideoReader:
    return VideoReader(table, choose_decoder(section.decoder)[0], section.timeout, section.max_frame_pixels)


def _iterator(loader: DataLoader) -> Iterator[Batch]:
    """Start the workers, without torch's handler, which would raise the death of one in the middle of any other work."""
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    iterator = iter(loader)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return iterator


def _start_method() -> str:
    """Return how Python starts processes here: by forks of this process up to 3.13, of a server's from 3.14 on."""
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def _check_pinning(iterator: Iterator[Batch] | None) -> None:
    """Raise RuntimeError if the thread that pins batches (with a GPU) has ended: torch would wait for it for ever."""
    thread = getattr(iterator, "_pin_memory_thread", None)
    if thread is not None and not thread.is_alive():
        raise RuntimeError("the thread that copies batches into pinned memory has ended; its error stands above")


def _init_worker(worker_id: int) -> None:
    # Ctrl-C reaches the whole process group, but the training process decides when its workers end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # there is a process per core: threads would compete with the other workers and the training process
    torch.set_num_threads(1)
    # torch's workers end after their parent process; a server's forks have the server for it, which ends after them
    if (user := multiprocessing.parent_process()) is not None and user.pid != os.getppid():
        threading.Thread(target=_end_after, args=(user,), daemon=True).start()


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


def _refused_locks(num_workers: int) -> str:
    """Return why the system cannot make the locks of this many workers, in /dev/shm; empty if it can."""
    try:
        # at least as many as the queues of a DataLoader need, which leaves locks behind if it cannot make all of them
        _ = [multiprocessing.Lock() for _ in range(8 + 3 * num_workers if num_workers else 0)]
    except OSError as error:
        return str(error.strerror).lower()
    return ""


def _prefetch(num_workers: int, batch_bytes: int) -> int:
    """Return the number of batches that every worker loads ahead."""
    return min(max(MAX_WAITING_BYTES // (batch_bytes * max(num_workers, 1)), 1), MAX_PREFETCH)
