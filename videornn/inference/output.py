"""Write the results of `videornn infer`: rows of JSON and CSV, a timeline per video, names that do not collide."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from videornn.data.annotations.find import stem
from videornn.data.video.stream import STDIN
from videornn.errors import UserError
from videornn.inference.timeline import Segment, Window, plot_timeline
from videornn.system.files import replacing, short_enough, write_table, write_text
from videornn.system.urls import URL, without_secrets

SAVE_SECONDS = 30.0  # between two saves of the results so far
Ranking = list[tuple[str, float]]


def prediction_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """Return a dictionary per class, best first."""
    return [{"class": name, "score": round(score, 6)} for name, score in ranking]


def segment_rows(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """Return a dictionary per segment; times in seconds, label null where there is none."""
    return [
        {"start": round(s.start, 3), "end": round(s.end, 3), "label": s.label, "score": round(s.score, 6)} for s in segments
    ]


class WindowRows:
    """A sequence with a dictionary per window, made only when JSON is written, because there can be very many."""

    def __init__(self, windows: Iterable[Window], rank: Callable[[Tensor], Ranking]) -> None:
        self._windows, self._rank = windows, rank

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for window in self._windows:
            ranking = prediction_rows(self._rank(window.scores))
            yield {"start": round(window.start, 3), "end": round(window.end, 3), "predictions": ranking}


def write_json(path: Path, results: list[dict[str, Any]]) -> None:
    """Write all results as a JSON list; the path '-' is standard output."""
    text = json.dumps(results, indent=2, default=list) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with writing("--json", path):
        write_text(path, text)


def write_csv(path: Path, results: list[dict[str, Any]], *, segments: bool) -> None:
    """Write one row per video and class, or per video and segment; a failed video has one row with its error."""
    rows = []
    for result in results:
        if segments:
            rows += [[result["path"], *s.values(), ""] for s in result.get("segments", [])]
        else:
            ranking = enumerate(result.get("predictions", []), start=1)
            rows += [[result["path"], rank, p["class"], p["score"], ""] for rank, p in ranking]
        if "error" in result:
            rows.append([result["path"], "", "", "", *([""] if segments else []), result["error"]])
    columns = ["start", "end", "label", "score"] if segments else ["rank", "class", "score"]
    with writing("--csv", path):
        write_table(path, ["path", *columns, "error"], rows)


class ResultFiles:
    """The files of --json and --csv: written at the end, and now and then before it, because any run may be killed.

    Args:
        segments: whether results have segments, rather than classes of whole videos.
    """

    def __init__(self, json_file: Path | None, csv_file: Path | None, *, segments: bool) -> None:
        self._json_file, self._csv_file, self._segments = json_file, csv_file, segments
        self._due = time.monotonic() + SAVE_SECONDS

    def write_if_due(self, results: list[dict[str, Any]]) -> None:
        """Write the results so far; not too often, and never for more than a tenth of the time."""
        start = time.monotonic()
        if start < self._due:
            return
        self._write(self._json_file if str(self._json_file) != "-" else None, results)
        end = time.monotonic()
        self._due = end + max(SAVE_SECONDS, 10 * (end - start))

    def write(self, results: list[dict[str, Any]]) -> None:
        """Write all results."""
        self._write(self._json_file, results)

    def _write(self, json_file: Path | None, results: list[dict[str, Any]]) -> None:
        if json_file is not None:
            write_json(json_file, results)
        if self._csv_file is not None:
            write_csv(self._csv_file, results, segments=self._segments)


def write_timeline(
    folder: Path, name: str, windows: Sequence[Window], segments: Sequence[Segment], class_names: Sequence[str], title: str
) -> None:
    """Write FOLDER/NAME_timeline.csv and .png."""
    with writing("--out", folder):
        rows = [list(row.values()) for row in segment_rows(segments)]
        write_table(folder / f"{name}_timeline.csv", ["start", "end", "label", "score"], rows)
        with replacing(folder / f"{name}_timeline.png") as temporary:
            plot_timeline(temporary, windows, segments, class_names, title)


@contextmanager
def writing(option: str, path: Path):
    """Turn errors of writing into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({(error.strerror or str(error)).lower()})") from error


def output_names(paths: Sequence[str]) -> list[str]:
    """Name the results of every path: by its stem, with as many folders above it as needed to tell them apart.

    The names differ even on file systems that ignore case.
    """
    parts = [_parts(path) for path in paths]
    depths = [1] * len(paths)
    while True:
        names = [short_enough("_".join(part[-depth:])) for part, depth in zip(parts, depths, strict=True)]
        counts = Counter(name.casefold() for name in names)
        longer = [i for i, name in enumerate(names) if counts[name.casefold()] > 1 and depths[i] < len(parts[i])]
        if not longer:
            break
        for i in longer:
            depths[i] += 1
    taken: Counter[str] = Counter()
    for i, name in enumerate(names):  # the same file twice, or files that differ in their suffix
        number = 1
        while taken[names[i].casefold()]:
            number += 1
            names[i] = f"{name}_{number}"
        taken[names[i].casefold()] += 1
    return names


def _parts(path: str) -> list[str]:
    """Split a path into its folders and stem, or a URL without its query and its user."""
    if path == STDIN:
        return ["stdin"]
    place = without_secrets(path).split("://", 1)[-1].removeprefix("***@")
    path = re.split(r"[?#]", place)[0] if URL.match(path) else os.path.abspath(path)
    words = [part for part in path.replace(os.sep, "/").split("/") if part]
    return [re.sub(r"[^\w.+-]+", "_", word) for word in [*words[:-1], stem(words[-1])]]
