"""A run that is killed at any instant and started again ends as if nothing had happened, bit for bit.

On the way its last checkpoint is damaged, and it goes on with another number of loader workers.
"""

import os
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from commands import CommandOnRanks
from helpers import CONFIG, records

from videornn.checkpoints.checkpoint import load_checkpoint
from videornn.config import load_config
from videornn.training.run import training_plan
from videornn.training.train import train

EVERYTHING = [
    "data.num_workers=2",
    "data.mixup_alpha=0.8",
    "data.cutmix_alpha=1.0",
    "data.rand_augment=1",
    "model.dropout=0.5",
    "model.drop_path=0.2",
    "train.epochs=4",
    "train.accumulate=2",
    "train.ema_decay=0.9",
    "train.label_smoothing=0.1",
    "train.class_weights=sqrt",
    "train.log_every=3",
    "train.save_every_steps=1",
    "train.precise_bn=2",
    "train.val_every=2",
]


def _assert_same(ours: object, theirs: object, place: str) -> None:
    """Equal in every bit of every tensor, however deep."""
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), place
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), place
        for key in theirs:
            _assert_same(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), place
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            _assert_same(one, other, f"{place}.{number}")
    else:
        assert ours == theirs, place


def _saved(out: Path) -> int:
    """When the last checkpoint was written, 0: none was."""
    with suppress(FileNotFoundError):
        return (out / "checkpoints/last.pt").stat().st_mtime_ns
    return 0


def _under_torchrun() -> None:
    """Go on in a child of this process, which stands for torchrun."""
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="what a killed process leaves is read from /proc")
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_killed_at_random_instants_and_resumed_ends_bit_identical(
    num_ranks: int, tiny_settings: list[str], tmp_path: Path
) -> None:
    arguments = ["train", CONFIG, *tiny_settings, *EVERYTHING, "--resume", "--out"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    undisturbed = CommandOnRanks(num_ranks, tmp_path / "logs of the whole", *arguments, whole)
    dice = random.Random(num_ranks)
    for number in range(3):
        before = _saved(out)
        alone = number == 0
        parent = _under_torchrun if alone and num_ranks > 1 else None
        ranks = CommandOnRanks(num_ranks, tmp_path / f"logs {number}", *arguments, out, before=parent)
        while ranks.are_running():  # until it gets further than the last time, then some time into the next steps
            if _saved(out) > before:
                time.sleep(dice.random() * 0.5)
                break
            time.sleep(0.005)
        assert ranks.are_running() or set(ranks.wait()) == {0}, ranks.said()
        ranks.kill(alone=alone)  # its loader workers notice and end; of torchrun: its ranks notice, save and end
    assert undisturbed.wait() == [0] * num_ranks, undisturbed.said()
    with open(out / "checkpoints/last.pt", "r+b") as file:
        file.seek(-5000, os.SEEK_END)
        file.write(bytes(byte ^ 1 for byte in os.pread(file.fileno(), 1, file.tell())))
    last = CommandOnRanks(num_ranks, tmp_path / "logs of the last", *arguments, out, "data.num_workers=0")
    assert last.wait() == [0] * num_ranks, last.said()
    assert "last.pt is damaged" in last.said() and "going on from step_" in last.said()
    for name in ("last.pt", "best.pt"):
        ours, theirs = (load_checkpoint(run / "checkpoints" / name) for run in (out, tmp_path / "whole"))
        assert ours.pop("config") != theirs.pop("config")  # in the number of workers
        _assert_same(ours, theirs, name)
    assert records(out) == records(tmp_path / "whole")


@pytest.mark.slow
def test_a_multigrid_run_resumed_where_its_shape_changes_ends_bit_identical(
    tiny_settings: list[str], tmp_path: Path
) -> None:
    schedule = ["train.schedule=step", "train.step_epochs=[2]", "train.epochs=3", "train.warmup_epochs=0"]
    shapes = ["data.num_frames=8", "data.crop_size=64", "data.short_side=[64,72]", "train.batch_size=1", "data.val=null"]
    multigrid = ["train.multigrid.long_cycle=true", "train.multigrid.short_cycle=true"]
    saves = ["train.keep=1000", "train.save_every_steps=1"]
    settings = [*tiny_settings, *schedule, *shapes, *multigrid, *saves]
    config = load_config(CONFIG, settings)
    train(config, tmp_path / "whole")
    steps = sorted((tmp_path / "whole/checkpoints").glob("step_*.pt"), key=lambda path: int(path.stem.partition("_")[2]))
    plan, _ = training_plan(config, 20, 1)
    changes_of_shape = [
        step for step in range(1, plan.num_steps) if plan.step_at(step).shape != plan.step_at(step - 1).shape
    ]
    assert len(steps) == plan.num_steps and changes_of_shape
    step = changes_of_shape[len(changes_of_shape) // 2]  # the step before is the last one that was taken
    out = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole", out, ignore=shutil.ignore_patterns("*.pt"))
    shutil.copy(steps[step - 1], out / "checkpoints/last.pt")
    train(config, out, resume=True)
    ours, theirs = (load_checkpoint(run / "checkpoints/last.pt") for run in (out, tmp_path / "whole"))
    _assert_same(ours, theirs, f"from step {step}")
    assert records(out) == records(tmp_path / "whole")
