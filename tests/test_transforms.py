import pytest
import torch
from torchvision.transforms.v2 import functional as F

from videornn.data.transforms import crop_views, jitter_color, normalize, random_crop_flip


def _ramp(height: int, width: int, num_frames: int = 3) -> torch.Tensor:
    """Frames [T, H, W, 3] whose red grows with x, green with y, and blue with t."""
    frames = torch.zeros(num_frames, height, width, 3, dtype=torch.uint8)
    frames[..., 0] = torch.linspace(0, 250, width)
    frames[..., 1] = torch.linspace(0, 250, height)[:, None]
    frames[..., 2] = (50 * torch.arange(num_frames))[:, None, None]
    return frames


def test_three_crops_lie_along_the_longer_side() -> None:
    for frames, channel in ((_ramp(40, 100), 0), (_ramp(100, 40), 1)):
        views = crop_views(frames, crop_size=40, short_side=40, num_crops=3)
        assert views.shape == (3, 3, 3, 40, 40) and views.dtype == torch.uint8
        means = views[:, channel].float().mean(dim=(1, 2, 3)).tolist()
        # crops of 40 of 100 pixels: their middles are at 20, 50 and 80 percent of the ramp
        assert means == pytest.approx([50, 125, 200], abs=3)
        assert views[1, 2, :, 0, 0].tolist() == [0, 50, 100]


def test_crop_then_resize_is_resize_then_crop() -> None:
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 6, 10) * 255
    frames = F.resize(coarse, [60, 100]).byte().permute(0, 2, 3, 1)
    ours = crop_views(frames, crop_size=20, short_side=30, num_crops=1)[0, :, 0]
    whole = F.resize(frames.permute(0, 3, 1, 2), [30, 50], antialias=True)
    theirs = F.center_crop(whole, [20, 20])[0]
    # at the border the filter of the whole picture reaches beyond the crop
    assert (ours.float() - theirs.float())[:, 2:-2, 2:-2].abs().max() <= 1


def test_squeeze_keeps_both_ends_of_a_wide_frame() -> None:
    frames = _ramp(40, 160)
    kept = crop_views(frames, 32, 32, 1)[0, 0]
    squeezed = crop_views(frames, 32, 32, 1, squeeze=True)[0, 0]
    assert kept.min() > 80 and kept.max() < 170
    assert squeezed.min() < 10 and squeezed.max() > 240


def test_a_random_crop_is_the_same_for_all_frames_and_the_flip_mirrors_it() -> None:
    frames = _ramp(60, 80)
    clip = random_crop_flip(frames, 32, (40, 60), 0.0, torch.Generator().manual_seed(3))
    flipped = random_crop_flip(frames, 32, (40, 60), 1.0, torch.Generator().manual_seed(3))
    assert clip.shape == (3, 3, 32, 32)
    assert torch.equal(clip[:2, 0], clip[:2, 2])
    assert torch.equal(flipped, clip.flip(-1))


def test_random_crops_reach_every_edge_and_both_scales() -> None:
    frames = _ramp(100, 100)
    spans = []
    for seed in range(200):
        clip = random_crop_flip(frames, 20, (20, 40), 0.0, torch.Generator().manual_seed(seed))[0, 0].float()
        spans.append((clip.min().item(), clip.max().item()))
    widths = [high - low for low, high in spans]
    assert min(widths) < 130 and max(widths) > 230
    assert min(low for low, _ in spans) < 8 and max(high for _, high in spans) > 242


def test_normalize_is_the_formula() -> None:
    clips = torch.randint(0, 256, (2, 3, 2, 4, 4), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    for channel in range(3):
        expected = (clips[:, channel].double() / 255 - mean[channel].double()) / std[channel].double()
        torch.testing.assert_close(normalize(clips, mean, std)[:, channel].double(), expected, rtol=0, atol=1e-5)


def test_other_numbers_of_crops_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2"):
        crop_views(_ramp(8, 8), 4, 4, 2)


def test_color_jitter_is_one_change_for_all_frames_and_none_at_zero() -> None:
    clip = _ramp(24, 32).permute(3, 0, 1, 2)
    assert torch.equal(jitter_color(clip, 0.0, torch.Generator()), clip)
    still = clip[:, :1].expand(-1, 4, -1, -1)
    changed = jitter_color(still, 0.4, torch.Generator().manual_seed(1))
    assert changed.dtype == torch.uint8 and changed.shape == still.shape
    assert all(torch.equal(changed[:, 0], changed[:, frame]) for frame in range(4)) and not torch.equal(changed, still)
    brightness = [jitter_color(still, 0.4, torch.Generator().manual_seed(seed)).float().mean() for seed in range(60)]
    assert min(brightness) < 0.75 * still.float().mean() and max(brightness) > 1.25 * still.float().mean()
