"""Make the results of a test, its numbers, tables and pictures, from Scores alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from videornn.config import Config, override_config
from videornn.data.dataset import BadVideo
from videornn.errors import UserError
from videornn.evaluation import metrics
from videornn.evaluation.scores import Scores, ensemble, load_scores, save_scores
from videornn.system.files import make_folder, replacing, write_table, write_text


def summarize(scores: Scores) -> dict[str, Any]:
    """Return the content of metrics.json: accuracies and calibration error in percent, counts of videos, what was tested.

    An ensemble has no clips of its own and so no clip accuracies.
    """
    num_there = len(scores.labels) + len(scores.bad)
    numbers: dict[str, Any] = {
        **metrics.summarize(scores.logits, scores.labels, scores.average),
        "num_videos": num_there,
        "num_scored": len(scores.labels),
        "num_bad": len(scores.bad),
        "num_missing": scores.num_missing,
        "average": scores.average,
    }
    if scores.members:
        del numbers["clip_top1"], numbers["clip_top5"]
        return numbers | {"members": list(scores.members)}
    return numbers | {
        "num_clips": scores.num_clips,
        "num_crops": scores.num_crops,
        "checkpoint": scores.checkpoint,
        "step": scores.step,
    }


def describe(result: dict[str, Any]) -> list[str]:
    """Return the lines that a test prints, from the content of metrics.json."""
    if "members" in result:
        source = f"{len(result['members'])} networks, {result['average']} averaged"
    else:
        source = f"{result['num_clips']} clips x {result['num_crops']} crops, {result['average']} averaged"
    lines = [f"video top-1 {result['video_top1']:.2f} %  top-5 {result['video_top5']:.2f} %  ({source})"]
    if "clip_top1" in result:
        lines.append(f"clip  top-1 {result['clip_top1']:.2f} %  top-5 {result['clip_top5']:.2f} %  (every view by itself)")
    lines.append(
        f"mean class top-1 {result['mean_class_top1']:.2f} %  calibration error {result['ece']:.2f} %  "
        f"loss {result['video_loss']:.4f}"
    )
    num_listed = result["num_videos"] + result["num_missing"]
    lines.append(
        f"{result['num_scored']} of {num_listed} videos scored, {result['num_bad']} bad, {result['num_missing']} missing"
    )
    return lines


def write_results(out: Path, scores: Scores) -> dict[str, Any]:
    """Write the files of a test into a folder, each as a whole or not at all; return the content of metrics.json."""
    from videornn.evaluation.plots import plot_confusion, plot_reliability  # matplotlib takes a second to import

    video_scores, names = scores.video_scores, scores.class_names
    result, confusion = summarize(scores), metrics.confusion_matrix(video_scores, scores.labels)
    save_scores(out / "scores.npz", scores)
    write_bad_videos(out / "bad_videos.csv", scores.bad)
    _write_predictions(out / "predictions.csv", scores, video_scores)
    _write_per_class(out / "per_class.csv", confusion, names)
    rows = ([name, *counts] for name, counts in zip(names, confusion.tolist(), strict=True))
    write_table(out / "confusion.csv", ["label", *names], rows)
    with replacing(out / "confusion.png") as temporary:
        plot_confusion(temporary, confusion, names)
    with replacing(out / "reliability.png") as temporary:
        plot_reliability(temporary, *metrics.calibration_bins(video_scores, scores.labels), result["ece"])
    write_text(out / "metrics.json", json.dumps(result, indent=2) + "\n")
    return result


def rescore(files: list[str], overrides: list[str], out: Path | None) -> dict[str, Any]:
    """Compute results from the scores.npz of one test, or averaged over several tests of the same videos, without a network.

    Args:
        overrides: at most test.average=...; the default is that of the (first) file.
        out: folder for the files of a test; None writes none.

    Raises:
        UserError: a file holds no scores of a test; they differ in videos or classes; another override is given.
    """
    if other := [text for text in overrides if not text.startswith("test.average=")]:
        raise UserError(f"{other[0]}: of scores that are there only test.average can be changed; the rest takes a test")
    if not files:
        raise UserError("--scores needs at least one scores.npz")
    make_folder(out)
    average = override_config(Config(), overrides).test.average if overrides else None
    parts: list[Scores] = []
    for file in files:
        scores = load_scores(file)
        average = average or scores.average
        if len(files) > 1:  # keep the views of one file at a time in memory
            scores = ensemble([scores], [file], average)
        parts.append(scores)
        del scores
    assert average is not None  # that of the first file at least
    scores = replace(parts[0], average=average) if len(parts) == 1 else ensemble(parts, files, average)
    return summarize(scores) if out is None else write_results(out, scores)


def write_bad_videos(path: Path, bad: Iterable[BadVideo]) -> None:
    """Write one row per video that could not be used."""
    write_table(path, ["path", "reason"], [[video.path, video.reason] for video in bad])


def _write_predictions(path: Path, scores: Scores, video_scores: Tensor) -> None:
    """Write one row per video; label_rank is 1 where the label has the highest score."""
    names, header = scores.class_names, ["path", "label", "prediction", "score", "correct", "label_score", "label_rank"]
    label_scores = video_scores.gather(1, scores.labels[:, None])
    ranks = 1 + (video_scores > label_scores).sum(dim=1)
    best = video_scores.argmax(dim=1)
    best_scores = video_scores.gather(1, best[:, None])
    columns = (column.flatten().tolist() for column in (scores.labels, best, best_scores, label_scores, ranks))
    write_table(
        path,
        header,
        (
            [video, names[label], names[prediction], f"{score:.4f}", int(prediction == label), f"{label_score:.4f}", rank]
            for video, label, prediction, score, label_score, rank in zip(scores.paths, *columns, strict=True)
        ),
    )


def _write_per_class(path: Path, confusion: Tensor, names: tuple[str, ...]) -> None:
    """Write one row per class; top1 is its recall, nan without videos; precision is nan if it was never predicted."""
    # of each class the first, which is its most frequent one, is the last to be written
    worst = {label: (names[other], count) for label, other, count in reversed(metrics.most_confused(confusion))}
    columns = (
        names,
        confusion.sum(dim=1).tolist(),
        (f"{value:.2f}" for value in metrics.class_accuracies(confusion).tolist()),
        (f"{value:.2f}" for value in metrics.class_precisions(confusion).tolist()),
        *zip(*(worst.get(label, ("", 0)) for label in range(len(names))), strict=True),
    )
    header = ["class", "num_videos", "top1", "precision", "taken_for", "times_taken_for"]
    write_table(path, header, zip(*columns, strict=True))
