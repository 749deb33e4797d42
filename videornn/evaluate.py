"""Multi-view evaluation: score every view of every video once, average, count, and write what people ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from videornn import distributed, metrics
from videornn.data.annotations import VideoTable, check_labels, load_videos
from videornn.data.dataset import BadVideo
from videornn.data.files import write_table
from videornn.data.loader import ClipLoader, build_test_loader, to_device, view_spec
from videornn.engine import predict_logits
from videornn.errors import UserError
from videornn.trained import load_trained


@dataclass(frozen=True)
class Scores:
    """Softmax scores of the videos that could be decoded, by index in the table.

    scores: float32 [N, V, K]; labels, indices: int64 [N]; bad: the videos left out, with reasons.
    """

    scores: Tensor
    labels: Tensor
    indices: Tensor
    bad: list[BadVideo]


def score_videos(
    model: nn.Module,
    loader: ClipLoader,
    *,
    mean: Tensor,
    std: Tensor,
    precision: str,
    views_at_once: int,
    on_video: Callable[[int], None] = lambda count: None,
) -> Scores:
    """Scores of all videos of the loaders of all ranks, complete on every rank and in the order of the table.

    Args:
        views_at_once: how many views go through the network together.
        on_video: told the number of videos of every finished batch.
    """
    model.eval()
    scores, labels, indices, bad = [], [], [], []
    for batch in to_device(loader, mean.device):
        num_videos, num_views = batch.clips.shape[:2]
        views = batch.clips[batch.valid].flatten(0, 1)  # [B*V, 3, T, H, W]
        if len(views):
            parts = predict_logits(model, views, mean, std, precision=precision, views_at_once=views_at_once)
            scores.append(parts.softmax(dim=1).unflatten(0, (-1, num_views)))
            labels.append(batch.labels.cpu()[batch.valid])
            indices.append(batch.indices[batch.valid])
        bad += batch.bad
        on_video(num_videos)
    return _join(distributed.gather_objects((scores, labels, indices, bad)))


def _join(parts: list[tuple[list[Tensor], list[Tensor], list[Tensor], list[BadVideo]]]) -> Scores:
    scores, labels, indices, bad = ([item for part in parts for item in part[field]] for field in range(4))
    if not scores:
        raise UserError(f"none of the {len(bad)} videos can be decoded; the first: {bad[0].reason}")
    order = torch.cat(indices).argsort()
    return Scores(
        torch.cat(scores)[order], torch.cat(labels)[order], torch.cat(indices)[order], sorted(bad, key=lambda b: b.path)
    )


def summarize(scores: Scores) -> dict[str, float]:
    """Clip and video accuracies in percent, and the loss of the averaged scores.

    A clip accuracy counts every view by itself; a video accuracy counts the mean of a video's view scores.
    """
    num_views = scores.scores.shape[1]
    views, view_labels = scores.scores.flatten(0, 1), scores.labels.repeat_interleave(num_views)
    video = scores.scores.mean(dim=1)  # [N, K]
    picked = video.gather(1, scores.labels[:, None]).clamp_min(1e-12)
    return {
        "video_top1": metrics.top_k_accuracy(video, scores.labels, 1),
        "video_top5": metrics.top_k_accuracy(video, scores.labels, 5),
        "clip_top1": metrics.top_k_accuracy(views, view_labels, 1),
        "clip_top5": metrics.top_k_accuracy(views, view_labels, 5),
        "mean_class_top1": metrics.mean_class_accuracy(metrics.confusion_matrix(video, scores.labels)),
        "video_loss": -picked.log().mean().item(),
    }


def evaluate(
    checkpoint: str | Path, overrides: list[str], out: Path | None, on_progress: Callable[[int, int], None]
) -> tuple[dict[str, float | int], Path]:
    """Test a checkpoint on data.test (or data.val) over test.num_clips x test.num_crops views.

    Writes metrics.json, predictions.csv, per_class.csv, bad_videos.csv and confusion.png to out (by default `test` in the
    run folder).

    Returns:
        The content of metrics.json, and the folder.

    Raises:
        UserError: bad checkpoint, override, list or label; no video can be decoded.
    """
    trained = load_trained(checkpoint, overrides)
    config, class_names, device = trained.config, trained.class_names, trained.device
    source = config.data.test or config.data.val
    if source is None:
        raise UserError("there is nothing to test on: give data.test=LIST_OR_FOLDER")
    split = "test" if config.data.test else "val"
    table = load_videos(source, root=config.data.root, labels=config.data.labels, split=split, fold=config.data.fold)
    table = table.with_classes(class_names)
    check_labels(table, len(class_names))
    out = Path(checkpoint).resolve().parent.parent / "test" if out is None else out
    with distributed.process_group(device):
        loader = build_test_loader(
            config.data,
            table,
            view_spec(config.data, config.test),
            batch_size=1,
            pin_memory=device.type == "cuda",
            rank=distributed.rank(),
            num_ranks=distributed.num_ranks(),
        )
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            on_progress(done, len(loader))

        scores = score_videos(
            trained.model,
            loader,
            mean=trained.mean,
            std=trained.std,
            precision=config.train.precision,
            views_at_once=config.test.batch_size,
            on_video=advance,
        )
        result = summarize(scores) | {
            "num_videos": len(table),
            "num_scored": len(scores.labels),
            "num_missing": len(table.missing),
            "num_clips": config.test.num_clips,
            "num_crops": config.test.num_crops,
            "step": trained.step,
        }
        if distributed.rank() == 0:
            write_results(out, result, scores, table, class_names)
    return result, out


def write_results(
    out: Path, result: dict[str, float | int], scores: Scores, table: VideoTable, class_names: tuple[str, ...]
) -> None:
    """The files of a test folder."""
    from videornn.plots import plot_confusion  # matplotlib takes a second to import

    out.mkdir(parents=True, exist_ok=True)
    video = scores.scores.mean(dim=1)
    confusion = metrics.confusion_matrix(video, scores.labels)
    (out / "metrics.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    rows = []
    for index, label, score in zip(scores.indices.tolist(), scores.labels.tolist(), video, strict=True):
        best = int(score.argmax())
        rows.append([table.path(index), class_names[label], class_names[best], f"{score[best]:.4f}", int(best == label)])
    write_table(out / "predictions.csv", ["path", "label", "prediction", "score", "correct"], rows)
    counts, accuracies = confusion.sum(dim=1).tolist(), metrics.class_accuracies(confusion).tolist()
    per_class = [[name, count, f"{top1:.2f}"] for name, count, top1 in zip(class_names, counts, accuracies, strict=True)]
    write_table(out / "per_class.csv", ["class", "num_videos", "top1"], per_class)
    write_bad_videos(out / "bad_videos.csv", scores.bad)
    plot_confusion(out / "confusion.png", confusion, class_names)


def write_bad_videos(path: Path, bad: list[BadVideo]) -> None:
    """One row per video that could not be used."""
    write_table(path, ["path", "reason"], [[video.path, video.reason] for video in bad])
