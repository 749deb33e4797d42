"""What is wrong with a run is found before its first step."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CONFIG

from videornn.config import load_config
from videornn.data.annotations.packed_paths import PathPacker
from videornn.data.annotations.table import VideoTable
from videornn.errors import UserError
from videornn.models import build_model
from videornn.system.device import pick_device
from videornn.training.preflight import TrainingData, check_batch_norm, empty_classes, remarks
from videornn.training.resume import check_resumable
from videornn.training.train import train


def _data(labels: list[int], class_names: tuple[str, ...]) -> TrainingData:
    packer = PathPacker()
    for number in range(len(labels)):
        packer.append(f"{number}.mp4")
    table = VideoTable("list.txt", "", packer.pack(), torch.from_numpy(np.array(labels, np.int32)), class_names)
    return TrainingData(table, None, class_names)


def test_classes_without_a_training_video_are_named() -> None:
    data = _data([0, 2, 2], ("walk", "run", "wave", "jump"))
    assert empty_classes(data) == ["run", "jump"]
    config = load_config(CONFIG)
    assert any("2 of 4 classes have no training video" in text and "run, jump" in text for text in remarks(config, data, 8))
    assert not any("no training video" in text for text in remarks(config, _data([0, 1], ("walk", "run")), 8))


def test_small_batches_of_batch_norm_are_remarked() -> None:
    data, config = _data([0, 1], ("walk", "run")), load_config(CONFIG)
    assert any("statistics of 2 clips at a time" in text for text in remarks(config, data, 2))
    assert any("statistics of 2 clips" in text for text in remarks(load_config(CONFIG, ["train.bn_clips=2"]), data, 8))
    assert remarks(config, data, 4) == [] == remarks(load_config(CONFIG, ["train.batch_norm=frozen"]), data, 1)


def test_one_value_per_channel_is_too_few_for_batch_norm() -> None:
    model = build_model(load_config(CONFIG, ["model.num_classes=3"]).model)
    check_batch_norm(model, (1, 32, 32), 2, None)
    with pytest.raises(
        UserError, match=r"cannot train on 1 clip\(s\) of 1 x 32 x 32 at a time \(Expected more than 1 value"
    ):
        check_batch_norm(model, (1, 32, 32), 1, None)
    with pytest.raises(UserError, match=r"cannot train on 1 clip\(s\)"):
        check_batch_norm(model, (1, 32, 32), 4, 1)
    with pytest.raises(UserError, match=r"bn_clips=3 does not divide the 4 clips"):
        check_batch_norm(model, (1, 64, 64), 4, 3)
    assert next(model.parameters()).device.type == "cpu"


def test_a_network_left_without_positions_is_found_before_the_first_step(tiny_settings: list[str], tmp_path: Path) -> None:
    settings = [*tiny_settings, "model.name=i3d", "data.num_frames=1"]
    with pytest.raises(UserError, match=r"cannot train on 8 clip\(s\) of 1 x 32 x 32"):
        train(load_config(CONFIG, settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_with_the_settings_videos_and_ranks_it_began_with() -> None:
    config = load_config(CONFIG)
    saved = {"config": config.model_dump(mode="json"), "num_videos": 20, "num_ranks": 2, "meters": []}
    path = Path("run/checkpoints/last.pt")
    assert check_resumable(config, saved, path, num_videos=20, num_ranks=2) == []
    free = load_config(
        CONFIG, ["data.num_workers=7", "train.log_every=1", "train.keep=9", "test.num_clips=1", "data.root=/x"]
    )
    assert check_resumable(free, saved, path, num_videos=20, num_ranks=2) == []
    for settings, num_videos, num_ranks, message in [
        (["train.lr=0.1"], 20, 2, r"train\.lr is 0\.1 now and was 0\.05 in run/checkpoints/last\.pt"),
        (["train.batch_size=4"], 20, 2, r"train\.batch_size is 4 now and was 16"),
        (["train.multigrid.short_cycle=true"], 20, 2, r"train\.multigrid\.short_cycle is True now"),
        ([], 21, 2, r"has 21 videos now and had 20"),
        ([], 20, 4, r"4 ranks now and were 2 .*use 2, or train\.elastic=true"),
    ]:
        with pytest.raises(UserError, match=message):
            check_resumable(load_config(CONFIG, settings), saved, path, num_videos=num_videos, num_ranks=num_ranks)
    with pytest.raises(UserError, match=r"another version of videornn.*model\.init=run/checkpoints/last\.pt"):
        check_resumable(config, {"config": {}, "model": {}}, path, num_videos=20, num_ranks=2)
    elastic = load_config(CONFIG, ["train.elastic=true"])
    assert "4 ranks now, 2 before" in check_resumable(elastic, saved, path, num_videos=20, num_ranks=4)[0]


def test_a_rank_without_a_gpu_of_its_own_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("RANK", "12")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(
        UserError, match=r"rank 12 is number 4 of its machine, from 0, where torch sees 4 GPU\(s\): start no"
    ):
        pick_device("auto")
    assert pick_device("cpu").type == "cpu"
