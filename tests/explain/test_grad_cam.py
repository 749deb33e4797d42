"""Grad-CAM, against its formula written out and on networks for which it is known."""

import pytest
import torch
from torch import nn

from videornn.explain.grad_cam import default_stage, grad_cam
from videornn.models.nonlocal_block import DisentangledNonLocal
from videornn.models.resnet3d import FAMILIES, STAGES, ResNet3d


def _network(name: str, **options) -> ResNet3d:
    torch.manual_seed(0)
    model = ResNet3d(name, 10, num_classes=5, width=8, zero_init_residual=False, **options).eval()
    nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("stage", STAGES)
def test_it_is_the_formula_written_out_with_autograd(name: str, stage: str) -> None:
    places = {"res3": [0], "res4": [0]}
    model = _network(name, attention=lambda channels: DisentangledNonLocal(channels, temperature=1.0), places=places)
    for module in model.modules():
        if isinstance(module, DisentangledNonLocal):
            nn.init.ones_(module.norm.weight)
    clip = torch.randn(1, 3, 8, 32, 32)
    parts = [nn.Sequential(model.stem, model.res2), nn.Sequential(model.temporal_pool, model.res3), model.res4, model.res5]
    x = clip
    for part in parts[: STAGES.index(stage) + 1]:
        x = part(x)
    features = x.detach().requires_grad_()
    y = features
    for part in parts[STAGES.index(stage) + 1 :]:
        y = part(y)
    logit = model.head(y.mean(dim=(2, 3, 4)))[0, 3]
    logit.backward()
    _, _, frames, height, width = features.shape
    expected = torch.zeros(frames, height, width)
    for channel in range(features.shape[1]):
        weight = features.grad[0, channel].sum() / (frames * height * width)
        expected += weight * features.detach()[0, channel]
    torch.testing.assert_close(grad_cam(model, clip, stage, 3), expected.clamp(min=0), rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.stem.parameters())


def test_of_the_last_stage_it_is_the_features_weighted_by_the_classifier() -> None:
    """Zhou et al. 2016: with mean pooling and a linear head, d y_c / d A_k is w_ck over the number of places."""
    model, clip = _network("slow"), torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        features = model.res5(model.res4(model.res3(model.res2(model.stem(clip)))))[0]  # [C, t, h, w]
        for label in range(5):
            expected = torch.einsum("c,cthw->thw", model.head.weight[label], features).relu() / features[0].numel()
            torch.testing.assert_close(grad_cam(model, clip, "res5", label), expected, rtol=1e-4, atol=1e-7)


def test_it_finds_the_place_that_makes_the_class() -> None:
    """A hand-built network: one class is the red of a clip, the other its green."""
    model, clip = _network("c2d"), torch.zeros(1, 3, 4, 64, 64)
    model.stem = nn.Identity()
    model.res2, model.temporal_pool, model.res3, model.res4, model.res5 = (nn.Identity() for _ in range(5))
    model.head = nn.Linear(3, 2)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]))
    clip[0, 0, 1, 10, 20], clip[0, 1, 3, 40, 50] = 5.0, 7.0
    red, green = (grad_cam(model, clip, "res3", label) for label in range(2))
    assert red.nonzero().tolist() == [[1, 10, 20]] and green.nonzero().tolist() == [[3, 40, 50]]


def test_what_lies_before_the_stage_keeps_nothing_for_a_gradient() -> None:
    model, modes = _network("slow"), {}
    for part in ("stem", "res2", "res3", "res4", "res5"):
        hook = lambda module, inputs, part=part: modes.__setitem__(part, torch.is_grad_enabled())  # noqa: E731
        getattr(model, part).register_forward_pre_hook(hook)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            grad_cam(model, torch.randn(1, 3, 4, 32, 32), "res3", 0)
            assert torch.is_grad_enabled() == enabled
        assert modes == {"stem": False, "res2": False, "res3": False, "res4": True, "res5": True}


def test_by_default_the_deepest_stage_that_says_where() -> None:
    grids = {"res2": (8, 56, 56), "res3": (8, 28, 28), "res4": (8, 14, 14), "res5": (8, 7, 7)}
    assert default_stage(grids) == "res5"
    small = {"res2": (16, 16, 16), "res3": (16, 8, 8), "res4": (16, 4, 4), "res5": (16, 2, 2)}
    assert default_stage(small) == "res3"
    tiny = {"res2": (4, 4, 4), "res3": (4, 2, 2), "res4": (4, 1, 1), "res5": (4, 1, 1)}
    assert default_stage(tiny) == "res2"
