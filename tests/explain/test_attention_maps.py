"""Maps of query points, whatever the block and its axes."""

import pytest
import torch
from torch import nn

from videornn.explain.attention_maps import block_maps, has_split, strongest_points
from videornn.explain.clip_places import Query, grid_places
from videornn.explain.map_words import block_captions, block_heat_maps, grad_cam_captions
from videornn.models import ATTENTION_KINDS
from videornn.models.nonlocal_block import DisentangledNonLocal, GaussianNonLocal, NonLocal, OwnMaskNonLocal

EVERYWHERE = slice(None)
# the group of the cell (1, 2, 3), as an index of [D, T, H, W]
GROUPS = {
    "spacetime": (EVERYWHERE, EVERYWHERE, EVERYWHERE, EVERYWHERE),
    "space": (EVERYWHERE, 1, EVERYWHERE, EVERYWHERE),
    "time": (EVERYWHERE, EVERYWHERE, 2, 3),
}


def _sharp(block: nn.Module) -> nn.Module:
    """The same block with weights large enough for maps that are not even."""
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return block.eval()


@pytest.mark.parametrize(
    ("axes", "key_pool"), [("spacetime", None), ("spacetime", (1, 2, 2)), ("space", (1, 2, 2)), ("time", (2, 1, 1))]
)
def test_maps_are_the_softmaxes_of_the_group_of_the_query_point(axes: str, key_pool) -> None:
    torch.manual_seed(0)
    block = _sharp(DisentangledNonLocal(4, 4, key_pool=key_pool, axes=axes, temperature=1.0))
    x = torch.randn(1, 4, 4, 4, 6)
    places = grid_places((8, 32, 48), (4, 4, 6))
    maps = block_maps(block, x, places, [Query(frame=2, y=0.6, x=0.5)])  # step 1, row 18.7 of 32, column 23.5 of 48
    group = GROUPS[axes]
    with torch.no_grad():
        pooled = block.key_pool(x)
        query, key, mask = block.query(x)[0], block.key(pooled)[0], block.mask(pooled)[0]
    queries, keys = query[group].flatten(1), key[group].flatten(1)
    logits = (query[:, 1, 2, 3] - queries.mean(1)) @ (keys - keys.mean(1, keepdim=True)) / 2
    expected = torch.zeros(key.shape[1:])
    expected[group[1:]] = torch.softmax(logits, 0).reshape(expected[group[1:]].shape) * keys.shape[1]
    torch.testing.assert_close(maps.maps[0], expected)
    unary = torch.softmax(mask[group].flatten(), 0) * keys.shape[1]
    torch.testing.assert_close(maps.unary[group[1:]].flatten(), unary)


@pytest.mark.parametrize("kind", list(ATTENTION_KINDS))
@pytest.mark.parametrize("axes", ["spacetime", "space", "time"])
def test_every_kind_of_block_can_be_looked_at(kind: str, axes: str) -> None:
    torch.manual_seed(0)
    block = _sharp(ATTENTION_KINDS[kind](8, axes=axes))
    x = torch.randn(1, 8, 3, 8, 8)
    places = grid_places((3, 32, 32), (3, 8, 8))
    maps = block_maps(block, x, places, strongest_points(x, block(x).detach(), places) if block.has_queries else [])
    assert has_split(block) == (kind in ("nl", "nl_gaussian", "nl_own_mask"))
    assert (maps.unary is not None) == (kind in ("unary", "gc", "dnl", "nl_add"))
    assert len(maps.queries) == len(maps.maps) == (0 if kind in ("unary", "gc") else 2)
    assert (maps.unary_term is not None) == (len(maps.pairwise_terms) == 2) == has_split(block)
    for heat in [*maps.maps, *maps.pairwise_terms]:
        assert heat.shape == (3, 8, 8) and heat.isfinite().all()
        seen = {"spacetime": 1, "space": 3, "time": 64}[axes]  # a group is one part in so many of the clip
        assert float(heat.abs().mean()) * seen == pytest.approx(1, rel=1e-4)
    numbers = {"change": 0.1}
    captions = " ".join(block_captions(block, x, numbers))
    names = [heat_map.name for heat_map in block_heat_maps(block, maps, [0.0, 0.1, 0.2])]
    assert ("pairwise +1" in names) == (kind in ("pairwise", "dnl", "nl_add")) and ("taken away" in captions) == (
        kind in ("nl_dot_product", "nl_concatenation")
    )


@pytest.mark.parametrize("kind", list(ATTENTION_KINDS))
@pytest.mark.parametrize("axes", ["spacetime", "space", "time"])
def test_single_rows_are_those_of_the_whole_map(kind: str, axes: str) -> None:
    torch.manual_seed(0)
    block = _sharp(ATTENTION_KINDS[kind](8, axes=axes))
    x = torch.randn(2, 8, 4, 3, 5)
    whole, _ = block.attention(x)
    with torch.no_grad():
        rows = block.map_rows(x, block.key_pool(x))
        assert (rows is None) == (whole is None)
        if rows is not None:
            torch.testing.assert_close(rows(torch.tensor([2, 0])), whole[:, [2, 0]])
        if has_split(block):
            torch.testing.assert_close(block.split(x, torch.tensor([2, 0]))[0], block.split(x)[0][:, [2, 0]])


@pytest.mark.parametrize("block_class", [NonLocal, GaussianNonLocal, OwnMaskNonLocal])
@pytest.mark.parametrize("key_pool", [None, (1, 2, 2)])
def test_the_two_terms_of_nl_multiply_to_its_map(block_class: type, key_pool) -> None:
    torch.manual_seed(0)
    block = _sharp(block_class(6, key_pool=key_pool))
    x = torch.randn(1, 6, 4, 4, 6)
    places = grid_places((4, 32, 48), (4, 4, 6))
    query = Query(3, 0.3, 0.9)
    maps = block_maps(block, x, places, [query])
    product = maps.unary_term * maps.pairwise_terms[0]  # a softmax of a sum is the product of both softmaxes, renormalised
    torch.testing.assert_close(maps.maps[0], product / product.mean(), rtol=1e-4, atol=1e-5)
    t, y, row_x = places.cell(query)
    pairwise, unary = block.split(x, torch.tensor([(t * 4 + y) * 6 + row_x]))
    softmax = torch.softmax(pairwise[0, 0] + unary[0], 0) * unary.shape[1]
    torch.testing.assert_close(maps.maps[0].flatten(), softmax, rtol=1e-4, atol=1e-5)


def test_chosen_points_are_where_a_block_adds_most_in_any_frame() -> None:
    x = torch.zeros(1, 2, 4, 8, 8)
    output = x.clone()
    output[0, :, 3, 1, 6], output[0, :, 3, 2, 6], output[0, :, 0, 6, 1] = 3.0, 2.9, 1.0
    places = grid_places((4, 64, 64), (4, 8, 8))
    first, second = (places.cell(query) for query in strongest_points(x, output, places))
    assert first == (3, 1, 6) and second == (0, 6, 1)  # the second strongest is too near to the strongest
    x[0, 0, 2, 4, 4] = 1.0
    assert places.cell(strongest_points(x, x, places)[0]) == (2, 4, 4)  # nothing is added: the strongest input


def test_a_map_on_a_single_place_is_called_collapsed() -> None:
    block = _sharp(DisentangledNonLocal(8, temperature=1e-3))
    x = torch.randn(1, 8, 2, 8, 8)
    places = grid_places((2, 64, 64), (2, 8, 8))
    maps = block_maps(block, x, places, [Query(1, 0.5, 0.5)])
    texts = {heat_map.name: heat_map.text for heat_map in block_heat_maps(block, maps, [0.5, 1.25])}
    assert "it has collapsed" in texts["pairwise +1"] and "on a single place, at" in texts["pairwise +1"]
    captions = block_captions(block, x, {"change": 0.001, "query_dependence": 0.02, "effective_keys": 1.2 / 128})
    assert "1.2 of 128 places: this softmax has collapsed" in captions[-1]
    assert "hardly at all" in captions[-1] and "all points look at nearly the same" in captions[-1]


def test_captions_count_the_moments_of_a_map_because_frames_can_share_one() -> None:
    """16 frames over 8 moments show twice the weight in their corners: a reader who adds them up must learn why."""
    block = DisentangledNonLocal(8, key_pool=(2, 2, 2))
    numbers = {"change": 0.1, "query_dependence": 0.5, "effective_keys": 0.5}
    captions = block_captions(block, torch.randn(1, 8, 16, 8, 8), numbers)
    assert "at this moment, one of 8 (frames can share one)" in captions[1]
    assert "at this moment, one of 4 (frames can share one)" in grad_cam_captions("a", 0.5, "res3", torch.ones(4, 7, 7))[1]
