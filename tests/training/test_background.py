"""A thread beside the steps; that of a training, which writes its checkpoints."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import CONFIG

from videornn.checkpoints import run_folder
from videornn.checkpoints.checkpoint import load_checkpoint
from videornn.checkpoints.run_folder import load_newest
from videornn.config import load_config
from videornn.distributed.signals import Interrupted
from videornn.errors import UserError
from videornn.training import train as job
from videornn.training.background import Background

LONG = 300.0  # seconds; nothing waits for so long unless it hangs


def _fail(words: str) -> Callable[[], None]:
    def fail() -> None:
        raise UserError(words)

    return fail


def test_one_thing_is_done_after_the_other_beside_the_caller() -> None:
    done, go_on = [], threading.Event()

    def first() -> None:
        assert go_on.wait(LONG)
        done.append("first")

    with Background() as background:
        background.start(first)
        background.check()  # does not wait
        assert done == []
        go_on.set()
        background.start(lambda: done.append("second"))
        assert done[0] == "first"
    assert done == ["first", "second"]


@pytest.mark.parametrize("ask", ["check", "wait", "start", "leave"])
def test_an_error_is_raised_once_where_the_next_thing_is_asked(ask: str) -> None:
    background = Background()
    background.start(_fail("the disk is full"))
    while not background._pending.done():
        time.sleep(0.001)
    with pytest.raises(UserError, match="the disk is full"):
        if ask == "leave":
            with background:
                pass
        elif ask == "start":
            background.start(_fail("never begun"))
        else:
            getattr(background, ask)()
    background.check()
    background.wait()


def test_another_error_comes_first_and_that_of_the_thread_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    done = []
    with pytest.raises(UserError, match="no such video"), Background() as background:
        background.start(_fail("the disk is full"))
        raise UserError("no such video")
    assert "videornn: the disk is full" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such video"), Background() as background:
        background.start(lambda: done.append("written"))
        raise UserError("no such video")
    assert done == ["written"]


@pytest.fixture
def train_writing(tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A run of 4 steps that calls a function before each and another before it writes; what it did, in its order."""

    def run(settings: list[str], before_step: Callable[[int], None], before_writing: Callable[[int], None]) -> list[str]:
        events, take_step, save = [], job.Trainer.take_step, run_folder.save_checkpoint

        def step(*arguments: object, **options: object) -> object:
            events.append("step")
            before_step(events.count("step"))
            return take_step(*arguments, **options)

        def write(*arguments: object, **options: object) -> None:
            before_writing(events.count("write") + 1)
            save(*arguments, **options)
            events.append("write")

        monkeypatch.setattr(job.Trainer, "take_step", step)
        monkeypatch.setattr(run_folder, "save_checkpoint", write)
        job.train(load_config(CONFIG, [*tiny_settings, "data.val=null", *settings]), tmp_path / "run")
        return events

    return run


def test_steps_go_on_while_a_checkpoint_is_written_of_what_there_was(
    train_writing: Callable[..., list[str]], tiny_settings: list[str], tmp_path: Path
) -> None:
    job.train(load_config(CONFIG, [*tiny_settings, "data.val=null"]), tmp_path / "alone")
    fourth_step = threading.Event()

    def before_step(number: int) -> None:
        if number == 4:
            fourth_step.set()

    def before_writing(number: int) -> None:
        assert fourth_step.wait(LONG)

    events = train_writing([], before_step, before_writing)  # two epochs of two steps; each is saved
    assert events == ["step", "step", "step", "step", "write", "write"]
    ours, theirs = (load_checkpoint(run / "checkpoints/step_00000002.pt") for run in (tmp_path / "run", tmp_path / "alone"))
    assert ours["step"] == 2 and all(torch.equal(ours["model"][name], value) for name, value in theirs["model"].items())
    momenta = [saved["optimizer"]["state"][0]["momentum_buffer"] for saved in (ours, theirs)]
    assert torch.equal(*momenta) and momenta[0].any()
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"] == 4


def test_a_checkpoint_that_cannot_be_written_soon_ends_the_run(
    train_writing: Callable[..., list[str]], tmp_path: Path
) -> None:
    steps = []

    def before_writing(number: int) -> None:
        if number == 2:
            raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        train_writing(["train.epochs=100", "train.save_every_steps=1"], steps.append, before_writing)
    assert len(steps) in (2, 3)
    assert load_newest(tmp_path / "run/checkpoints")[0]["step"] == 1


@pytest.mark.parametrize("full", [False, True])
def test_a_run_that_is_stopped_ends_when_its_last_step_is_written_or_says_that_it_is_not(
    full: bool, train_writing: Callable[..., list[str]], tmp_path: Path
) -> None:
    def before_step(number: int) -> None:
        if number == 3:
            signal.raise_signal(signal.SIGTERM)

    def before_writing(number: int) -> None:
        time.sleep(0.2)
        if number == 2 and full:
            raise UserError("the disk is full")

    with pytest.raises(UserError if full else Interrupted, match="disk is full" if full else "after step 3, which is saved"):
        train_writing([], before_step, before_writing)
    assert load_newest(tmp_path / "run/checkpoints")[0]["step"] == (2 if full else 3)
