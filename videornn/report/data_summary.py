"""What the run was fed: lists, videos per class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from videornn.data.annotations.load import load_videos
from videornn.data.annotations.table import VideoTable
from videornn.errors import UserError
from videornn.report.charts import Series, line_chart
from videornn.report.run_results import RunResults

MAX_BARS = 40  # classes that all have a bar; of more, the list is folded away


def summarize_data(run: RunResults, say: Callable[[str], None]) -> dict[str, Any]:
    """Read the lists of a run, as far as they can be, and count their videos, all of them and by class."""
    sources = {split: getattr(run.config.data, split) for split in ("train", "val", "test")}
    tables: dict[str, VideoTable] = {}
    unreadable: dict[str, str] = {}
    for split, source in sources.items():
        if source is not None:
            say(f"list of {split} videos")
            try:
                tables[split] = _load(run, split, source)
            except (UserError, OSError) as error:
                unreadable[split] = str(error)
    labels = {split: videos.labels[videos.labels >= 0] for split, videos in tables.items()}
    names = next((videos.class_names for videos in tables.values() if videos.class_names), ())
    num_classes = max([len(names), *(int(ids.max()) + 1 for ids in labels.values() if len(ids))])
    counts = {split: np.bincount(ids, minlength=num_classes).tolist() for split, ids in labels.items()}
    sizes = {split: Series("videos per class", range(num_classes), sorted(of, reverse=True)) for split, of in counts.items()}
    axis = "classes, the largest first"
    return {
        "lists": [(split, source, *_used(run, split, tables.get(split))) for split, source in sources.items()],
        "unreadable": unreadable,
        "classes": [*names, *map(str, range(len(names), num_classes))],
        "counts": counts,
        "charts": [line_chart(split, [size], x_name=axis, last=False) for split, size in sizes.items()],
        "many": num_classes > MAX_BARS,
    }


def _load(run: RunResults, split: str, source: str) -> VideoTable:
    """A list, with labels that mean the classes of the test where there is one."""
    data = run.config.data
    videos = load_videos(source, root=data.root, labels=data.labels, split=split, fold=data.fold)
    return videos.with_classes(run.test.class_names) if run.test else videos


def _used(run: RunResults, split: str, videos: VideoTable | None) -> tuple[int | None, int | None]:
    """Videos that are used and missing: what the test or the manifest noted, or else what the list has now."""
    noted = run.list_counts(split)
    used, missing = noted.get("used"), noted.get("missing")
    if split == "test" and run.test is not None:
        used, missing = run.test.numbers.get("num_scored"), run.test.numbers.get("num_missing")
    return (len(videos), len(videos.missing)) if used is None and videos is not None else (used, missing)
