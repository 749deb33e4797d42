"""A training run: its parts, its progress, and how it is saved and resumed."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from videornn.checkpoints.checkpoint import archived, load_model
from videornn.checkpoints.run_folder import save_best, save_last
from videornn.config import Config
from videornn.data.dataset import BadVideo
from videornn.data.loader import base_shape
from videornn.data.mixing import Mixing, batch_mixing
from videornn.data.plan import BatchPlan
from videornn.distributed import ranks
from videornn.models import build_model
from videornn.models.forward import Normalize
from videornn.models.norms import freeze_parts, set_batch_norm
from videornn.models.public_input import input_remark
from videornn.models.weights import load_weights
from videornn.system.console import say
from videornn.system.urls import text_without_secrets
from videornn.training.background import Background
from videornn.training.ema import start_ema
from videornn.training.manifest import describe_start
from videornn.training.meter import Meter
from videornn.training.multigrid import multigrid_phases, norm_clips
from videornn.training.nonfinite import NonfiniteGuard
from videornn.training.optim import build_optimizer, load_optimizer_, lr_at, peak_lr, warmed_up
from videornn.training.precise_bn import statistics_of_all_ranks
from videornn.training.preflight import TrainingData, check_batch_norm, empty_classes
from videornn.training.resume import describe_data
from videornn.training.step import build_scaler


@dataclass
class Run:
    """A training run: its parts, and its progress (steps done; best validation top-1 in percent)."""

    config: Config
    out: Path
    data: TrainingData
    plan: BatchPlan
    device: torch.device
    model: nn.Module
    ema: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    guard: NonfiniteGuard
    mixing: Mixing | None
    normalize: Normalize
    meter: Meter = field(default_factory=Meter)
    bad: dict[str, BadVideo] = field(default_factory=dict)
    saving: Background = field(default_factory=Background)
    step: int = 0
    best_top1: float = -1.0

    @property
    def trained(self) -> nn.Module:
        """The network to validate, test and use."""
        return self.model if self.ema is None else self.ema

    @property
    def _networks(self) -> list[nn.Module]:
        return [self.model] if self.ema is None else [self.model, self.ema]

    @property
    def clips_at_once(self) -> int:
        """Number of clips that go through the network together on one rank."""
        return self.config.train.batch_size // (ranks.num_ranks() * self.config.train.accumulate)

    @property
    def lr(self) -> float:
        """Learning rate of the next step, before the factors of layers."""
        section, epoch = self.config.train, self.plan.epoch_at(self.step)
        if section.multigrid.long_cycle:  # its phases include the steps of the schedule
            return warmed_up(section, epoch, lambda epoch: peak_lr(section) * self.plan.phase_at(epoch).lr_factor)
        return lr_at(section, epoch, self.plan.num_epochs)

    @cached_property
    def data_fingerprint(self) -> dict[str, Any]:
        """The description of the data in checkpoints, which a resumed run compares with its own."""
        return describe_data(self.data.train, self.data.val, self.config.test)

    @property
    def clip_size(self) -> float:
        """Frames times pixels of the clips of the last step, as a share of full clips (multigrid has smaller ones)."""
        shape, data = self.plan.step_at(self.step - 1).shape, self.config.data
        return shape.num_frames * shape.crop_size**2 / (data.num_frames * data.crop_size**2)

    @property
    def _root(self) -> str:
        """The folder to remove from the paths of bad videos in a checkpoint, because the set may move."""
        return os.path.join(self.data.train.root, "")

    def save(self, *, last: bool, best: bool) -> None:
        """Write checkpoints/last.pt, best.pt or both, with all that resuming, testing and inference need; collective.

        The current state is copied; writing goes on in the background (saving).
        """
        self.check_finite()
        model, buffers = self.trained.state_dict(), []
        if ranks.num_ranks() > 1:
            # for use, statistics over all ranks; to resume, those of each, so that saving does not change a run
            model |= statistics_of_all_ranks(self.trained)
            buffers = [{name: buffer.cpu() for name, buffer in network.named_buffers()} for network in self._networks]
        progress = ranks.gather_objects((self.meter.state(), self.bad, buffers))
        if ranks.rank() > 0:
            return
        self.saving.wait()  # before a second copy is made
        bad = {path: video for _, part, _ in progress for path, video in part.items()}  # several ranks may know the same
        content = {
            "model": model,
            "unaveraged": None if self.ema is None else self.model.state_dict(),
            "buffers": [part for _, _, part in progress],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best_top1": self.best_top1,
            "num_skipped": self.guard.num_skipped,
            "meters": [meter for meter, _, _ in progress],
            "bad": [[path.removeprefix(self._root), video.reason] for path, video in bad.items()],
            "num_ranks": ranks.num_ranks(),
            "num_videos": len(self.data.train),
            "data": self.data_fingerprint,
            "config": self.config.model_dump(mode="json"),
            "class_names": list(self.data.class_names),
        }
        folder = self.out / "checkpoints"
        folder.mkdir(exist_ok=True)  # but not the run folder, which somebody may have removed
        archive = archived(content)
        if last:
            self.saving.start(partial(save_last, folder, archive, self.step, self.config.train.keep, best=best))
        elif best:
            self.saving.start(partial(save_best, folder, archive))

    def load(self, saved: dict[str, Any], path: Path) -> None:
        """Restore the state that save has written."""
        load_model(self.trained, saved, path)
        if self.ema is not None:
            load_model(self.model, {"model": saved["unaveraged"]}, path)
        load_optimizer_(self.optimizer, saved["optimizer"])
        was_fp16, is_fp16 = saved["config"]["train"]["precision"] == "fp16", self.config.train.precision == "fp16"
        if saved["scaler"] and was_fp16 == is_fp16:  # else one of these settings has changed: it begins anew
            self.scaler.load_state_dict(saved["scaler"])
        self.step = saved["step"]
        if saved.get("data", self.data_fingerprint)["val"] == self.data_fingerprint["val"]:
            self.best_top1 = saved["best_top1"]
        self.guard.num_skipped = saved["num_skipped"]
        if len(saved["meters"]) == ranks.num_ranks():
            self.meter.load(saved["meters"][ranks.rank()])
            own = saved["buffers"][ranks.rank()] if "buffers" in saved else []  # one rank has none beside the model's
            for network, buffers in zip(self._networks, own, strict=False):
                network.load_state_dict(buffers, strict=False)
        elif ranks.rank() == 0:
            self.meter.load([record for meter in saved["meters"] for record in meter])
        same_videos = saved.get("data", self.data_fingerprint)["paths"].equal(self.data_fingerprint["paths"])
        if same_videos:  # on every rank: all must find after the same step that the share of bad videos is passed
            bad = [BadVideo(os.path.join(self._root, name), reason) for name, reason in saved["bad"]]
            self.bad = {video.path: video for video in bad}

    def check_finite(self) -> None:
        """Read the steps since the last call and stop if one was not finite; waits for the device; collective."""
        self.guard.check(self.meter.read())


def new_run(config: Config, out: Path, data: TrainingData, device: torch.device, *, load_init: bool) -> Run:
    """Build the parts of a run at step 0, checked as far as possible without reading a video."""
    section = config.train
    plan, bn_clips = training_plan(config, len(data.train), ranks.num_ranks())
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    if config.model.init and load_init:
        names = data.train.class_names
        report = load_weights(model, config.model.init, inflation=config.model.inflation, class_names=names)
        if ranks.rank() == 0:
            remark = input_remark(config, report)
            say(*report.lines(), *([f"  note: {remark}"] if remark else []))
    parts = ranks.num_ranks() * section.accumulate
    for shape in plan.shapes:
        num_clips = shape.num_videos * config.data.clips_per_video // parts
        check_batch_norm(model, (shape.num_frames, shape.crop_size, shape.crop_size), num_clips, bn_clips)
    model.to(device).to(memory_format=torch.channels_last_3d)
    network = set_batch_norm(model, section.batch_norm, bn_clips, device)
    freeze_parts(network, section.freeze)
    guard = NonfiniteGuard(
        out / "nonfinite.csv", data.train, section.nonfinite, section.max_skipped, fp16=section.precision == "fp16"
    )
    assert config.model.num_classes is not None  # the network has been built
    return Run(
        config=config,
        out=out,
        data=data,
        plan=plan,
        device=device,
        model=network,
        ema=None if section.ema_decay is None else start_ema(network),
        optimizer=build_optimizer(network, section),
        scaler=build_scaler(device, section.precision, skip_nonfinite=section.nonfinite == "skip"),
        guard=guard,
        mixing=batch_mixing(config.data, config.model.num_classes),
        normalize=Normalize(config.data.mean, config.data.std, device),
    )


def training_plan(config: Config, num_videos: int, num_ranks: int) -> tuple[BatchPlan, int | None]:
    """Plan the shape of every step, and how many clips share statistics in batch norm (None: all of a rank).

    Raises:
        UserError: a batch is larger than the set, or multigrid is impossible.
    """
    section = config.train
    base, multigrid = base_shape(config.data, section.batch_size), section.multigrid
    phases = multigrid_phases(base, section)
    bn_clips = section.bn_clips
    if bn_clips is None and section.batch_norm == "batch" and (multigrid.long_cycle or multigrid.short_cycle):
        per_video = config.data.clips_per_video
        bn_clips = norm_clips(base, clips_per_video=per_video, accumulate=section.accumulate, num_ranks=num_ranks)
    return BatchPlan(num_videos, phases), bn_clips


def headline(run: Run) -> str:
    """Describe a run in one sentence: network, device, data, steps, learning rate."""
    model, section = run.config.model, run.config.train
    parameters = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    attention = "" if model.attention.kind == "none" else f" + {model.attention.kind}"
    val = "no validation" if run.data.val is None else f"{len(run.data.val)} to validate"
    at_once = f", {run.clips_at_once} at once on a rank" if run.clips_at_once < section.batch_size else ""
    given = f" ({section.lr:g} for {section.lr_batch_size})" if section.lr_batch_size else ""
    start = f"; going on after step {run.step}" if run.step else ""
    return (
        f"{model.name} r{model.depth}{attention} ({parameters:.2f} M parameters) on {run.device} x "
        f"{ranks.num_ranks()}, {section.precision}; {len(run.data.train)} training videos of {model.num_classes} "
        f"classes, {val}; {run.plan.num_epochs} epochs, {run.plan.num_steps} steps of {section.batch_size} clips{at_once}, "
        f"{section.optimizer} lr {peak_lr(section):g}{given}{start}"
    )


def manifest_entry(run: Run, checkpoint: Path | None) -> dict[str, Any]:
    """Return the entry of manifest.json for this start of the run."""
    section, tables = run.config.train, {"train": run.data.train} | ({"val": run.data.val} if run.data.val else {})
    training = {
        "ranks": ranks.num_ranks(),
        "nodes": ranks.num_ranks() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "device": str(run.device),
        "precision": section.precision,
        "seed": run.config.seed,
        "batch_size": section.batch_size,
        "clips_at_once": run.clips_at_once,
        "accumulate": section.accumulate,
        "lr_given": section.lr,
        "lr_batch_size": section.lr_batch_size,
        "lr": peak_lr(section),
        "epochs": run.plan.num_epochs,
        "steps": run.plan.num_steps,
    }
    data = {
        name: {"source": table.source, "used": len(table), "missing": len(table.missing)} for name, table in tables.items()
    }
    start = {"step": run.step, "checkpoint": None if checkpoint is None else str(checkpoint)}
    return describe_start(
        command=[*map(text_without_secrets, sys.argv)],
        training=training,
        data=data | {"empty_classes": empty_classes(run.data)},
        start=start,
    )
