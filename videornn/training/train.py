"""The training job: config in, run folder out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
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
from videornn.data.loader import ClipLoader, build_loader, build_test_loader, plain_plan, view_spec
from videornn.data.mixing import batch_mixing
from videornn.data.shared_batch import Batch, to_device
from videornn.data.video.decoders import choose_decoder
from videornn.distributed import ranks
from videornn.distributed.ranks import StopVote
from videornn.distributed.signals import Interrupted, caught_signals
from videornn.distributed.watch import RankWatch
from videornn.errors import UserError
from videornn.evaluation import metrics
from videornn.evaluation.evaluate import score_all
from videornn.models import build_model
from videornn.models.flops import training_flops
from videornn.models.forward import AUTOCAST, Normalize
from videornn.models.norms import freeze_parts, set_batch_norm
from videornn.models.public_input import input_remark
from videornn.models.weights import load_weights
from videornn.system.console import say
from videornn.system.device import matrix_rate, peak_memory, pick_device, tuned
from videornn.system.files import write_text
from videornn.system.lock import run_lock
from videornn.system.memory import is_lack_of_memory
from videornn.training.attention_watch import AttentionWatch
from videornn.training.bad_share import BadShare
from videornn.training.compiling import compiled, graphs_of
from videornn.training.ema import decay_at, ema_updates, start_ema
from videornn.training.logger import RunLogger
from videornn.training.manifest import append_manifest
from videornn.training.nonfinite import NonfiniteGuard
from videornn.training.optim import build_optimizer, class_weights, set_lr
from videornn.training.precise_bn import statistics_of_all_ranks, update_batch_norm
from videornn.training.preflight import TrainingData, check_batch_norm, cudnn_remarks, load_training_data, remarks
from videornn.training.resume import check_resumable, check_same_data, describe_run
from videornn.training.run import Run, headline, manifest_entry, training_plan
from videornn.training.step import build_scaler, train_step

LONG_WAIT = 0.5  # share of the time spent waiting for data that is worth a remark
SLOW_PRECISION = 1.5  # times as slow as float32 that is worth one
MANY_EPOCHS = 10**6  # a plan without an end
PRECISE_BN_SEED = 2**31  # beyond any seed of a run: these clips are others than those of the steps


def train(config: Config, out: Path, *, resume: bool = False) -> Path:
    """Train a network into the run folder out; `torchrun` starts the same on many ranks.

    Args:
        resume: go on from the newest sound checkpoint of out, if there is one.

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
            # 1x1x1 gradients of torch's one-thread kernels: the same numbers in the same order, only told otherwise
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        goes_on = ranks.from_rank_0(partial(_goes_on, out, resume))
        data, config = load_training_data(config)
        run = _new_run(config, out, data, device, load_init=not goes_on)
        described = describe_run(config, run.data_fingerprint, data.class_names)
        ranks.agreed(described, doing="train", needs="config, lists and videos")
        sentences = [*remarks(config, data, run.clips_at_once), *cudnn_remarks(device, config.train.precision)]

        def take_up(busy: Callable[[], None]) -> tuple[str | None, tuple[dict[str, Any], Path, list[str]] | None]:
            unlocked = stack.enter_context(run_lock(out, on_wait=busy))
            if not _goes_on(out, resume) and goes_on:  # looked at again, for another process may have been at work
                raise UserError(f"{out}: its checkpoints are gone since a moment ago; give the same command again")
            return unlocked, load_newest(out / "checkpoints")

        unlocked, saved = ranks.from_busy_rank_0(take_up)
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
        received = stack.enter_context(caught_signals())  # until here there is nothing to save, and a signal ends at once
        _train(run, watch, received, sentences, path if saved else None)
    return out / "checkpoints/last.pt"


def _goes_on(out: Path, resume: bool) -> bool:
    """Whether a run folder has a checkpoint to go on from; raises UserError if it has any and shall not go on."""
    if not resume and any((out / "checkpoints").glob("*.pt")):
        raise UserError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    return has_checkpoint(out / "checkpoints")


def _new_run(config: Config, out: Path, data: TrainingData, device: torch.device, *, load_init: bool) -> Run:
    """The parts of a run at step 0, checked as far as that is possible without a video."""
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
    model = model.to(device, memory_format=torch.channels_last_3d)
    model = set_batch_norm(model, section.batch_norm, bn_clips, device)
    freeze_parts(model, section.freeze)
    guard = NonfiniteGuard(
        out / "nonfinite.csv", data.train, section.nonfinite, section.max_skipped, fp16=section.precision == "fp16"
    )
    return Run(
        config=config,
        out=out,
        data=data,
        plan=plan,
        device=device,
        model=model,
        ema=None if section.ema_decay is None else start_ema(model),
        optimizer=build_optimizer(model, section),
        scaler=build_scaler(device, section.precision, skip_nonfinite=section.nonfinite == "skip"),
        guard=guard,
        mixing=batch_mixing(config.data, config.model.num_classes),
        normalize=Normalize(config.data.mean, config.data.std, device),
    )


def _train(run: Run, watch: RankWatch, received: list[int], sentences: list[str], checkpoint: Path | None) -> None:
    """Open the loader and the run folder, and go through the remaining steps."""
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
            with _errors_of_a_step(run, logger), compiling, run.saving:
                _loop(run, loader, _val_loader(run), logger, watch, received)
    finally:
        logger.close()


def _loop(
    run: Run,
    loader: ClipLoader,
    val_loader: ClipLoader | None,
    logger: RunLogger,
    watch: RankWatch,
    received: list[int],
) -> None:
    """Every step is train_step; now and then a log line, a validation, a checkpoint."""
    section, plan, meter = run.config.train, run.plan, run.meter
    batches = to_device(loader, run.device)
    parallel = _parallel(run).train()
    update_ema = None if run.ema is None else ema_updates(run.ema, run.model)
    weights = class_weights(torch.from_numpy(run.data.train.labels), run.config.model.num_classes, section.class_weights)
    weights = None if weights is None else weights.to(run.device)
    vote, speed, waits = StopVote(), _Speed(run), 0
    maps = AttentionWatch(run.model, num_steps=plan.num_steps, precision=section.precision)
    if speed.slower > SLOW_PRECISION:
        logger.say(
            f"matrix products in {section.precision} take {speed.slower:.0f} times as long here as those in float32: "
            f"train.precision=fp32 may be faster, also with --resume"
        )
    share = BadShare(run.bad, run.out / "bad_videos.csv", len(run.data.train), run.config.data.max_bad_share)
    while run.step < plan.num_steps:
        run.saving.check()
        lr, seen = run.lr, _Seen([])
        set_lr(run.optimizer, lr)
        result = train_step(
            parallel,
            _parts(run, watch, batches, seen, share),
            run.optimizer,
            num_parts=section.accumulate,
            scaler=run.scaler,
            precision=section.precision,
            label_smoothing=section.label_smoothing,
            class_weights=weights,
            clip_norm=section.clip_norm,
        )
        if update_ema is not None:
            update_ema(decay_at(run.step, section.ema_decay))
        run.step += 1
        meter.add(run.step, seen.indices, result, run.clip_size)
        logger.advance(run.step)
        epoch, last = plan.epoch_at(run.step), run.step == plan.num_steps
        if run.step % section.log_every == 0 or last:
            run.check_finite()
            numbers = meter.means()
            numbers |= speed.numbers(numbers.pop("full_clips_per_second"))
            of_blocks = maps.numbers(seen.clip) if ranks.rank() == 0 else {}
            meter.restart_clock()
            logger.log("train", run.step, epoch=epoch, lr=lr, **numbers, **of_blocks)
            if remark := maps.remark(run.step, of_blocks):
                logger.say(remark)
            waits = waits + 1 if numbers["data_wait"] > LONG_WAIT else 0
            if waits == 3:  # not at the start, when workers have just begun
                logger.say("the network waits for data most of the time: `videornn data bench` tells why, and what to do")
        best = due = False
        ends_epoch = plan.ends_epoch(run.step)
        too_many = share.exchange() if ends_epoch or share.may_be_passed(vote.largest) else None
        if ends_epoch and too_many is None:
            due = round(epoch) % section.save_every == 0
            if round(epoch) % section.val_every == 0 or last:
                watch.at(run.step, "validating")
                best = _validate(run, val_loader, logger, last=last)
                parallel.train()
        due = due or bool(section.save_every_steps and run.step % section.save_every_steps == 0)
        stop = vote.decide(received[0] if received else 0, share.num_new)
        if due or best or stop or last or too_many:
            watch.at(run.step, "saving")
            logger.check_place()
            run.save(last=bool(due or stop or last or too_many), best=best)
            if stop or last or too_many:
                ranks.from_rank_0(run.saving.wait)
            meter.restart_clock()
        if too_many is not None:
            vote.drain()
            raise too_many
        if stop and not last:
            raise Interrupted(stop, f"after step {run.step}, which is saved")
    vote.drain()


@contextmanager
def _errors_of_a_step(run: Run, logger: RunLogger) -> Iterator[None]:
    """Turns what the machine lacks into a sentence about the settings that need it; a run folder that is gone, too."""
    try:
        yield
    except FileNotFoundError:
        logger.check_place()
        raise
    except (RuntimeError, MemoryError) as error:
        if sentence := _what_is_lacking(run, error):
            raise UserError(sentence) from error
        raise


def _what_is_lacking(run: Run, error: Exception) -> str | None:
    """Memory or a deterministic kernel; None if an error is about something else."""
    operator, lack, _ = str(error).partition(" does not have a deterministic implementation")
    if lack:
        return (
            f"train.deterministic: torch {torch.__version__} cannot compute {operator} on {run.device.type} with the same "
            f"bits every time; a newer torch may, or leave it out"
        )
    if not is_lack_of_memory(error):
        return None
    return (
        f"rank {ranks.rank()} is out of memory in step {run.step + 1} with {run.clips_at_once} clips at once; "
        f"{_ways_to_need_less(run)}a smaller data.crop_size or data.num_frames needs less in a new run"
    )


def _ways_to_need_less(run: Run) -> str:
    """What a run may be resumed with to take less memory, as far as something is left; with what follows it."""
    num_parts, ways = 2 * run.config.train.accumulate, []
    if all(shape.num_videos % (ranks.num_ranks() * num_parts) == 0 for shape in run.plan.shapes):
        ways.append(f"train.accumulate={num_parts} (half as many at once, no other result but for batch norm)")
    if not run.config.model.recompute_blocks:
        ways.append("model.recompute_blocks=true")
    return f"{' or '.join(ways)} needs less, also with --resume; " if ways else ""


@dataclass
class _Seen:
    """Of the batch of a step: the indices of its videos, and a clip [1, 3, T, H, W] as the network takes it."""

    indices: list[int]
    clip: Tensor | None = None


def _parts(
    run: Run, watch: RankWatch, batches: Iterator[Batch], seen: _Seen, share: BadShare
) -> Iterator[tuple[Tensor, Tensor]]:
    """The parts of the next step's batch as the network takes them; notes what it has seen, and bad videos."""
    num_parts = run.config.train.accumulate
    for number in range(num_parts):
        watch.at(run.step, "loading")
        with share.listed():
            batch = run.meter.wait_for(batches)
        watch.at(run.step, "computing")
        run.bad |= {video.path: video for video in batch.bad}
        seen.indices += batch.indices.tolist()
        # dropout and blends are pure functions of the step too, so that a resumed run repeats them
        part = (run.step * ranks.num_ranks() + ranks.rank()) * num_parts + number
        torch.manual_seed(sample_seed(run.config.seed, part))  # mixed, for a CPU takes the lower 32 bits and no more
        clips, targets = run.normalize(batch.clips), batch.labels
        if run.mixing is not None:
            clips, targets = run.mixing(clips, targets, np.random.default_rng([run.config.seed, part]))
        seen.clip = clips[:1]
        yield clips, targets


def _parallel(run: Run) -> nn.Module:
    """The network as the steps call it: over all ranks, compiled if the config says so."""
    section = run.config.train
    model = ranks.data_parallel(run.model, run.device, static_graph=section.accumulate == 1)
    return compiled(model) if section.compile else model


def _val_loader(run: Run) -> ClipLoader | None:
    """Loader of the centre clip and crop of every validation video."""
    if run.data.val is None:
        return None
    config = run.config
    one_view = config.test.model_copy(update={"num_clips": 1, "num_crops": 1})
    return build_test_loader(
        config.data,
        run.data.val,
        view_spec(config.data, one_view),
        batch_size=config.test.batch_size,
        pin_memory=run.device.type == "cuda",
        rank=ranks.rank(),
        num_ranks=ranks.num_ranks(),
    )


def _validate(run: Run, loader: ClipLoader | None, logger: RunLogger, *, last: bool) -> bool:
    """Precise batch norm, then top-1 of every validation video's centre view over all ranks; whether it is the best so far.

    Without validation videos the network is the best there is at the end.
    """
    config = run.config
    if loader is None and not last:
        return False
    if config.train.precise_bn:
        _precise_batch_norm(run)
    run.trained.load_state_dict(statistics_of_all_ranks(run.trained), strict=False)
    if loader is None:
        return True
    precision, views_at_once = config.train.precision, config.test.batch_size
    with _memory_of_validation(run):
        logits, labels = score_all(run.trained, loader, run.normalize, precision=precision, views_at_once=views_at_once)
    summary = metrics.summarize(logits, labels, config.test.average)
    numbers = {"top1": summary["video_top1"], "top5": summary["video_top5"], "loss": summary["video_loss"]}
    epoch = run.plan.epoch_at(run.step)
    logger.log("val", run.step, epoch=epoch, **numbers, num_scored=len(labels), num_videos=len(run.data.val))
    run.meter.restart_clock()
    best = numbers["top1"] >= run.best_top1
    run.best_top1 = max(run.best_top1, numbers["top1"])
    return best


@contextmanager
def _memory_of_validation(run: Run) -> Iterator[None]:
    """Turns a lack of memory into a sentence about the settings of a validation, which has no gradient to make in parts."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        views = min(run.config.test.batch_size, len(run.data.val))
        advice = f"test.batch_size={views // 2}" if views > 1 else "a lower test.crop_size"
        raise UserError(
            f"rank {ranks.rank()} is out of memory in the validation after step {run.step} with {views} videos at "
            f"once; {advice} needs less, also with --resume"
        ) from error


def _precise_batch_norm(run: Run) -> None:
    """Give batch norm the statistics of training clips that no step has had."""
    config = run.config
    loader = build_loader(
        config.data,
        run.data.train,
        plan=plain_plan(config.data, len(run.data.train), MANY_EPOCHS, config.train.batch_size),
        seed=PRECISE_BN_SEED,
        accumulate=config.train.accumulate,
        rank=ranks.rank(),
        num_ranks=ranks.num_ranks(),
        pin_memory=run.device.type == "cuda",
    )
    clips = (run.normalize(batch.clips) for batch in to_device(loader, run.device))
    num_batches = config.train.precise_bn * config.train.accumulate
    update_batch_norm(run.trained, clips, num_batches=num_batches, precision=config.train.precision)


class _Speed:
    """What the log lines say of memory and of how much of the machine's rate of matrix products a run reaches.

    A machine that is busy with something else when it is measured comes out too slow, so it is measured again, ever more
    seldom: a CPU now and then, any device where a run seems to be faster; the best counts.
    """

    def __init__(self, run: Run) -> None:
        data = run.config.data
        self._device = run.device
        self._clip_flops = training_flops(run.model, (data.num_frames, data.crop_size, data.crop_size))
        # on a CPU the products of fp16, and without its instructions those of bf16, are slower than float32
        self._dtypes = {torch.float32, AUTOCAST.get(run.config.train.precision, torch.float32)}
        rates = self._measured()
        self._rate, self._peak, self._num_lines, self._num_fast = max(rates.values()), 0, 0, 0
        self.slower = rates[torch.float32] / min(rates.values())  # than float32, the precision of the run

    def numbers(self, clips_per_second: float) -> dict[str, float]:
        """mfu 0..1 (model FLOPs utilisation) at so many full clips per second, and the peak memory of this rank in GB."""
        fast = clips_per_second > self._clips_per_second
        self._num_lines, self._num_fast = self._num_lines + 1, self._num_fast + fast
        if (fast and _doubled(self._num_fast)) or (self._device.type == "cpu" and _doubled(self._num_lines)):
            self._peak = max(self._peak, peak_memory(self._device))  # a measurement is not what a run needs
            with suppress(torch.OutOfMemoryError):  # a GPU that the run fills is measured as it was
                self._rate = max(self._rate, *self._measured().values())
        peak = max(self._peak, peak_memory(self._device))
        return {"mfu": clips_per_second / self._clips_per_second, "memory_gb": peak / 1e9}

    @property
    def _clips_per_second(self) -> float:
        """Full clips that all ranks would do if they did nothing but matrix products."""
        return self._rate * ranks.num_ranks() / self._clip_flops

    def _measured(self) -> dict[torch.dtype, float]:
        return {dtype: matrix_rate(self._device, dtype) for dtype in self._dtypes}


def _doubled(number: int) -> bool:
    """Whether a number that grows has become 1, 2, 4, 8 ..."""
    return number & (number - 1) == 0
