"""videornn convert, and model.init with public weights, as a user runs them."""

from pathlib import Path

import pytest
import torch
from helpers import CONFIG
from torchvision.models import resnet18
from torchvision.models.video import r3d_18

from videornn import load_predictor
from videornn.checkpoints.trained import load_trained
from videornn.config import load_config
from videornn.errors import UserError
from videornn.tools.convert import convert
from videornn.training.train import train


@pytest.fixture(scope="module")
def image_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=1000, width_per_group=64).state_dict(), path)
    return path


@pytest.mark.slow
def test_a_converted_video_network_predicts_as_torchvision_does(tmp_path: Path, motion_set: Path) -> None:
    torch.manual_seed(0)
    theirs = r3d_18(num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "r3d.pth")
    labels = tmp_path / "labels.txt"
    labels.write_text("bend\njump\nwave\n")
    overrides = ["test.num_clips=1", "test.num_crops=1", "data.num_frames=4", "train.precision=fp32"]
    report = convert(tmp_path / "r3d.pth", tmp_path / "r3d.pt", overrides, labels=labels)
    assert not report.new and not report.unused
    trained = load_trained(tmp_path / "r3d.pt")
    config, ours, class_names = trained.config, trained.model, trained.class_names
    assert (config.model.name, config.model.depth, class_names) == ("r3d", 18, ("bend", "jump", "wave"))
    assert config.data.mean == (0.43216, 0.394666, 0.37645) and config.test.crop_size == 112
    clip = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs(clip), rtol=1e-4, atol=1e-5)
    top = load_predictor(tmp_path / "r3d.pt")(motion_set / "videos/test/approach/approach_0000.mp4")
    assert {name for name, _ in top} == {"bend", "jump", "wave"}


def test_an_image_network_needs_to_be_told_what_to_become(tmp_path: Path, image_weights: Path) -> None:
    with pytest.raises(UserError, match=r"say what it is to become, model\.name="):
        convert(image_weights, tmp_path / "c2d.pt")
    report = convert(image_weights, tmp_path / "i3d.pt", ["model.name=i3d", "model.inflation=centre"])
    assert report.inflated and not report.new
    kernel = torch.load(tmp_path / "i3d.pt", weights_only=True)["model"]["stem.0.conv.weight"]
    assert torch.equal(kernel[:, :, 2], torch.load(image_weights, weights_only=True)["conv1.weight"])
    assert kernel[:, :, [0, 1, 3, 4]].abs().max() == 0


def test_wrong_labels_and_our_own_checkpoints_are_refused(tmp_path: Path, image_weights: Path, tiny_run: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"labels\.txt has 2 class names, the network 1000 classes"):
        convert(image_weights, tmp_path / "out.pt", ["model.name=c2d"], labels=tmp_path / "labels.txt")
    with pytest.raises(UserError, match=r"labels .*nothing\.txt does not exist"):
        convert(image_weights, tmp_path / "out.pt", ["model.name=c2d"], labels=tmp_path / "nothing.txt")
    with pytest.raises(UserError, match="is a checkpoint of videornn already"):
        convert(tiny_run / "checkpoints/last.pt", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.slow
def test_training_starts_from_image_weights_and_says_what_became_of_them(
    tmp_path: Path, image_weights: Path, tiny_settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        *tiny_settings,
        "model.depth=18",
        "model.width=64",
        "train.epochs=1",
        "train.lr=1e-9",
        "train.warmup_epochs=0",
    ]
    last = train(load_config(CONFIG, [*overrides, f"model.init={image_weights}"]), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "torchvision image ResNet" in printed and "the head is new: the file has 1000 classes, the network 10" in printed
    ours = torch.load(last, weights_only=True)["model"]["res4.0.conv1.conv.weight"]  # [O, I, 3, 3, 3]
    theirs = torch.load(image_weights, weights_only=True)["layer3.0.conv1.weight"]
    torch.testing.assert_close(ours.sum(2), theirs, rtol=1e-4, atol=1e-5)
