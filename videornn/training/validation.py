"""Validate a network in training: one view of every validation video, with the batch norm used after training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from videornn.data.loader import ClipLoader, build_loader, build_test_loader, plain_plan, view_spec
from videornn.data.shared_batch import to_device
from videornn.distributed import ranks
from videornn.evaluation import metrics
from videornn.evaluation.evaluate import score_all
from videornn.training.advice import memory_of_validation
from videornn.training.precise_bn import statistics_of_all_ranks, update_batch_norm

if TYPE_CHECKING:
    from videornn.training.logger import RunLogger
    from videornn.training.run import Run

MANY_EPOCHS = 10**6  # a plan that does not end
PRECISE_BN_SEED = 2**31  # beyond any seed of a run, so that these clips differ from those of the steps


def validation_loader(run: Run) -> ClipLoader | None:
    """Build the loader of the centre clip and crop of every validation video."""
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


def validate(run: Run, loader: ClipLoader | None, logger: RunLogger, *, last: bool) -> bool:
    """Run precise batch norm, then log top-1 of all validation videos' centre views; return whether it is the best so far.

    Without validation videos, the last network counts as the best.
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
    with memory_of_validation(run):
        logits, labels = score_all(run.trained, loader, run.normalize, precision=precision, views_at_once=views_at_once)
    assert run.data.val is not None  # as there is a loader of it
    summary = metrics.summarize(logits, labels, config.test.average)
    numbers = {"top1": summary["video_top1"], "top5": summary["video_top5"], "loss": summary["video_loss"]}
    epoch = run.plan.epoch_at(run.step)
    logger.log("val", run.step, epoch=epoch, **numbers, num_scored=len(labels), num_videos=len(run.data.val))
    run.meter.restart_clock()
    best = numbers["top1"] >= run.best_top1
    run.best_top1 = max(run.best_top1, numbers["top1"])
    return best


def _precise_batch_norm(run: Run) -> None:
    """Give batch norm the statistics of training clips that no step has used."""
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
