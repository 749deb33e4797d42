"""Run a checkpoint on videos: a checkpoint is all that is needed."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from torch import Tensor

from videornn.data.annotations import VIDEO_SUFFIXES, load_videos
from videornn.data.dataset import load_views
from videornn.data.files import write_table
from videornn.data.loader import view_spec
from videornn.errors import UserError
from videornn.trained import Trained, load_trained

LIST_SUFFIXES = frozenset([".txt", ".csv", ".json"])


class Predictor:
    """Top-k classes of a video, from the mean of the softmax scores of its views."""

    def __init__(self, trained: Trained, *, topk: int = 5) -> None:
        self.trained = trained
        self.class_names = trained.class_names
        self.topk = min(topk, len(self.class_names))
        self._view_spec = view_spec(trained.config.data, trained.config.test)

    def __call__(self, path: str | Path) -> list[tuple[str, float]]:
        """The topk (class name, score) pairs of one video, best first; scores lie in 0..1.

        Raises:
            DecodeError: the file is missing or is no video.
        """
        scores = self.scores(path)
        best = scores.topk(self.topk)
        return [(self.class_names[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def scores(self, path: str | Path) -> Tensor:
        """Scores of a video, averaged over its views, float32 [K] on the CPU; raises DecodeError."""
        data = self.trained.config.data
        return self.trained.scores(load_views(str(path), self._view_spec, decoder=data.decoder, timeout=data.timeout))


def load_predictor(checkpoint: str | Path, *, topk: int = 5, overrides: list[str] | None = None) -> Predictor:
    """A function from a video path to its topk (class name, score) pairs.

    Raises:
        UserError: the checkpoint is missing or is not one of videornn.
    """
    return Predictor(load_trained(checkpoint, overrides), topk=topk)


def find_videos(paths: list[str]) -> list[str]:
    """Video files of files, folders (searched with their subfolders, by suffix), lists and globs, in that order.

    A list is what load_videos takes, with a suffix of LIST_SUFFIXES; its labels, if it has some, do not matter.

    Raises:
        UserError: a folder has no video, a list cannot be read, or a glob matches nothing.
    """
    found = []
    for path in paths:
        if Path(path).is_dir():
            files = sorted(str(file) for file in Path(path).rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
            if not files:
                raise UserError(f"folder {path} has no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
        elif Path(path).suffix.lower() in LIST_SUFFIXES and Path(path).is_file():
            table = load_videos(path)
            files = [table.path(index) for index in range(len(table))]
        elif Path(path).exists() or not glob.has_magic(path):
            files = [path]
        else:
            files = sorted(glob.glob(path, recursive=True))
            if not files:
                raise UserError(f"{path} matches no file")
        found += files
    return found


def write_predictions_csv(path: Path, results: list[dict[str, Any]]) -> None:
    """One row per video and class: path, rank, class, score; a video that failed has one row with its error."""
    rows = []
    for result in results:
        for rank, prediction in enumerate(result.get("predictions", []), start=1):
            rows.append([result["path"], rank, prediction["class"], prediction["score"], ""])
        if "error" in result:
            rows.append([result["path"], "", "", "", result["error"]])
    write_table(path, ["path", "rank", "class", "score", "error"], rows)
