"""The head of a report: what was trained, how well, on what, when and where."""

from __future__ import annotations

import shlex

from videornn.report.markup import Markup, join, percent, plural, tag
from videornn.report.run_results import ListCounts, Machine, RunResults, Start, TestResults, Training

FAMILIES = {"slow": "Slow-only", "i3d": "I3D", "c2d": "C2D", "r3d": "R3D", "r2plus1d": "R(2+1)D"}
BLOCKS = {
    "nl": "non-local",
    "nl_gaussian": "non-local (Gaussian)",
    "nl_dot_product": "non-local (dot product)",
    "nl_concatenation": "non-local (concatenation)",
    "pairwise": "pairwise non-local",
    "unary": "unary non-local",
    "gc": "global context",
    "dnl": "disentangled non-local",
    "nl_add": "non-local (terms added)",
    "nl_own_mask": "non-local (own mask)",
}


def head(run: RunResults) -> Markup:
    """Title, a sentence, the numbers that matter, and where they come from."""
    return tag(
        "header",
        tag("p", "videornn report", class_="eyebrow"),
        tag("h1", run.name),
        tag("p", _what(run), class_="lead"),
        tag("dl", _numbers(run), class_="numbers"),
        _provenance(run.starts),
    )


def _what(run: RunResults) -> str:
    """A sentence on network, blocks and data."""
    config, attention = run.config, run.config.model.attention
    network = f"{FAMILIES[config.model.name]} ResNet-{config.model.depth}"
    if attention.kind == "none":
        blocks = "without attention blocks"
    else:
        places = [place for stage, blocks in attention.places.items() for place in _places(stage, blocks)]
        blocks = f"with {BLOCKS[attention.kind]} blocks after {', '.join(places)}"
    used = _training_data(run).get("used")
    classes = config.model.num_classes or (len(run.test.class_names) if run.test else None)
    videos = "" if used is None else f" on {plural(used, 'video')}"
    of = f" of {plural(classes, 'class')}" if classes else ""
    data = config.data
    apart = "" if data.sampling == "segments" else f" ({data.temporal_stride} apart)"
    clips = f"clips of {data.num_frames} frames{apart} of {data.crop_size} x {data.crop_size} pixels"
    return f"{network} {blocks}, trained{videos}{of} with {clips}."


def _places(stage: str, blocks: tuple[int, ...] | str) -> list[str]:
    return [f"every block of {stage}"] if blocks == "all" else [f"{stage}.{block}" for block in blocks]


def _training_data(run: RunResults) -> ListCounts:
    return run.starts[-1].get("data", {}).get("train", {}) if run.starts else {}


def _numbers(run: RunResults) -> list[Markup]:
    cards = []
    if run.test is not None:
        numbers, right = run.test.numbers, sum(video.right for video in run.test.predictions)
        videos = f"{right:,} of {plural(len(run.test.predictions), 'video')} right"
        cards += [_card("Test, top-1", percent(numbers.get("video_top1")), videos, "first"), _second_card(run.test)]
        if "clip_top1" in numbers:
            cards.append(_card("Single clips, top-1", percent(numbers["clip_top1"]), "every view by itself"))
        cards.append(_coverage(run.test))
    best = run.best_val
    if best is not None:
        note = f"epoch {best['epoch']:.4g}" if "epoch" in best else f"step {best['step']}"
        videos = f", {plural(best['num_scored'], 'video')}" if "num_scored" in best else ""
        cards.append(
            _card("Best validation, top-1", percent(best.get("top1")), note + videos, None if run.test else "first")
        )
    return cards


def _coverage(test: TestResults) -> Markup:
    """How many of the listed videos the numbers are of."""
    scored = test.numbers.get("num_scored", len(test.predictions))
    missing = test.numbers.get("num_missing", 0)
    bad = test.numbers.get("num_videos", scored) - scored
    left_out = [f"{count:,} {what}" for count, what in ((bad, "cannot be decoded"), (missing, "missing")) if count]
    value = join([f"{scored:,}", tag("small", f" of {scored + bad + missing:,}")])
    return _card("Videos scored", value, ", ".join(left_out) or "all that are listed")


def _second_card(test: TestResults) -> Markup:
    """Top-5, which says nothing of five classes or fewer."""
    if len(test.class_names) > 5:
        return _card("Test, top-5", percent(test.numbers.get("video_top5")), "the label is among the best five")
    return _card("Test, mean of the classes", percent(test.numbers.get("mean_class_top1")), "every class counts the same")


def _card(name: str, value: str | Markup, note: str, class_: str | None = None) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value, class_="value"), tag("dd", note, class_="note"), class_=class_)


def _provenance(starts: list[Start]) -> Markup:
    """Every start of the run, a line each."""
    if not starts:
        return tag("p", "There is no manifest.json, which would tell of commit, versions and hardware.", class_="hint")
    command = starts[-1].get("command")
    said = None if command is None else tag("pre", shlex.join(command))
    lines = tag("ol", [tag("li", _start_line(start)) for start in starts], class_="starts")
    return tag("div", lines, tag("details", tag("summary", "Command"), said) if said else None)


def _start_line(start: Start) -> str:
    code, versions, machine, training, begun = (
        start.get(key, {}) for key in ("code", "versions", "machine", "training", "start")
    )
    when = start.get("time", "unknown time").replace("T", " ").replace("+00:00", " UTC")
    step = begun.get("step", 0)
    went_on = f"Taken up after step {step:,}, {when}" if step else f"Started {when}"
    commit = f"commit {(code.get('commit') or 'unknown')[:10]}{' with changes' if code.get('dirty') else ''}"
    names = [f"{name} {versions[name]}" for name in ("videornn", "torch", "python") if versions.get(name)]
    keys = {"precision": "", "batch_size": "batch ", "seed": "seed "}
    settings = [f"{word}{training[key]}" for key, word in keys.items() if key in training]
    parts = [went_on, _hardware(machine, training), ", ".join(names), commit, ", ".join(settings)]
    return " \N{MIDDLE DOT} ".join(part for part in parts if part)


def _hardware(machine: Machine, training: Training) -> str:
    ranks = training.get("ranks", 1)
    of_ranks = f", {ranks} processes" if ranks > 1 else ""
    gpus = machine.get("gpus")
    if training.get("device") != "cpu" and gpus:
        return f"{len(gpus)} x {gpus[0].get('name', 'GPU')} a node{of_ranks}"
    return f"{machine.get('cores', '?')} cores of {machine.get('cpu', 'a CPU')}{of_ranks}"
