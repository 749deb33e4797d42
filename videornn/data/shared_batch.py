"""Stack samples into batches, and bring a batch from a loader worker to the device."""

from __future__ import annotations

import itertools
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from videornn.data.dataset import BadVideo, Sample
from videornn.errors import UserError


@dataclass(frozen=True)
class Batch:
    """A batch: clips uint8 [B, ...], labels int64 [B], indices int64 [B] into the table, valid bool [B], bad videos found.

    refusals are those of read_frames.
    """

    clips: Tensor
    labels: Tensor
    indices: Tensor
    valid: Tensor
    bad: list[BadVideo]
    refusals: list[str] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """Return the same batch in page-locked memory; called by DataLoader."""
        return replace(self, clips=self.clips.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """Return the same batch with clips and labels on a device."""
        clips, labels = (tensor.to(device, non_blocking=True) for tensor in (self.clips, self.labels))
        return replace(self, clips=clips, labels=labels)


class LostBatch(RuntimeError):
    """Raised if a worker ended before its batch was taken."""


@dataclass(frozen=True)
class SentBatch:
    """A Batch on its way between processes. Both map the memory of its clips; the rest is small and goes through the pipe.

    The memory is no file in /dev/shm, where torch puts tensors: a container has 64 MB there, and others may fill it. A
    torch worker silently drops a batch that finds no room, and the training process waits for it.

    Attributes:
        memory: the file descriptor of the clips' memory, as multiprocessing sends one.
        shape: of the clips, channels last: [B, ..., T, H, W, 3].
    """

    memory: Any
    shape: tuple[int, ...]
    labels: list[int]
    indices: list[int]
    valid: list[bool]
    bad: list[BadVideo]
    refusals: list[str]

    def open(self) -> Batch:
        """Return the batch, once, in the process that it was sent to; raises LostBatch if its worker is gone."""
        try:
            memory = self.memory.detach()
        except (OSError, EOFError) as error:
            raise LostBatch(f"a loader worker ended before its batch was taken ({type(error).__name__})") from error
        with os.fdopen(memory, "rb+"):
            clips = _map(memory, self.shape).movedim(-1, -4)
        labels, indices, valid = map(torch.tensor, (self.labels, self.indices, self.valid))
        return Batch(clips, labels, indices, valid, self.bad, self.refusals)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; called by DataLoader."""
        return self.open().pin_memory()


def collate(groups: list[list[Sample]]) -> Batch | SentBatch:
    """Stack the samples of several videos into a Batch; in a worker, into a SentBatch."""
    samples = [sample for group in groups for sample in group]
    # clips have their channels last in memory, as decoded: stacked like this, nothing is transposed
    clips = [sample.clips.movedim(-4, -1) for sample in samples]
    labels = [sample.label for sample in samples]
    indices = [sample.index for sample in samples]
    valid = [sample.valid for sample in samples]
    bad = [bad for sample in samples for bad in sample.bad]
    refusals = [refusal for sample in samples for refusal in sample.refusals]
    # only Linux has memory without a name; elsewhere torch sends tensors in its own way
    if get_worker_info() is None or not hasattr(os, "memfd_create"):
        stacked = torch.stack(clips).movedim(-1, -4)
        return Batch(stacked, torch.tensor(labels), torch.tensor(indices), torch.tensor(valid), bad, refusals)
    shape = (len(clips), *clips[0].shape)
    try:
        with os.fdopen(os.memfd_create("videornn-batch"), "rb+") as memory:
            memory.truncate(math.prod(shape))
            torch.stack(clips, out=_map(memory.fileno(), shape))
            return SentBatch(reduction.DupFd(memory.fileno()), shape, labels, indices, valid, bad, refusals)
    except OSError as error:
        raise UserError(
            f"a loader worker cannot have memory for a batch of {math.prod(shape) / 1e6:.0f} MB ({error.strerror}); fewer "
            f"data.num_workers, or a smaller batch, need less"
        ) from error


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches with clips and labels on the device.

    On CUDA a batch is copied on a separate stream while the step before it computes; its tensors must be pinned.
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
                tensor.record_stream(current)  # its memory must not go to another batch before the step has used it
            yield copied
        ahead = following


def _map(memory: int, shape: tuple[int, ...]) -> Tensor:
    """Map the memory of a file descriptor, which may then be closed, as a uint8 tensor."""
    return torch.frombuffer(mmap.mmap(memory, math.prod(shape)), dtype=torch.uint8).view(shape)
