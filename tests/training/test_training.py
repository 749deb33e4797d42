import itertools
import json
import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import Command, CommandOnRanks
from helpers import CONFIG, records

from videornn.checkpoints.checkpoint import load_checkpoint
from videornn.checkpoints.trained import load_trained
from videornn.config import load_config
from videornn.errors import UserError
from videornn.evaluation.evaluate import evaluate
from videornn.models.forward import Normalize
from videornn.training import speed_watch
from videornn.training import train as job
from videornn.training.preflight import load_training_data
from videornn.training.run import new_run
from videornn.training.train import train


def test_a_run_leaves_its_files_and_a_checkpoint_of_tensors_and_plain_types(tiny_run: Path) -> None:
    assert load_config(tiny_run / "config.yaml").train.epochs == 2
    kinds = [(record["kind"], record["step"]) for record in records(tiny_run)]
    # 20 videos in batches of 8: 2 steps an epoch, 2 epochs, a validation after each 4th epoch and after the last
    assert kinds == [("train", 1), ("train", 2), ("train", 3), ("train", 4), ("val", 4)]
    assert any((tiny_run / "tensorboard").iterdir())
    checkpoint = torch.load(tiny_run / "checkpoints/last.pt", weights_only=True)
    assert checkpoint["step"] == 4 and checkpoint["class_names"][4] == "approach"
    assert checkpoint["config"]["model"]["num_classes"] == 10
    # the two newest, of which last.pt is another name of the newer
    names = {"last.pt", "best.pt", "step_00000002.pt", "step_00000004.pt"}
    assert {file.name for file in (tiny_run / "checkpoints").iterdir()} == names
    (start,) = json.loads((tiny_run / "manifest.json").read_text())
    assert start["training"]["batch_size"] == 8 and start["data"]["train"]["used"] == 20 and start["start"]["step"] == 0


def test_a_precision_that_is_slow_here_is_compared_with_float32(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {torch.float32: 1e15, torch.float16: 2e13}  # products of fp16 crawl on CPUs, convolutions do not
    monkeypatch.setattr("videornn.training.speed_watch.matrix_rate", lambda device, dtype: rates[dtype])
    train(load_config(CONFIG, [*tiny_settings, "train.precision=fp16", "data.val=null"]), tmp_path)
    assert all(0 < json.loads(line)["mfu"] < 1 for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    said = "matrix products in fp16 take 50 times as long here as those in float32: train.precision=fp32 may be faster"
    assert capsys.readouterr().out.count(said) == 1


def test_a_rate_measured_while_the_machine_was_busy_is_measured_again(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, measured = [1e9, 8e9, 4e9, 4e9], []  # busy, idle, beside the loader

    def rate(device: torch.device, dtype: torch.dtype) -> float:
        measured.append(rates[min(len(measured), 3)])
        return measured[-1]

    monkeypatch.setattr(speed_watch, "matrix_rate", rate)
    monkeypatch.setattr(speed_watch, "training_flops", lambda model, clip_size: 1e9)
    data, config = load_training_data(load_config(CONFIG, tiny_settings))
    speed = speed_watch.SpeedWatch(new_run(config, tmp_path, data, torch.device("cpu"), load_init=False))
    assert measured == [1e9]
    assert [speed.numbers(2.0)["mfu"] for _ in range(20)] == [0.25] * 20  # and not 200 %
    assert measured == [1e9, 8e9, 4e9, 4e9, 4e9, 4e9]  # after 1, 2, 4, 8 and 16 lines
    assert speed.numbers(16.0)["mfu"] == 2.0 and len(measured) == 7  # never seen idle: the line says so
    assert speed.numbers(4.0)["mfu"] == 0.5 and len(measured) == 7
    assert [speed.numbers(16.0)["mfu"] for _ in range(8)] == [2.0] * 8
    assert len(measured) == 7 + 2  # at the 4th and the 8th line of the run that is too fast


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_ends_a_run_after_a_saved_step_with_its_own_exit_code(
    number: int, code: int, tiny_settings: list[str], tmp_path: Path
) -> None:
    settings = [*tiny_settings, "train.epochs=1000", "data.val=null"]
    command = Command(tmp_path / "log", "train", CONFIG, *settings, "--out", tmp_path / "run")
    command.wait_until_it_says("step 1/")
    command.send_signal(number)
    assert command.wait() == code
    stopped = load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"]
    assert f"stopped by {signal.Signals(number).name} after step {stopped}, which is saved" in command.said()
    assert "--resume" in command.said() and "Traceback" not in command.said() and 1 <= stopped < 2000


@pytest.mark.slow
def test_two_ranks_see_the_same_samples_and_write_one_run(tiny_run: Path, tiny_settings: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    training = CommandOnRanks(2, tmp_path / "training", "train", CONFIG, *tiny_settings, "--out", out)
    assert training.wait() == [0, 0], training.said()
    assert "cpu x 2" in training.said() and "Warning" not in training.said()
    ours, alone = records(out), records(tiny_run)
    assert [(r["kind"], r["step"]) for r in ours] == [(r["kind"], r["step"]) for r in alone]
    # ranks normalise over their own half of the batch, so only the first loss, before any update, must be close
    assert ours[0]["loss"] == pytest.approx(alone[0]["loss"], rel=0.05)
    testing = CommandOnRanks(2, tmp_path / "testing", "test", out / "checkpoints/last.pt", "--out", tmp_path / "two")
    assert testing.wait() == [0, 0], testing.said()
    one, _ = evaluate(out / "checkpoints/last.pt", [], tmp_path / "one", lambda done, total: None)
    assert (tmp_path / "one/predictions.csv").read_text() == (tmp_path / "two/predictions.csv").read_text()
    assert one == json.loads((tmp_path / "two/metrics.json").read_text())


@pytest.mark.slow
def test_a_multigrid_run_has_its_shapes_and_learning_rates(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def noting(normalize: Normalize, clips: torch.Tensor) -> torch.Tensor:
        shapes.append((len(clips), *clips.shape[2:4]))
        return forward(normalize, clips)

    forward = Normalize.forward
    monkeypatch.setattr(Normalize, "forward", noting)
    settings = ["data.num_frames=8", "data.crop_size=64", "data.short_side=[64,72]", "data.val=null", "train.batch_size=1"]
    settings += ["train.epochs=4", "train.schedule=step", "train.step_epochs=[3]", "train.warmup_epochs=0"]
    settings += ["train.multigrid.long_cycle=true", "train.multigrid.short_cycle=true"]
    train(load_config(CONFIG, [*tiny_settings, *settings]), tmp_path / "run")
    rates = [record["lr"] for record in records(tmp_path / "run")]
    # T/4 and S/sqrt2 is 8 times the base shape; its short cycle has S/2, 16 times, and twice S/sqrt2
    assert shapes[0] == (16, 2, 32) and rates[0] == pytest.approx(8 * 0.05)
    # the base shape is last, at a tenth of the rate; every third step of its epochs has the full crop
    assert (1, 8, 64) in shapes and rates[-1] == pytest.approx(0.005)
    assert all(n * t * size**2 == pytest.approx(8 * 64**2, rel=0.02) for n, t, size in shapes)


def test_a_run_is_not_overwritten_and_resume_refuses_other_settings(tiny_run: Path, tiny_settings: list[str]) -> None:
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        train(load_config(CONFIG, tiny_settings), tiny_run)
    with pytest.raises(UserError, match=r"train\.lr is 0\.5 now and was 0\.05"):
        train(load_config(CONFIG, [*tiny_settings, "train.lr=0.5"]), tiny_run, resume=True)
    before = (tiny_run / "metrics.jsonl").read_text()
    train(load_config(CONFIG, [*tiny_settings, "train.log_every=3", "data.num_workers=1"]), tiny_run, resume=True)
    assert (tiny_run / "metrics.jsonl").read_text() == before


def test_too_many_broken_videos_stop_the_run_and_are_listed(
    motion_set: Path, tiny_settings: list[str], tmp_path: Path
) -> None:
    lines = [f"{motion_set}/{line}" for line in (motion_set / "train.txt").read_text().splitlines()]
    for index in (1, 5, 9):
        (tmp_path / f"{index}.mp4").write_text("no video")
        lines[index] = f"{tmp_path}/{index}.mp4 {lines[index].split()[-1]}"
    (tmp_path / "list.txt").write_text("\n".join(lines))
    settings = [*tiny_settings, f"data.train={tmp_path}/list.txt", "data.labels=" + str(motion_set / "labels.txt")]
    settings += ["train.batch_size=2"]
    with pytest.raises(UserError, match=r"training videos cannot be decoded, more than data\.max_bad_share=0\.05"):
        train(load_config(CONFIG, [*settings, "data.max_bad_share=0.05", "data.val=null"]), tmp_path / "run")
    table = (tmp_path / "run/bad_videos.csv").read_text().splitlines()
    assert table[0] == "path,reason" and len(table) >= 3 and "cannot be decoded" in table[1]
    # the run did not wait for the end of an epoch, and what it did is saved
    assert 0 < load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"] < 10


def test_labels_and_classes_are_checked_before_the_first_step(
    motion_set: Path, tiny_settings: list[str], tmp_path: Path
) -> None:
    for setting, message in [
        ("model.num_classes=5", "num_classes=5, but .* has 10 class names"),
        ("data.train=null", "give data.train"),
        ("train.batch_size=500", "larger than the training set of 20 videos"),
        ("model.attention.places={res3: [7]}", "block 7 of res3"),
        ("model.init=nowhere.pt", r"nowhere\.pt: there is no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            train(load_config(CONFIG, [*tiny_settings, setting]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _reordered(motion_set: Path, split: str, folder: Path) -> Path:
    """Alist of the set whose classes are in reverse order, spelt with blanks, in a folder of its own."""
    names = (motion_set / "labels.txt").read_text().splitlines()
    folder.mkdir()
    (folder / "labels.txt").write_text("\n".join(name.replace("_", " ") for name in names[::-1]))
    rows = [line.rsplit(" ", 1) for line in (motion_set / f"{split}.txt").read_text().splitlines()]
    (folder / "list.txt").write_text("".join(f"{motion_set}/{path} {len(names) - 1 - int(id)}\n" for path, id in rows))
    return folder / "list.txt"


def test_validation_labels_mean_the_classes_of_the_training_set(
    motion_set: Path, tiny_settings: list[str], tmp_path: Path
) -> None:
    settings = [*tiny_settings, f"data.val={_reordered(motion_set, 'val', tmp_path / 'other')}"]
    data, config = load_training_data(load_config(CONFIG, settings))
    expected = [int(line.split()[1]) for line in (motion_set / "val.txt").open()]
    assert data.val.labels.tolist() == expected and data.val.class_names == data.train.class_names == data.class_names
    assert config.model.num_classes == 10
    (tmp_path / "named.txt").write_text("b.mp4 approach\nc.mp4 swim\n")
    with pytest.raises(UserError, match=r"named\.txt: class 'swim' is not among the 10 classes of the network"):
        load_training_data(load_config(CONFIG, [*tiny_settings, f"data.val={tmp_path}/named.txt"]))
    (tmp_path / "paths.txt").write_text("a.mp4\nb.mp4\n")
    for key in ("train", "val"):
        with pytest.raises(UserError, match=r"paths\.txt has no labels"):
            load_training_data(load_config(CONFIG, [*tiny_settings, f"data.{key}={tmp_path}/paths.txt"]))


def test_test_labels_mean_the_classes_of_the_checkpoint(motion_set: Path, tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = tiny_run / "checkpoints/last.pt"
    results = []
    for name, source in (("one", motion_set / "test.txt"), ("two", _reordered(motion_set, "test", tmp_path / "other"))):
        result, _ = evaluate(checkpoint, [f"data.test={source}"], tmp_path / name, lambda done, total: None)
        results.append((result, (tmp_path / name / "predictions.csv").read_text()))
    assert results[0] == results[1]
    assert results[0][0]["num_missing"] == 0


def test_a_checkpoint_whose_weights_are_not_of_its_network_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    content = torch.load(tiny_run / "checkpoints/last.pt", weights_only=True)
    content["model"]["res3.0.attention.mask.bias"] = torch.zeros(1)  # DNL blocks had this bias once
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(UserError, match=r"old\.pt: its weights are not those of the network"):
        load_trained(tmp_path / "old.pt")


def test_every_step_is_one_of_training_also_after_a_validation(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, take_step = [], job.Trainer.take_step

    def look(trainer: job.Trainer, lr: float) -> torch.Tensor:
        modes.append({module.training for module in trainer.parallel.modules()})
        return take_step(trainer, lr)

    monkeypatch.setattr(job.Trainer, "take_step", look)
    train(load_config(CONFIG, [*tiny_settings, "train.val_every=1", "train.precise_bn=1"]), tmp_path / "run")
    assert modes == [{True}] * 4


def _first_mask(*, seed: int = 0, step: int = 0, rank: int = 0, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What dropout keeps of the first part of a step."""
    monkeypatch.setattr(job.ranks, "rank", lambda: rank)
    monkeypatch.setattr(job.ranks, "num_ranks", lambda: 2)
    batch = SimpleNamespace(
        bad=[], indices=torch.tensor([0]), clips=torch.zeros(1, 3, 1, 2, 2).byte(), labels=torch.tensor([0])
    )
    run = SimpleNamespace(
        config=SimpleNamespace(seed=seed, train=SimpleNamespace(accumulate=1)),
        normalize=Normalize([0.0] * 3, [1.0] * 3, torch.device("cpu")),
        meter=SimpleNamespace(wait_for=next),
        mixing=None,
        bad={},
        step=step,
    )
    trainer = SimpleNamespace(run=run, watch=SimpleNamespace(at=lambda *_: None), share=SimpleNamespace(listed=nullcontext))
    trainer.batches = iter([batch])
    with torch.random.fork_rng():
        job.Trainer.load_part(trainer, 0)
        return (torch.nn.functional.dropout(torch.ones(64)) > 0).tolist()


def test_every_seed_step_and_rank_drops_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = partial(_first_mask, monkeypatch=monkeypatch)
    masks = [mask(), mask(seed=1), mask(seed=7), mask(step=1), mask(rank=1), mask(seed=1, step=1)]
    assert all(one != other for one, other in itertools.combinations(masks, 2))
    assert mask() == masks[0]
