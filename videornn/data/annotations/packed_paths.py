"""Paths of many videos in flat tensors: 650,000 cost little more than their bytes, and worker processes share them.

Forked workers share all memory that is not written to. Pickling for a spawned worker moves a tensor to shared memory, once
and in place, and passes its handle.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = 1 << 18
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a byte is lost on the way


class PackedPaths:
    """A sequence of paths: the beginning that all share, and the rest of each in one stretch of bytes.

    Args:
        prefix: the beginning of every path.
        rests: uint8 [bytes], the rest of each path after the prefix.
        starts: int64 [N], where each begins in rests.
        lengths: int32 [N], in bytes.
    """

    def __init__(self, prefix: bytes, rests: Tensor, starts: Tensor, lengths: Tensor) -> None:
        self._prefix = prefix
        self._rests = rests
        self._starts = starts
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> str:
        start, length = int(self._starts[index]), int(self._lengths[index])
        # numpy's view of a tensor must not outlive this line: moving the tensor to shared memory frees the memory under it
        return os.fsdecode(self._prefix + self._rests[start : start + length].numpy().tobytes())

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors, in bytes."""
        return self._rests.nbytes + self._starts.nbytes + self._lengths.nbytes

    def hashes(self, root: str = "") -> Tensor:
        """Hash the paths to int64 [N], different for different paths; relative to root if all are under it.

        They are polynomials modulo 2^64, computed for all rows at a time: 650,000 take half a second and the memory of a
        few columns.
        """
        rests, lengths = self._rests.numpy(), self._lengths.numpy()
        longest_first = np.argsort(-lengths, kind="stable")
        starts, lengths = self._starts.numpy()[longest_first], -lengths[longest_first]
        numbers = np.zeros(len(self), np.uint64)
        for byte in self._prefix.removeprefix(os.fsencode(os.path.join(root, ""))):
            numbers = numbers * HASH_FACTOR + np.uint64(byte + 1)
        for place in range(-lengths[0] if len(self) else 0):
            rows = slice(np.searchsorted(lengths, -place))  # the longer ones
            numbers[rows] = numbers[rows] * HASH_FACTOR + rests[starts[rows] + place] + np.uint64(1)
        hashes = np.empty(len(self), np.int64)
        hashes[longest_first] = numbers.view(np.int64)
        return torch.from_numpy(hashes)

    def take(self, indices: np.ndarray) -> PackedPaths:
        """Return the paths at these indices, in this order; they share the bytes, which are only copied if they are few."""
        rows = torch.from_numpy(indices)
        starts, lengths = self._starts[rows], self._lengths[rows]
        if 2 * int(lengths.sum()) > len(self._rests):
            return PackedPaths(self._prefix, self._rests, starts, lengths)
        packer = PathPacker()
        for index in indices.tolist():
            packer.append(self[index])
        return packer.pack()


class PathPacker:
    """A packer that takes paths one by one; beyond the result it needs the memory of a chunk."""

    def __init__(self) -> None:
        self._open = bytearray()
        # each chunk is a memory map of its own: freed as soon as it is copied, its memory goes back to the system at once
        self._chunks: list[mmap.mmap] = []
        self._chunk_ends: list[int] = []  # number of paths when each chunk was closed
        self._lengths = array("i")
        self._prefix: bytes | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    def append(self, path: str) -> None:
        """Add one path."""
        data = os.fsencode(path)
        if self._prefix is None:
            self._prefix = data
        elif not data.startswith(self._prefix):
            self._prefix = _common_prefix(self._prefix, data)
        self._open += data
        self._lengths.append(len(data))
        if len(self._open) >= CHUNK_BYTES:
            self._close_chunk()

    def pack(self) -> PackedPaths:
        """Return all paths appended; the packer cannot be used afterwards."""
        if self._open:
            self._close_chunk()
        prefix = self._prefix or b""
        lengths = np.array(self._lengths, np.int32) - np.int32(len(prefix))
        rests = torch.empty(int(lengths.sum(dtype=np.int64)), dtype=torch.uint8)
        row = filled = 0
        for chunk, end in zip(self._chunks, self._chunk_ends, strict=True):
            kept = _without_prefixes(chunk, lengths[row:end], len(prefix))
            rests[filled : filled + len(kept)] = torch.from_numpy(kept)
            chunk.close()
            row, filled = end, filled + len(kept)
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        return PackedPaths(prefix, rests, torch.from_numpy(starts), torch.from_numpy(lengths))

    def _close_chunk(self) -> None:
        self._chunks.append(mmap.mmap(-1, len(self._open)))
        self._chunks[-1][:] = self._open
        self._chunk_ends.append(len(self._lengths))
        self._open.clear()


def _common_prefix(one: bytes, other: bytes) -> bytes:
    length = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return min(one, other, key=len) if length is None else one[:length]


def _without_prefixes(chunk: mmap.mmap, lengths: np.ndarray, prefix_length: int) -> np.ndarray:
    """Return the bytes of a chunk of paths without the first prefix_length of each; lengths are those of the rests."""
    data = np.frombuffer(chunk, np.uint8)
    starts = np.cumsum(lengths + prefix_length, dtype=np.int64) - (lengths + prefix_length)
    kept = np.ones(len(data), bool)
    for offset in range(prefix_length):
        kept[starts + offset] = False
    return data[kept]
