"""scores.npz: the logits of every view of a test, kept so that its results, and those of ensembles, need no network."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from videornn.data.annotations.labels import ClassIds
from videornn.data.dataset import BadVideo
from videornn.errors import UserError
from videornn.models.forward import VIDEOS_AT_ONCE, Average, video_scores
from videornn.models.tensor_files import stored_archive
from videornn.system.files import is_file, replacing, telling_if_full

FORMAT = "videornn scores 1"
ARRAYS = {"logits": ("f4", 3), "labels": ("i8", 1), "paths": ("U", 1), "class_names": ("U", 1), "bad": ("U", 2)}
PLAIN = {"num_missing": int, "num_clips": int, "num_crops": int, "average": str, "step": int, "checkpoint": str}


@dataclass(frozen=True, eq=False)
class Scores:
    """The outcome of a test of N videos over V views and K classes, in the order of its list.

    logits: float32 [N, V, K]; labels: int64 [N]; bad: videos that could not be decoded, and why; num_missing: listed videos
    without a file; average: what is averaged over views; step, checkpoint: the network; members: the files of an ensemble,
    whose single view holds the logarithm of the averaged scores (or the averaged logits).
    """

    logits: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    class_names: tuple[str, ...]
    bad: tuple[BadVideo, ...]
    num_missing: int
    num_clips: int
    num_crops: int
    average: Average
    step: int
    checkpoint: str
    members: tuple[str, ...] = ()

    @property
    def video_scores(self) -> Tensor:
        """Scores float32 [N, K] in 0..1, averaged over the views."""
        return video_scores(self.logits, self.average)


def save_scores(path: Path, scores: Scores) -> None:
    """Write scores.npz, as a whole or not at all, deterministically; raises UserError if the disk is full."""
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "logits": scores.logits.numpy(),
        "labels": scores.labels.numpy(),
        "paths": np.array(scores.paths, str),
        "class_names": np.array(scores.class_names, str),
        "bad": np.array([(bad.path, bad.reason) for bad in scores.bad], str).reshape(-1, 2),
        "members": np.array(scores.members, str),
        **{name: np.array(getattr(scores, name), str if kind is str else np.int64) for name, kind in PLAIN.items()},
    }
    with telling_if_full(path, scores.logits.nbytes), replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_scores(path: str | Path) -> Scores:
    """Load a file of save_scores; nothing is unpickled.

    Raises:
        UserError: the file is missing, damaged, or something else.
    """
    path = Path(path)
    if not is_file(path):
        raise UserError(f"scores {path} do not exist; `videornn test CHECKPOINT` writes RUN/test/scores.npz")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read by you")
    arrays = _read(path)
    plain = {name: kind(arrays[name].item()) for name, kind in PLAIN.items()}
    scores = Scores(
        logits=torch.from_numpy(arrays["logits"]),
        labels=torch.from_numpy(arrays["labels"]),
        paths=tuple(arrays["paths"].tolist()),
        class_names=tuple(arrays["class_names"].tolist()),
        bad=tuple(BadVideo(*row) for row in arrays["bad"].tolist()),
        members=tuple(arrays["members"].tolist()),
        **plain,
    )
    num_videos, num_views, num_classes = scores.logits.shape
    if not num_videos == len(scores.labels) == len(scores.paths) or num_classes != len(scores.class_names):
        raise _not_scores(path, "its parts do not belong together")
    if not num_videos or not num_views or scores.average not in get_args(Average):
        raise _not_scores(path, "it has no views of videos, or no way to average them")
    # a part at a time: isfinite makes copies, and logits can fill most of the memory
    finite = all(bool(part.isfinite().all()) for part in scores.logits.split(VIDEOS_AT_ONCE))
    if not finite or scores.labels.min() < 0 or scores.labels.max() >= num_classes:
        raise _not_scores(path, "it has logits that are not finite, or labels of no class")
    return scores


def _read(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of the file, each checked for its type and number of dimensions."""
    if not zipfile.is_zipfile(path):  # np.load would accept other files than archives, too
        raise _not_scores(path, "it is no .npz archive, or cut short")
    try:
        with stored_archive(path), np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("format", "members", *ARRAYS, *PLAIN)}
    except Exception as error:  # damage makes zipfile and numpy raise nearly any exception
        raise _not_scores(path, str(error).strip("'\"").splitlines()[0] if str(error) else type(error).__name__) from error
    for name, array in arrays.items():
        if array.size and not array.itemsize:  # any number of empty texts takes no bytes, until they become a list
            raise _not_scores(path, f"its {name} have no bytes")
    if arrays["format"].tolist() != FORMAT:
        raise _not_scores(path, f"its format is {arrays['format'].tolist()!r}, not {FORMAT!r}")
    expected = {**ARRAYS, "members": ("U", 1), **{name: ("U" if kind is str else "i8", 0) for name, kind in PLAIN.items()}}
    for name, (kind, ndim) in expected.items():
        array = arrays[name]
        if array.ndim != ndim or (array.dtype.kind != "U" if kind == "U" else array.dtype != np.dtype(kind)):
            raise _not_scores(path, f"its {name} are {array.dtype} with {array.ndim} dimensions")
    return arrays


def _not_scores(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not the scores.npz of a test, or no longer as it was written: {why}")


def ensemble(parts: Sequence[Scores], names: Sequence[str], average: Average) -> Scores:
    """Average the scores of the same videos by several networks with equal weight, in the order of the first.

    Args:
        parts: their videos are matched by path and classes by name, in any order; the numbers of views may differ. Of a
            single part the views are averaged.
        names: of the parts, for errors and for members.
        average: scores: the mean of the networks' video scores; logits: the mean of their logits.

    Raises:
        UserError: videos, labels or classes differ.
    """
    first, total = parts[0], torch.zeros((), dtype=torch.float64)
    for part, name in zip(parts, names, strict=True):
        classes = _class_order(first, part, names[0], name)
        videos = _video_order(first, part, names[0], name)
        labels = torch.tensor(classes).argsort()[part.labels[videos]]
        if different := (labels != first.labels).nonzero().flatten().tolist():
            row = different[0]
            ours, theirs = (first.class_names[int(some[row])] for some in (first.labels, labels))
            raise UserError(f"{first.paths[row]} is {ours!r} in {names[0]} and {theirs!r} in {name}; test both on one list")
        scores = video_scores(part.logits, average) if average == "scores" else part.logits.mean(dim=1)
        total = total + scores[videos][:, classes].double()
    mean = total / len(parts)
    logits = mean.clamp_min(torch.finfo(torch.float32).tiny).log() if average == "scores" else mean
    bad = {video.path: video for part in reversed(parts) for video in part.bad}
    return replace(
        first,
        logits=logits.float()[:, None],
        bad=tuple(bad[path] for path in sorted(bad)),
        average=average,
        members=tuple(names),
    )


def _class_order(first: Scores, other: Scores, first_name: str, other_name: str) -> list[int]:
    """Return for every class of the first its id in the other."""
    there, here = ClassIds(other.class_names), ClassIds(first.class_names)
    known = [there.get(name) for name in first.class_names]
    lacking = [name for name, index in zip(first.class_names, known, strict=True) if index is None]
    extra = [name for name in other.class_names if here.get(name) is None]
    if lacking or extra:
        raise UserError(_difference("classes", lacking, extra, first_name, other_name))
    ids = [index for index in known if index is not None]
    if len(set(ids)) < len(ids):
        raise UserError(f"{other_name}: which of its classes are those of {first_name} is not clear from their names")
    return ids


def _video_order(first: Scores, other: Scores, first_name: str, other_name: str) -> list[int]:
    """Return for every video of the first its row in the other; repeated paths are matched in turn."""
    here, there = _numbered(first.paths), _numbered(other.paths)
    rows = {key: row for row, key in enumerate(there)}
    lacking = [path for path, time in here if (path, time) not in rows]
    known = set(here)
    extra = [path for path, time in there if (path, time) not in known]
    if lacking or extra:
        raise UserError(_difference("videos", lacking, extra, first_name, other_name))
    return [rows[key] for key in here]


def _numbered(paths: Sequence[str]) -> list[tuple[str, int]]:
    """Pair every path with the number of times it came before."""
    seen: dict[str, int] = {}
    keys = []
    for path in paths:
        seen[path] = seen.get(path, -1) + 1
        keys.append((path, seen[path]))
    return keys


def _difference(what: str, lacking: list[str], extra: list[str], first_name: str, other_name: str) -> str:
    phrases = [
        f"{len(names)} only in {place}, the first {names[0]}"
        for names, place in ((lacking, first_name), (extra, other_name))
        if names
    ]
    return f"{first_name} and {other_name} are not of the same {what}: {'; '.join(phrases)}"
