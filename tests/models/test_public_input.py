"""Weights keep the clips that they were trained on: convert sets them, a training that has others is told."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from foreign_weights import WRITERS
from helpers import ROOT

from videornn.checkpoints.trained import load_trained
from videornn.config import Config, load_config, override_config
from videornn.data.loader import clip_spec
from videornn.data.sampling import uniform_clips
from videornn.models import build_model
from videornn.models.public_input import input_remark
from videornn.models.resnet3d import ResNet3d
from videornn.models.weights import LoadReport, load_weights
from videornn.tools.convert import convert
from videornn.training.train import train

CONFIGS = ROOT / "configs"
REPORT = LoadReport("slow.pyth", "SlowFast", (), (), (), (), (), None)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ResNet3d("slow", 50, num_classes=3, width=4).state_dict()


def _convert(state: dict[str, torch.Tensor], folder: Path, form: str, *overrides: str) -> tuple[Config, str]:
    """The config of a converted file, and what its user is told."""
    WRITERS[form](state, folder / "foreign")
    report = convert(folder / "foreign", folder / "ours.pt", list(overrides))
    return load_trained(folder / "ours.pt").config, report.lines()[-1]


@pytest.mark.parametrize("num_frames", [8, 4])
def test_a_slowfast_network_is_given_the_frames_that_slowfast_gives_it(state, num_frames: int, tmp_path: Path) -> None:
    overrides = [] if num_frames == 8 else [f"data.num_frames={num_frames}"]
    config, note = _convert(state, tmp_path, "SlowFast", *overrides)
    (clip,) = uniform_clips(clip_spec(config.data), 64, Fraction(30), 1)
    assert clip.tolist() == torch.linspace(0, 63, num_frames).long().tolist()  # of a window of 64 frames
    other, apart = {8: (4, 9), 4: (8, 21)}[num_frames]
    assert f"clips of {num_frames} frames, {apart} apart at 30 fps, as public SlowFast networks" in note
    assert f"give data.num_frames={other}" in note


@pytest.mark.parametrize(("frames", "rate", "apart"), [(4, 16, 21), (8, 8, 9), (32, 2, 2), (16, 4, 4), (1, 8, 8)])
def test_a_config_in_a_slowfast_file_is_believed(state, frames: int, rate: int, apart: int, tmp_path: Path) -> None:
    WRITERS["SlowFast"](state, tmp_path / "slow.pyth")
    content = torch.load(tmp_path / "slow.pyth", weights_only=True)
    content["cfg"] = f"BN:\n  NORM_TYPE: batchnorm\nDATA:\n  NUM_FRAMES: {frames}\n  SAMPLING_RATE: {rate}\n"
    torch.save(content, tmp_path / "slow.pyth")
    note = convert(tmp_path / "slow.pyth", tmp_path / "ours.pt").lines()[-1]
    config = load_trained(tmp_path / "ours.pt").config
    assert (config.data.num_frames, config.data.temporal_stride) == (frames, apart)
    assert note.endswith("which its file says it was trained on")
    report = convert(tmp_path / "slow.pyth", tmp_path / "other.pt", [f"data.temporal_stride={apart + 1}"])
    assert report.lines()[-1].endswith(
        f"slow.pyth learnt from other clips than this config has: data.temporal_stride={apart} (here {apart + 1})"
    )


def test_mmaction2_counts_the_frames_of_the_video_and_loops_short_ones(state, tmp_path: Path) -> None:
    config, note = _convert(state, tmp_path, "MMAction2", "data.num_frames=4")
    (clip,) = uniform_clips(clip_spec(config.data), 50, Fraction(25), 1)
    assert clip.tolist() == [0, 16, 32, 48] and config.data.mean == (0.485, 0.456, 0.406)
    assert uniform_clips(clip_spec(config.data), 40, Fraction(25), 1).tolist() == [[0, 16, 32, 8]]
    assert "16 apart as the video counts them" in note


def test_settings_that_are_given_stand_and_differ_aloud(state, tmp_path: Path) -> None:
    config, note = _convert(state, tmp_path, "SlowFast", "data.temporal_stride=8")
    assert config.data.temporal_stride == 8
    assert note.endswith(
        "public SlowFast networks learnt from other clips than this config has: data.temporal_stride=9 (here 8)"
    )
    config, note = _convert(state, tmp_path, "caffe2")
    assert config.data.temporal_stride == 8 and "the file does not tell what it was trained on" in note


def test_a_remark_names_every_setting_to_change_and_none_that_is_right() -> None:
    config = load_config(CONFIGS / "kinetics400/slow_r50_8x8.yaml")
    assert input_remark(config, REPORT).endswith(": data.temporal_stride=9 (here 8)")
    assert input_remark(override_config(config, ["data.num_frames=4", "data.temporal_stride=21"]), REPORT) is None
    mmaction2 = input_remark(config, replace(REPORT, format="MMAction2"))
    assert mmaction2.endswith(
        ": data.sampling_fps=null (here 30), data.mean=[0.485,0.456,0.406] (here [0.45,0.45,0.45]), "
        "data.std=[0.229,0.224,0.225] (here [0.225,0.225,0.225])"
    )
    segments = input_remark(override_config(config, ["data.sampling=segments"]), REPORT)
    assert segments.endswith(": data.sampling=clip (here segments)")
    assert input_remark(config, replace(REPORT, format="torchvision image ResNet")) is None
    assert input_remark(load_config(CONFIGS / "finetune.yaml"), REPORT) is None  # which is for these weights
    overrides = mmaction2.partition(": ")[2]
    taken = [pair.split(" (here")[0] for pair in overrides.split(", ")]
    assert input_remark(override_config(config, taken), replace(REPORT, format="MMAction2")) is None


def test_a_converted_checkpoint_still_knows_its_clips(state, tmp_path: Path) -> None:
    config, _ = _convert(state, tmp_path, "SlowFast")
    model = build_model(config.model)
    report = load_weights(model, tmp_path / "ours.pt")
    assert report.format == "videornn" and input_remark(config, report) is None
    other = override_config(config, ["data.temporal_stride=8"])
    assert input_remark(other, report) == (
        f"{tmp_path}/ours.pt learnt from other clips than this config has: data.temporal_stride=9 (here 8)"
    )
    WRITERS["videornn"](state, tmp_path / "bare.pt")  # without a config
    assert input_remark(other, load_weights(model, tmp_path / "bare.pt")) is None


@pytest.mark.slow
def test_training_says_which_clips_its_weights_learnt_from(tiny_settings, tmp_path: Path, capsys) -> None:
    settings = [*tiny_settings, "train.epochs=1", "train.warmup_epochs=0"]
    config = load_config(CONFIGS / "quickstart.yaml", settings)
    model = build_model(override_config(config, ["model.num_classes=10"]).model)
    WRITERS["videornn"](model.state_dict(), tmp_path / "init.pt")
    content = torch.load(tmp_path / "init.pt", weights_only=True)
    content["config"] = override_config(config, ["data.temporal_stride=7"]).model_dump(mode="json")
    torch.save(content, tmp_path / "init.pt")
    train(override_config(config, [f"model.init={tmp_path}/init.pt"]), tmp_path / "run")
    said = capsys.readouterr().out
    assert f"  note: {tmp_path}/init.pt learnt from other clips than this config has: data.temporal_stride=7 (here" in said
