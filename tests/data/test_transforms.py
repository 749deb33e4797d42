import math
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from videornn.config import DataConfig, config_from_dict, load_config
from videornn.data import transforms
from videornn.data.synthetic.moving_shapes import CLASSES
from videornn.data.transforms import TrainTransform, crop_views, mirrored_labels, train_transform
from videornn.errors import UserError
from videornn.models.forward import Normalize

RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
CONFIGS = [path for path in RECIPES if path.parent.name != "kinetics400"]  # those have the defaults of DataConfig
# every option on
STRONG = TrainTransform(
    32, "resized", hflip=0.5, color_jitter=0.4, rand_augment=3, rand_augment_magnitude=15, erasing=1.0, fill=(9, 99, 199)
)


def _ramp(height: int, width: int, num_frames: int = 3) -> Tensor:
    """Frames [T, H, W, 3] whose red grows with x, green with y, and blue with t."""
    frames = torch.zeros(num_frames, height, width, 3, dtype=torch.uint8)
    frames[..., 0] = torch.linspace(0, 250, width)
    frames[..., 1] = torch.linspace(0, 250, height)[:, None]
    frames[..., 2] = (50 * torch.arange(num_frames))[:, None, None]
    return frames


def _picture(height: int, width: int, num_frames: int = 3) -> Tensor:
    """Frames [T, H, W, 3] of smooth random colours, each frame another one."""
    coarse = torch.rand(num_frames, 3, 7, 9, generator=torch.Generator().manual_seed(height + width)) * 255
    return F.resize(coarse, [height, width]).byte().permute(0, 2, 3, 1).contiguous()


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _largest_gap(ours: list[float], theirs: list[float]) -> float:
    """Largest distance of two empirical distributions (Kolmogorov-Smirnov)."""
    ours, theirs = torch.tensor(ours).double().sort().values, torch.tensor(theirs).double().sort().values
    places = torch.cat((ours, theirs))
    shares = [torch.searchsorted(values, places, right=True) / len(values) for values in (ours, theirs)]
    return (shares[0] - shares[1]).abs().max().item()


def _first_version(frames: Tensor, section: DataConfig, generator: torch.Generator) -> Tensor:
    """The crop, flip and colours with which the accuracies of docs/benchmarks.md were measured, written out again."""
    height, width = frames.shape[1:3]
    draws = torch.rand(4, generator=generator)
    low, high = section.short_side
    short = 1 / (1 / high + float(draws[0]) * (1 / low - 1 / high))
    share = section.crop_size / short
    sides = (share * height, share * width) if section.aspect == "squeeze" else (share * min(height, width),) * 2
    top, left = round(float(draws[1]) * (height - sides[0])), round(float(draws[2]) * (width - sides[1]))
    part = frames[:, top : top + round(sides[0]), left : left + round(sides[1])].permute(0, 3, 1, 2)
    part = F.resize(part, [section.crop_size] * 2, antialias=True)
    if float(draws[3]) < section.hflip:
        part = part.flip(-1)
    if section.color_jitter:
        factors = 1 + section.color_jitter * (2 * torch.rand(3, generator=generator) - 1)
        part = F.adjust_brightness(part, factors[0].item())
        part = F.adjust_contrast(part, factors[1].item())
        part = F.adjust_saturation(part, factors[2].item())
    return part.permute(1, 0, 2, 3)


@pytest.mark.parametrize("path", [None, *CONFIGS], ids=lambda path: path.stem if path else "defaults")
@pytest.mark.parametrize("jitter", [None, 0.4])
def test_recipes_give_the_same_pixels_as_when_their_accuracies_were_measured(
    path: Path | None, jitter: float | None
) -> None:
    section = load_config(path).data if path else DataConfig()
    if jitter is not None:
        section = section.model_copy(update={"color_jitter": jitter})
    transform = train_transform(section, ())
    for seed in range(6):
        frames = _picture(*((120, 160), (180, 100), (256, 340))[seed % 3])
        clip, label = transform(frames, 5, _seeded(seed))
        assert label == 5 and torch.equal(clip, _first_version(frames, section, _seeded(seed))), seed


def test_all_frames_get_the_same_and_the_generator_is_all_that_counts() -> None:
    still = _picture(48, 64)[:1].expand(4, -1, -1, -1)
    results = []
    for seed in range(40):
        clip, _ = STRONG(still, 0, _seeded(seed))
        assert clip.shape == (3, 4, 32, 32) and clip.dtype == torch.uint8
        assert all(torch.equal(clip[:, 0], clip[:, frame]) for frame in range(4)), seed
        torch.manual_seed(seed + 1)  # what torch, numpy and others draw elsewhere does not matter
        torch.rand(3)
        assert torch.equal(STRONG(still, 0, _seeded(seed))[0], clip)
        results.append(clip)
    assert len({tuple(clip.flatten().tolist()) for clip in results}) == 40


def test_the_source_frames_are_left_as_they_are() -> None:
    frames = _picture(32, 32)
    before = frames.clone()
    for seed in range(20):
        STRONG(frames, 0, _seeded(seed))
        TrainTransform(32, short_side=(32, 32), erasing=1.0)(frames, 0, _seeded(seed))
    assert torch.equal(frames, before)


def test_a_flip_mirrors_the_crop() -> None:
    frames = _ramp(60, 80)
    for seed in range(5):
        clip, _ = TrainTransform(32, short_side=(40, 60))(frames, 0, _seeded(seed))
        flipped, _ = TrainTransform(32, short_side=(40, 60), hflip=1.0)(frames, 0, _seeded(seed))
        assert torch.equal(flipped, clip.flip(-1)) and not torch.equal(flipped, clip)


def test_random_crops_reach_every_edge_and_both_scales() -> None:
    frames = _ramp(100, 100)
    transform = TrainTransform(20, short_side=(20, 40))
    spans = []
    for seed in range(200):
        clip = transform(frames, 0, _seeded(seed))[0][0, 0].float()
        spans.append((clip.min().item(), clip.max().item()))
    widths = [high - low for low, high in spans]
    assert min(widths) < 130 and max(widths) > 230
    assert min(low for low, _ in spans) < 8 and max(high for _, high in spans) > 242


@pytest.mark.parametrize(
    ("size", "area", "aspect"),
    [((240, 320), (0.08, 1.0), (3 / 4, 4 / 3)), ((90, 300), (0.5, 1.0), (3 / 4, 4 / 3)), ((200, 100), (0.2, 0.4), (1.5, 3))],
    ids=["usual", "wide: many draws do not fit", "tall"],
)
def test_resized_crops_are_distributed_as_torchvisions(
    size: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float]
) -> None:
    transform = TrainTransform(224, "resized", area=area, aspect_ratio=aspect)
    generator = _seeded(0)
    ours = [transform._draw_resized_box(*size, generator) for _ in range(4000)]
    torch.manual_seed(0)
    reference = v2.RandomResizedCrop(224, scale=area, ratio=aspect)
    image = torch.zeros(3, *size)
    boxes = [reference.make_params([image]) for _ in range(4000)]
    theirs = [(box["top"], box["left"], box["height"], box["width"]) for box in boxes]
    assert all(top + height <= size[0] and left + width <= size[1] for top, left, height, width in ours)
    for field in range(4):
        # two samples of 4000 of one law are closer than 0.044 in 999 of 1000 cases
        assert _largest_gap([box[field] for box in ours], [box[field] for box in theirs]) < 0.044, field
    areas, ratios = ([f(*box[2:]) for box in ours] for f in (lambda h, w: h * w, lambda h, w: w / h))
    their_areas, their_ratios = ([f(*box[2:]) for box in theirs] for f in (lambda h, w: h * w, lambda h, w: w / h))
    assert _largest_gap(areas, their_areas) < 0.044 and _largest_gap(ratios, their_ratios) < 0.044


def test_a_resized_crop_is_the_drawn_box_and_squeeze_measures_in_frames() -> None:
    frames = _picture(60, 100)
    transform = TrainTransform(32, "resized")
    top, left, height, width = transform._draw_resized_box(60, 100, _seeded(4))
    part = frames[:, top : top + height, left : left + width].permute(0, 3, 1, 2)
    expected = F.resize(part, [32, 32], antialias=True).permute(1, 0, 2, 3)
    assert torch.equal(transform(frames, 0, _seeded(4))[0], expected)
    whole = TrainTransform(32, "resized", area=(1.0, 1.0), aspect_ratio=(1.0, 1.0), squeeze=True)
    assert whole._draw_resized_box(60, 200, _seeded(0)) == (0, 0, 60, 200)
    # without it, a square as large as the frame does not fit: the largest in the middle
    assert TrainTransform(32, "resized", area=(1.0, 1.0), aspect_ratio=(1.0, 1.0))._draw_resized_box(
        60, 200, _seeded(0)
    ) == (0, 70, 60, 60)


def test_erased_boxes_are_distributed_as_torchvisions_and_filled() -> None:
    transform = TrainTransform(40, erasing=0.7, fill=(10, 20, 30))
    white = torch.full((2, 3, 40, 40), 255, dtype=torch.uint8)
    reference = v2.RandomErasing(0.7, value=0.0)
    torch.manual_seed(0)
    generator = _seeded(0)
    ours, theirs = [], []
    for _ in range(3000):
        erased = transform._erase(white, generator)
        box = (erased[0, 0] != 255).nonzero()
        ours.append(len(box) / 1600)
        if len(box):
            (top, left), (bottom, right) = box.amin(0).tolist(), box.amax(0).tolist()
            inside = erased[:, :, top : bottom + 1, left : right + 1]
            assert len(box) == inside[0, 0].numel()
            assert torch.equal(inside, torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand_as(inside))
        theirs.append((reference(white[:1]) == 0).float().mean().item())
    # two samples of 3000 of one law are closer than 0.051 in 999 of 1000 cases
    assert _largest_gap(ours, theirs) < 0.051


SOMETHING = (
    "Pushing something from left to right",
    "Pushing something from right to left",
    "Pushing something so that it falls off the table",
    "Turning the camera left while filming something",
    "Turning the camera right while filming something",
    "Pulling something from right to left",
    "Brightening a leftover",
)


def test_mirrored_classes_are_found_by_their_names() -> None:
    assert mirrored_labels(SOMETHING) == (1, 0, 2, 4, 3, -1, 6)
    assert mirrored_labels(("left-to-right", "Right-To-Left", "LEFT", "right")) == (1, 0, 3, 2)
    assert mirrored_labels(("MoveLeft", "MoveRight", "leftHand", "rightHand", "turn_left_2")) == (1, 0, 3, 2, -1)
    assert mirrored_labels(()) == ()


def test_names_do_not_tell_which_embedded_classes_mirror_so_their_recipe_has_no_flip() -> None:
    mirrored = dict(zip(CLASSES, mirrored_labels(CLASSES), strict=True))
    assert CLASSES[mirrored["same_right"]] == "same_left" and CLASSES[mirrored["approach"]] == "approach"
    # wrong: a mirrored clockwise orbit is counter-clockwise
    assert CLASSES[mirrored["orbit_cw"]] == "orbit_cw"
    quickstart = next(path for path in CONFIGS if path.stem == "quickstart")
    assert load_config(quickstart).data.hflip == 0


def test_a_flipped_clip_takes_the_mirrored_label_and_some_are_never_flipped() -> None:
    section = DataConfig(crop_size=32, short_side=(32, 40))
    frames = _ramp(40, 60)
    for label, flipped_label in enumerate(mirrored_labels(SOMETHING)):
        seen = set()
        for seed in range(30):
            clip, new_label = train_transform(section, SOMETHING)(frames, label, _seeded(seed))
            flipped = bool(clip[0, 0, 0, 0] > clip[0, 0, 0, -1])  # red grows with x in the source
            assert new_label == (flipped_label if flipped else label)
            seen.add(flipped)
        assert seen == ({False} if flipped_label == -1 else {False, True})


def test_color_jitter_changes_colours_and_nothing_at_zero() -> None:
    still = _picture(32, 32)
    plain, _ = TrainTransform(32, short_side=(32, 32))(still, 0, _seeded(1))
    assert torch.equal(plain, still.permute(3, 0, 1, 2))
    transform = TrainTransform(32, short_side=(32, 32), color_jitter=0.4)
    means = [transform(still, 0, _seeded(seed))[0].float().mean() for seed in range(60)]
    assert min(means) < 0.75 * still.float().mean() and max(means) > 1.2 * still.float().mean()


def test_three_crops_lie_along_the_longer_side() -> None:
    for frames, channel in ((_ramp(40, 100), 0), (_ramp(100, 40), 1)):
        views = crop_views(frames, crop_size=40, short_side=40, num_crops=3)
        assert views.shape == (3, 3, 3, 40, 40) and views.dtype == torch.uint8
        means = views[:, channel].float().mean(dim=(1, 2, 3)).tolist()
        # crops of 40 of 100 pixels: their middles are at 20, 50 and 80 percent of the ramp
        assert means == pytest.approx([50, 125, 200], abs=3)
        assert views[1, 2, :, 0, 0].tolist() == [0, 50, 100]


@pytest.mark.parametrize("size", [(60, 100), (100, 60)])
def test_crops_are_cut_out_of_the_resized_frame(size: tuple[int, int]) -> None:
    frames = _picture(*size)
    whole = F.resize(frames.permute(0, 3, 1, 2), [30], antialias=True)
    centre = F.center_crop(whole, [20, 20]).permute(1, 0, 2, 3)
    views = crop_views(frames, crop_size=20, short_side=30, num_crops=3)
    assert torch.equal(views[1], centre)
    first, last = (
        (whole[..., 5:25, :20], whole[..., 5:25, -20:])
        if size[1] > size[0]
        else (
            whole[..., :20, 5:25],
            whole[..., -20:, 5:25],
        )
    )
    assert torch.equal(views[0].transpose(0, 1), first) and torch.equal(views[2].transpose(0, 1), last)
    # the single crop is cut out before it is resized: at its border the filter of the whole picture reaches further
    one = crop_views(frames, crop_size=20, short_side=30, num_crops=1)[0]
    assert (one.float() - centre.float())[..., 2:-2, 2:-2].abs().max() <= 1


@pytest.mark.parametrize("size", [(2, 4000), (4000, 2), (30, 481)])
def test_three_crops_of_a_very_long_frame_are_cut_out_before_they_are_scaled(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, largest = _ramp(*size, num_frames=1), []
    resize = F.resized_crop
    monkeypatch.setattr(
        F, "resized_crop", lambda images, *box, **how: largest.append(box[2] * box[3]) or resize(images, *box, **how)
    )
    views = crop_views(frames, crop_size=32, short_side=32, num_crops=3)
    assert views.shape == (3, 3, 1, 32, 32) and max(largest) == min(size) ** 2
    axis = 0 if size[1] > size[0] else 1  # red grows with x, green with y
    start, middle, end = views[:, axis].float().mean(dim=(1, 2, 3)).tolist()
    assert start < 10 and middle == pytest.approx(125, abs=3) and end > 240


def test_squeeze_keeps_both_ends_of_a_wide_frame() -> None:
    frames = _ramp(40, 160)
    kept = crop_views(frames, 32, 32, 1)[0, 0]
    squeezed = crop_views(frames, 32, 32, 1, squeeze=True)[0, 0]
    assert kept.min() > 80 and kept.max() < 170
    assert squeezed.min() < 10 and squeezed.max() > 240
    left, middle, right = crop_views(frames, 16, 32, 3, squeeze=True)[:, 0].float().mean(dim=(1, 2, 3)).tolist()
    assert (left, middle, right) == pytest.approx((62, 125, 188), abs=4)


def test_normalize_is_the_formula() -> None:
    clips = torch.randint(0, 256, (2, 3, 2, 4, 4), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    inputs = Normalize(mean, std, torch.device("cpu"))(clips)
    assert inputs.dtype == torch.float32 and inputs.is_contiguous(memory_format=torch.channels_last_3d)
    for channel in range(3):
        expected = (clips[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(inputs[:, channel].double(), expected, rtol=0, atol=1e-5)


def test_other_numbers_of_crops_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2"):
        crop_views(_ramp(8, 8), 4, 4, 2)


NEW_KEYS = (
    *("crop", "crop_area", "crop_aspect", "rand_augment", "rand_augment_magnitude", "erasing"),
    *("mixup_alpha", "cutmix_alpha", "mix_probability", "cutmix_share"),
)


def test_a_config_from_before_these_keys_trains_as_it_did() -> None:
    values = load_config(CONFIGS[0]).model_dump(mode="json")
    for key in NEW_KEYS:
        del values["data"][key]
    section = config_from_dict(values, "old.pt").data
    transform = train_transform(section, ())
    assert (transform.crop, transform.rand_augment, transform.erasing) == ("scale_jitter", 0, 0.0)
    assert section.mixup_alpha == section.cutmix_alpha == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.crop_area=[0.5,0.2]", r"crop_area\[0\] <= crop_area\[1\] <= 1 must hold, got \[0\.5, 0\.2\]"),
        ("data.crop_area=[0.5,1.5]", r"crop_area\[0\] <= crop_area\[1\] <= 1 must hold"),
        ("data.crop_area=[0,1]", "greater than 0"),
        ("data.crop_aspect=[2,1]", r"crop_aspect\[0\] <= crop_aspect\[1\] must hold, got \[2\.0, 1\.0\]"),
        ("data.crop=resize", "data.crop"),
        ("data.rand_augment_magnitude=31", "less than or equal to 30"),
        ("data.erasing=1.5", "less than or equal to 1"),
        ("data.mixup_alpha=-1", "greater than or equal to 0"),
    ],
)
def test_impossible_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(CONFIGS[0], [setting])


def test_a_resized_crop_may_be_larger_than_the_short_side_of_the_other_kind() -> None:
    with pytest.raises(UserError, match="crop_size <= short_side"):
        load_config(CONFIGS[0], ["data.crop_size=400"])
    assert load_config(CONFIGS[0], ["data.crop_size=400", "data.crop=resized"]).data.crop_size == 400


def test_settings_reach_the_transform() -> None:
    text = (
        "crop=resized crop_area=[0.3,0.9] crop_aspect=[0.5,2] aspect=squeeze mean=[0.1,0.2,1.0] "
        "rand_augment=2 rand_augment_magnitude=7 erasing=0.25"
    )
    section = load_config(CONFIGS[0], [f"data.{setting}" for setting in text.split()]).data
    transform = train_transform(section, ("left", "right"))
    assert (transform.crop, transform.area, transform.aspect_ratio) == ("resized", (0.3, 0.9), (0.5, 2.0))
    assert (transform.rand_augment, transform.rand_augment_magnitude, transform.erasing) == (2, 7, 0.25)
    assert transform.squeeze and transform.mirrored == (1, 0) and transform.fill == (26, 51, 255)
    assert math.isclose(math.prod(transforms.ERASED_ASPECT), 1, rel_tol=0.02)  # as likely tall as wide


def test_a_smaller_crop_shows_as_much_as_the_full_one_or_less() -> None:
    """Parts of a frame, measured on a ramp: 16 of 16 to 24 pixels are 2/3 to 1 of it, 8 of 8 to 24 are 1/3 to 1."""
    ramp = (torch.arange(96) * 2.5).to(torch.uint8).expand(96, 96)[None, :, :, None].expand(1, 96, 96, 3)
    transform = TrainTransform(crop_size=16, short_side=(16, 24))
    assert transform.at_crop_size(16) is transform
    for size, smallest in ((16, 2 / 3), (8, 1 / 3)):
        shares = []
        for seed in range(300):
            clip, _ = transform.at_crop_size(size)(ramp, 0, torch.Generator().manual_seed(seed))
            assert clip.shape == (3, 1, size, size)
            row = clip[0, 0, size // 2].double()
            shares.append(float(row[-2] - row[1]) / (size - 3) * size / (96 * 2.5))
        assert min(shares) == pytest.approx(smallest, abs=0.03) and max(shares) == pytest.approx(1, abs=0.04)
