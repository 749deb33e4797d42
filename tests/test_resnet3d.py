from functools import partial

import pytest
import torch
from pytorchvideo.models.hub import c2d_r50, i3d_r50, slow_r50
from torch import nn

from videornn.config import ModelConfig
from videornn.errors import UserError
from videornn.models import build_model
from videornn.models.nonlocal_block import DisentangledNonLocal
from videornn.models.resnet3d import Conv3d, ResNet3d

DNL = partial(DisentangledNonLocal, key_pool=(1, 2, 2))
FIVE = {"res3": (1, 3), "res4": (1, 3, 5)}


def _on_meta(build, **arguments) -> nn.Module:
    with torch.device("meta"):
        return build(**arguments)


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "theirs", "millions"), [("slow", slow_r50, 32.45), ("i3d", i3d_r50, 28.04), ("c2d", c2d_r50, 24.33)]
)
def test_parameters_are_the_published_ones(name: str, theirs, millions: float) -> None:
    ours = _on_meta(ResNet3d, name=name, depth=50, num_classes=400)
    assert _num_parameters(ours) == _num_parameters(_on_meta(theirs, pretrained=False))
    assert round(_num_parameters(ours) / 1e6, 2) == millions


def test_five_blocks_add_the_published_parameters_and_the_unary_map() -> None:
    plain = _on_meta(ResNet3d, name="slow", depth=50, num_classes=400)
    dnl = _on_meta(ResNet3d, name="slow", depth=50, num_classes=400, attention=DNL, places=FIVE)
    # NL: 39.81 M; a DNL block has one more 1x1x1 convolution to one channel
    assert round((_num_parameters(dnl) - 2 * 513 - 3 * 1025) / 1e6, 2) == 39.81
    assert _num_parameters(plain) < _num_parameters(dnl)


@pytest.mark.parametrize("name", ["slow", "i3d", "c2d"])
@pytest.mark.parametrize("depth", [10, 18, 50])
def test_logits_are_finite_and_every_parameter_gets_a_gradient(name: str, depth: int) -> None:
    torch.manual_seed(0)
    model = ResNet3d(
        name, depth, num_classes=5, width=8, zero_init_residual=False, attention=DNL, places={"res3": (0,), "res4": (0,)}
    )
    for module in model.modules():
        if isinstance(module, DisentangledNonLocal):
            nn.init.ones_(module.norm.weight)
    logits = model(torch.randn(2, 3, 8, 32, 32))
    assert logits.shape == (2, 5) and logits.isfinite().all()
    logits.square().sum().backward()
    # whitening takes constants out of queries and keys, and the softmax out of the unary logits
    zero_by_equation = ("attention.query.bias", "attention.key.bias", "attention.mask.bias")
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert key.endswith(zero_by_equation) or parameter.grad.abs().sum() > 0, key


def test_attention_put_into_a_network_leaves_its_logits_bit_identical() -> None:
    torch.manual_seed(0)
    plain = ResNet3d("slow", 18, num_classes=5, width=8).eval()
    dnl = ResNet3d("slow", 18, num_classes=5, width=8, attention=DNL, places={"res3": (0, 1), "res4": (1,)}).eval()
    missing, unexpected = dnl.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(".attention." in key for key in missing)
    clip = torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(plain(clip), dnl(clip))


def test_only_i3d_and_c2d_halve_time() -> None:
    for name, frames in (("slow", 8), ("i3d", 4), ("c2d", 4)):
        model = ResNet3d(name, 10, num_classes=2, width=8).eval()
        shapes = []
        model.res5.register_forward_hook(lambda module, inputs, output, shapes=shapes: shapes.append(output.shape[2:]))
        model(torch.zeros(1, 3, 8, 64, 64))
        assert tuple(shapes[0]) == (frames, 2, 2)


@pytest.mark.parametrize(
    ("kernel", "frames"), [((3, 3, 3), 2), ((3, 1, 1), 2), ((5, 1, 1), 4), ((3, 3, 3), 1), ((3, 3, 3), 4)]
)
def test_bf16_weight_gradients_on_the_cpu_are_right_where_plain_torch_is_wrong(kernel: tuple, frames: int) -> None:
    torch.manual_seed(0)
    conv = Conv3d(32, 32, kernel)
    x = torch.randn(2, 32, frames, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    gradients = []
    for enabled in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = conv(x)
        y.float().square().mean().backward()
        gradients.append(conv.weight.grad.clone())
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert error < 0.02


def test_impossible_places_and_missing_classes_are_named() -> None:
    section = ModelConfig(depth=18, num_classes=4)
    attention = section.attention.model_copy(update={"kind": "dnl", "places": {"res3": (1, 3)}})
    with pytest.raises(UserError, match=r"block 3 of res3: at depth 18 this stage has blocks 0 to 1"):
        build_model(section.model_copy(update={"attention": attention}))
    with pytest.raises(UserError, match="num_classes"):
        build_model(ModelConfig(depth=18))
    with pytest.raises(ValueError, match="no network"):
        ResNet3d("slow", 17, num_classes=2)
