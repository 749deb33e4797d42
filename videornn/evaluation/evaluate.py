"""Multi-view evaluation: score every view of every video once, even across interruptions, and write the results."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor, nn

from videornn.checkpoints.run_folder import results_folder
from videornn.checkpoints.trained import Trained, load_trained
from videornn.data.annotations.load import VideoTable, check_labels
from videornn.data.annotations.on_ranks import check_list, load_list
from videornn.data.dataset import BadVideo, ViewSpec
from videornn.data.loader import ClipLoader, build_test_loader, view_spec
from videornn.data.shared_batch import to_device
from videornn.data.video.decoders import choose_decoder
from videornn.distributed import ranks
from videornn.distributed.ranks import StopVote
from videornn.distributed.signals import Interrupted, caught_signals
from videornn.distributed.watch import RankWatch
from videornn.errors import UserError
from videornn.evaluation.results import write_bad_videos, write_results
from videornn.evaluation.scores import Scores
from videornn.evaluation.unfinished import KeptScores
from videornn.models.forward import Normalize, Precision, predict_logits
from videornn.system.console import say
from videornn.system.device import tuned
from videornn.system.lock import run_lock
from videornn.system.memory import is_lack_of_memory


@dataclass(frozen=True)
class ScoredBatch:
    """Logits float32 [B, V, K], labels int64 [B] and indices int64 [B] of the sound videos of a batch, and its bad ones."""

    logits: Tensor
    labels: Tensor
    indices: Tensor
    bad: list[BadVideo]


@dataclass(frozen=True)
class EvalJob:
    """A test: a network, the videos of a list, the views of each, the folder for the results, remarks to print first."""

    trained: Trained
    checkpoint: str
    table: VideoTable
    spec: ViewSpec
    out: Path
    remarks: list[str]

    @property
    def num_views(self) -> int:
        """Number of views of every video."""
        return self.spec.num_clips * self.spec.num_crops


def score_batches(
    model: nn.Module, loader: ClipLoader, normalize: Normalize, *, precision: Precision, views_at_once: int
) -> Iterator[ScoredBatch]:
    """Yield the logits of this rank's batches, one by one; views_at_once views go through the network together."""
    model.eval()
    for batch in to_device(loader, normalize.device):
        num_views = batch.clips.shape[1]
        views = batch.clips[batch.valid].flatten(0, 1)  # [B*V, 3, T, H, W]
        logits = torch.empty(0)
        if len(views):
            logits = predict_logits(model, normalize, views, precision=precision, views_at_once=views_at_once)
            logits = logits.unflatten(0, (-1, num_views))
        yield ScoredBatch(logits, batch.labels.cpu()[batch.valid], batch.indices[batch.valid], batch.bad)


def score_all(
    model: nn.Module, loader: ClipLoader, normalize: Normalize, *, precision: Precision, views_at_once: int
) -> tuple[Tensor, Tensor]:
    """Return logits float32 [N, V, K] and labels int64 [N] of the sound videos of all ranks, in the order of the table.

    Every rank holds all of them in memory, which is meant for the single view of a validation.

    Raises:
        UserError: no video can be decoded.
    """
    batches = list(score_batches(model, loader, normalize, precision=precision, views_at_once=views_at_once))
    batches = [batch for part in ranks.gather_objects(batches) for batch in part]
    sound = [batch for batch in batches if len(batch.indices)]
    if not sound:
        raise _none_decodable([video for batch in batches for video in batch.bad])
    order = torch.cat([batch.indices for batch in sound]).argsort()
    logits, labels = (torch.cat([getattr(batch, name) for batch in sound])[order] for name in ("logits", "labels"))
    return logits, labels


def evaluate(
    checkpoint: str | Path, overrides: list[str], out: Path | None, on_progress: Callable[[int, int], None]
) -> tuple[dict[str, Any], Path]:
    """Test a checkpoint on data.test (or data.val) over test.num_clips x test.num_crops views.

    Scores are kept in out/unfinished as they come; a killed test continues from there, with any number of ranks, and writes
    the same files (those of results.write_results).

    Args:
        out: folder for the results; by default that of run_folder.results_folder.
        on_progress: called with the number of videos done and the total.

    Returns:
        The content of metrics.json, and the folder.

    Raises:
        UserError: bad checkpoint, override, list or label; no video can be decoded; out of memory.
        Interrupted: SIGINT, SIGTERM or SIGUSR1; the scores of finished videos are kept.
    """
    trained = load_trained(checkpoint, overrides)
    device = trained.device
    with (
        # torch 2.6 warns that the bits of a running sum (nl_concatenation) on a GPU may vary, and of nothing else in a test
        tuned(device, deterministic=True, strict=False),
        ranks.process_group(device, trained.config.train.timeout) as watch,
        ExitStack() as stack,
    ):
        # torch's kernels for one thread add in another order than those for several
        torch.set_num_threads(max(2, torch.get_num_threads()))
        job = new_eval_job(trained, checkpoint, out)
        kept = kept_scores(job)

        def lock_and_list_done(busy: Callable[[], None]) -> tuple[list[str | None], list[int]]:
            sentences = [stack.enter_context(run_lock(job.out, on_wait=busy)), kept.prepare_folder()]
            return sentences, kept.indices()

        sentences, done = ranks.from_busy_rank_0(lock_and_list_done)
        received = stack.enter_context(caught_signals())  # until here a signal ends all at once: there is nothing to keep
        if done:
            sentences.append(f"going on: {len(done)} of {len(job.table)} videos are scored already")
        if ranks.rank() == 0:
            for sentence in filter(None, job.remarks + sentences):
                say(sentence)
        stop, bad = _score(job, kept, done, watch, received, on_progress)
        bad = sorted((video for part in ranks.gather_objects(bad) for video in part), key=lambda video: video.path)
        if stop:
            num_kept = ranks.from_rank_0(lambda: len(kept.indices()))
            raise Interrupted(stop, f"with {num_kept} of {len(job.table)} videos scored, which are kept")
        return ranks.from_rank_0(lambda: _finish(job, kept, bad)), job.out


def new_eval_job(trained: Trained, checkpoint: str | Path, out: Path | None) -> EvalJob:
    """Prepare a test of a checkpoint's network, checked as far as possible without reading a video; collective."""
    data, num_classes = trained.config.data, len(trained.class_names)
    source = data.test or data.val
    if source is None:
        raise UserError("there is nothing to test on: give data.test=LIST_OR_FOLDER")
    split = "test" if data.test else "val"
    table = load_list(data, source, split)
    remarks = table.remarks()
    table = table.with_classes(trained.class_names)
    check_labels(table, num_classes)
    check_list(table)
    out = results_folder(checkpoint) if out is None else out
    return EvalJob(trained, str(checkpoint), table, view_spec(data, trained.config.test), out, remarks)


def kept_scores(job: EvalJob) -> KeptScores:
    """Open the store of the scores of an unfinished test; collective, raises UserError if ranks test different things."""
    fingerprint = ranks.agreed(_fingerprint(job), doing="test", needs="checkpoint, list and videos")
    # taken from one rank: copies on the disks of other nodes have other times
    fingerprint["files"] = ranks.from_busy_rank_0(lambda busy: _files(job.table, busy))
    return KeptScores(
        job.out / "unfinished",
        fingerprint,
        num_videos=len(job.table),
        num_views=job.num_views,
        num_classes=len(job.trained.class_names),
    )


def _score(
    job: EvalJob,
    kept: KeptScores,
    done: list[int],
    watch: RankWatch,
    received: list[int],
    on_progress: Callable[[int, int], None],
) -> tuple[int, list[BadVideo]]:
    """Score this rank's share of the remaining videos; return the signal that stopped it, or 0, and the bad videos.

    The ranks advance together, a video each: a slow one is noticed at once, and a signal that reaches one stops all.
    """
    config, rank, num_ranks = job.trained.config, ranks.rank(), ranks.num_ranks()
    remaining = sorted(set(range(len(job.table))).difference(done))
    loader = build_test_loader(
        config.data,
        job.table,
        job.spec,
        batch_size=1,  # a video's numbers must not depend on others in its batch
        indices=remaining,
        pin_memory=job.trained.device.type == "cuda",
        rank=rank,
        num_ranks=num_ranks,
    )
    batches = score_batches(
        job.trained.model,
        loader,
        job.trained.normalize,
        precision=config.train.precision,
        views_at_once=config.test.batch_size,
    )
    bad, vote, stop = [], StopVote(), 0
    num_rounds = -(-len(remaining) // num_ranks)
    on_progress(len(done), len(job.table))
    with kept.appending(rank) as file, _memory_errors(job):
        for number in range(num_rounds):
            watch.at(number, "computing")
            if number < len(loader):
                batch = next(batches)
                if len(batch.indices):
                    job.trained.check_finite(batch.logits, f"{job.table.path(int(batch.indices[0]))}: ")
                for index, logits in zip(batch.indices.tolist(), batch.logits, strict=True):
                    file.append(index, logits)
                bad += batch.bad
            on_progress(len(done) + min((number + 1) * num_ranks, len(remaining)), len(job.table))
            stop = vote.decide(received[0] if received else 0)
            if stop:
                break
        else:
            vote.drain()  # nothing is left to stop
    return stop, bad


def _finish(job: EvalJob, kept: KeptScores, bad: list[BadVideo]) -> dict[str, Any]:
    """Write the results of the kept scores and remove these; return the content of metrics.json."""
    indices, logits = kept.read()
    if lost := len(job.table) - len(indices) - len(bad):
        raise UserError(
            f"the scores of {lost} of {len(job.table)} videos are gone from {kept.folder}: it was removed, moved or "
            f"replaced while this test was at work, or not every node sees it; give the same command again"
        )
    if not indices:
        write_bad_videos(job.out / "bad_videos.csv", bad)
        raise _none_decodable(bad)
    scores = Scores(
        logits=logits,
        labels=torch.from_numpy(job.table.labels[indices]).long(),
        paths=tuple(map(job.table.path, indices)),
        class_names=job.trained.class_names,
        bad=tuple(bad),
        num_missing=len(job.table.missing),
        num_clips=job.spec.num_clips,
        num_crops=job.spec.num_crops,
        average=job.trained.config.test.average,
        step=job.trained.step,
        checkpoint=job.checkpoint,
    )
    result = write_results(job.out, scores)
    kept.remove()
    return result


def _fingerprint(job: EvalJob) -> dict[str, Any]:
    """Collect all that logits and labels depend on, except for the last bits (test.batch_size), as plain JSON values."""
    trained, table = job.trained, job.table
    config = trained.config
    weights, videos = hashlib.sha256(), hashlib.sha256()
    for name, value in sorted(trained.model.state_dict().items()):
        weights.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        weights.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for values in table.fingerprint().values():
        videos.update(values.numpy().data)
    return {
        "weights": weights.hexdigest(),
        "network": config.model.model_dump(mode="json"),
        "classes": list(trained.class_names),
        "videos": videos.hexdigest(),
        "views": asdict(job.spec),
        "normalisation": [list(config.data.mean), list(config.data.std)],
        "precision": config.train.precision,
        "device": trained.device.type,
        "decoder": choose_decoder(config.data.decoder)[0],
        "torch": str(torch.__version__),
        "PyAV": av.__version__,
    }


def _files(table: VideoTable, on_file: Callable[[], None]) -> str:
    """Hash the sizes and last changes of the videos, to find out later whether any were replaced."""
    found = hashlib.sha256()
    for index in range(len(table)):
        on_file()
        try:
            status = os.stat(table.path(index))
        except OSError as error:
            found.update(f"{error.errno}\n".encode())
        else:
            found.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()


@contextmanager
def _memory_errors(job: EvalJob) -> Iterator[None]:
    """Turn a lack of memory into a sentence about the settings that need less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        test, clip = job.trained.config.test, job.spec.clip
        views = min(test.batch_size, job.num_views)
        advice = (
            f"lower test.batch_size, such as test.batch_size={views // 2}; videos that are scored are kept"
            if views > 1
            else "lower test.crop_size, which is another test"
        )
        raise UserError(
            f"rank {ranks.rank()} is out of memory with {views} views of {clip.num_frames} x {test.crop_size} x "
            f"{test.crop_size} at once: {advice}"
        ) from error


def _none_decodable(bad: list[BadVideo]) -> UserError:
    return UserError(f"none of the {len(bad)} videos can be decoded; the first: {bad[0].reason}")
