"""How much of a map falls on objects: hand-made maps whose answer is known, windows and sums against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from videornn.data.synthetic.make import TASKS
from videornn.explain.attention_maps import block_maps
from videornn.explain.clip_places import Places, grid_places
from videornn.explain.object_shares import (
    RELATIONS,
    block_shares,
    has_shares,
    map_shares,
    numbers_of,
    outlines,
    place_shares,
    point_on,
    ratio_interval,
    windows,
)
from videornn.models import ATTENTION_KINDS

PLACES = grid_places((4, 32, 48), (2, 8, 12), temporal_pool=True)


def _masks(seed: int = 0) -> Tensor:
    """Two boxes [2, 4, 32, 48] that move from frame to frame."""
    masks = torch.zeros(2, 4, 32, 48)
    for frame in range(4):
        masks[0, frame, 3 + frame : 15 + frame, 2 * frame : 9 + 2 * frame] = 1
        masks[1, frame, 14:26, 30 - frame : 41 - frame] = 1
    return masks


def _block(kind: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    block = ATTENTION_KINDS[kind](8, **options)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block.eval()


@pytest.mark.parametrize(
    ("centres", "length"), [([0.0, 8, 16, 24], 32), ([0.5, 2.5], 4), ([8.0, 40], 64), ([0.0, 1, 2], 3), ([0.0], 5)]
)
def test_a_window_weighs_pixels_by_how_much_of_them_lies_in_it(centres: list[float], length: int) -> None:
    pitch = centres[1] - centres[0] if len(centres) > 1 else 100
    points = np.arange(0, length, 1 / 64) + 1 / 128 - 0.5  # pixel i reaches from i - 0.5 to i + 0.5
    for weights, centre in zip(windows(torch.tensor(centres), length), centres, strict=True):
        inside = points[abs(points - centre) < pitch / 2]
        expected = np.bincount((inside + 0.5).astype(int), minlength=length) / len(inside)
        assert weights.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_an_object_that_fills_the_window_of_a_place_has_all_of_it() -> None:
    pixels = torch.zeros(1, 4, 32, 48)
    pixels[0, 2:, 6:10, 14:18] = 1  # the place (1, 2, 4) lies on pixel 8, 16, its window reaches from 6 to 10, 14 to 18
    shares = place_shares(pixels, PLACES)[0]
    assert float(shares[1, 2, 4]) == pytest.approx((3.5 / 4) ** 2)  # pixels 10 and 18 lie half in it
    assert not shares[0].any() and float(shares[1, 2, 3]) == pytest.approx(3.5 / 4 * 0.5 / 4)


@pytest.mark.parametrize("axes", ["spacetime", "space", "time"])
def test_an_even_map_gives_objects_their_part_of_the_places_in_reach(axes: str) -> None:
    masks = _masks()
    queries, keys = place_shares(masks, PLACES), place_shares(torch.cat([masks, masks[:1]]), PLACES)
    num_groups, num_keys = {"spacetime": (1, 192), "space": (2, 96), "time": (96, 2)}[axes]
    even = map_shares(
        lambda rows: torch.full((num_groups, len(rows), num_keys), 1 / num_keys), axes, queries, keys, PLACES, PLACES
    )
    torch.testing.assert_close(even[0], even[1])
    if axes == "spacetime":
        torch.testing.assert_close(even[0, 0, :2], keys[:2].mean(dim=(1, 2, 3)))
    assert even[0, :, 4].tolist() == pytest.approx([1, 1])
    assert bool((even[:, :, 3] > 0).all()) == (axes != "space")  # nothing of another moment is in reach


def test_a_map_wholly_on_an_object_gives_it_everything() -> None:
    masks = torch.zeros(1, 4, 32, 48)
    masks[0, :, 9:24, 17:40] = 1
    queries = place_shares(masks, PLACES)
    full = (queries[0] > 0.999).flatten()
    row = full / full.sum()
    found = map_shares(
        lambda rows: row.expand(1, len(rows), -1), "spacetime", queries, torch.cat([queries, 0 * queries]), PLACES, PLACES
    )
    own, edge, other_moment, effective = found[0, 0].tolist()
    assert own == pytest.approx(1) and edge == 0 and other_moment == pytest.approx(0.5)
    assert effective == pytest.approx(float(full.sum()) / 192)
    assert own / float(found[1, 0, 0]) == pytest.approx(1 / float(queries.mean()))


@pytest.mark.parametrize("kind", ["nl", "dnl", "nl_own_mask", "pairwise", "gc"])
@pytest.mark.parametrize(
    ("axes", "key_pool"), [("spacetime", None), ("spacetime", (2, 2, 2)), ("space", (1, 2, 2)), ("time", None)]
)
def test_shares_are_those_of_loops_over_the_maps_of_single_points(kind: str, axes: str, key_pool) -> None:
    block, masks = _block(kind, axes=axes, key_pool=key_pool), _masks()
    places = grid_places((4, 32, 48), (2, 4, 6), temporal_pool=True)
    x = torch.randn(1, 8, *places.grid)
    found = block_shares(block, x, places, masks)
    queries, pixels = place_shares(masks, places), torch.cat([masks, outlines(masks)[None]])
    keys = place_shares(pixels, places if key_pool is None else places.pooled(key_pool))
    totals: dict[str, Tensor] = {}
    for cell in np.ndindex(*places.grid):
        of_query = queries[(slice(None), *cell)].tolist()
        if not any(of_query):
            continue
        maps = block_maps(block, x, places, [places.query(cell)])
        heats = {"attention" if "nl" in kind and kind != "dnl" else "pairwise": maps.maps[:1], "unary": [maps.unary]}
        heats |= {"pairwise term alone": maps.pairwise_terms, "unary term alone": [maps.unary_term]}
        now = cell[0] // (key_pool or (1,))[0]
        reach = {"spacetime": np.s_[:, :, :], "space": np.s_[now : now + 1], "time": np.s_[:, cell[1], cell[2]]}[axes]
        for name, heat in heats.items():
            if not heat or heat[0] is None:
                continue
            weights = torch.zeros_like(heat[0])
            weights[reach] = heat[0][reach] / heat[0][reach].sum()
            for label in (0, 1):
                sums = [float((weights * key).sum()) for key in keys]
                sums.append(sums[label] - float((weights[now] * keys[label][now]).sum()))
                sums.append(math.exp(float(torch.special.entr(weights).sum())) / weights[reach].numel())
                totals.setdefault(name, torch.zeros(2, 5))[label] += of_query[label] * torch.tensor(sums)
    assert totals.keys() == found.keys()
    for name, total in totals.items():
        torch.testing.assert_close(found[name][0], total / queries.sum(dim=(1, 2, 3))[:, None], rtol=1e-3, atol=1e-5)


def test_an_object_that_is_not_in_the_clip_has_no_numbers() -> None:
    masks = torch.cat([_masks(), torch.zeros(2, 4, 32, 48)])
    shares = block_shares(_block("dnl"), torch.randn(1, 8, *PLACES.grid), PLACES, masks)["pairwise"]
    assert shares[:, :2].isfinite().all() and shares[:, 2:].isnan().all()
    numbers = numbers_of(shares, "context")
    assert numbers["own_object"] == pytest.approx(shares[:, [0, 1], [0, 1]].mean(dim=1).tolist())
    assert all(math.isnan(number) for number in numbers["other_to_cue"])


def test_numbers_are_means_over_the_objects_that_they_are_of() -> None:
    shares = torch.arange(2 * 4 * 7.0).reshape(2, 4, 7)  # entry 28 s + 7 (query - 1) + (key - 1)
    first = {name: pair[0] for name, pair in numbers_of(shares, "context").items()}
    assert first["own_object"] == (0 + 8 + 16 + 24) / 4
    assert first["partner"] == (1 + 7 + (14 + 3) + (21 + 2)) / 4
    assert first["own_kind"] == first["own_object"] + first["partner"]
    assert first["other_colour"] == (2 + (7 + 3) + 14 + (21 + 1)) / 4
    assert (first["asked_to_cue"], first["other_to_cue"]) == (7, 14)
    assert first["objects"] == sum(range(4)) + 4 * 10.5 and first["outlines"] == 4 + 10.5
    assert (first["own_object_other_moments"], first["effective_keys"]) == (5 + 10.5, 6 + 10.5)
    assert numbers_of(shares, "context")["asked_to_cue"] == (7, 35)
    assert RELATIONS.keys() == TASKS.keys()
    for task, relations in RELATIONS.items():
        labels = {1} | {
            label for pairs in relations.values() for label in [*pairs, *(to for every in pairs.values() for to in every)]
        }
        assert max(labels) == len(TASKS[task].palette) // 3 - 1, "all labels of the masks, and no others"


def test_outlines_are_the_pixels_on_either_side_of_an_edge() -> None:
    masks = torch.zeros(2, 1, 8, 10)
    masks[0, 0, 2:6, 3:7] = 1
    masks[1, 0, 7, 0] = 1
    expected = torch.zeros(8, 10)
    expected[1:7, 2:8] = 1
    expected[3:5, 4:6] = 0
    expected[6:, :2] = 1  # in the corner of the frame there is no edge
    assert torch.equal(outlines(masks)[0], expected)
    assert not outlines(torch.ones(1, 1, 4, 4)).any()


def test_the_point_of_a_ring_lies_on_the_ring() -> None:
    y, x = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
    mask = torch.zeros(3, 32, 48)
    mask[1] = (((y - 14) ** 2 + (x - 20) ** 2).sqrt() - 7).abs() < 2
    point = point_on(mask)
    assert point.frame == 1 and mask[1, int(point.y * 32), int(point.x * 48)] == 1
    assert point_on(torch.zeros(1, 4, 4)) is None


def test_intervals_are_over_scenes_and_those_of_the_delta_method() -> None:
    rng = np.random.default_rng(0)
    even = rng.uniform(0.05, 0.15, 200)
    shares = even * rng.normal(2, 1, 200)
    ratio, low, high = ratio_interval(shares, even, np.arange(200))
    assert ratio == pytest.approx(shares.sum() / even.sum())
    half = 1.96 * (shares - ratio * even).std() / even.mean() / math.sqrt(200)
    assert (low, high) == pytest.approx((ratio - half, ratio + half), abs=0.1 * half)
    # four videos of each scene say no more than one
    again = ratio_interval(np.repeat(shares, 4), np.repeat(even, 4), np.repeat(np.arange(200) * 3, 4))
    assert again == pytest.approx((ratio, low, high))
    assert all(math.isnan(number) for number in ratio_interval(0 * shares, 0 * even, np.arange(200)))


def test_kinds_without_a_softmax_have_no_shares() -> None:
    without = {kind for kind, block in ATTENTION_KINDS.items() if not has_shares(block(8))}
    assert without == {"nl_dot_product", "nl_concatenation"}


def test_places_of_one_row_see_the_whole_length() -> None:
    places = Places(torch.zeros(1), torch.tensor([0.0, 16]), torch.zeros(1), (4, 32, 8))
    pixels = torch.rand(1, 4, 32, 8)
    assert float(place_shares(pixels, places)[0, 0, 1, 0]) == pytest.approx(
        float((pixels[0, :, 8:24].mean(dim=(0, 2)) * torch.tensor([0.5, *[1] * 15])).sum() + pixels[0, :, 24].mean() / 2)
        / 16
    )
