"""What the run was fed: lists, videos per class, what is missing or broken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from videornn.data.annotations.load import load_videos
from videornn.data.annotations.table import VideoTable
from videornn.errors import UserError
from videornn.report.charts import Series, bar, line_chart
from videornn.report.markup import Markup, join, path_text, plural, section, table, tag
from videornn.report.run_results import RunResults

MAX_BARS = 40  # classes that all have a bar; of more, the list is folded away
MAX_BAD = 12


def data_section(run: RunResults, say: Callable[[str], None]) -> Markup:
    """The lists with what was used and missing, bars of videos per class, and videos that could not be used."""
    sources = {split: getattr(run.config.data, split) for split in ("train", "val", "test")}
    tables: dict[str, VideoTable] = {}
    unreadable: dict[str, str] = {}
    for split, source in sources.items():
        if source is None:
            continue
        say(f"list of {split} videos")
        try:
            tables[split] = _load(run, split, source)
        except (UserError, OSError) as error:
            unreadable[split] = str(error)
    notes = [f"The {split} list cannot be read from here: {reason}." for split, reason in unreadable.items()]
    bad = [("training and validation", run.bad), ("the test", run.test.bad if run.test else [])]
    return section(
        "data",
        "Data",
        table(
            ["list", "source", "videos used", "missing"],
            [_list_row(run, split, sources[split], tables.get(split)) for split in sources],
        ),
        [tag("p", note, class_="hint") for note in notes],
        [tag("h3", "Videos per class"), _per_class(tables)] if tables else None,
        [_bad_videos(what, rows) for what, rows in bad],
    )


def _load(run: RunResults, split: str, source: str) -> VideoTable:
    """A list, with labels that mean the classes of the test where there is one."""
    data = run.config.data
    videos = load_videos(source, root=data.root, labels=data.labels, split=split, fold=data.fold)
    return videos.with_classes(run.test.class_names) if run.test else videos


def _list_row(run: RunResults, split: str, source: str | None, videos: VideoTable | None) -> list[str | Markup | None]:
    noted = run.starts[-1].get("data", {}).get(split, {}) if run.starts else {}
    used, missing = noted.get("used"), noted.get("missing")
    if split == "test" and run.test is not None:
        used, missing = run.test.numbers.get("num_scored"), run.test.numbers.get("num_missing")
    if used is None and videos is not None:
        used, missing = len(videos), len(videos.missing)
    if source is None and used is None:
        return [split, "not given", None, None]
    shown = tag("code", path_text(source)) if source else "given on the command line"
    return [split, shown, *("\N{EN DASH}" if count is None else f"{count:,}" for count in (used, missing))]


def _per_class(tables: dict[str, VideoTable]) -> Markup:
    """A bar for each class and list, each list by its own scale."""
    names = next((videos.class_names for videos in tables.values() if videos.class_names), ())
    labels = {split: videos.labels[videos.labels >= 0] for split, videos in tables.items()}
    num_classes = max([len(names), *(int(ids.max()) + 1 for ids in labels.values() if len(ids))])
    names = [*names, *(str(index) for index in range(len(names), num_classes))]
    counts = {split: np.bincount(ids, minlength=num_classes) for split, ids in labels.items()}
    rows = [
        [name, *(bar(count[index] / max(count.max(), 1), f"{count[index]:,}") for count in counts.values())]
        for index, name in enumerate(names)
    ]
    shown = table(["class", *counts], rows, class_="bars")
    summary = [f"{split} {_range(count)}" for split, count in counts.items()]
    sentence = tag("p", f"{plural(num_classes, 'class')}. Videos each: {', '.join(summary)}.")
    if num_classes <= MAX_BARS:
        return join([sentence, shown])
    sizes = {split: np.sort(count)[::-1].tolist() for split, count in counts.items()}
    charts = [
        line_chart(
            split, [Series("videos per class", range(num_classes), size)], x_name="classes, the largest first", last=False
        )
        for split, size in sizes.items()
    ]
    folded = tag("details", tag("summary", f"All {plural(num_classes, 'class')}"), shown)
    return join([sentence, tag("div", charts, class_="charts three"), folded])


def _range(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _bad_videos(what: str, rows: list[dict[str, str]]) -> Markup | None:
    if not rows:
        return None
    shown = [[row.get("path"), row.get("reason")] for row in rows[:MAX_BAD]]
    more = tag("p", f"And {len(rows) - MAX_BAD:,} more in bad_videos.csv.", class_="hint") if len(rows) > MAX_BAD else None
    heading = tag("h3", f"{plural(len(rows), 'video')} that {what} could not use")
    return join([heading, table(["path", "reason"], shown, class_="bad"), more])
