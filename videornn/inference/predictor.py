"""Run a checkpoint on videos; nothing but the checkpoint is needed."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from videornn.checkpoints.trained import Trained, load_trained
from videornn.data.annotations.find import counted, is_frame, scan_videos
from videornn.data.annotations.load import VideoTable, load_videos
from videornn.data.annotations.packed_paths import PathPacker
from videornn.data.dataset import load_views
from videornn.data.loader import build_test_loader, view_spec
from videornn.data.shared_batch import to_device
from videornn.data.video.stream import is_live
from videornn.errors import UserError
from videornn.inference.output import Ranking
from videornn.inference.windows import Windows
from videornn.models.forward import average_views
from videornn.system.console import complain
from videornn.system.workers import GeneratorWorker

LIST_SUFFIXES = frozenset([".txt", ".csv", ".json"])


@dataclass(frozen=True, eq=False)
class Prediction:
    """A prediction: scores float32 [K] of a video, or None and a sentence that says why."""

    path: str
    scores: Tensor | None
    error: str | None = None


class Predictor:
    """A predictor of the top-k classes of a video, from the mean of the softmax scores of its views."""

    def __init__(self, trained: Trained, *, topk: int = 5) -> None:
        self.trained = trained
        self.class_names = trained.class_names
        self.topk = min(topk, len(self.class_names))
        self._view_spec = view_spec(trained.config.data, trained.config.test)

    def __call__(self, path: str | Path) -> Ranking:
        """Return the topk (class name, score) pairs of one video, best first; scores lie in 0..1.

        Raises:
            DecodeError: the file is missing or is no video.
        """
        return self.rank(self.scores(path))

    def rank(self, scores: Tensor) -> Ranking:
        """Return the topk (class name, score) pairs of scores [K], best first."""
        best = scores.topk(self.topk)
        return [(self.class_names[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def scores(self, path: str | Path) -> Tensor:
        """Compute the scores of a video, averaged over its views, float32 [K] on the CPU; raises DecodeError."""
        data = self.trained.config.data
        views = load_views(
            str(path), self._view_spec, decoder=data.decoder, timeout=data.timeout, max_pixels=data.max_frame_pixels
        )
        return self.trained.scores(views)

    def predict_many(self, paths: Iterable[str | Path]) -> Iterator[Prediction]:
        """Yield the scores of many videos, in order; for a video that cannot be decoded, a reason instead.

        Loader workers decode while the network computes, and views of several short videos go through it together. Other
        videos in a batch change scores only by float32 rounding (less than 1e-5), because libraries choose the order of
        their sums by the size of a batch.
        """
        table, config = _table(paths), self.trained.config
        spec = self._view_spec
        num_views = spec.num_clips * spec.num_crops
        batch_size = max(config.test.batch_size // num_views, 1)
        num_batches = -(-len(table) // batch_size)
        data = config.data.model_copy(update={"num_workers": min(config.data.num_workers, num_batches)})
        device = self.trained.device
        loader = build_test_loader(data, table, spec, batch_size=batch_size, pin_memory=device.type == "cuda")
        for batch in to_device(loader, device):
            reasons = iter(batch.bad)
            scored = batch.clips[batch.valid]  # [B, V, 3, T, S, S]
            logits = self.trained.logits(scored.flatten(0, 1)).unflatten(0, (-1, num_views)) if len(scored) else scored
            scores = iter(average_views(logits, config.test.average) if len(scored) else ())
            for index, valid in zip(batch.indices.tolist(), batch.valid.tolist(), strict=True):
                path = table.path(index)
                yield Prediction(path, next(scores)) if valid else Prediction(path, None, next(reasons).reason)

    def windows(
        self,
        source: str | Path,
        *,
        window: float | None = None,
        stride: float | None = None,
        worker: GeneratorWorker | None = None,
    ) -> Windows:
        """Return windows over a video of any length, in constant memory; see Windows for arguments and errors."""
        return Windows(self.trained, self._view_spec, str(source), window, stride, worker)


def load_predictor(checkpoint: str | Path, *, topk: int = 5, overrides: list[str] | None = None) -> Predictor:
    """Load a function from a video path to its topk (class name, score) pairs.

    Raises:
        UserError: the checkpoint is missing or is not one of videornn.
    """
    return Predictor(load_trained(checkpoint, overrides), topk=topk)


def find_videos(paths: list[str]) -> list[str]:
    """Find the videos of files, folders (searched recursively, by suffix), lists, globs, URLs and cameras, in order.

    A list is one of load_videos with a suffix of LIST_SUFFIXES; labels in it are ignored. A folder of images is a video.

    Raises:
        UserError: a folder has no video, a list cannot be read, or a glob matches nothing.
    """
    found = []
    for path in paths:
        if is_live(path):
            files = [path]
        elif os.path.isdir(path):
            others = Counter[str]()
            files = sorted(str(Path(path, name)) for name in scan_videos(path, others))
            if not files and any(map(is_frame, os.listdir(path))):
                files = [path]
            if not files:
                only = f": it holds {counted(others)}" if counted(others) else ""
                raise UserError(f"folder {path} has no video{only}")
            if counted(others) and files != [path]:
                complain(f"folder {path}: {counted(others)} are left out, as they are called like no video")
        elif Path(path).suffix.lower() in LIST_SUFFIXES and os.path.isfile(path):
            table = load_videos(path)
            files = [table.path(index) for index in range(len(table))]
        elif os.path.exists(path) or not glob.has_magic(path):
            files = [path]  # it has a row even if it cannot be reached
        else:
            files = sorted(glob.glob(path, recursive=True))
            if not files:
                raise UserError(f"{path} matches no file")
        found += files
    return found


def _table(paths: Iterable[str | Path]) -> VideoTable:
    packer = PathPacker()
    for path in paths:
        packer.append(str(path))
    return VideoTable("paths", "", packer.pack(), torch.full((len(packer),), -1, dtype=torch.int32))
