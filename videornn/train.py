"""The training job: config in, run folder out."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from videornn import distributed
from videornn.checkpoint import load_checkpoint, load_model, save_checkpoint
from videornn.config import Config, config_from_dict, config_to_yaml
from videornn.data.annotations import VideoTable, check_labels, load_videos
from videornn.data.dataset import BadVideo
from videornn.data.decoding import choose_decoder
from videornn.data.loader import (
    Batch,
    ClipLoader,
    build_loader,
    build_test_loader,
    plain_plan,
    to_device,
    videos_per_batch,
    view_spec,
)
from videornn.data.mixing import batch_mixing
from videornn.data.transforms import mirrored_labels
from videornn.distributed import StopVote
from videornn.engine import to_model_input, train_step
from videornn.errors import UserError
from videornn.evaluate import normalization, score_videos, summarize, write_bad_videos
from videornn.logger import RunLogger
from videornn.models import build_model
from videornn.models.weights import load_weights
from videornn.optim import build_optimizer, lr_at, set_lr
from videornn.rank_watch import RankWatch
from videornn.signals import caught_signals

# settings that may differ when a run is resumed: they change speed or output, not the weights
FREE_ON_RESUME = (
    "device",
    "data.num_workers",
    "data.test",
    "data.timeout",
    "data.val",
    "train.log_every",
    "train.val_every",
    "train.save_every",
)
LONG_WAIT = 0.5  # share of the time spent waiting for data that is worth a remark


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the run is saved and can be resumed."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}, which is saved")
        self.exit_code = 128 + signal_number


@dataclass
class Run:
    """A training run: its parts, and how far it is (steps done; best validation top-1 in percent)."""

    config: Config
    out: Path
    class_names: tuple[str, ...]
    num_videos: int
    val_table: VideoTable | None
    device: torch.device
    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    best_top1: float = -1.0

    @property
    def steps_per_epoch(self) -> int:
        return self.num_videos // videos_per_batch(self.config.data, self.config.train.batch_size)

    @property
    def num_steps(self) -> int:
        return self.config.train.epochs * self.steps_per_epoch

    def save(self, name: str) -> None:
        """Write checkpoints/NAME with all that a resume, a test or an inference needs."""
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best_top1": self.best_top1,
            "config": self.config.model_dump(mode="json"),
            "class_names": list(self.class_names),
        }
        save_checkpoint(self.out / "checkpoints" / name, content)

    def load(self, saved: dict[str, Any]) -> None:
        """Go back to where save was called."""
        load_model(self.model, saved, self.out / "checkpoints/last.pt")
        load_optimizer_(self.optimizer, saved["optimizer"])
        self.step, self.best_top1 = saved["step"], saved["best_top1"]


def train(config: Config, out: Path, *, resume: bool = False) -> Path:
    """Train a network into the run folder out; `torchrun` starts the same on many ranks.

    Args:
        resume: go on from the last checkpoint of out, if there is one.

    Returns:
        The path of the last checkpoint.

    Raises:
        UserError: wrong input; see the message.
        Interrupted: Ctrl-C or SIGTERM; everything up to the last step is saved.
    """
    device = distributed.pick_device(config.device)
    with distributed.process_group(device, config.train.timeout) as watch:
        table, val_table, config, class_names = _load_data(config)
        saved = _saved_run(config, out / "checkpoints/last.pt", resume)
        torch.manual_seed(config.seed)
        model = build_model(config.model)
        if config.model.init and not saved:
            report = load_weights(model, config.model.init, inflation=config.model.inflation)
            if distributed.rank() == 0:
                print(report, flush=True)
        model = model.to(device, memory_format=torch.channels_last_3d)
        section = config.train
        optimizer = build_optimizer(
            model,
            name=section.optimizer,
            lr=section.lr,
            momentum=section.momentum,
            betas=section.betas,
            weight_decay=section.weight_decay,
            norm_weight_decay=section.norm_weight_decay,
            layer_decay=section.layer_decay,
        )
        run = Run(config, out, class_names, len(table), val_table, device, model, optimizer)
        if saved:
            run.load(saved)
        _train(run, table, watch)
        distributed.barrier()
    return out / "checkpoints/last.pt"


def _train(run: Run, table: VideoTable, watch: RankWatch) -> None:
    """Open the loader and the run folder, and go through the remaining steps."""
    section = run.config.train
    loader = build_loader(
        run.config.data,
        table,
        plan=plain_plan(run.config.data, len(table), section.epochs, section.batch_size),
        seed=run.config.seed,
        first_step=run.step,
        rank=distributed.rank(),
        num_ranks=distributed.num_ranks(),
        pin_memory=run.device.type == "cuda",
    )
    is_main = distributed.rank() == 0
    if is_main:
        run.out.mkdir(parents=True, exist_ok=True)
        (run.out / "config.yaml").write_text(config_to_yaml(run.config), encoding="utf-8")
    logger = RunLogger(run.out if is_main else None, num_steps=run.num_steps, first_step=run.step)
    logger.say(_headline(run))
    for remark in [*table.remarks(), *(run.val_table.remarks() if run.val_table else [])]:
        logger.say(remark)
    logger.say(choose_decoder(run.config.data.decoder)[1])
    val_loader = _val_loader(run)
    try:
        if run.step < run.num_steps:
            with caught_signals() as received:
                _loop(run, to_device(loader, run.device), val_loader, logger, received, watch)
    finally:
        logger.close()


def _loop(
    run: Run,
    batches: Iterator[Batch],
    val_loader: ClipLoader | None,
    logger: RunLogger,
    received: list[int],
    watch: RankWatch,
) -> None:
    """Every step is train_step; now and then a log line, a validation, a checkpoint."""
    section = run.config.train
    is_main = distributed.rank() == 0
    mean, std = normalization(run.config, run.device)
    mixing = batch_mixing(run.config.data, run.config.model.num_classes)
    parallel = _parallel(run.model, run.device)
    bad: dict[str, BadVideo] = {}
    meter, waits, vote = _Meter(run.device), 0, StopVote()
    while run.step < run.num_steps:
        watch.at(run.step, "loading")
        batch = meter.wait_for(batches)
        watch.at(run.step, "computing")
        # dropout is a pure function of the step too, so that a resumed run repeats it
        torch.manual_seed((run.config.seed << 32) + run.step * distributed.num_ranks() + distributed.rank())
        lr = lr_at(
            run.step / run.steps_per_epoch,
            lr=scaled_lr(section.lr, batch_size=section.batch_size, lr_batch_size=section.lr_batch_size),
            epochs=section.epochs,
            schedule=section.schedule,
            end_lr=section.end_lr,
            step_epochs=section.step_epochs,
            step_factor=section.step_factor,
            power=section.power,
            warmup_epochs=section.warmup_epochs,
            warmup_start=section.warmup_start,
        )
        set_lr(run.optimizer, lr)
        parallel.train()
        clips, targets = to_model_input(batch.clips, mean, std), batch.labels
        if mixing is not None:
            # a pure function of the step as well
            clips, targets = mixing(clips, targets, np.random.default_rng([run.config.seed, run.step, distributed.rank()]))
        loss, correct = train_step(
            parallel,
            clips,
            targets,
            run.optimizer,
            precision=section.precision,
            label_smoothing=section.label_smoothing,
            clip_norm=section.clip_norm,
        )
        meter.add(loss, correct, len(batch.labels))
        bad |= {video.path: video for video in batch.bad}
        run.step += 1
        epoch, steps_into_epoch = divmod(run.step, run.steps_per_epoch)
        epoch_ends, last = steps_into_epoch == 0, run.step == run.num_steps
        if run.step % section.log_every == 0 or last:
            numbers = meter.read_and_reset()
            logger.log("train", run.step, epoch=run.step / run.steps_per_epoch, lr=lr, **numbers)
            waits = waits + 1 if numbers["data_wait"] > LONG_WAIT else 0
            if waits == 3:  # not at the start, when workers have just begun
                logger.say("the network waits for data most of the time: `videornn data bench` tells why, and what to do")
        if epoch_ends:
            bad = _share_bad(bad, run.num_videos, run.config.data.max_bad_share, run.out if is_main else None)
        if val_loader is not None and epoch_ends and (epoch % section.val_every == 0 or last):
            watch.at(run.step, "validating")
            top1 = _validate(run, val_loader, mean, std, logger)
            meter.restart_clock()
            if top1 >= run.best_top1:
                run.best_top1 = top1
                if is_main:
                    run.save("best.pt")
        watch.at(run.step, "saving")
        stop_signal = vote.decide(received[0] if received else 0)
        if is_main and (last or stop_signal or (epoch_ends and epoch % section.save_every == 0)):
            run.save("last.pt")
            if last and val_loader is None:
                run.save("best.pt")  # without a validation the last one is the best there is
        if stop_signal:
            raise Interrupted(stop_signal, run.step)
    vote.drain()


class _Meter:
    """Sums of loss and correct clips on the device, and how long the loop waited for data."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss * clips, correct clips
        self._start = time.perf_counter()
        self._wait, self._clips, self._timed_clips = 0.0, 0, 0

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        before = time.perf_counter()
        batch = next(batches)
        self._wait += time.perf_counter() - before
        return batch

    def add(self, loss: torch.Tensor, correct: torch.Tensor, num_clips: int) -> None:
        self._sums += torch.stack([loss.double() * num_clips, correct.double()])
        self._clips += num_clips
        self._timed_clips += num_clips

    def restart_clock(self) -> None:
        """Leave the time spent on something else, a validation, out of clips/s."""
        self._start, self._wait, self._timed_clips = time.perf_counter(), 0.0, 0

    def read_and_reset(self) -> dict[str, float]:
        """Means since the last reading, over all ranks; .item() waits for the device here and only here."""
        counts = self._sums.new_tensor([self._clips, self._timed_clips])
        totals = distributed.sum_over_ranks(torch.cat([self._sums, counts])).tolist()
        seconds = max(time.perf_counter() - self._start, 1e-9)
        numbers = {
            "loss": totals[0] / totals[2],
            "top1": 100 * totals[1] / totals[2],
            "clips_per_second": totals[3] / seconds,
            "data_wait": self._wait / seconds,
        }
        self._sums.zero_()
        self._clips = 0
        self.restart_clock()
        return numbers


def _val_loader(run: Run) -> ClipLoader | None:
    """Loader of the centre clip and crop of every validation video."""
    if run.val_table is None:
        return None
    config = run.config
    one_view = config.test.model_copy(update={"num_clips": 1, "num_crops": 1})
    return build_test_loader(
        config.data,
        run.val_table,
        view_spec(config.data, one_view),
        batch_size=config.test.batch_size,
        pin_memory=run.device.type == "cuda",
        rank=distributed.rank(),
        num_ranks=distributed.num_ranks(),
    )


def _validate(run: Run, loader: ClipLoader, mean: torch.Tensor, std: torch.Tensor, logger: RunLogger) -> float:
    """Top-1 of the centre clip and crop of every validation video, over all ranks."""
    config, table = run.config, run.val_table
    precision, views_at_once = config.train.precision, config.test.batch_size
    scores = score_videos(run.model, loader, mean=mean, std=std, precision=precision, views_at_once=views_at_once)
    summary = summarize(scores)
    numbers = {"top1": summary["video_top1"], "top5": summary["video_top5"], "loss": summary["video_loss"]}
    epoch = run.step / run.steps_per_epoch
    logger.log("val", run.step, epoch=epoch, **numbers, num_scored=len(scores.labels), num_videos=len(table))
    return summary["video_top1"]


def _load_data(config: Config) -> tuple[VideoTable, VideoTable | None, Config, tuple[str, ...]]:
    """Training and validation videos, the config with num_classes filled in, and the class names."""
    section = config.data
    if section.train is None:
        raise UserError("there is nothing to train on: give data.train=LIST_OR_FOLDER")
    places = {"root": section.root, "labels": section.labels, "fold": section.fold}
    table = load_videos(section.train, split="train", **places)
    num_classes = config.model.num_classes or len(table.class_names) or int(table.labels.max()) + 1
    if table.class_names and len(table.class_names) != num_classes:
        raise UserError(f"model.num_classes={num_classes}, but {section.train} has {len(table.class_names)} class names")
    class_names = table.class_names or tuple(f"class {label}" for label in range(num_classes))
    check_labels(table, num_classes)
    val_table = None
    if section.val is not None:
        val_table = load_videos(section.val, split="val", **places).with_classes(class_names)
        check_labels(val_table, num_classes)
    model = config.model.model_copy(update={"num_classes": num_classes})
    return table, val_table, config.model_copy(update={"model": model}), class_names


def _saved_run(config: Config, last_path: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, or None for a new run."""
    if not last_path.exists():
        return None
    if not resume:
        run = last_path.parent.parent
        raise UserError(f"{run} already holds a run; add --resume to go on with it, or choose another --out")
    saved = load_checkpoint(last_path)
    before = _flatten(config_from_dict(saved["config"], str(last_path)).model_dump(mode="json"))
    now = _flatten(config.model_dump(mode="json"))
    changed = [key for key in now if now[key] != before.get(key) and not key.startswith((*FREE_ON_RESUME, "test."))]
    if changed:
        raise UserError(
            f"--resume: {changed[0]} is {now[changed[0]]!r} now and was {before.get(changed[0])!r} in {last_path}; "
            f"use the same value, or another --out for a new run"
        )
    return saved


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _parallel(model: nn.Module, device: torch.device) -> nn.Module:
    if distributed.num_ranks() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def _share_bad(bad: dict[str, BadVideo], num_videos: int, max_share: float, out: Path | None) -> dict[str, BadVideo]:
    """Bad videos of all ranks, written to bad_videos.csv; too many of them stop every rank alike."""
    everywhere = {path: video for part in distributed.gather_objects(bad) for path, video in part.items()}
    if out is not None and everywhere:
        write_bad_videos(out / "bad_videos.csv", sorted(everywhere.values(), key=lambda video: video.path))
    if len(everywhere) > max_share * num_videos:
        first = next(iter(everywhere.values()))
        raise UserError(
            f"{len(everywhere)} of {num_videos} training videos cannot be decoded, more than data.max_bad_share="
            f"{max_share} allows; one of them: {first.reason}"
        )
    return everywhere


def _headline(run: Run) -> str:
    model, section = run.config.model, run.config.train
    parameters = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    attention = "" if model.attention.kind == "none" else f" + {model.attention.kind}"
    val = "no validation" if run.val_table is None else f"{len(run.val_table)} to validate"
    mirrored = mirrored_labels(run.class_names) if run.config.data.hflip else ()
    never, swapped = mirrored.count(-1), sum(there not in (-1, here) for here, there in enumerate(mirrored))
    flips = f"; flips swap the labels of {swapped} classes, {never} are never flipped" if never or swapped else ""
    start = f"; going on after step {run.step}" if run.step else ""
    return (
        f"{model.name} r{model.depth}{attention} ({parameters:.2f} M parameters) on {run.device} x "
        f"{distributed.num_ranks()}, {section.precision}; {run.num_videos} training videos of {model.num_classes} "
        f"classes, {val}; {section.epochs} epochs of {run.steps_per_epoch} steps of {section.batch_size} clips, "
        f"lr {section.lr:g}{flips}{start}"
    )
