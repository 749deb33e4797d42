"""Scores of a test in progress: every rank appends its videos to a file, so that a test killed at any time can continue.

A file begins with a line that says what is tested and how, its fingerprint. Records of equal size follow, each with a
checksum: the index of a video, and the logits of its views. A last record that a killed process left incomplete is ignored.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from videornn.system.files import is_file, telling_if_full

MAGIC = b"videornn scores in progress 1\n"
DAMAGED = "a file of them is damaged"


class KeptScores:
    """The files in a folder; other ranks and later starts of a test see what is appended to them.

    Args:
        folder: seen by all ranks; it exists only while a test is unfinished.
        fingerprint: all that the logits depend on, in plain JSON values by the names that users have for it.
        num_videos: upper bound of the indices.
    """

    def __init__(
        self, folder: Path, fingerprint: dict[str, Any], *, num_videos: int, num_views: int, num_classes: int
    ) -> None:
        self.folder = folder
        self._fingerprint = json.loads(json.dumps(fingerprint))  # tuples become lists
        self._header = MAGIC + json.dumps(fingerprint).encode() + b"\n"
        self._num_videos = num_videos
        self._shape = (num_views, num_classes)
        self._record_bytes = 8 + 4 * num_views * num_classes + 4

    def prepare_folder(self) -> str | None:
        """Make the folder and remove files of another test from it; return a sentence that says why, if there were any."""
        self.folder.mkdir(parents=True, exist_ok=True)
        reason = None
        for path in self._files():
            if not is_file(path):  # opening a pipe would wait for its writer
                reason = DAMAGED
            else:
                with open(path, "rb") as file:
                    if file.read(len(self._header)) == self._header:
                        continue
                    file.seek(0)
                    reason = self._difference(file.read(1 << 20)) or reason
            path.unlink()
        return None if reason is None else f"the scores kept in {self.folder} are not of this test ({reason}): starting anew"

    def indices(self) -> list[int]:
        """Return the indices of the videos whose scores are kept, ascending."""
        return sorted({index for index, _ in self._records()})

    @contextmanager
    def appending(self, rank: int) -> Iterator[KeptFile]:
        """Open the file of one rank for more records; each is written as a whole when append returns."""
        path = self.folder / f"rank_{rank}.scores"
        with telling_if_full(path, 4 * math.prod(self._shape)), open(path, "ab") as file:
            if size := file.seek(0, 2):
                file.truncate(size - (size - len(self._header)) % self._record_bytes)
            else:
                file.write(self._header)
            yield KeptFile(file)

    def read(self) -> tuple[list[int], Tensor]:
        """Read the indices of the videos, ascending, and their logits float32 [N, V, K]."""
        indices = self.indices()
        rows = {index: row for row, index in enumerate(indices)}
        logits = np.empty((len(indices), *self._shape), np.float32)
        for index, values in self._records():
            logits[rows[index]] = np.frombuffer(values, "<f4").reshape(self._shape)
        return indices, torch.from_numpy(logits)

    def remove(self) -> None:
        """Remove the files and the folder."""
        for path in self._files():
            path.unlink()
        with suppress(OSError):  # somebody has put other files there
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("rank_*.scores"))

    def _records(self) -> Iterator[tuple[int, bytes]]:
        """Yield index and bytes of the logits of every sound record."""
        for path in self._files():
            with open(path, "rb") as file:
                if file.read(len(self._header)) != self._header:
                    continue
                while len(record := file.read(self._record_bytes)) == self._record_bytes:
                    (index,), (checksum,) = struct.unpack("<q", record[:8]), struct.unpack("<I", record[-4:])
                    if zlib.crc32(record[:-4]) == checksum and 0 <= index < self._num_videos:
                        yield index, record[8:-4]

    def _difference(self, start: bytes) -> str | None:
        """Say how a file with this start differs from this test; None if its test was killed before the first record."""
        line, end, _ = start.removeprefix(MAGIC).partition(b"\n")
        if self._header.startswith(start):
            return None
        try:
            other = json.loads(line) if end and start.startswith(MAGIC) else None
        except (ValueError, RecursionError):
            other = None
        if not isinstance(other, dict):
            return DAMAGED
        names = sorted({name for name in {*other, *self._fingerprint} if other.get(name) != self._fingerprint.get(name)})
        return f"different: {', '.join(names)}"


class KeptFile:
    """The file of one rank, open for more records."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def append(self, index: int, logits: Tensor) -> None:
        """Write the logits float32 [V, K] of a video so that they survive the end of this process."""
        record = struct.pack("<q", index) + logits.numpy().astype("<f4").tobytes()
        self._file.write(record + struct.pack("<I", zlib.crc32(record)))
        self._file.flush()
