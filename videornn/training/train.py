"""Train a network: config in, run folder out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from videornn.checkpoints.run_folder import has_checkpoint, load_newest
from videornn.config import Config, config_to_yaml
from videornn.data.dataset import sample_seed
from videornn.data.loader import ClipLoader, build_loader
from videornn.data.shared_batch import to_device
from videornn.data.video.decoders import choose_decoder
from videornn.distributed import ranks
from videornn.distributed.ranks import StopVote
from videornn.distributed.signals import Interrupted, caught_signals
from videornn.distributed.watch import RankWatch
from videornn.errors import UserError
from videornn.system.device import pick_device, tuned
from videornn.system.files import write_text
from videornn.system.lock import run_lock
from videornn.training.advice import errors_of_a_step
from videornn.training.attention_watch import AttentionWatch
from videornn.training.bad_share import BadShare
from videornn.training.compiling import compiled, graphs_of
from videornn.training.ema import decay_at, ema_updates
from videornn.training.logger import RunLogger
from videornn.training.manifest import append_manifest
from videornn.training.optim import class_weights, set_lr
from videornn.training.preflight import cudnn_remarks, load_training_data, remarks
from videornn.training.resume import check_resumable, check_same_data, describe_run
from videornn.training.run import Run, headline, manifest_entry, new_run
from videornn.training.speed_watch import SpeedWatch
from videornn.training.step import TrainStep
from videornn.training.validation import validate, validation_loader

LONG_WAIT = 0.5  # share of the time spent waiting for data that earns a remark
SLOW_PRECISION = 1.5  # times slower than float32 that earn a remark


def train(config: Config, out: Path, *, resume: bool = False) -> Path:
    """Train a network into the run folder out; under `torchrun` on many ranks.

    Args:
        resume: continue from the newest sound checkpoint in out, if there is one.

    Returns:
        The path of the last checkpoint.

    Raises:
        UserError: wrong input; see the message.
        Interrupted: SIGINT, SIGTERM or SIGUSR1; everything up to the last step is saved.
    """
    device = pick_device(config.device)
    with (
        tuned(device, deterministic=config.train.deterministic),
        ranks.process_group(device, config.train.timeout) as watch,
        ExitStack() as stack,
    ):
        if ranks.num_ranks() > 1:
            stack.enter_context(warnings.catch_warnings())
            # torch's one-thread kernels describe the strides of 1x1x1 gradients otherwise; numbers and order are the same
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        goes_on = ranks.from_rank_0(partial(_goes_on, out, resume))
        data, config = load_training_data(config)
        run = new_run(config, out, data, device, load_init=not goes_on)
        described = describe_run(config, run.data_fingerprint, data.class_names)
        ranks.agreed(described, doing="train", needs="config, lists and videos")
        sentences = [*remarks(config, data, run.clips_at_once), *cudnn_remarks(device, config.train.precision)]

        def lock_and_load(busy: Callable[[], None]) -> tuple[str | None, tuple[dict[str, Any], Path, list[str]] | None]:
            unlocked = stack.enter_context(run_lock(out, on_wait=busy))
            if not _goes_on(out, resume) and goes_on:  # checked again, because another process may have been at work
                raise UserError(f"{out}: its checkpoints are gone since a moment ago; give the same command again")
            return unlocked, load_newest(out / "checkpoints")

        unlocked, saved = ranks.from_busy_rank_0(lock_and_load)
        if unlocked:
            sentences.append(unlocked)
        if saved:
            content, path, damaged = saved
            num_videos, num_ranks = len(data.train), ranks.num_ranks()
            sentences += [*damaged, *check_resumable(config, content, path, num_videos=num_videos, num_ranks=num_ranks)]
            sentences += check_same_data(
                content,
                path,
                train=data.train,
                class_names=data.class_names,
                data=run.data_fingerprint,
                accept=config.train.accept_other_data,
            )
            run.load(content, path)
        received = stack.enter_context(caught_signals())  # until here a signal ends all at once: there is nothing to save
        _train(run, watch, received, sentences, path if saved else None)
    return out / "checkpoints/last.pt"


def _goes_on(out: Path, resume: bool) -> bool:
    """Return whether a run folder has a checkpoint to resume; raises UserError if it has one and resume is off."""
    if not resume and any((out / "checkpoints").glob("*.pt")):
        raise UserError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    return has_checkpoint(out / "checkpoints")


def _train(run: Run, watch: RankWatch, received: list[int], sentences: list[str], checkpoint: Path | None) -> None:
    """Open the loader and the run folder, and take the remaining steps."""
    loader = build_loader(
        run.config.data,
        run.data.train,
        plan=run.plan,
        seed=run.config.seed,
        first_step=run.step,
        accumulate=run.config.train.accumulate,
        rank=ranks.rank(),
        num_ranks=ranks.num_ranks(),
        pin_memory=run.device.type == "cuda",
    )
    is_main = ranks.rank() == 0
    if is_main:
        run.out.mkdir(parents=True, exist_ok=True)
        write_text(run.out / "config.yaml", config_to_yaml(run.config))
        damaged = append_manifest(run.out / "manifest.json", manifest_entry(run, checkpoint))
        sentences += [damaged] if damaged else []
    logger = RunLogger(run.out if is_main else None, num_steps=run.plan.num_steps, first_step=run.step)
    try:
        for sentence in [headline(run), *sentences, choose_decoder(run.config.data.decoder)[1]]:
            logger.say(sentence)
        if run.step < run.plan.num_steps:
            compiling = graphs_of(len(run.plan.shapes)) if run.config.train.compile else nullcontext()
            with errors_of_a_step(run, logger), compiling, run.saving:
                Trainer(run, loader, validation_loader(run), logger, watch, received).train()
    finally:
        logger.close()


class Trainer:
    """The steps of a run, with log lines, validations, checkpoints and stops between them.

    Args:
        run: the run; changed step by step.
        received: the signals that have asked for a stop so far.
    """

    def __init__(
        self,
        run: Run,
        loader: ClipLoader,
        val_loader: ClipLoader | None,
        logger: RunLogger,
        watch: RankWatch,
        received: list[int],
    ) -> None:
        self.run, self.val_loader, self.logger, self.watch, self.received = run, val_loader, logger, watch, received
        config, section = run.config, run.config.train
        self.batches = to_device(loader, run.device)
        self.parallel = parallel_network(run).train()
        assert config.model.num_classes is not None  # the network has been built
        weights = class_weights(torch.from_numpy(run.data.train.labels), config.model.num_classes, section.class_weights)
        self.step = TrainStep(
            self.parallel,
            run.optimizer,
            num_parts=section.accumulate,
            scaler=run.scaler,
            precision=section.precision,
            label_smoothing=section.label_smoothing,
            class_weights=None if weights is None else weights.to(run.device),
            clip_norm=section.clip_norm,
        )
        self.update_ema = None if run.ema is None else ema_updates(run.ema, run.model)
        self.maps = AttentionWatch(run.model, num_steps=run.plan.num_steps, precision=section.precision)
        self.speed, self.num_waits = SpeedWatch(run), 0
        if self.speed.slower > SLOW_PRECISION:
            logger.say(
                f"matrix products in {section.precision} take {self.speed.slower:.0f} times as long here as those in "
                f"float32: train.precision=fp32 may be faster, also with --resume"
            )
        self.share = BadShare(run.bad, run.out / "bad_videos.csv", len(run.data.train), config.data.max_bad_share)
        self.vote = StopVote()

    def train(self) -> None:
        """Take the remaining steps; collective.

        Raises:
            TooManyBad: more training videos are bad than data.max_bad_share allows; saved.
            Interrupted: a signal asked for a stop; saved.
        """
        run, plan, section = self.run, self.run.plan, self.run.config.train
        while run.step < plan.num_steps:
            run.saving.check()
            lr = run.lr
            clip = self.take_step(lr)
            last, ends_epoch, epoch = run.step == plan.num_steps, plan.ends_epoch(run.step), plan.epoch_at(run.step)
            if run.step % section.log_every == 0 or last:
                self.log(lr, clip)
            too_many = self.share.exchange() if ends_epoch or self.share.may_be_passed(self.vote.largest) else None
            best = False
            if ends_epoch and too_many is None and (round(epoch) % section.val_every == 0 or last):
                self.watch.at(run.step, "validating")
                best = validate(run, self.val_loader, self.logger, last=last)
                self.parallel.train()
            stop = self.vote.decide(self.received[0] if self.received else 0, self.share.num_new)
            ends = bool(stop or last or too_many)
            due = ends_epoch and round(epoch) % section.save_every == 0
            due = due or bool(section.save_every_steps and run.step % section.save_every_steps == 0)
            if due or best or ends:
                self.save(last=due or ends, best=best, wait=ends)
            if too_many is not None:
                self.vote.drain()
                raise too_many
            if stop and not last:
                raise Interrupted(stop, f"after step {run.step}, which is saved")
        self.vote.drain()

    def take_step(self, lr: float) -> Tensor:
        """Take the next step with this learning rate; return a clip [1, 3, T, H, W] that the network has seen in it."""
        run, section = self.run, self.run.config.train
        set_lr(run.optimizer, lr)
        indices: list[int] = []
        for number in range(section.accumulate):
            part = self.load_part(number)
            indices += part.indices
            self.step.backward(part.clips, part.targets)
        result = self.step.update()
        if self.update_ema is not None and section.ema_decay is not None:
            self.update_ema(decay_at(run.step, section.ema_decay))
        run.step += 1
        run.meter.add(run.step, indices, result, run.clip_size)
        self.logger.advance(run.step)
        return part.clips[:1]

    def load_part(self, number: int) -> Part:
        """Load a part of the next step's batch in the form that the network takes, and record its bad videos."""
        run = self.run
        self.watch.at(run.step, "loading")
        with self.share.listed():
            batch = run.meter.wait_for(self.batches)
        self.watch.at(run.step, "computing")
        run.bad |= {video.path: video for video in batch.bad}
        # dropout and mixing are pure functions of the step too, so that a resumed run repeats them
        part = (run.step * ranks.num_ranks() + ranks.rank()) * run.config.train.accumulate + number
        torch.manual_seed(sample_seed(run.config.seed, part))  # well mixed, because a CPU uses only the lower 32 bits
        clips, targets = run.normalize(batch.clips), batch.labels
        if run.mixing is not None:
            clips, targets = run.mixing(clips, targets, np.random.default_rng([run.config.seed, part]))
        return Part(clips, targets, batch.indices.tolist())

    def log(self, lr: float, clip: Tensor) -> None:
        """Write a log line; waits for the device; collective."""
        run, logger = self.run, self.logger
        run.check_finite()
        numbers = run.meter.means()
        numbers |= self.speed.numbers(numbers.pop("full_clips_per_second"))
        of_blocks = self.maps.numbers(clip) if ranks.rank() == 0 else {}
        run.meter.restart_clock()
        logger.log("train", run.step, epoch=run.plan.epoch_at(run.step), lr=lr, **numbers, **of_blocks)
        if remark := self.maps.remark(run.step, of_blocks):
            logger.say(remark)
        self.num_waits = self.num_waits + 1 if numbers["data_wait"] > LONG_WAIT else 0
        if self.num_waits == 3:  # not at the start, when workers have only begun
            logger.say("the network waits for data most of the time: `videornn data bench` tells why, and what to do")

    def save(self, *, last: bool, best: bool, wait: bool) -> None:
        """Write checkpoints, in the background unless wait is set; collective."""
        self.watch.at(self.run.step, "saving")
        self.logger.check_place()
        self.run.save(last=last, best=best)
        if wait:
            ranks.from_rank_0(self.run.saving.wait)
        self.run.meter.restart_clock()


@dataclass(frozen=True)
class Part:
    """Clips float [B, 3, T, H, W], targets int64 [B] or float [B, K], and the indices of their videos."""

    clips: Tensor
    targets: Tensor
    indices: list[int]


def parallel_network(run: Run) -> nn.Module:
    """Wrap the network for the steps: over all ranks, and compiled if the config says so."""
    section = run.config.train
    model = ranks.data_parallel(run.model, run.device, static_graph=section.accumulate == 1)
    return compiled(model) if section.compile else model
