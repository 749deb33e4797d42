"""Where features lie in the clip, against the pixels that they are made of."""

import pytest
import torch
from torch import nn

from videornn.explain.attention_maps import observe
from videornn.explain.clip_places import Query, grid_places
from videornn.models.max_pool import LeanMaxPool
from videornn.models.resnet3d import FAMILIES, Conv3d, ResNet3d


def _averaging(name: str) -> ResNet3d:
    """A network whose every layer is a sum with positive weights, so that gradients show what a feature is made of."""
    model = ResNet3d(name, 10, num_classes=2, width=4, zero_init_residual=False).double().eval()
    for module in model.modules():
        if isinstance(module, Conv3d):
            nn.init.ones_(module.weight)
        for pool in ("temporal_pool", "2"):
            inner = getattr(module, pool, None)
            if isinstance(inner, LeanMaxPool):
                setattr(module, pool, nn.AvgPool3d(inner.kernel_size, inner.stride, inner.padding))
    return model


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("stage", ["res2", "res3"])
def test_a_place_lies_where_the_centre_of_its_pixels_is(name: str, stage: str) -> None:
    model = _averaging(name)
    clip = torch.rand(1, 3, 16, 64, 72, dtype=torch.double, requires_grad=True)
    places = observe(model, clip.detach()).places[stage]
    x = model.stem(clip)
    features = model.res2(x) if stage == "res2" else model.res3(model.temporal_pool(model.res2(x)))
    assert places.grid == tuple(features.shape[2:])
    cell = tuple(size // 2 for size in places.grid)
    (gradient,) = torch.autograd.grad(features[0, 0][cell], clip)
    weights = gradient[0].sum(dim=0)  # [T, H, W]
    for axis, (centres, index) in enumerate(zip((places.frames, places.rows, places.columns), cell, strict=True)):
        along = weights.sum(dim=[other for other in range(3) if other != axis])
        centre = (along * torch.arange(len(along))).sum() / along.sum()
        assert float(centre) == pytest.approx(float(centres[index]), abs=1e-6), axis


def test_points_and_places_go_back_and_forth() -> None:
    places = grid_places((16, 64, 64), (16, 4, 4))
    assert places.columns.tolist() == [0, 16, 32, 48] and places.frames.tolist() == list(range(16))
    for cell in [(0, 0, 0), (5, 1, 3), (15, 3, 2)]:
        assert places.cell(places.query(cell)) == cell
    assert places.cell(Query(7, 0.5, 0.4)) == (7, 2, 2)  # pixel 25.1 is nearer to 32 than to 16
    assert places.pooled((1, 2, 2)).rows.tolist() == [8, 40]
    halved = grid_places((16, 64, 64), (8, 4, 4), temporal_pool=True)
    assert halved.frames.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5]
    assert [halved.step(frame) for frame in (0, 1, 2, 15)] == [0, 0, 1, 7] and halved.frame(3) == 6


def test_odd_sizes_round_up() -> None:
    assert grid_places((5, 65, 9), (3, 9, 2)).rows.tolist() == [8.0 * place for place in range(9)]
    assert grid_places((5, 65, 9), (3, 9, 2)).columns.tolist() == [0, 8]
