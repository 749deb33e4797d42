import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CONFIG
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from videornn.checkpoints.checkpoint import load_checkpoint
from videornn.config import load_config
from videornn.data.mixing import Mixing, cutmix, mixup
from videornn.training.step import train_step


def _batch(num_clips: int, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_clips)
    clips = torch.randn(num_clips, 3, 2, 20, 30, generator=generator)
    return clips, torch.randint(num_classes, (num_clips,), generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_and_cutmix_are_torchvisions(seed: int) -> None:
    # with two clips there is one partner to choose, so the pairs are the same
    clips, labels = _batch(2)
    targets = nn.functional.one_hot(labels, 5).float()
    for reference in (v2.MixUp(alpha=0.8, num_classes=5), v2.CutMix(alpha=1.0, num_classes=5)):
        torch.manual_seed(seed)
        expected_clips, expected_targets = reference(tv_tensors.Video(clips), labels)
        torch.manual_seed(seed)
        share = float(reference._dist.sample(()))
        if isinstance(reference, v2.MixUp):
            ours = mixup(clips, targets, share)
        else:
            x, y = float(torch.randint(30, (1,))), float(torch.randint(20, (1,)))
            ours = cutmix(clips, targets, share, np.array([(x + 0.5) / 30, (y + 0.5) / 20]))
        torch.testing.assert_close(ours[0], expected_clips.as_subclass(Tensor))
        torch.testing.assert_close(ours[1], expected_targets)


def test_every_clip_meets_another_one_and_pixels_and_targets_agree() -> None:
    """Clips of a constant value: what is seen of each tells what the targets must be."""
    for num_clips in (2, 5, 8):
        clips = torch.arange(num_clips).float().view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 20, 30)
        labels = torch.arange(num_clips)
        for step in range(20):
            mixing = Mixing(num_clips, cutmix_alpha=1.0)
            mixed, targets = mixing(clips, labels, np.random.default_rng(step))
            for clip, target in zip(mixed, targets, strict=True):
                seen = torch.stack([(clip == value).float().mean() for value in range(num_clips)])
                torch.testing.assert_close(seen, target, rtol=0, atol=1e-6)
                assert torch.equal(clip[:, :1].expand_as(clip), clip)  # the same box in all frames
            blended, targets = Mixing(num_clips, mixup_alpha=1.0)(clips, labels, np.random.default_rng(step))
            torch.testing.assert_close(blended[:, 0, 0, 0, 0], targets @ torch.arange(num_clips).float())
            assert ((targets > 0).sum(1) == 2).all()
            torch.testing.assert_close(targets.sum(1), torch.ones(num_clips))


def _kind(mixing: Mixing, seed: int) -> str:
    clips = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1).expand(2, 3, 2, 32, 32)
    mixed, targets = mixing(clips, torch.tensor([0, 1]), np.random.default_rng(seed))
    if torch.equal(mixed, clips) and torch.equal(targets, torch.eye(2)):
        return "none"
    return "cutmix" if set(mixed.unique().tolist()) == {0.0, 1.0} else "mixup"


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [
        (Mixing(2, mixup_alpha=1.0), {"mixup": 1.0}),
        (Mixing(2, cutmix_alpha=8.0), {"cutmix": 1.0}),
        (Mixing(2, mixup_alpha=1.0, cutmix_alpha=8.0, cutmix_share=0.25), {"mixup": 0.75, "cutmix": 0.25}),
        (Mixing(2, mixup_alpha=1.0, cutmix_alpha=8.0, probability=0.4), {"none": 0.6, "mixup": 0.2, "cutmix": 0.2}),
        (Mixing(2, mixup_alpha=1.0, probability=0.0), {"none": 1.0}),
    ],
)
def test_batches_are_mixed_as_often_as_asked(mixing: Mixing, expected: dict[str, float]) -> None:
    kinds = [_kind(mixing, seed) for seed in range(1000)]
    for kind in ("none", "mixup", "cutmix"):
        # standard deviation at most 0.016; a box may be empty or whole now and then
        assert kinds.count(kind) / 1000 == pytest.approx(expected.get(kind, 0.0), abs=0.06), kind


def test_the_share_is_beta_distributed() -> None:
    clips, labels = torch.zeros(2, 1, 1, 1, 1), torch.tensor([0, 1])
    mixing = Mixing(2, mixup_alpha=0.4)
    shares = [mixing(clips, labels, np.random.default_rng(seed))[1][0, 0].item() for seed in range(2000)]
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * 1.8), abs=0.01)


def test_mixing_leaves_its_input_and_keeps_channels_last() -> None:
    clips, labels = _batch(6)
    clips = clips.contiguous(memory_format=torch.channels_last_3d)
    before = clips.clone()
    for mixing in (Mixing(5, mixup_alpha=1.0), Mixing(5, cutmix_alpha=1.0)):
        mixed, targets = mixing(clips, labels, np.random.default_rng(3))
        assert torch.equal(clips, before) and mixed.is_contiguous(memory_format=torch.channels_last_3d)
        again, same_targets = mixing(clips, labels, np.random.default_rng(3))
        assert torch.equal(mixed, again) and torch.equal(targets, same_targets)
        other, _ = mixing(clips, labels, np.random.default_rng(4))
        assert not torch.equal(mixed, other)


@pytest.mark.parametrize("mixing", [Mixing(5, mixup_alpha=1.0), Mixing(5, cutmix_alpha=1.0)])
def test_mixing_never_waits_for_a_value_of_the_device(mixing: Mixing) -> None:
    # tensors without values: to read one is an error
    clips, labels = (tensor.to("meta") for tensor in _batch(6))
    mixed, targets = mixing(clips, labels, np.random.default_rng(0))
    assert mixed.shape == clips.shape and targets.shape == (6, 5) and targets.device.type == "meta"
    with pytest.raises(RuntimeError):
        targets.sum().item()


class _Fixed(nn.Module):
    """A network whose logits are its parameters."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, clips: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_targets_is_the_mix_of_the_smoothed_losses(smoothing: float) -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0, 0.0], [0.2, 0.1, 3.0, -0.5], [0.0, 4.0, 1.0, 1.0]])
    labels = torch.tensor([0, 3, 1])
    clips = torch.zeros(3, 3, 1, 1, 1)
    _, targets = mixup(clips, nn.functional.one_hot(labels, 4).float(), 0.7)
    model = _Fixed(logits)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    result = train_step(model, [(clips, targets)], optimizer, label_smoothing=smoothing)
    # timm's way: smooth both one-hot vectors, mix them, cross-entropy; the partner of i is i - 1
    low = smoothing / 4
    smooth = torch.full((3, 4), low).scatter_(1, labels[:, None], 1 - smoothing + low)
    expected_target = 0.7 * smooth + 0.3 * smooth[[2, 0, 1]]
    expected = -(expected_target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(result.loss, expected)
    # d loss / d logits = (softmax - target) / B
    torch.testing.assert_close(logits - model.logits.detach(), (logits.softmax(1) - expected_target) / 3)
    assert result.correct == 2  # clips 0 and 2 show their own class, which has the larger share; clip 1 does not


def test_where_the_partner_has_the_larger_share_its_class_is_the_right_one() -> None:
    model = _Fixed(torch.tensor([[5.0, 0.0], [0.0, 5.0]]))
    _, targets = mixup(torch.zeros(2, 1), torch.eye(2), 0.2)
    parts = [(torch.zeros(2, 3, 1, 1, 1), targets)]
    assert train_step(model, parts, torch.optim.SGD(model.parameters(), lr=1.0)).correct == 0


@pytest.mark.slow
def test_a_mixed_run_that_is_stopped_and_resumed_ends_bit_identical(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from videornn.training import train as job

    settings = [*tiny_settings, "data.mixup_alpha=0.8", "data.cutmix_alpha=1.0", "data.crop=resized", "data.hflip=0.5"]
    config = load_config(CONFIG, [*settings, "data.rand_augment=2", "data.erasing=0.25", "train.label_smoothing=0.1"])
    job.train(config, tmp_path / "whole")
    assert "flips swap the labels of 4 classes, 0 are never flipped" in capsys.readouterr().out

    take_step = job.Trainer.take_step

    def stop_in_step_1(*arguments: object, **options: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return take_step(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(job.Trainer, "take_step", stop_in_step_1)
        with pytest.raises(job.Interrupted):
            job.train(config, tmp_path / "parts")
    assert load_checkpoint(tmp_path / "parts/checkpoints/last.pt")["step"] == 1
    job.train(config, tmp_path / "parts", resume=True)
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoints/last.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(parts[key], value) for key, value in whole.items())
