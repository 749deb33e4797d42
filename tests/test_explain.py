"""Maps of a query point, whatever the block and its axes."""

import pytest
import torch
from torch import nn

from videornn.explain import Query, attention_maps
from videornn.models import ATTENTION_KINDS
from videornn.models.nonlocal_block import DisentangledNonLocal

EVERYWHERE = slice(None)
# the group of the cell (1, 2, 3), as an index of [D, T, H, W]
GROUPS = {
    "spacetime": (EVERYWHERE, EVERYWHERE, EVERYWHERE, EVERYWHERE),
    "space": (EVERYWHERE, 1, EVERYWHERE, EVERYWHERE),
    "time": (EVERYWHERE, EVERYWHERE, 2, 3),
}


@pytest.mark.parametrize(
    ("axes", "key_pool"), [("spacetime", None), ("spacetime", (1, 2, 2)), ("space", (1, 2, 2)), ("time", (2, 1, 1))]
)
def test_maps_are_the_softmaxes_of_the_group_of_the_query_point(axes: str, key_pool) -> None:
    torch.manual_seed(0)
    block = DisentangledNonLocal(4, 4, key_pool=key_pool, axes=axes, temperature=1.0)
    nn.init.normal_(block.query.weight), nn.init.normal_(block.key.weight), nn.init.normal_(block.mask.weight)
    x = torch.randn(1, 4, 4, 4, 6)
    maps = attention_maps("res3.0.attention", block, x, 8, [Query(frame=3, y=0.6, x=0.5)])  # frames 2 and 3 are step 1
    group = GROUPS[axes]
    with torch.no_grad():
        pooled = block.key_pool(x)
        query, key, mask = block.query(x)[0], block.key(pooled)[0], block.mask(pooled)[0]
    queries, keys = query[group].flatten(1), key[group].flatten(1)
    logits = (query[:, 1, 2, 3] - queries.mean(1)) @ (keys - keys.mean(1, keepdim=True)) / 2
    expected = torch.zeros(key.shape[1:])
    expected[group[1:]] = torch.softmax(logits, 0).reshape(expected[group[1:]].shape) * keys.shape[1]
    torch.testing.assert_close(maps.pairwise[0], expected)
    unary = torch.softmax(mask[group].flatten(), 0) * keys.shape[1]
    torch.testing.assert_close(maps.unary[group[1:]].flatten(), unary)


@pytest.mark.parametrize("kind", list(ATTENTION_KINDS))
@pytest.mark.parametrize("axes", ["spacetime", "space", "time"])
def test_every_kind_of_block_can_be_looked_at(kind: str, axes: str) -> None:
    block = ATTENTION_KINDS[kind](8, axes=axes)
    maps = attention_maps("res3.0.attention", block, torch.randn(1, 8, 3, 8, 8), 6, [])
    assert (maps.unary is not None) == (kind in ("unary", "gc", "dnl"))
    assert len(maps.queries) == len(maps.pairwise) == (0 if kind in ("unary", "gc") else 2)
    assert all(heat.shape == (3, 8, 8) and heat.isfinite().all() for heat in maps.pairwise)
