"""Measure how much of the maps of attention blocks falls on objects, in clips with known masks.

Letters: L labels of objects, from 1; N queries, M keys. The share of an object in a place is its share of the window around
the place, which is as wide as places lie apart. The map of an object is the mean over the maps of all queries, weighted by
the share of the object in their places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from videornn.data.synthetic.context_shapes import ASKED, CUE, DISTRACTOR, OTHER
from videornn.evaluation.paired import NUM_DRAWS
from videornn.explain.attention_maps import has_split, places_of_keys
from videornn.explain.attention_numbers import effective_keys
from videornn.explain.clip_places import Places, Query
from videornn.models.nonlocal_block import AttentionBlock, Axes, NonLocal, PairwiseNonLocal, UnaryNonLocal

RowsOfMap = Callable[[Tensor], Tensor]  # numbers of queries [R] -> their rows [groups, R, M]
_PARTNERS = {CUE: ASKED, ASKED: CUE, OTHER: DISTRACTOR, DISTRACTOR: OTHER}
# for every embedded set: the pairs of objects between which shares are measured
RELATIONS: dict[str, dict[str, dict[int, Iterable[int]]]] = {
    "motion": {"other_object": {1: (2,), 2: (1,)}},
    "context": {
        "own_kind": {label: (label, partner) for label, partner in _PARTNERS.items()},
        "partner": {label: (partner,) for label, partner in _PARTNERS.items()},
        "other_colour": {CUE: (OTHER,), ASKED: (DISTRACTOR,), DISTRACTOR: (ASKED,), OTHER: (CUE,)},
        "asked_to_cue": {ASKED: (CUE,)},
        "other_to_cue": {OTHER: (CUE,)},
    },
    "objects": {},
}


def has_shares(block: AttentionBlock) -> bool:
    """Return whether all weights of the block come from a softmax; others can be negative and do not sum to one."""
    return isinstance(block, (NonLocal, UnaryNonLocal))


def maps_of(block: AttentionBlock, x: Tensor) -> dict[str, RowsOfMap]:
    """Return the maps of a block for its input [1, C, T, H, W], as functions that give rows [groups, R, M] of sum 1."""
    pooled = block.key_pool(x)
    rows, unary = block.map_rows(x, pooled), block.unary_weights(x, pooled)
    maps: dict[str, RowsOfMap] = {}
    if rows is not None:
        maps["pairwise" if isinstance(block, PairwiseNonLocal) else "attention"] = rows
    if unary is not None:
        maps["unary"] = lambda rows: unary.unsqueeze(1).expand(-1, len(rows), -1)
    if has_split(block):
        maps["pairwise term alone"] = lambda rows: block.split(x, rows)[0].softmax(2)
        term = block.split(x, slice(0))[1].softmax(1)
        maps["unary term alone"] = lambda rows: term.unsqueeze(1).expand(-1, len(rows), -1)
    return maps


@torch.no_grad()
def block_shares(block: AttentionBlock, x: Tensor, places: Places, masks: Tensor) -> dict[str, Tensor]:
    """Compute map_shares of every map of a block, by name, for its input x [1, C, T', H', W'], which lies at places.

    Args:
        masks: share of every object in the pixels of the clip, float [L, T, H, W].
    """
    key_places = places_of_keys(block, places)
    queries = place_shares(masks, places).to(x.device)
    keys = place_shares(torch.cat([masks, outlines(masks)[None]]), key_places).to(x.device)
    return {
        name: map_shares(rows, block.axes, queries, keys, places, key_places) for name, rows in maps_of(block, x).items()
    }


def map_shares(rows: RowsOfMap, axes: Axes, queries: Tensor, keys: Tensor, places: Places, key_places: Places) -> Tensor:
    """Compute shares of the maps of L objects, float [2, L, L + 3]: of the map, and of an even one over its queries' reach.

    Columns: the share of the weight on every object; on outlines; on the object itself at other moments than the query's;
    and the share of the keys that a query effectively attends to. Rows of objects that are not in the clip are NaN.

    Args:
        queries: share of every object in the places of the queries, [L, t, h, w].
        keys: the same in those of the keys, and of outlines, [L + 1, t', h', w'].
    """
    num_labels, _, height, width = queries.shape
    targets, queries = keys.flatten(1).T, queries.flatten(2)
    totals = queries.new_zeros(2, num_labels, num_labels + 3)
    for step, frame in enumerate(places.frames.tolist()):
        weights = queries[:, step]
        cells = weights.sum(dim=0).nonzero()[:, 0]
        if len(cells) == 0:
            continue
        if axes == "time":
            seen = rows(cells.new_tensor([step]))[cells, 0]
        else:
            seen = rows(cells)[step] if axes == "space" else rows(step * height * width + cells)[0]
        for total, shares in zip(totals, (seen, torch.full_like(seen, 1 / seen.shape[1])), strict=True):
            grid = _on_grid(shares, axes, step, cells, key_places.grid)
            on = grid.flatten(1) @ targets
            grid[:, key_places.step(frame)] = 0
            elsewhere = grid.flatten(1) @ targets[:, :num_labels]
            of_object = weights[:, cells]
            total[:, : num_labels + 1] += of_object @ on
            total[:, num_labels + 1] += (of_object.T * elsewhere).sum(dim=0)
            total[:, num_labels + 2] += of_object @ effective_keys(shares)
    return (totals / queries.sum(dim=(1, 2)).unsqueeze(1)).cpu()


def numbers_of(shares: Tensor, task: str) -> dict[str, tuple[float, float]]:
    """Name the results of map_shares for a clip of an embedded set: of the map, and of an even one; NaN if not in the clip.

    They are means over the objects that are in the clip.
    """
    every = range(1, shares.shape[1] + 1)
    last = len(every)
    columns: dict[str, Mapping[int, Iterable[int]]] = {
        "own_object": {label: (label,) for label in every},
        "own_object_other_moments": dict.fromkeys(every, (last + 2,)),
        **RELATIONS[task],
        "objects": dict.fromkeys(every, every),
        "outlines": dict.fromkeys(every, (last + 1,)),
        "effective_keys": dict.fromkeys(every, (last + 3,)),
    }
    found = {}
    for name, pairs in columns.items():
        sums = [shares[:, label - 1, [column - 1 for column in to]].sum(dim=1) for label, to in pairs.items()]
        found[name] = tuple(torch.stack(sums).nanmean(dim=0).tolist())
    return found


def ratio_interval(shares: np.ndarray, even: np.ndarray, scenes: np.ndarray) -> tuple[float, float, float]:
    """Compute the ratio of two means over videos [V] and the ends of its bootstrapped 95 % interval; NaN if even is zero.

    scenes: int [V], of every video; videos of one scene are not independent, so whole scenes are resampled.
    """
    if not even.any():
        return math.nan, math.nan, math.nan
    of_scene = np.stack([np.bincount(scenes, values) for values in (shares, even)], axis=1)[np.bincount(scenes) > 0]
    rng, num = np.random.default_rng(0), len(of_scene)
    draws = np.concatenate([rng.multinomial(num, np.full(num, 1 / num), size=NUM_DRAWS // 10) @ of_scene for _ in range(10)])
    draws = draws[draws[:, 1] > 0]
    return float(shares.sum() / even.sum()), *np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975]).tolist()


def place_shares(pixels: Tensor, places: Places) -> Tensor:
    """Average pixels [C, T, H, W] over the windows of places to [C, t, h, w]."""
    axes = zip((places.frames, places.rows, places.columns), places.size, strict=True)
    return torch.einsum("cthw,at,bh,dw->cabd", pixels, *(windows(centres, length) for centres, length in axes))


def windows(centres: Tensor, length: int) -> Tensor:
    """Return weights [n, length], of sum 1, of the pixels around each of n places, as wide as their spacing, cut at ends."""
    reach = float(centres[1] - centres[0]) / 2 if len(centres) > 1 else length
    pixels = torch.arange(length)
    low, high = (centres - reach)[:, None], (centres + reach)[:, None]
    overlap = (torch.minimum(high, pixels + 0.5) - torch.maximum(low, pixels - 0.5)).clamp_min(0)
    return overlap / overlap.sum(dim=1, keepdim=True)


def outlines(masks: Tensor) -> Tensor:
    """Mark the pixels, float [T, H, W], at the edge of an object of masks [L, T, H, W]: one pixel wide on either side."""
    inside = (masks > 0.5).float()
    spread, kept = (max_pool2d(sign * inside, 3, stride=1, padding=1) * sign for sign in (1, -1))
    return (spread - kept).amax(dim=0)


def point_on(mask: Tensor) -> Query | None:
    """Find the point of an object, share of pixels [T, H, W], nearest to its middle, in the frame that shows most of it."""
    inside = mask > 0.5
    if not inside.any():
        return None
    frame = int(inside.sum(dim=(1, 2)).argmax())
    pixels = inside[frame].nonzero().float()
    y, x = pixels[(pixels - pixels.mean(dim=0)).norm(dim=1).argmin()].tolist()
    return Query(frame, (y + 0.5) / mask.shape[1], (x + 0.5) / mask.shape[2])


def _on_grid(weights: Tensor, axes: Axes, step: int, cells: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Put weights [R, M] of queries at cells of a time step onto the grid [R, t, h * w] of keys, zero out of reach."""
    if axes == "spacetime":
        return weights.reshape(len(cells), grid[0], -1).clone()
    whole = weights.new_zeros(len(cells), grid[0], grid[1] * grid[2])
    if axes == "space":
        whole[:, step] = weights
    else:
        whole[torch.arange(len(cells), device=cells.device), :, cells] = weights
    return whole
