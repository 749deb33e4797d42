import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from videornn.data.rand_augment import OPERATIONS, rand_augment

# our names -> torchvision's
NAMES = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "shift_x": "TranslateX",
    "shift_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}
GREY = (115, 115, 115)


def _images() -> Tensor:
    """uint8 [T, 3, H, W]: smooth colours that do not span the whole range."""
    coarse = 40 + 170 * torch.rand(3, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    return F.resize(coarse, [33, 47]).byte()


def test_the_operations_are_torchvisions() -> None:
    assert [NAMES[name] for name in OPERATIONS] == list(v2.RandAugment._AUGMENTATION_SPACE)


@pytest.mark.parametrize("magnitude", [0, 9, 17, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions_of_the_same_magnitude_in_both_directions(name: str, magnitude: int) -> None:
    reference = v2.RandAugment(magnitude=magnitude, interpolation=InterpolationMode.BILINEAR, fill=list(GREY))
    magnitudes, signed = reference._AUGMENTATION_SPACE[NAMES[name]]
    table = magnitudes(reference.num_magnitude_bins, 33, 47)
    level = 0.0 if table is None else float(table[magnitude])
    for sign in (1, -1):
        expected = reference._apply_image_or_video_transform(
            _images(), NAMES[name], sign * level if signed else level, reference.interpolation, reference._fill
        )
        ours = OPERATIONS[name](_images(), sign * magnitude / 30, list(GREY))
        # torchvision's magnitudes are float32: a value at the border of two integers may fall to the other side
        assert ours.dtype == torch.uint8 and (ours.int() - expected.int()).abs().max() <= 1
        assert (ours != expected).float().mean() < 0.01


def test_operations_are_all_drawn_equally_often_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for name in OPERATIONS:
        monkeypatch.setitem(
            OPERATIONS, name, lambda images, level, fill, name=name: drawn.append((name, level, *fill)) or images
        )
    generator = torch.Generator().manual_seed(0)
    for _ in range(2800):
        rand_augment(_images(), 2, 9, GREY, generator)
    assert len(drawn) == 5600 and {call[1:] for call in drawn} == {(0.3, *GREY), (-0.3, *GREY)}
    for name in OPERATIONS:
        for level in (0.3, -0.3):  # 200 expected, standard deviation 14
            assert 140 < drawn.count((name, level, *GREY)) < 260


def test_no_operations_leave_the_clip_and_draw_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(rand_augment(_images(), 0, 9, GREY, generator), _images())
    assert torch.equal(generator.get_state(), before)
