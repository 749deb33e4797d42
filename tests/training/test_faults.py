"""What goes wrong in the middle of a run: one sentence, nothing lost."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from helpers import CONFIG

from videornn.checkpoints.checkpoint import load_checkpoint
from videornn.config import load_config
from videornn.errors import RankFailure, UserError
from videornn.evaluation.evaluate import evaluate
from videornn.models.forward import Normalize
from videornn.training import train as job


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _poison(monkeypatch: pytest.MonkeyPatch, bad_steps: set[int]) -> None:
    """Make the clips of some steps, counted from 1, not finite."""
    forward, calls = Normalize.forward, []

    def poisoned(normalize: Normalize, clips: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(normalize, clips) * (float("nan") if len(calls) in bad_steps else 1.0)

    monkeypatch.setattr(Normalize, "forward", poisoned)


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_videos(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, {3})
    settings = [*tiny_settings, "train.log_every=2", "data.val=null"]
    with pytest.raises(UserError, match=r"step 3 is not finite \(loss nan\).*nonfinite\.csv.*nonfinite=skip"):
        job.train(load_config(CONFIG, settings), tmp_path / "run")
    rows = _rows(tmp_path / "run/nonfinite.csv")
    assert {row["step"] for row in rows} == {"3"} and len(rows) == len({row["path"] for row in rows}) == 8
    assert all(Path(row["path"]).is_file() for row in rows)
    saved = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert saved["step"] == 2 and all(value.isfinite().all() for value in saved["model"].values())
    _poison(monkeypatch, {1})  # the same step again, now with what the sentence advises
    job.train(load_config(CONFIG, [*settings, "train.nonfinite=skip"]), tmp_path / "run", resume=True)
    saved = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert saved["step"] == 4 and saved["num_skipped"] == 1


def test_steps_that_are_not_finite_can_be_skipped_up_to_a_number(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*tiny_settings, "train.nonfinite=skip", "train.max_skipped=1", "data.val=null"]
    _poison(monkeypatch, {1})  # the first step of all is the hardest: the optimizer has no state yet
    job.train(load_config(CONFIG, settings), tmp_path / "run")
    saved = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert saved["step"] == 4 and saved["num_skipped"] == 1
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert {row["step"] for row in _rows(tmp_path / "run/nonfinite.csv")} == {"1"}
    _poison(monkeypatch, {2, 4})
    with pytest.raises(UserError, match=r"2 steps had a gradient that is not finite, more than train\.max_skipped=1"):
        job.train(load_config(CONFIG, settings), tmp_path / "more")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_names_the_settings_that_need_less(
    error: Exception, tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(job.Trainer, "take_step", no_memory)
    with pytest.raises(
        UserError, match=r"out of memory in step 1 with 8 clips at once; train\.accumulate=2 .*recompute_blocks"
    ):
        job.train(load_config(CONFIG, tiny_settings), tmp_path / "run")
    error = RuntimeError("max_pool3d_backward_cuda does not have a deterministic implementation, but you set 'torch.use")
    with pytest.raises(UserError, match=r"train\.deterministic: torch \S+ cannot compute max_pool3d_backward_cuda on cpu"):
        job.train(load_config(CONFIG, tiny_settings), tmp_path / "repeatable")
    error = RuntimeError("InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx")
    with pytest.raises(UserError, match=r"train\.compile needs a C\+\+ compiler, and torch finds none: install g\+\+"):
        job.train(load_config(CONFIG, [*tiny_settings, "train.compile=true"]), tmp_path / "compiled")
    error = RankFailure("something else")
    with pytest.raises(RankFailure, match="something else"):
        job.train(load_config(CONFIG, tiny_settings), tmp_path / "other")


def test_a_run_folder_that_is_removed_ends_the_run_and_does_not_rise_again(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step = tmp_path / "run", job.Trainer.take_step

    def take_step(*arguments: object, **options: object) -> object:
        if (run / "checkpoints/last.pt").exists():  # after the first epoch
            shutil.rmtree(run)
        return step(*arguments, **options)

    monkeypatch.setattr(job.Trainer, "take_step", take_step)
    with pytest.raises(UserError, match=r"run was removed, moved or replaced while this run was at work in it"):
        job.train(load_config(CONFIG, [*tiny_settings, "data.val=null", "train.log_every=100"]), run)
    assert not run.exists()


def test_a_test_folder_that_goes_away_is_a_sentence(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(done: int, total: int) -> None:
        if done == 5:
            shutil.rmtree(tmp_path / "test")

    with pytest.raises(UserError, match=r"the scores of 10 of 10 videos are gone from .*unfinished: it was removed, moved"):
        evaluate(tiny_run / "checkpoints/last.pt", ["data.num_workers=0"], tmp_path / "test", remove)
    assert not (tmp_path / "test").exists()
